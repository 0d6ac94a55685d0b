"""`keys.verifyKey` answered by web."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from apps.keys.models import Api, Identity, Key, Ratelimit
from apps.workspaces.services import set_workspace_enabled
from unkey import clock
from unkey.rpc.testing import TESTS, Tenant
from unkey.tenancy import unscoped

MakeKey = Callable[..., Any]
WINDOW = 60_000


@pytest.fixture
def window() -> Any:
    """Start at the beginning of a minute that no test has used, so that no window turns in between."""
    wait = WINDOW - clock.now_ms() % WINDOW + 10 * WINDOW
    with clock.shifted(timedelta(milliseconds=wait)):
        yield


def test_a_valid_key_is_told_with_all_that_is_known_of_it(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(
        name="Ada's key",
        meta={"plan": "pro"},
        externalId="ada",
        permissions=["b", "a"],
        expires=4102444800000,
        credits={"remaining": 5},
    )
    answer = tenant("keys.verifyKey", {"key": made["key"]})
    identity = answer.pop("identity")
    assert identity["externalId"] == "ada"
    assert answer.pop("keyspaceId") == Key.objects.unscoped("test").get(pk=made["keyId"]).key_space_id
    assert answer == {
        "valid": True,
        "code": "VALID",
        "keyId": made["keyId"],
        "name": "Ada's key",
        "meta": {"plan": "pro"},
        "expires": 4102444800000,
        "enabled": True,
        "permissions": ["a", "b"],
        "roles": [],
        "credits": 4,
    }


def test_disabled_and_expired_keys_say_so(tenant: Tenant, make_key: MakeKey) -> None:
    disabled, expired = make_key(enabled=False), make_key(expires=clock.now_ms() - 1)
    for made, code in ((disabled, "DISABLED"), (expired, "EXPIRED")):
        answer = tenant("keys.verifyKey", {"key": made["key"]})
        assert (answer["valid"], answer["code"], answer["keyId"]) == (False, code, made["keyId"])


@pytest.mark.parametrize("permission", ["api.*.read_key", "api.api_other.verify_key"])
def test_without_the_permission_a_key_is_bare_not_found(
    tenant: Tenant, make_key: MakeKey, permission: str
) -> None:
    made = make_key(credits={"remaining": 5})
    limited = tenant.holding(permission)
    body = {"key": made["key"], "permissions": "(("}
    assert limited("keys.verifyKey", body) == {"valid": False, "code": "NOT_FOUND"}
    assert Key.objects.unscoped("test").get(pk=made["keyId"]).remaining == 5


def test_the_permission_may_be_for_one_api_or_one_key(tenant: Tenant, api_id: str, make_key: MakeKey) -> None:
    made = make_key()
    space = Key.objects.unscoped("test").get(pk=made["keyId"]).key_space_id
    for permission in (
        f"api.{api_id}.verify_key",
        f"unkey:v1:{tenant.workspace.id}:keyspaces/{space}/keys/{made['keyId']}#verify_key",
        f"unkey:v1:{tenant.workspace.id}:keyspaces/**#verify_key",
    ):
        assert tenant.holding(permission)("keys.verifyKey", {"key": made["key"]})["valid"]


def test_a_permission_query_is_asked_and_its_syntax_checked(tenant: Tenant, make_key: MakeKey) -> None:
    key = make_key(permissions=["a", "b"])["key"]
    assert tenant("keys.verifyKey", {"key": key, "permissions": "a and (b or c)"})["valid"]
    refused = tenant("keys.verifyKey", {"key": key, "permissions": "a and c"})
    assert refused["code"] == "INSUFFICIENT_PERMISSIONS"
    error = tenant.refused("keys.verifyKey", {"key": key, "permissions": "a and"}, 400)
    assert error["type"].endswith("/user/bad_request/permissions_query_syntax_error")
    assert error["errors"] == []
    assert tenant("keys.verifyKey", {"key": "nobody", "permissions": "a and"})["code"] == "NOT_FOUND"


def test_credits_are_spent_to_the_last_and_not_beyond(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(credits={"remaining": 5})

    def spend(cost: int | None = None) -> tuple[str, int]:
        credits = {} if cost is None else {"credits": {"cost": cost}}
        answer = tenant("keys.verifyKey", {"key": made["key"], **credits})
        return answer["code"], answer["credits"]

    assert spend() == ("VALID", 4)
    assert spend(3) == ("VALID", 1)
    assert spend(2) == ("USAGE_EXCEEDED", 1)
    assert spend(0) == ("VALID", 1)
    assert spend() == ("VALID", 0)
    assert spend() == ("USAGE_EXCEEDED", 0)
    assert spend(0) == ("VALID", 0)
    assert tenant("keys.getKey", {"keyId": made["keyId"]})["credits"] == {"remaining": 0}


@pytest.mark.usefixtures("window")
def test_rate_limits_come_before_credits(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(
        credits={"remaining": 10},
        ratelimits=[{"name": "requests", "limit": 2, "duration": WINDOW, "autoApply": True}],
    )
    answers = [tenant("keys.verifyKey", {"key": made["key"]}) for _ in range(3)]
    assert [answer["code"] for answer in answers] == ["VALID", "VALID", "RATE_LIMITED"]
    assert [answer["credits"] for answer in answers] == [9, 8, 8]
    (limit,) = answers[2]["ratelimits"]
    assert limit["id"].startswith("rl_")
    assert limit["reset"] % WINDOW == 0
    assert {
        name: limit[name] for name in ("exceeded", "name", "limit", "duration", "remaining", "autoApply")
    } == {
        "exceeded": True,
        "name": "requests",
        "limit": 2,
        "duration": WINDOW,
        "remaining": 0,
        "autoApply": True,
    }


@pytest.mark.usefixtures("window")
def test_limits_may_be_named_or_given_with_the_request(tenant: Tenant, make_key: MakeKey) -> None:
    key = make_key(ratelimits=[{"name": "tokens", "limit": 5, "duration": WINDOW}])["key"]
    assert "ratelimits" not in tenant("keys.verifyKey", {"key": key})
    named = tenant("keys.verifyKey", {"key": key, "ratelimits": [{"name": "tokens", "cost": 4}]})
    assert named["ratelimits"][0]["remaining"] == 1
    given = tenant(
        "keys.verifyKey", {"key": key, "ratelimits": [{"name": "adhoc", "limit": 1, "duration": WINDOW}]}
    )
    assert (given["ratelimits"][0]["id"], given["ratelimits"][0]["remaining"]) == ("", 0)
    error = tenant.refused("keys.verifyKey", {"key": key, "ratelimits": [{"name": "ghost"}]}, 412)
    assert "ghost" in error["detail"]


@pytest.mark.usefixtures("window")
def test_limits_of_an_identity_are_shared_by_its_keys(tenant: Tenant, make_key: MakeKey) -> None:
    first, second = make_key(externalId="ada"), make_key(externalId="ada")
    with unscoped("test"):
        Ratelimit.objects.create(
            workspace=tenant.workspace,
            identity=Identity.objects.get(),
            name="shared",
            limit=1,
            duration_ms=WINDOW,
            auto_apply=True,
        )
    codes = [tenant("keys.verifyKey", {"key": made["key"]})["code"] for made in (first, second)]
    assert codes == ["VALID", "RATE_LIMITED"]


def test_the_ip_list_of_an_api_admits_addresses_and_networks(
    tenant: Tenant, api_id: str, make_key: MakeKey
) -> None:
    key = make_key()["key"]
    Api.objects.unscoped("test").filter(pk=api_id).update(ip_whitelist="203.0.113.9, 10.0.0.0/8")

    def code(address: str) -> str:
        return str(tenant("keys.verifyKey", {"key": key}, **{"X-Forwarded-For": address})["code"])

    assert [code(address) for address in ("203.0.113.9", "10.9.8.7", "203.0.113.8")] == [
        "VALID",
        "VALID",
        "FORBIDDEN",
    ]


def test_a_disabled_workspace_answers_nobody(tenant: Tenant, make_key: MakeKey) -> None:
    key = make_key()["key"]
    set_workspace_enabled(tenant.workspace, False, actor=TESTS)
    assert tenant.send("keys.verifyKey", {"key": key}).status == 403


def test_a_key_of_another_key_space_than_those_asked_for_is_not_found_and_spends_nothing(
    tenant: Tenant, make_key: MakeKey
) -> None:
    made = make_key(credits={"remaining": 5})
    space = tenant("keys.verifyKey", {"key": made["key"]})["keyspaceId"]
    for keyspaces, valid in (
        ([space], True),
        (["ks_other", space], True),
        (["ks_other"], False),
        ([], False),
    ):
        answer = tenant("keys.verifyKey", {"key": made["key"], "keyspaces": keyspaces})
        assert answer["valid"] is valid
        if not valid:
            assert answer == {"valid": False, "code": "NOT_FOUND"}
    assert Key.objects.unscoped("test").get(pk=made["keyId"]).remaining == 2
