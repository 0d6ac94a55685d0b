"""`keys.*` through HTTP: what is stored, shown and refused."""

import base64
import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError

from apps.audit import services as audit
from apps.audit.models import AuditLog
from apps.cluster.models import Stream
from apps.keys.models import CreditLease, EncryptedKey, Identity, Key, Permission, Ratelimit, Role
from apps.workspaces.models import shard_of
from unkey import clock
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

MakeKey = Callable[..., Any]

FULL = {
    "prefix": "acme",
    "name": "Ada's key",
    "byteLength": 24,
    "externalId": "user_ada",
    "meta": {"plan": "pro", "seats": [1, 2.5, None]},
    "permissions": ["documents.read", "documents.write", "documents.read"],
    "expires": 4102444799123,
    "credits": {"remaining": 10, "refill": {"interval": "monthly", "amount": 100, "refillDay": 31}},
    "ratelimits": [{"name": "requests", "limit": 5, "duration": 60000, "autoApply": True}],
    "enabled": False,
}


def events(tenant: Tenant) -> list[str]:
    """Return the tenant's audit events in order."""
    with unscoped("test"):
        rows = AuditLog.objects.filter(workspace=tenant.workspace).order_by("time", "pk")
        return [row.event for row in rows]


def test_a_key_is_shown_as_it_was_made(tenant: Tenant, make_key: MakeKey) -> None:
    with unscoped("test"):
        Role.objects.create(workspace=tenant.workspace, name="editor").permissions.add(
            Permission.objects.create(workspace=tenant.workspace, slug="pages.edit", name="pages.edit")
        )
    made = make_key(**FULL, roles=["editor"])

    assert made["key"].startswith("acme_")
    shown = tenant("keys.getKey", {"keyId": made["keyId"]})
    identity_id = shown["identity"].pop("id")
    assert identity_id.startswith("id_")
    assert shown.pop("createdAt") <= clock.now_ms()
    (limit,) = shown.pop("ratelimits")
    assert limit.pop("id").startswith("rl_")
    assert limit == {"name": "requests", "limit": 5, "duration": 60000, "autoApply": True}
    assert shown == {
        "keyId": made["keyId"],
        "start": made["key"][:9],
        "enabled": False,
        "name": "Ada's key",
        "meta": {"plan": "pro", "seats": [1, 2.5, None]},
        "expires": 4102444799123,
        "permissions": ["documents.read", "documents.write", "pages.edit"],
        "roles": ["editor"],
        "credits": {
            "remaining": 10,
            "refill": {"interval": "monthly", "amount": 100, "refillDay": 31},
        },
        "identity": {"externalId": "user_ada"},
    }


