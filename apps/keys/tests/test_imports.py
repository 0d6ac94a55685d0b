"""`keys.migrateKeys`: keys made elsewhere work here, at once or from their first use on."""

import hashlib
import json
from base64 import b64encode
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from apps.audit.models import AuditLog
from apps.keys.imports import stored_hash
from apps.keys.models import Identity, Key, KeyMigration, Permission, Role
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

PREFIXED = KeyMigration.Algorithm.PREFIXED.value
LONG = "51FwqftsmMDHHbJAMEXXHCgG"
TEXT = f"acme_BRTRKFsL_{LONG}"


def migration(tenant: Tenant, name: str = "acme-old", algorithm: str = "sha256") -> str:
    out = StringIO()
    command = ["--workspace", tenant.workspace.slug, "--name", name, "--algorithm", algorithm, "--json"]
    call_command("create_key_migration", *command, stdout=out)
    return str(json.loads(out.getvalue())["migration_id"])


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def import_keys(tenant: Tenant, api_id: str, *keys: dict[str, Any], name: str = "acme-old") -> Any:
    return tenant("keys.migrateKeys", {"migrationId": name, "apiId": api_id, "keys": list(keys)})


def test_keys_hashed_as_ours_work_at_once(tenant: Tenant, api_id: str) -> None:
    migration(tenant)
    first, second = b64encode(sha256("old-1")).decode(), sha256("old-2").hex()
    answer = import_keys(
        tenant,
        api_id,
        {
            "hash": first,
            "name": "first",
            "externalId": "ada@acme",
            "meta": {"plan": "pro"},
            "roles": ["reader"],
            "permissions": ["a", "b"],
            "expires": 4102444800000,
            "credits": {
                "remaining": 5,
                "refill": {"interval": "monthly", "amount": 9, "refillDay": 31},
            },
            "ratelimits": [{"name": "requests", "limit": 3, "duration": 60_000, "autoApply": True}],
        },
        {"hash": second, "enabled": False},
        {"hash": "not a hash"},
        {"hash": sha256("old-2").hex().upper()},
    )
    ids = {one["hash"]: one["keyId"] for one in answer["migrated"]}
    assert set(ids) == {first, second}
    assert answer["failed"] == ["not a hash", sha256("old-2").hex().upper()]

    shown = tenant("keys.getKey", {"keyId": ids[first]})
    assert shown["start"] == ""
    assert shown["credits"] == {
        "remaining": 5,
        "refill": {"interval": "monthly", "amount": 9, "refillDay": 31},
    }
    assert (shown["roles"], shown["permissions"]) == (["reader"], ["a", "b"])
    verified = tenant("keys.verifyKey", {"key": "old-1", "permissions": "a"})
    assert (verified["code"], verified["keyId"], verified["credits"]) == ("VALID", ids[first], 4)
    assert verified["identity"]["externalId"] == "ada@acme"
    assert verified["ratelimits"][0]["remaining"] == 2
    assert tenant("keys.verifyKey", {"key": "old-2"})["code"] == "DISABLED"

    again = import_keys(tenant, api_id, {"hash": first})
    assert again == {"migrated": [], "failed": [first]}
    with unscoped("test"):
        assert (Identity.objects.count(), Role.objects.count(), Permission.objects.count()) == (1, 1, 2)
        (row,) = AuditLog.objects.filter(event="key.create", meta={"migration": "acme-old"})
        assert [one["id"] for one in row.targets] == [api_id, *ids.values()]


def test_a_prefixed_key_is_taken_over_at_its_first_use(tenant: Tenant, api_id: str) -> None:
    given_id = migration(tenant, algorithm=PREFIXED)
    (made,) = import_keys(tenant, api_id, {"hash": sha256(LONG).hex()})["migrated"]
    unknown = {"valid": False, "code": "NOT_FOUND"}
    assert tenant("keys.verifyKey", {"key": TEXT}) == unknown
    assert tenant("keys.verifyKey", {"key": TEXT, "migrationId": "another"}) == unknown
    assert tenant("keys.verifyKey", {"key": f"acme_x_{LONG}y", "migrationId": "acme-old"}) == unknown
    version = Key.objects.unscoped("test").get().version

    taken = tenant("keys.verifyKey", {"key": TEXT, "migrationId": given_id})

    assert (taken["code"], taken["keyId"]) == ("VALID", made["keyId"])
    assert tenant("keys.verifyKey", {"key": TEXT})["code"] == "VALID"
    # Only the whole text is the key from now on.
    other = {"key": f"acme_other_{LONG}", "migrationId": "acme-old"}
    assert tenant("keys.verifyKey", other) == unknown
    key = Key.objects.unscoped("test").get()
    assert (key.start, key.pending_migration_id, key.version > version) == ("acme_BRTR", None, True)
    assert key.hash == b64encode(sha256(TEXT)).decode()


