"""Which permissions each operation on APIs and keys takes, and what it says without them."""

from typing import Any

import pytest

from apps.keys.models import Api, KeyMigration, KeySpace, Permission, Role
from unkey.rpc.routes import routes
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

API, KEY, FORBIDDEN = "api_not_found", "key_not_found", "insufficient_permissions"

# operation: what stands in the body, sets of permissions that suffice, what is said without them
TABLE: dict[str, tuple[dict[str, Any], list[list[str]], str]] = {
    "apis.createApi": ({"name": "abc"}, [["api.*.create_api"]], FORBIDDEN),
    "apis.getApi": ({"apiId": 1}, [["api.*.read_api"], ["api.API.read_api"]], FORBIDDEN),
    "apis.deleteApi": ({"apiId": 1}, [["api.*.delete_api"], ["api.API.delete_api"]], FORBIDDEN),
    "apis.listKeys": (
        {"apiId": 1},
        [
            ["api.*.read_key", "api.API.read_api"],
            ["keyspaces/SPACE/keys/*#read_key", "keyspaces/*#read_keyspace"],
        ],
        API,
    ),
    "keys.createKey": ({"apiId": 1}, [["api.API.create_key"], ["keyspaces/SPACE#create_key"]], API),
    "keys.migrateKeys": (
        {"apiId": 1, "migrationId": "old", "keys": [{"hash": "a" * 64}]},
        [["api.API.create_key"], ["api.*.create_key"]],
        FORBIDDEN,
    ),
    "keys.getKey": ({"keyId": 1}, [["api.API.read_key"], ["keyspaces/SPACE/keys/KEY#read_key"]], FORBIDDEN),
    "keys.whoami": ({"key": 1}, [["api.API.read_key"], ["keyspaces/*/keys/*#read_key"]], KEY),
    "keys.updateKey": ({"keyId": 1}, [["api.*.update_key"], ["keyspaces/**#update_key"]], FORBIDDEN),
    "keys.updateCredits": (
        {"keyId": 1, "operation": "set", "value": 1},
        [["api.*.update_key"], ["keyspaces/SPACE/**#*"]],
        FORBIDDEN,
    ),
    "keys.deleteKey": ({"keyId": 1}, [["api.*.delete_key"], ["**#delete_key"]], FORBIDDEN),
    "keys.rerollKey": (
        {"keyId": 1, "expiration": 0},
        [["api.*.create_key"], ["keyspaces/*#create_key"]],
        FORBIDDEN,
    ),
    "keys.addPermissions": (
        {"keyId": 1, "permissions": ["held"]},
        [["api.*.update_key", "rbac.*.add_permission_to_key"], ["keyspaces/*/keys/*#update_key"]],
        FORBIDDEN,
    ),
    "keys.removePermissions": (
        {"keyId": 1, "permissions": ["held"]},
        [["api.*.update_key", "rbac.*.remove_permission_from_key"], ["keyspaces/*/keys/*#update_key"]],
        FORBIDDEN,
    ),
    "keys.setPermissions": (
        {"keyId": 1, "permissions": ["held"]},
        [
            ["api.*.update_key", "rbac.*.add_permission_to_key", "rbac.*.remove_permission_from_key"],
            ["keyspaces/*/keys/*#update_key"],
        ],
        FORBIDDEN,
    ),
    "keys.addRoles": (
        {"keyId": 1, "roles": ["editor"]},
        [["api.*.update_key", "rbac.*.add_role_to_key"], ["keyspaces/*/keys/*#update_key"]],
        FORBIDDEN,
    ),
    "keys.removeRoles": (
        {"keyId": 1, "roles": ["editor"]},
        [["api.*.update_key"], ["**#update_key"]],
        FORBIDDEN,
    ),
    "keys.setRoles": (
        {"keyId": 1, "roles": ["editor"]},
        [["api.*.update_key"], ["**#update_key"]],
        FORBIDDEN,
    ),
    "identities.createIdentity": (
        {"externalId": "someone"},
        [["identity.*.create_identity"], ["projects/*/identities/*#create_identity"]],
        FORBIDDEN,
    ),
    "identities.getIdentity": (
        {"identity": "ada"},
        [
            ["identity.*.read_identity"],
            ["identity.IDENTITY.read_identity"],
            ["projects/*/identities/*#read_identity"],
        ],
        FORBIDDEN,
    ),
    "identities.listIdentities": (
        {},
        [["identity.*.read_identity"], ["identity.IDENTITY.read_identity"]],
        FORBIDDEN,
    ),
    "identities.updateIdentity": ({"identity": "ada"}, [["identity.*.update_identity"]], FORBIDDEN),
    "identities.deleteIdentity": ({"identity": "ada"}, [["identity.*.delete_identity"]], FORBIDDEN),
    "permissions.createPermission": (
        {"name": "Fresh", "slug": "fresh"},
        [["rbac.*.create_permission"]],
        FORBIDDEN,
    ),
    "permissions.getPermission": ({"permission": "held"}, [["rbac.*.read_permission"]], FORBIDDEN),
    "permissions.listPermissions": ({}, [["rbac.*.read_permission"]], FORBIDDEN),
    "permissions.updatePermission": (
        {"permission": "held", "name": "Held"},
        [["rbac.*.update_permission"], ["projects/*/rbac/permissions/*#write"]],
        FORBIDDEN,
    ),
    "permissions.updateRole": (
        {"role": "editor", "description": "edits"},
        [["rbac.*.update_role"], ["projects/*/rbac/roles/*#write"]],
        FORBIDDEN,
    ),
    "permissions.deletePermission": ({"permission": "held"}, [["rbac.*.delete_permission"]], FORBIDDEN),
    "permissions.createRole": (
        {"name": "fresh", "permissions": ["new"]},
        [
            ["rbac.*.create_role", "rbac.*.add_permission_to_role", "rbac.*.create_permission"],
            ["rbac.*.create_role", "rbac.*.add_permission_to_role", "rbac/permissions/*#create_permission"],
        ],
        FORBIDDEN,
    ),
    "permissions.getRole": ({"role": "editor"}, [["rbac.*.read_role"]], FORBIDDEN),
    "permissions.listRoles": ({}, [["rbac.*.read_role"]], FORBIDDEN),
    "permissions.deleteRole": ({"role": "editor"}, [["rbac.*.delete_role"]], FORBIDDEN),
    "permissions.setRolePermissions": (
        {"roleId": 1, "permissions": ["held"]},
        [["rbac.*.add_permission_to_role", "rbac.*.remove_permission_from_role"]],
        FORBIDDEN,
    ),
}
CASES = [(operation, index) for operation, row in TABLE.items() for index in range(len(row[1]))]


