"""`permissions.*`: permissions and roles, and what becomes of the keys that hold them."""

from typing import Any

from apps.audit.models import AuditLog
from apps.keys.models import Key, Permission, Role
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

READ = {"name": "Read books", "slug": "books.read", "description": "all of them"}


def events(*names: str) -> list[str]:
    with unscoped("test"):
        rows = AuditLog.objects.filter(event__regex="^(permission|role|authorization)").order_by("time")
        return list(rows.values_list("event", flat=True))


def allowed(tenant: Tenant, key: str, query: str) -> bool:
    return bool(tenant("keys.verifyKey", {"key": key, "permissions": query})["valid"])


def test_a_permission_is_found_by_either_name(tenant: Tenant) -> None:
    made = tenant("permissions.createPermission", READ)["permissionId"]
    for name in (made, "books.read"):
        assert tenant("permissions.getPermission", {"permission": name}) == {"id": made, **READ}
    error = tenant.refused("permissions.createPermission", {**READ, "name": "again"}, 409)
    assert error["type"].endswith("/unkey/data/permission_already_exists")
    assert events() == ["permission.create"]


def test_a_deleted_permission_is_held_by_nobody(tenant: Tenant, api_id: str) -> None:
    role = {"name": "reader", "permissions": ["books.read"]}
    tenant("permissions.createRole", role)
    direct = tenant("keys.createKey", {"apiId": api_id, "permissions": ["books.read"]})
    through = tenant("keys.createKey", {"apiId": api_id, "roles": ["reader"]})
    other = tenant("keys.createKey", {"apiId": api_id, "permissions": ["books.write"]})
    with unscoped("test"):
        before = dict(Key.objects.values_list("id", "version")) | dict(
            Role.objects.values_list("id", "version")
        )
    assert allowed(tenant, direct["key"], "books.read")
    assert allowed(tenant, through["key"], "books.read")

    assert tenant("permissions.deletePermission", {"permission": "books.read"}) == {}

    assert not allowed(tenant, direct["key"], "books.read")
    assert not allowed(tenant, through["key"], "books.read")
    with unscoped("test"):
        after = dict(Key.objects.values_list("id", "version")) | dict(
            Role.objects.values_list("id", "version")
        )
        role_id = Role.objects.get().id
    grown = {row for row in before if after[row] > max(before.values())}
    assert grown == {direct["keyId"], role_id}
    assert after[other["keyId"]] == before[other["keyId"]]
    tenant.refused("permissions.deletePermission", {"permission": "books.read"}, 404)


def test_a_role_holds_permissions_and_makes_those_that_are_new(tenant: Tenant) -> None:
    tenant("permissions.createPermission", READ)
    body = {
        "name": "reader",
        "description": "reads",
        "permissions": ["books.read", "BOOKS.READ", "books.list"],
    }
    role = tenant("permissions.createRole", body)["roleId"]
    for name in (role, "reader"):
        shown = tenant("permissions.getRole", {"role": name})
        assert (shown["id"], shown["name"], shown["description"]) == (role, "reader", "reads")
        assert sorted(one["slug"] for one in shown["permissions"]) == ["books.list", "books.read"]
    error = tenant.refused("permissions.createRole", {"name": "reader"}, 409)
    assert error["type"].endswith("/unkey/data/role_already_exists")
    assert events() == [
        "permission.create", "role.create", "permission.create", "authorization.connect_role_and_permission",
    ]  # fmt: skip


def test_a_role_is_given_exactly_these_permissions(tenant: Tenant, api_id: str) -> None:
    role = tenant("permissions.createRole", {"name": "reader", "permissions": ["a", "b"]})["roleId"]
    key = tenant("keys.createKey", {"apiId": api_id, "roles": ["reader"]})["key"]

    def put(*slugs: str) -> list[Any]:
        listed = tenant("permissions.setRolePermissions", {"roleId": role, "permissions": list(slugs)})
        return [one["slug"] for one in listed]

    assert put("b", "c") == ["b", "c"]
    assert [allowed(tenant, key, slug) for slug in "abc"] == [False, True, True]
    assert put() == []
    assert [allowed(tenant, key, slug) for slug in "abc"] == [False, False, False]
    tenant.refused("permissions.setRolePermissions", {"roleId": "role_nobody", "permissions": []}, 404)
    tenant.refused("permissions.setRolePermissions", {"roleId": "reader", "permissions": []}, 404)


