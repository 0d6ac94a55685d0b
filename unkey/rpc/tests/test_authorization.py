"""Rules of permissions, and what they say when they refuse."""

import pytest

from unkey import errors
from unkey.actors import Principal
from unkey.rpc.authorization import T, U, authorize
from unkey.rpc.grants import grants

IDS = {"api": "api_1", "ks": "ks_1", "key": "key_1"}


def principal(*permissions: str) -> Principal:
    """Return who holds these permissions."""
    return Principal("ws_1", "rootkey", "key_r", "root", frozenset(permissions))


@pytest.mark.parametrize("held", ["api.*.read_key", "api.api_1.read_key"])
def test_a_tuple_is_satisfied_by_the_id_or_by_a_star(held: str) -> None:
    authorize(principal(held), T("api.{api}.read_key"), IDS)


@pytest.mark.parametrize("held", ["api.api_2.read_key", "api.*.*", "api.*.update_key", "api.api_1.read_keys"])
def test_a_tuple_is_literal(held: str) -> None:
    with pytest.raises(errors.InsufficientPermissions):
        authorize(principal(held), T("api.{api}.read_key"), IDS)


@pytest.mark.parametrize(
    ("grant", "wanted", "covered"),
    [
        ("keyspaces/ks_1/keys/key_1#read_key", "keyspaces/ks_1/keys/key_1#read_key", True),
        ("keyspaces/*/keys/*#read_key", "keyspaces/ks_1/keys/key_1#read_key", True),
        ("keyspaces/ks_1/**#read_key", "keyspaces/ks_1/keys/key_1#read_key", True),
        ("**#*", "keyspaces/ks_1/keys/key_1#read_key", True),
        ("**#*", "keyspaces/ks_1#create_key", True),
        ("keyspaces/**#*", "keyspaces/ks_1#create_key", True),
        ("keyspaces/ks_1/**#*", "keyspaces/ks_1#create_key", False),
        ("keyspaces/*#*", "keyspaces/ks_1#create_key", False),
        ("keyspaces/*#read_key", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("keyspaces/ks_2/keys/*#read_key", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("keyspaces/ks_1/keys/key_1#read_key", "keyspaces/ks_1/keys/*#read_key", False),
        ("keyspaces/ks_1/keys/*#read_key", "keyspaces/ks_1/keys/*#read_key", True),
        ("keyspaces/**/keys/key_1#read_key", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("keyspaces/ks_1/keys/key_1", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("keyspaces/ks_1/keys/key_1#", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("#read_key", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("keyspaces//keys/key_1#read_key", "keyspaces/ks_1/keys/key_1#read_key", False),
        ("", "keyspaces/ks_1/keys/key_1#read_key", False),
    ],
)
def test_grants_cover_what_their_path_says(grant: str, wanted: str, covered: bool) -> None:
    assert grants([f"unkey:v1:ws_1:{grant}"], f"unkey:v1:ws_1:{wanted}") is covered
    assert not grants([f"unkey:v1:ws_2:{grant}"], f"unkey:v1:ws_1:{wanted}")


@pytest.mark.parametrize(
    "held", ["unkey:v1:ws_1", "unkey:v1:", "unkey:v1::#", "unkey:v2:ws_1:**#*", "**#*", "*"]
)
def test_malformed_grants_never_match(held: str) -> None:
    assert not grants([held], "unkey:v1:ws_1:keyspaces/ks_1#create_key")


def test_refusals_name_what_is_missing() -> None:
    rule = (T("api.{api}.read_key") & T("rbac.*.add_role_to_key")) | U("keyspaces/{ks}/keys/{key}#update_key")
    with pytest.raises(errors.InsufficientPermissions) as one:
        authorize(principal(), T("api.*.create_api"), {})
    assert one.value.detail == "Missing permission: 'api.*.create_api'"
    with pytest.raises(errors.InsufficientPermissions) as several:
        authorize(principal("api.*.read_key"), rule, IDS)
    assert several.value.detail == (
        "Missing one of these permissions: api.*.read_key or api.api_1.read_key and rbac.*.add_role_to_key"
        " or unkey:v1:ws_1:keyspaces/ks_1/keys/key_1#update_key"
    )
    assert str(rule) == (
        "(api.{api}.read_key and rbac.*.add_role_to_key) or keyspaces/{ks}/keys/{key}#update_key"
    )
    assert rule.placeholders == {"api", "ks", "key"}
    authorize(principal("api.api_1.read_key", "rbac.*.add_role_to_key"), rule, IDS)


def test_a_mask_hides_that_the_thing_exists() -> None:
    with pytest.raises(errors.ApiNotFound):
        authorize(principal(), T("api.{api}.read_api"), IDS, masked=lambda: errors.ApiNotFound("gone"))
