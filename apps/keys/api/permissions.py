"""Operations on permissions and roles: `permissions.*`."""

from collections.abc import Sequence

from apps.keys import access, queries
from apps.keys.api.keys import CREATE_PERMISSION
from apps.keys.api.shapes import (
    KEY_ID,
    NOTHING,
    PERMISSION,
    ROLE,
    ROLE_NAME,
    SLUG,
    show_permissions,
    show_roles,
)
from apps.keys.models import Permission, Role
from unkey import errors
from unkey.partial import present
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import array, integer, nullable, obj, optional, string
from unkey.search import containing

DESCRIPTION = optional(string(0, 512))
LISTING = obj(
    {
        "limit": optional(integer(1, 100), default=100),
        "cursor": optional(string(0, 1024)),
        "search": optional(string(0, 256)),
    }
)


ADD_PERMISSION_TO_ROLE = T("rbac.*.add_permission_to_role") | U("rbac/roles/*#add_permission_to_role")
REMOVE_PERMISSION_FROM_ROLE = T("rbac.*.remove_permission_from_role") | U(
    "rbac/roles/*#remove_permission_from_role"
)


@route(
    "permissions.createPermission",
    request=obj({"name": string(1, 512), "slug": SLUG, "description": DESCRIPTION}),
    response=obj({"permissionId": KEY_ID}),
    permission=CREATE_PERMISSION,
    errors=[errors.PermissionAlreadyExists],
)
def create_permission(call: Call) -> JSON:
    """Make a permission."""
    body = call.body
    permission = access.create_permission(
        call.workspace_id,
        body["name"],
        body["slug"],
        description=body.get("description", ""),
        actor=call.actor,
    )
    return {"permissionId": permission.id}


@route(
    "permissions.getPermission",
    request=obj({"permission": SLUG}),
    response=PERMISSION,
    permission=T("rbac.*.read_permission") | U("rbac/permissions/*#read_permission"),
    errors=[errors.PermissionNotFound],
)
def get_permission(call: Call) -> JSON:
    """Return a permission by its id or slug."""
    call.authorize()
    return show_permissions([queries.get_permission(call.body["permission"])])[0]


@route(
    "permissions.listPermissions",
    request=LISTING,
    response=array(PERMISSION, most=1000),
    permission=T("rbac.*.read_permission") | U("rbac/permissions/*#read_permission"),
    paginated=True,
)
def list_permissions(call: Call) -> Page:
    """List the permissions, ordered by id."""
    call.authorize()
    rows = Permission.objects.all()
    if search := call.body.get("search"):
        rows = rows.filter(containing(search, "id", "name", "slug", "description"))
    return paginate(rows, call.body, show_permissions)


@route(
    "permissions.updatePermission",
    request=obj(
        {
            "permission": SLUG,
            "name": optional(string(1, 512)),
            "slug": optional(SLUG),
            "description": optional(nullable(string(0, 512))),
        }
    ),
    response=PERMISSION,
    permission=T("rbac.*.update_permission") | U("projects/*/rbac/permissions/{permission}#write"),
    errors=[errors.PermissionNotFound, errors.PermissionAlreadyExists],
)
def update_permission(call: Call) -> JSON:
    """Change what is mentioned of a permission; keys and roles keep it."""
    permission = queries.get_permission(call.body["permission"])
    call.authorize(permission=permission.id)
    given = present(call.body, name="name", slug="slug", description="description")
    return show_permissions([access.update_permission(permission, **given, actor=call.actor)])[0]


@route(
    "permissions.deletePermission",
    request=obj({"permission": SLUG}),
    response=NOTHING,
    permission=T("rbac.*.delete_permission") | U("rbac/permissions/*#delete_permission"),
    errors=[errors.PermissionNotFound],
)
def delete_permission(call: Call) -> JSON:
    """Delete a permission; no key and no role has it any more."""
    call.authorize()
    access.delete_permission(queries.get_permission(call.body["permission"]), actor=call.actor)
    return {}