def test_the_least_key_has_only_what_must_be(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key()
    shown = tenant("keys.getKey", {"keyId": made["keyId"]})
    assert set(shown) == {"keyId", "start", "enabled", "createdAt"}
    assert shown["enabled"] is True
    assert shown["start"] == made["key"][:4]


def test_only_the_hash_of_a_key_is_stored(make_key: MakeKey) -> None:
    made = make_key(byteLength=255)
    row = Key.objects.unscoped("test").get(pk=made["keyId"])
    assert row.hash == base64.b64encode(hashlib.sha256(made["key"].encode()).digest()).decode()
    assert len(made["key"]) > 340
    stored = [str(value) for value in vars(row).values()]
    assert not any(made["key"] in value for value in stored)


def test_an_identity_is_made_once_and_shared(tenant: Tenant, make_key: MakeKey) -> None:
    first, second = make_key(externalId="ada"), make_key(externalId="ada")
    shown = [tenant("keys.getKey", {"keyId": made["keyId"]})["identity"]["id"] for made in (first, second)]
    assert shown[0] == shown[1]
    assert Identity.objects.unscoped("test").count() == 1


def test_permissions_are_made_and_roles_are_not(tenant: Tenant, api_id: str, make_key: MakeKey) -> None:
    make_key(permissions=["a", "b"])
    make_key(permissions=["b", "c"])
    with unscoped("test"):
        assert sorted(Permission.objects.values_list("slug", flat=True)) == ["a", "b", "c"]
    count = Key.objects.unscoped("test").count()

    error = tenant.refused("keys.createKey", {"apiId": api_id, "roles": ["ghost"]}, 404)

    assert error["detail"] == "The role ghost does not exist."
    assert error["type"].endswith("/unkey/data/role_not_found")
    assert Key.objects.unscoped("test").count() == count


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (
            {"credits": {"remaining": None, "refill": {"interval": "daily", "amount": 1}}},
            "body.credits.remaining",
        ),
        (
            {"credits": {"remaining": 1, "refill": {"interval": "monthly", "amount": 1}}},
            "body.credits.refill.refillDay",
        ),
        (
            {"ratelimits": [{"name": "abc", "limit": 1, "duration": 1000}] * 2},
            "body.ratelimits[1].name",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tenant: Tenant, api_id: str, body: dict[str, Any], location: str
) -> None:
    error = tenant.refused("keys.createKey", {"apiId": api_id, **body}, 400)
    assert [fault["location"] for fault in error["errors"]] == [location]
    assert Key.objects.unscoped("test").count() == 0


def test_a_daily_refill_ignores_the_day_when_made_and_refuses_it_when_changed(
    tenant: Tenant, make_key: MakeKey
) -> None:
    refill = {"interval": "daily", "amount": 5, "refillDay": 3}
    made = make_key(credits={"remaining": 1, "refill": refill})
    shown = tenant("keys.getKey", {"keyId": made["keyId"]})
    assert shown["credits"]["refill"] == {"interval": "daily", "amount": 5}
    error = tenant.refused("keys.updateKey", {"keyId": made["keyId"], "credits": {"refill": refill}}, 400)
    assert error["errors"][0]["location"] == "body.credits.refill.refillDay"


def test_an_update_changes_only_what_it_mentions(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(**FULL)
    about = {"keyId": made["keyId"]}
    before = tenant("keys.getKey", about)

    assert tenant("keys.updateKey", about) == {}

    after = tenant("keys.getKey", about)
    assert after.pop("updatedAt") >= before["createdAt"]
    assert after == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": None}, "name"),
        ({"externalId": None}, "identity"),
        ({"meta": None}, "meta"),
        ({"expires": None}, "expires"),
        ({"credits": None}, "credits"),
        ({"credits": {"remaining": None}}, "credits"),
        ({"ratelimits": []}, "ratelimits"),
        ({"permissions": []}, "permissions"),
    ],
)
def test_null_and_empty_lists_clear(
    tenant: Tenant, make_key: MakeKey, change: dict[str, Any], field: str
) -> None:
    about = {"keyId": make_key(**FULL)["keyId"]}
    before = tenant("keys.getKey", about)
    tenant("keys.updateKey", {**about, **change})
    after = tenant("keys.getKey", about)
    assert field in before
    assert set(before) - set(after) == {field}


def test_values_replace(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key(**FULL)["keyId"]}
    kept = tenant("keys.getKey", about)["ratelimits"][0]["id"]
    tenant(
        "keys.updateKey",
        {
            **about,
            "name": "Grace's key",
            "externalId": "user_grace",
            "meta": {"plan": "free"},
            "expires": 4000000000000,
            "credits": {"remaining": 7, "refill": None},
            "enabled": True,
            "permissions": ["documents.write", "documents.delete"],
            "ratelimits": [
                {"name": "tokens", "limit": 9, "duration": 1000},
                {"name": "requests", "limit": 6, "duration": 60000},
            ],
        },
    )
    shown = tenant("keys.getKey", about)
    assert shown["name"] == "Grace's key"
    assert shown["identity"]["externalId"] == "user_grace"
    assert shown["meta"] == {"plan": "free"}
    assert shown["expires"] == 4000000000000
    assert shown["credits"] == {"remaining": 7}
    assert shown["enabled"] is True
    assert shown["permissions"] == ["documents.delete", "documents.write"]
    requests, tokens = shown["ratelimits"]
    assert (requests["id"], requests["limit"], requests["autoApply"]) == (kept, 6, False)
    assert tokens["name"] == "tokens"