def test_a_deleted_role_is_held_by_nobody(tenant: Tenant, api_id: str) -> None:
    tenant("permissions.createRole", {"name": "reader", "permissions": ["a"]})
    made = tenant("keys.createKey", {"apiId": api_id, "roles": ["reader"]})
    with unscoped("test"):
        before = Key.objects.get().version
    assert tenant("permissions.deleteRole", {"role": "reader"}) == {}
    assert not allowed(tenant, made["key"], "a")
    assert "roles" not in tenant("keys.getKey", {"keyId": made["keyId"]})
    with unscoped("test"):
        assert Key.objects.get().version > before
        assert Permission.objects.filter(slug="a").exists()
    tenant.refused("permissions.deleteRole", {"role": "reader"}, 404)


def test_both_are_listed_in_order_and_searched(tenant: Tenant, stranger: Tenant) -> None:
    stranger("permissions.createRole", {"name": "theirs", "permissions": ["theirs"]})
    for name in ("reader", "writer"):
        tenant(
            "permissions.createRole", {"name": name, "description": f"a {name}", "permissions": [f"{name}.x"]}
        )
    roles = tenant("permissions.listRoles", {})
    assert [one["id"] for one in roles] == sorted(one["id"] for one in roles)
    assert {one["name"]: [held["slug"] for held in one["permissions"]] for one in roles} == {
        "reader": ["reader.x"],
        "writer": ["writer.x"],
    }
    assert [one["name"] for one in tenant("permissions.listRoles", {"search": "A READ"})] == ["reader"]
    permissions = tenant("permissions.listPermissions", {"limit": 1})
    assert len(permissions) == 1
    found = tenant("permissions.listPermissions", {"search": "WRITER"})
    assert [one["slug"] for one in found] == ["writer.x"]


def test_a_permission_that_gets_another_slug_stays_with_its_keys_and_roles(
    tenant: Tenant, api_id: str
) -> None:
    made = tenant("permissions.createPermission", READ)["permissionId"]
    tenant("permissions.createPermission", {"name": "Taken", "slug": "taken"})
    tenant("permissions.createRole", {"name": "reader", "permissions": ["books.read"]})
    direct = tenant("keys.createKey", {"apiId": api_id, "permissions": ["books.read"]})
    through = tenant("keys.createKey", {"apiId": api_id, "roles": ["reader"]})
    before = {key["keyId"]: Key.objects.unscoped("test").get(pk=key["keyId"]).version for key in (direct,)}

    body = {"permission": "books.read", "slug": "books.see", "description": None}
    assert tenant("permissions.updatePermission", body) == {
        "id": made,
        "name": "Read books",
        "slug": "books.see",
    }

    for key in (direct, through):
        assert allowed(tenant, key["key"], "books.see")
        assert not allowed(tenant, key["key"], "books.read")
    assert Key.objects.unscoped("test").get(pk=direct["keyId"]).version > before[direct["keyId"]]
    assert tenant("permissions.updatePermission", {"permission": made})["slug"] == "books.see"
    error = tenant.refused("permissions.updatePermission", {"permission": made, "slug": "taken"}, 409)
    assert error["type"].endswith("/unkey/data/permission_already_exists")
    assert events().count("permission.update") == 1


def test_a_role_that_is_renamed_stays_with_its_keys(tenant: Tenant, api_id: str) -> None:
    made = tenant("permissions.createRole", {"name": "reader", "description": "reads"})["roleId"]
    tenant("permissions.createRole", {"name": "taken"})
    key = tenant("keys.createKey", {"apiId": api_id, "roles": ["reader"]})

    changed = tenant("permissions.updateRole", {"role": "reader", "name": "viewer", "description": ""})

    assert changed == {"id": made, "name": "viewer"}
    assert tenant("keys.verifyKey", {"key": key["key"]})["roles"] == ["viewer"]
    tenant.refused("permissions.updateRole", {"role": made, "name": "taken"}, 409)
    tenant.refused("permissions.updateRole", {"role": "reader", "name": "again"}, 404)
    assert events().count("role.update") == 1
