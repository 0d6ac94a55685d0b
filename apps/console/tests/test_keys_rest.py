"""Keys, identities, permissions, roles, root keys and the audit log through `/api/`."""

from typing import Any

import pytest

from apps.audit import chain
from apps.audit.models import AuditLog
from apps.console.models import KeptAnswer
from apps.console.tests.conftest import Caller, Join
from apps.keys.models import Key
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(tenant: Tenant, join: Join) -> Caller:
    """An administrator of the workspace."""
    return join(tenant.workspace, "admin", "ada")


def made_key(caller: Caller, **more: Any) -> dict[str, Any]:
    """Make an API and a key of it."""
    api = caller("POST", "apis", {"name": "payments"})["id"]
    made: dict[str, Any] = caller("POST", f"apis/{api}/keys", more)
    return {**made, "api": api}


def test_a_key_that_is_made_by_a_person_verifies_and_its_row_names_them(
    tenant: Tenant, admin: Caller
) -> None:
    made = made_key(
        admin, name="first", externalId="customer", permissions=["read"], credits={"remaining": 3}
    )
    assert tenant("keys.verifyKey", {"key": made["plaintext"]})["code"] == "VALID"
    shown = admin("GET", f"keys/{made['keyId']}")
    assert (shown["name"], shown["permissions"], shown["credits"]) == ("first", ["read"], {"remaining": 2})
    assert made["plaintext"] not in str(shown)
    assert [key["keyId"] for key in admin("GET", f"apis/{made['api']}/keys")["items"]] == [made["keyId"]]
    with unscoped("test"):
        row = AuditLog.objects.get(event="key.create", actor_type="user")
    assert (row.actor_name, row.targets[0]["id"]) == ("ada", made["keyId"])


def test_what_is_changed_of_a_key_holds_at_once(tenant: Tenant, admin: Caller) -> None:
    made = made_key(admin)
    at = f"keys/{made['keyId']}"
    assert admin("PATCH", at, {"enabled": False, "name": "off"})["enabled"] is False
    assert tenant("keys.verifyKey", {"key": made["plaintext"]})["code"] == "DISABLED"
    admin("PATCH", at, {"enabled": True})
    assert admin("POST", f"{at}/credits", {"operation": "set", "value": 5})["remaining"] == 5
    again = admin("POST", f"{at}/reroll", {"expiration": 0})
    assert tenant("keys.verifyKey", {"key": again["plaintext"]})["code"] == "VALID"
    assert tenant("keys.verifyKey", {"key": made["plaintext"]})["code"] == "EXPIRED"
    admin("DELETE", at)
    admin.refused("GET", at, status=404)
    problem = admin.refused("POST", f"apis/{made['api']}/keys", {"byteLength": 1}, status=400)
    assert problem["violations"][0]["location"] == "body.byteLength"


def test_identities_permissions_and_roles_are_made_shown_changed_and_deleted(admin: Caller) -> None:
    identity = admin("POST", "identities", {"externalId": "customer", "meta": {"plan": "pro"}})
    assert admin("GET", "identities/customer") == identity
    assert admin("PATCH", f"identities/{identity['id']}", {"meta": {}})["id"] == identity["id"]
    assert [row["id"] for row in admin("GET", "identities?search=CUST")["items"]] == [identity["id"]]
    permission = admin("POST", "permissions", {"name": "Read", "slug": "read"})
    role = admin("POST", "roles", {"name": "reader"})
    assert [
        one["slug"] for one in admin("PUT", f"roles/{role['id']}", {"permissions": ["read"]})["permissions"]
    ] == ["read"]
    assert [row["slug"] for row in admin("GET", "permissions")["items"]] == ["read"]
    admin("DELETE", f"permissions/{permission['id']}")
    assert "permissions" not in admin("GET", "roles/reader")
    for path in (f"roles/{role['id']}", f"identities/{identity['id']}"):
        admin("DELETE", path)
        admin.refused("GET", path, status=404)