def test_a_refill_alone_leaves_the_balance_and_its_leases(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key(credits={"remaining": 3})["keyId"]}
    refill = {"interval": "daily", "amount": 5}
    tenant("keys.updateKey", {**about, "credits": {"refill": refill}})
    assert tenant("keys.getKey", about)["credits"] == {"remaining": 3, "refill": refill}
    assert Key.objects.unscoped("test").get(pk=about["keyId"]).credits_epoch == 0


def test_leased_credits_count_until_a_new_balance_voids_them(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key(credits={"remaining": 3})["keyId"]}
    CreditLease.objects.create(
        workspace=tenant.workspace,
        key_id=about["keyId"],
        edge_id="edge-1",
        epoch=0,
        amount=5,
        spent=1,
        expires_at=clock.now() + timedelta(minutes=1),
    )
    assert tenant("keys.getKey", about)["credits"] == {"remaining": 7}

    tenant("keys.updateKey", {**about, "credits": {"remaining": 50}})

    assert tenant("keys.getKey", about)["credits"] == {"remaining": 50}
    assert not CreditLease.objects.filter(key_id=about["keyId"]).exists()
    assert Key.objects.unscoped("test").get(pk=about["keyId"]).credits_epoch == 1


def test_a_deleted_key_is_gone(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key()
    about = {"keyId": made["keyId"]}
    assert tenant("keys.deleteKey", about) == {}
    for operation in ("keys.getKey", "keys.updateKey", "keys.deleteKey"):
        assert tenant.refused(operation, about, 404)["type"].endswith("/unkey/data/key_not_found")
    tenant.refused("keys.whoami", {"key": made["key"]}, 404)
    assert tenant("keys.verifyKey", {"key": made["key"]}) == {"valid": False, "code": "NOT_FOUND"}


def test_a_permanently_deleted_key_leaves_nothing_of_its_own(
    tenant: Tenant, make_key: MakeKey, recoverable: None
) -> None:
    made = make_key(**FULL, recoverable=True)
    tenant("keys.deleteKey", {"keyId": made["keyId"], "permanent": True})
    with unscoped("test"):
        row = Key.objects.get(pk=made["keyId"])
        assert row.deleted_at is not None
        assert (row.name, row.start, row.meta, row.identity_id, row.remaining) == ("", "", {}, None, None)
        assert not row.permissions.exists()
        assert not Ratelimit.objects.exists()
        assert not EncryptedKey.objects.exists()


def test_a_recoverable_key_is_decrypted_for_those_who_may(
    tenant: Tenant, api_id: str, make_key: MakeKey, recoverable: None
) -> None:
    made, plain = make_key(recoverable=True), make_key()
    assert made["key"] not in EncryptedKey.objects.get(pk=made["keyId"]).ciphertext

    shown = tenant("keys.getKey", {"keyId": made["keyId"], "decrypt": True})
    assert shown["plaintext"] == made["key"]
    assert "plaintext" not in tenant("keys.getKey", {"keyId": made["keyId"]})
    assert "plaintext" not in tenant("keys.getKey", {"keyId": plain["keyId"], "decrypt": True})
    listed = tenant("apis.listKeys", {"apiId": api_id, "decrypt": True})
    assert {key["keyId"]: key.get("plaintext") for key in listed} == {
        made["keyId"]: made["key"],
        plain["keyId"]: None,
    }

    reader = tenant.holding("api.*.read_key", "api.*.read_api")
    reader.refused("keys.getKey", {"keyId": made["keyId"], "decrypt": True}, 403)
    reader.refused("apis.listKeys", {"apiId": api_id, "decrypt": True}, 403)


def test_a_key_space_without_encryption_refuses_recoverable_keys(
    tenant: Tenant, api_id: str, make_key: MakeKey
) -> None:
    error = tenant.refused("keys.createKey", {"apiId": api_id, "recoverable": True}, 412)
    assert error["title"] == "Precondition Failed"
    tenant.refused("keys.getKey", {"keyId": make_key()["keyId"], "decrypt": True}, 412)


def test_whoami_shows_a_key_by_its_text_and_spends_nothing(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(credits={"remaining": 1}, name="mine")
    assert tenant("keys.whoami", {"key": made["key"]}) == tenant("keys.getKey", {"keyId": made["keyId"]})
    assert (
        tenant.refused("keys.whoami", {"key": "nobody"}, 404)["detail"] == "The provided key does not exist."
    )


@pytest.mark.parametrize(
    ("start", "operation", "value", "end"),
    [
        (5, "set", 3, 3),
        (5, "set", None, None),
        (None, "set", 0, 0),
        (5, "increment", 2, 7),
        (5, "decrement", 2, 3),
        (5, "decrement", 9, 0),
        (1, "increment", 2**63 - 1, 2**63 - 1),
    ],
)
def test_credits_are_set_raised_and_lowered(
    tenant: Tenant, make_key: MakeKey, start: int | None, operation: str, value: int | None, end: int | None
) -> None:
    about = {"keyId": make_key(**({} if start is None else {"credits": {"remaining": start}}))["keyId"]}
    answer = tenant("keys.updateCredits", {**about, "operation": operation, "value": value})
    assert answer == {"remaining": end}
    assert tenant("keys.getKey", about).get("credits", {"remaining": None}) == {"remaining": end}


def test_credits_of_an_unlimited_key_cannot_be_raised(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key()["keyId"]}
    tenant.refused("keys.updateCredits", {**about, "operation": "increment", "value": 1}, 400)
    tenant.refused("keys.updateCredits", {**about, "operation": "decrement"}, 400)
    tenant.refused("keys.updateCredits", {**about, "operation": "set"}, 400)


def test_a_reroll_copies_the_settings_and_ends_the_old_key(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key(**{**FULL, "enabled": True})
    new = tenant("keys.rerollKey", {"keyId": made["keyId"], "expiration": 0})
    old_shown = tenant("keys.getKey", {"keyId": made["keyId"]})
    new_shown = tenant("keys.getKey", {"keyId": new["keyId"]})
    assert new["key"].startswith("acme_")
    for shown in (old_shown, new_shown):
        for field in ("keyId", "start", "createdAt", "updatedAt"):
            shown.pop(field, None)
        for limit in shown["ratelimits"]:
            limit.pop("id")
    assert old_shown.pop("expires") <= clock.now_ms()
    assert new_shown.pop("expires") == FULL["expires"]
    assert old_shown == new_shown
    with clock.shifted(timedelta(seconds=1)):
        assert tenant("keys.verifyKey", {"key": made["key"]})["code"] == "EXPIRED"
        assert tenant("keys.verifyKey", {"key": new["key"]})["code"] == "VALID"


def test_the_grace_of_a_reroll_ends_at_a_full_minute(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key()
    earliest = clock.now_ms() + 90_000
    tenant("keys.rerollKey", {"keyId": made["keyId"], "expiration": 90_000})
    expires = tenant("keys.getKey", {"keyId": made["keyId"]})["expires"]
    assert expires % 60_000 == 0
    assert earliest <= expires < earliest + 120_000


def test_a_reroll_without_an_end_leaves_the_old_key_as_it_is(tenant: Tenant, make_key: MakeKey) -> None:
    for made in (make_key(), make_key(expires=4102444800000)):
        before = tenant("keys.getKey", {"keyId": made["keyId"]})
        tenant("keys.rerollKey", {"keyId": made["keyId"], "expiration": None})
        after = tenant("keys.getKey", {"keyId": made["keyId"]})
        assert after.get("expires") == before.get("expires")
        assert tenant("keys.verifyKey", {"key": made["key"]})["valid"]


def test_permissions_are_added_removed_and_set(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key(permissions=["a"])["keyId"]}

    def slugs(operation: str, *permissions: str) -> list[str]:
        answer = tenant(operation, {**about, "permissions": list(permissions)})
        return [permission["slug"] for permission in answer]

    assert slugs("keys.addPermissions", "b", "a") == ["a", "b"]
    assert slugs("keys.removePermissions", "a") == ["b"]
    assert slugs("keys.removePermissions", "a") == ["b"]
    assert slugs("keys.setPermissions", "c", "a") == ["a", "c"]
    assert slugs("keys.setPermissions") == []
    tenant.refused("keys.removePermissions", {**about, "permissions": ["never"]}, 404)


def test_roles_are_added_removed_and_set(tenant: Tenant, make_key: MakeKey) -> None:
    with unscoped("test"):
        for name in ("admin", "editor", "viewer"):
            Role.objects.create(workspace=tenant.workspace, name=name)
    about = {"keyId": make_key(roles=["admin"])["keyId"]}

    def names(operation: str, *roles: str) -> list[str]:
        return [role["name"] for role in tenant(operation, {**about, "roles": list(roles)})]

    assert names("keys.addRoles", "editor", "admin") == ["admin", "editor"]
    assert names("keys.removeRoles", "admin", "viewer") == ["editor"]
    assert names("keys.setRoles", "viewer") == ["viewer"]
    assert names("keys.setRoles") == []
    for operation in ("keys.addRoles", "keys.removeRoles", "keys.setRoles"):
        tenant.refused(operation, {**about, "roles": ["ghost"]}, 404)


def test_making_a_permission_needs_a_permission_of_its_own(tenant: Tenant, make_key: MakeKey) -> None:
    about = {"keyId": make_key(permissions=["known"])["keyId"]}
    assigner = tenant.holding("api.*.update_key", "rbac.*.add_permission_to_key")
    assigner("keys.addPermissions", {**about, "permissions": ["known"]})
    error = assigner.refused("keys.addPermissions", {**about, "permissions": ["fresh"]}, 403)
    assert "rbac.*.create_permission" in error["detail"]
    assert not Permission.objects.unscoped("test").filter(slug="fresh").exists()


def test_every_change_is_audited(tenant: Tenant, make_key: MakeKey) -> None:
    with unscoped("test"):
        Role.objects.create(workspace=tenant.workspace, name="editor")
    made = make_key(permissions=["a"], roles=["editor"], externalId="ada")
    tenant("keys.updateKey", {"keyId": made["keyId"], "name": "x", "permissions": [], "roles": []})
    tenant("keys.deleteKey", {"keyId": made["keyId"]})
    assert sorted(events(tenant)[3:]) == sorted(
        [
            "identity.create",
            "key.create",
            "permission.create",
            "authorization.connect_permission_and_key",
            "authorization.connect_role_and_key",
            "key.update",
            "authorization.disconnect_permission_and_key",
            "authorization.disconnect_role_and_key",
            "key.delete",
        ]
    )


@pytest.mark.parametrize(
    "operation", ["keys.createKey", "keys.updateKey", "keys.deleteKey", "apis.deleteApi"]
)
def test_without_its_audit_row_a_change_does_not_happen(
    tenant: Tenant, api_id: str, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    made = make_key()
    stream = f"keys:{shard_of(tenant.workspace.id)}"

    def state() -> Any:
        with unscoped("test"):
            return (
                list(Key.objects.values()),
                list(Stream.objects.filter(name=stream).values()),
                events(tenant),
                tenant.send("apis.getApi", {"apiId": api_id}).status,
            )

    before = state()

    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise DatabaseError("disk full")

    body = (
        {"apiId": api_id} if operation in ("keys.createKey", "apis.deleteApi") else {"keyId": made["keyId"]}
    )
    with monkeypatch.context() as patch:
        patch.setattr(audit, "record", broken)
        error = tenant.refused(operation, body, 500)

    assert "disk full" not in error["detail"]
    assert state() == before


def test_each_change_of_a_key_has_a_new_version(tenant: Tenant, make_key: MakeKey) -> None:
    made = make_key()
    seen = []
    changes: list[dict[str, Any]] = [{"enabled": False}, {"permissions": ["a"]}, {"ratelimits": []}]
    for body in changes:
        tenant("keys.updateKey", {"keyId": made["keyId"], **body})
        row = Key.objects.unscoped("test").get(pk=made["keyId"])
        assert row.shard == shard_of(tenant.workspace.id)
        seen.append(row.version)
    assert seen == sorted(set(seen))
