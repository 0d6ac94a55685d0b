"""`identities.*`: users of a customer's, found by either name, with limits that their keys share."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.cluster.models import Stream
from apps.keys.models import Identity, Ratelimit
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

LIMITS = [
    {"name": "requests", "limit": 10, "duration": 60_000, "autoApply": True},
    {"name": "tokens", "limit": 500, "duration": 1_000},
]


def make(tenant: Tenant, name: str = "ada", **more: Any) -> str:
    return str(tenant("identities.createIdentity", {"externalId": name, **more})["identityId"])


def events() -> list[str]:
    with unscoped("test"):
        return list(
            AuditLog.objects.filter(event__regex="^(identity|ratelimit)")
            .order_by("time")
            .values_list("event", flat=True)
        )


def test_an_identity_is_found_by_either_name(tenant: Tenant) -> None:
    identity = make(tenant, meta={"plan": "pro"}, ratelimits=LIMITS)
    assert identity.startswith("id_")
    shown = tenant("identities.getIdentity", {"identity": "ada"})
    assert shown == tenant("identities.getIdentity", {"identity": identity})
    assert [limit.pop("id")[:3] for limit in shown["ratelimits"]] == ["rl_", "rl_"]
    assert shown == {
        "id": identity,
        "externalId": "ada",
        "meta": {"plan": "pro"},
        "ratelimits": [LIMITS[0], {**LIMITS[1], "autoApply": False}],
    }
    assert events() == ["identity.create", "ratelimit.create", "ratelimit.create"]


def test_an_id_goes_before_an_external_id(tenant: Tenant) -> None:
    first = make(tenant)
    make(tenant, first)
    assert tenant("identities.getIdentity", {"identity": first})["externalId"] == "ada"


def test_an_external_id_is_given_once(tenant: Tenant) -> None:
    make(tenant)
    error = tenant.refused("identities.createIdentity", {"externalId": "ada"}, 409)
    assert error["type"].endswith("/unkey/data/identity_already_exists")
    assert events() == ["identity.create"]


def test_an_update_replaces_what_it_mentions(tenant: Tenant) -> None:
    identity = make(tenant, meta={"plan": "pro"}, ratelimits=LIMITS)
    before = {
        one["name"]: one["id"] for one in tenant("identities.getIdentity", {"identity": "ada"})["ratelimits"]
    }
    changed = tenant(
        "identities.updateIdentity",
        {
            "identity": "ada",
            "ratelimits": [{**LIMITS[0], "limit": 11}, {"name": "new", "limit": 1, "duration": 1000}],
        },
    )
    assert changed["meta"] == {"plan": "pro"}
    after = {one["name"]: (one["id"], one["limit"]) for one in changed["ratelimits"]}
    assert after["requests"] == (before["requests"], 11)
    assert set(after) == {"requests", "new"}
    cleared = tenant("identities.updateIdentity", {"identity": identity, "meta": {}})
    assert "meta" not in cleared
    assert len(cleared["ratelimits"]) == 2
    assert events()[3:] == [
        "identity.update", "ratelimit.delete", "ratelimit.update", "ratelimit.create", "identity.update",
    ]  # fmt: skip


def test_every_change_reaches_the_edges(tenant: Tenant) -> None:
    def seen() -> tuple[int, int]:
        with unscoped("test"):
            row = Identity.objects.get()
            return row.version, Stream.objects.get(name=row.stream).version

    make(tenant)
    versions = [seen()]
    for operation, body in (
        ("updateIdentity", {"ratelimits": LIMITS}),
        ("updateIdentity", {"meta": {"a": 1}}),
        ("deleteIdentity", {}),
    ):
        tenant(f"identities.{operation}", {"identity": "ada", **body})
        versions.append(seen())
    assert all(row == head for row, head in versions)
    assert versions == sorted(set(versions))


@pytest.mark.usefixtures("window_start")
def test_keys_of_a_deleted_identity_go_on_without_it(tenant: Tenant, api_id: str) -> None:
    identity = make(
        tenant, ratelimits=[{"name": "requests", "limit": 1, "duration": 60_000, "autoApply": True}]
    )
    key = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})["key"]
    assert tenant("keys.verifyKey", {"key": key})["identity"]["id"] == identity
    assert tenant("keys.verifyKey", {"key": key})["code"] == "RATE_LIMITED"
    assert tenant("identities.deleteIdentity", {"identity": "ada"}) is None
    verified = tenant("keys.verifyKey", {"key": key})
    assert verified["valid"]
    assert "identity" not in verified
    tenant.refused("identities.getIdentity", {"identity": "ada"}, 404)
    tenant.refused("identities.deleteIdentity", {"identity": identity}, 404)
    with unscoped("test"):
        assert not Ratelimit.objects.exists()


def test_a_name_is_free_again_after_deletion(tenant: Tenant) -> None:
    make(tenant, meta={"old": True}, ratelimits=LIMITS)
    tenant("identities.deleteIdentity", {"identity": "ada"})
    identity = make(tenant)
    assert tenant("identities.getIdentity", {"identity": "ada"}) == {"id": identity, "externalId": "ada"}


def test_identities_are_listed_in_pages_and_searched(tenant: Tenant, stranger: Tenant) -> None:
    make(stranger, "theirs")
    made = {make(tenant, name): name for name in ("ada", "bob", "Adam")}
    listed, cursor = [], None
    while True:
        page = tenant.full("identities.listIdentities", {"limit": 1} | ({"cursor": cursor} if cursor else {}))
        listed += page["data"]
        cursor = page["pagination"].get("cursor")
        if not page["pagination"]["hasMore"]:
            break
    assert [one["id"] for one in listed] == sorted(made)
    found = tenant("identities.listIdentities", {"search": "ADA"})
    assert sorted(one["externalId"] for one in found) == ["Adam", "ada"]
    assert tenant("identities.listIdentities", {"search": "%"}) == []


def test_one_identity_that_may_not_be_read_fails_the_page(tenant: Tenant) -> None:
    first, second = make(tenant), make(tenant, "bob")
    one = tenant.holding(f"identity.{first}.read_identity")
    assert one("identities.listIdentities", {"search": "ada"})[0]["id"] == first
    one.refused("identities.listIdentities", {}, 403)
    both = tenant.holding(f"identity.{first}.read_identity", f"identity.{second}.read_identity")
    assert len(both("identities.listIdentities", {})) == 2


@pytest.mark.parametrize("operation", ["createIdentity", "updateIdentity"])
def test_what_is_too_large_or_doubled_is_refused(tenant: Tenant, operation: str) -> None:
    named = {"externalId": "new"} if operation == "createIdentity" else {"identity": make(tenant)}
    large = tenant.refused(f"identities.{operation}", {**named, "meta": {"a": "x" * 1024 * 1024}}, 400)
    assert [fault["location"] for fault in large["errors"]] == ["body.meta"]
    double = tenant.refused(f"identities.{operation}", {**named, "ratelimits": [LIMITS[0], LIMITS[0]]}, 400)
    assert [fault["location"] for fault in double["errors"]] == ["body.ratelimits[1].name"]