def test_a_root_key_of_a_person_works_until_it_is_stopped_and_is_shown_once(
    tenant: Tenant, admin: Caller
) -> None:
    body = {"name": "ci", "permissions": ["api.*.create_api"]}
    made = admin("POST", "root-keys", body, **{"Idempotency-Key": "one"})
    repeated = admin("POST", "root-keys", body, **{"Idempotency-Key": "one"})
    assert repeated == {**made, "plaintext": None}
    assert made["plaintext"] not in str(list(KeptAnswer.objects.values()))
    robot = Tenant(tenant.workspace, made["plaintext"])
    robot("apis.createApi", {"name": "abc"})
    at = f"root-keys/{made['keyId']}"
    shown = admin("GET", at)
    assert (shown["name"], shown["start"], shown["enabled"]) == ("ci", made["plaintext"][:10], True)
    assert made["keyId"] in {row["id"] for row in admin("GET", "root-keys?search=ci")["items"]}
    admin("PATCH", at, {"enabled": False})
    robot.refused("apis.createApi", {"name": "abc"}, 403)
    again = admin("POST", f"{at}/reroll", {"expiration": 0})
    admin.refused("GET", at, status=404)
    admin("PATCH", f"root-keys/{again['keyId']}", {"enabled": True})
    Tenant(tenant.workspace, again["plaintext"])("apis.createApi", {"name": "abc"})
    admin("DELETE", f"root-keys/{again['keyId']}")
    Tenant(tenant.workspace, again["plaintext"]).refused("apis.createApi", {"name": "abc"}, 401)


def test_keys_of_a_page_follow_each_other(admin: Caller) -> None:
    made = made_key(admin)
    for _ in range(4):
        admin("POST", f"apis/{made['api']}/keys", {})
    seen: list[str] = []
    cursor = ""
    while True:
        page = admin("GET", f"apis/{made['api']}/keys?limit=2{cursor}")
        seen += [key["keyId"] for key in page["items"]]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    with unscoped("test"):
        assert seen == sorted(Key.objects.values_list("pk", flat=True))


def test_the_audit_log_is_filtered_shows_changes_and_leaves_as_a_file(tenant: Tenant, admin: Caller) -> None:
    made = made_key(admin, name="first")
    admin("PATCH", f"keys/{made['keyId']}", {"name": "second"})
    chain.seal()
    (row,) = admin("GET", f"audit?event=key.update&target={made['keyId']}")["items"]
    assert row["changes"] == {"name": {"before": "first", "after": "second"}}
    assert row["sequence"] > 0
    assert len(row["hash"]) == 64
    both = admin("GET", f"audit?event=key.*&target={made['keyId']}")["items"]
    assert [one["event"] for one in both] == ["key.update", "key.create"]
    assert admin("GET", "audit?target=key_nobody")["items"] == []
    with unscoped("test"):
        count = AuditLog.objects.filter(workspace=tenant.workspace).count()
    answer = admin.send("GET", "audit/export")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert len(answer.body) == count
    assert [line["event"] for line in admin("GET", "audit/export?event=key.update")] == ["key.update"]


def test_a_list_of_keys_costs_the_same_whatever_its_length(
    admin: Caller, django_assert_max_num_queries: Any
) -> None:
    made = made_key(admin, externalId="customer", permissions=["read"], credits={"remaining": 3})
    for number in range(6):
        body = {"externalId": f"customer-{number}", "permissions": ["read"], "credits": {"remaining": 3}}
        admin("POST", f"apis/{made['api']}/keys", body)
    with django_assert_max_num_queries(16):
        assert len(admin("GET", f"apis/{made['api']}/keys")["items"]) == 7


def test_overrides_of_a_namespace_hold_for_the_limits_in_it(tenant: Tenant, admin: Caller) -> None:
    made = admin("POST", "ratelimits", {"name": "logins"})
    at = f"ratelimits/{made['id']}"
    limit = {"namespace": "logins", "identifier": "ada", "limit": 5, "duration": 60_000}
    assert tenant("ratelimit.limit", limit)["success"] is True
    override = admin("PUT", f"{at}/overrides", {"identifier": "ada", "limit": 0, "duration": 60_000})
    assert admin("GET", f"{at}/overrides") == {"items": [override], "nextCursor": None}
    assert tenant("ratelimit.limit", limit)["success"] is False
    admin("DELETE", f"{at}/overrides", {"identifier": "ada"})
    assert tenant("ratelimit.limit", limit)["success"] is True
    assert admin("PATCH", at, {"name": "sign-ins"})["name"] == "sign-ins"
    assert [row["id"] for row in admin("GET", "ratelimits?search=SIGN")["items"]] == [made["id"]]
    admin("DELETE", at)
    admin.refused("GET", at, status=404)