@pytest.fixture
def rows(tenant: Tenant) -> dict[str, str]:
    """An API, a key of it, its key space, a role and a permission."""
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    made = tenant("keys.createKey", {"apiId": api_id, "permissions": ["held"]})
    with unscoped("test"):
        role = Role.objects.create(workspace=tenant.workspace, name="editor")
        KeyMigration.objects.create(workspace=tenant.workspace, name="old", algorithm="sha256")
        space = Api.objects.get(pk=api_id).key_space_id
    identity = tenant("identities.createIdentity", {"externalId": "ada"})["identityId"]
    return {
        "apiId": api_id,
        "keyId": made["keyId"],
        "key": made["key"],
        "space": space,
        "identityId": identity,
        "roleId": role.id,
    }


def body_of(operation: str, rows: dict[str, str]) -> dict[str, Any]:
    """Return the body of the table with the rows' ids in it."""
    return {name: rows.get(name, value) for name, value in TABLE[operation][0].items()}


def granted(tenant: Tenant, rows: dict[str, str], permissions: list[str]) -> list[str]:
    """Return permissions of the table with the rows' ids in them."""
    ids = {
        "API": rows["apiId"],
        "KEY": rows["keyId"],
        "SPACE": rows["space"],
        "IDENTITY": rows["identityId"],
    }
    filled = []
    for permission in permissions:
        for word, value in ids.items():
            permission = permission.replace(word, value)
        filled.append(f"unkey:v1:{tenant.workspace.id}:{permission}" if "#" in permission else permission)
    return filled


def test_the_table_knows_every_operation() -> None:
    ours = {name for name in routes() if name.startswith(("apis.", "keys.", "identities.", "permissions."))}
    # verifyKey does not refuse: it answers "not found" (test_verify.py).
    assert ours == set(TABLE) | {"keys.verifyKey"}


@pytest.mark.parametrize(("operation", "index"), CASES)
def test_each_set_suffices_and_no_part_of_it_does(
    tenant: Tenant, rows: dict[str, str], operation: str, index: int
) -> None:
    _, sets, said = TABLE[operation]
    permissions, body = granted(tenant, rows, sets[index]), body_of(operation, rows)
    for missing in permissions:
        partly = tenant.holding(*[one for one in permissions if one != missing])
        status = 403 if said == FORBIDDEN else 404
        error = partly.refused(operation, body, status)
        assert error["type"].endswith(f"/{said}")
        if said == FORBIDDEN:
            assert error["title"] == "Insufficient Permissions"
            assert error["detail"].startswith(("Missing permission: '", "Missing one of these permissions: "))
    tenant.holding(*permissions)(operation, body)


@pytest.mark.parametrize("permission", ["api.*.encrypt_key", "keyspaces/*/keys/*#encrypt_key"])
def test_a_recoverable_key_needs_a_permission_of_its_own(
    tenant: Tenant, rows: dict[str, str], permission: str
) -> None:
    KeySpace.objects.unscoped("test").update(store_encrypted_keys=True)
    body = {"apiId": rows["apiId"], "recoverable": True}
    tenant.holding("api.*.create_key").refused("keys.createKey", body, 404)
    encrypting = tenant.holding("api.*.create_key", *granted(tenant, rows, [permission]))
    made = encrypting("keys.createKey", body)
    reroll = {"keyId": made["keyId"], "expiration": 0}
    tenant.holding("api.*.create_key").refused("keys.rerollKey", reroll, 403)
    new = encrypting("keys.rerollKey", reroll)
    assert tenant("keys.getKey", {"keyId": new["keyId"], "decrypt": True})["plaintext"] == new["key"]


def test_a_refused_operation_makes_nothing(tenant: Tenant, rows: dict[str, str]) -> None:
    body = {"keyId": rows["keyId"], "permissions": ["fresh"]}
    tenant.holding("api.*.read_key").refused("keys.setPermissions", body, 403)
    with unscoped("test"):
        assert list(Permission.objects.values_list("slug", flat=True)) == ["held"]