def test_only_who_may_verify_a_key_takes_it_over(tenant: Tenant, api_id: str) -> None:
    migration(tenant, algorithm=PREFIXED)
    import_keys(tenant, api_id, {"hash": sha256(LONG).hex()})
    key = Key.objects.unscoped("test").get()
    body = {"key": TEXT, "migrationId": "acme-old"}
    space = f"unkey:v1:{tenant.workspace.id}:keyspaces/{key.key_space_id}"
    for permission in ("api.*.read_key", "api.api_other.verify_key", f"{space}/keys/key_other#verify_key"):
        answer = tenant.holding(permission)("keys.verifyKey", body)
        assert answer == {"valid": False, "code": "NOT_FOUND"}
    with unscoped("test"):
        assert list(Key.objects.values_list("hash", "version")) == [(key.hash, key.version)]
    assert tenant.holding(f"{space}/keys/{key.pk}#verify_key")("keys.verifyKey", body)["valid"]


def test_another_workspace_takes_nothing_over(tenant: Tenant, stranger: Tenant, api_id: str) -> None:
    migration(tenant, algorithm=PREFIXED)
    import_keys(tenant, api_id, {"hash": sha256(LONG).hex()})
    migration(stranger, algorithm=PREFIXED)
    answer = stranger("keys.verifyKey", {"key": TEXT, "migrationId": "acme-old"})
    assert answer == {"valid": False, "code": "NOT_FOUND"}
    assert Key.objects.unscoped("test").get().pending_migration is not None
    theirs = stranger("apis.createApi", {"name": "theirs"})["apiId"]
    # That a hash exists elsewhere is all that can be learnt, as with the original.
    assert import_keys(stranger, theirs, {"hash": sha256(LONG).hex()})["migrated"] == []


def test_what_does_not_exist_or_fit_is_refused(tenant: Tenant, api_id: str) -> None:
    body = {"migrationId": "nobody", "apiId": api_id, "keys": [{"hash": "a" * 64}]}
    assert tenant.refused("keys.migrateKeys", body, 404)["type"].endswith("/migration_not_found")
    migration(tenant)
    body = {**body, "migrationId": "acme-old"}
    assert tenant.refused("keys.migrateKeys", {**body, "apiId": "api_nobody0"}, 404)["type"].endswith(
        "/api_not_found"
    )
    wrong = [
        {"hash": "a" * 64},
        {"hash": "b" * 64, "credits": {"remaining": None, "refill": {"interval": "daily", "amount": 1}}},
    ]
    (fault,) = tenant.refused("keys.migrateKeys", {**body, "keys": wrong}, 400)["errors"]
    assert fault["location"] == "body.keys[1].credits.remaining"
    assert not Key.objects.unscoped("test").exists()
    with pytest.raises(CommandError, match="already has a migration acme-old"):
        migration(tenant)


def test_a_thousand_keys_take_few_queries(
    tenant: Tenant, api_id: str, django_assert_max_num_queries: Any
) -> None:
    migration(tenant)
    keys = [
        {"hash": sha256(str(index)).hex(), "permissions": ["a"], "roles": ["r"], "externalId": "one"}
        for index in range(1000)
    ]
    with django_assert_max_num_queries(60):
        assert len(import_keys(tenant, api_id, *keys)["migrated"]) == 1000


@given(st.text())
def test_any_text_is_a_stored_hash_or_none(text: str) -> None:
    assert len(stored_hash("sha256", text)) in (0, 44)
    assert len(stored_hash(PREFIXED, text)) in (0, 64)