@route(
    "permissions.createRole",
    request=obj(
        {"name": ROLE_NAME, "description": DESCRIPTION, "permissions": optional(array(SLUG, most=1000))}
    ),
    response=obj({"roleId": KEY_ID}),
    permission=T("rbac.*.create_role") | U("rbac/roles/*#create_role"),
    errors=[errors.RoleAlreadyExists],
)
def create_role(call: Call) -> JSON:
    """Make a role; permissions that do not exist are made."""
    call.authorize()
    body = call.body
    slugs = _distinct(body.get("permissions", []))
    if slugs:
        call.authorize(ADD_PERMISSION_TO_ROLE)
        _authorize_new(call, slugs)
    role = access.create_role(
        call.workspace_id,
        body["name"],
        description=body.get("description", ""),
        permissions=slugs,
        actor=call.actor,
    )
    return {"roleId": role.id}


@route(
    "permissions.getRole",
    request=obj({"role": ROLE_NAME}),
    response=ROLE,
    permission=T("rbac.*.read_role") | U("rbac/roles/*#read_role"),
    errors=[errors.RoleNotFound],
)
def get_role(call: Call) -> JSON:
    """Return a role by its id or name."""
    call.authorize()
    return show_roles([queries.get_role(call.body["role"])])[0]


@route(
    "permissions.listRoles",
    request=LISTING,
    response=array(ROLE, most=1000),
    permission=T("rbac.*.read_role") | U("rbac/roles/*#read_role"),
    paginated=True,
)
def list_roles(call: Call) -> Page:
    """List the roles with their permissions, ordered by id."""
    call.authorize()
    rows = Role.objects.prefetch_related("permissions")
    if search := call.body.get("search"):
        rows = rows.filter(containing(search, "id", "name", "description"))
    return paginate(rows, call.body, show_roles)


@route(
    "permissions.updateRole",
    request=obj(
        {
            "role": ROLE_NAME,
            "name": optional(ROLE_NAME),
            "description": optional(nullable(string(0, 512))),
        }
    ),
    response=obj({"id": string(), "name": string(), "description": optional(string())}),
    permission=T("rbac.*.update_role") | U("projects/*/rbac/roles/{role}#write"),
    errors=[errors.RoleNotFound, errors.RoleAlreadyExists],
)
def update_role(call: Call) -> JSON:
    """Change the name or the description of a role; keys keep it."""
    role = queries.get_role(call.body["role"])
    call.authorize(role=role.id)
    role = access.update_role(
        role, **present(call.body, name="name", description="description"), actor=call.actor
    )
    shown = {"id": role.id, "name": role.name}
    return shown | ({"description": role.description} if role.description else {})


@route(
    "permissions.deleteRole",
    request=obj({"role": ROLE_NAME}),
    response=NOTHING,
    permission=T("rbac.*.delete_role") | U("rbac/roles/*#delete_role"),
    errors=[errors.RoleNotFound],
)
def delete_role(call: Call) -> JSON:
    """Delete a role; no key has it any more."""
    call.authorize()
    access.delete_role(queries.get_role(call.body["role"]), actor=call.actor)
    return {}


@route(
    "permissions.setRolePermissions",
    request=obj(
        {"roleId": string(3, 255, pattern=r"^[a-zA-Z0-9_-]+$"), "permissions": array(SLUG, most=1000)}
    ),
    response=array(PERMISSION),
    permission=ADD_PERMISSION_TO_ROLE & REMOVE_PERMISSION_FROM_ROLE,
    errors=[errors.RoleNotFound],
)
def set_role_permissions(call: Call) -> JSON:
    """Give a role exactly these permissions; those that do not exist are made."""
    call.authorize()
    role = Role.objects.filter(pk=call.body["roleId"]).first()
    if role is None:
        raise queries.role_not_found(call.body["roleId"])
    slugs = _distinct(call.body["permissions"])
    _authorize_new(call, slugs)
    access.set_role_permissions(role, slugs, actor=call.actor)
    return show_permissions(role.permissions.order_by("slug"))


def _distinct(slugs: Sequence[str]) -> list[str]:
    """Return slugs once each, whatever their case; the first spelling stays."""
    return list({slug.lower(): slug for slug in reversed(slugs)}.values())[::-1]


def _authorize_new(call: Call, slugs: Sequence[str]) -> None:
    known = Permission.objects.filter(slug__in=slugs).values_list("slug", flat=True)
    if set(slugs).difference(known):
        call.authorize(CREATE_PERMISSION)
