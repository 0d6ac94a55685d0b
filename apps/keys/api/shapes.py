"""Forms that several operations of this app share: parts of requests and answers."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import QuerySet

from apps.keys.models import Identity, Permission, Ratelimit, Role
from apps.keys.queries import HeldLimit
from apps.keys.values import NamedLimit
from unkey import errors
from unkey.errors import Violation
from unkey.rpc.schema import anything, array, boolean, identifier, integer, obj, optional, string

KEY_ID = identifier(3)
SLUG = string(1, 128, pattern=r"^[a-zA-Z0-9_:\-\.\*]+$")
ROLE_NAME = string(1, 128)
EXTERNAL_ID = string(1, 255, pattern=r"^[a-zA-Z0-9_.-]+$")
META = anything(100)
NOTHING = obj({})
RATELIMIT_REQUEST = obj(
    {
        "name": string(3, 128),
        "limit": integer(1),
        "duration": integer(1000),
        "autoApply": optional(boolean(), default=False),
    }
)
RATELIMIT_RESPONSE = obj(
    {
        "id": string(),
        "name": string(1, 128),
        "limit": integer(1),
        "duration": integer(1000),
        "autoApply": boolean(),
    }
)
IDENTITY = obj(
    {
        "id": string(),
        "externalId": string(),
        "meta": optional(anything()),
        "ratelimits": optional(array(RATELIMIT_RESPONSE)),
    }
)
PERMISSION = obj(
    {
        "id": KEY_ID,
        "name": string(1, 512),
        "slug": string(1, 512),
        "description": optional(string(0, 512)),
    }
)
ROLE = obj(
    {
        "id": string(),
        "name": string(),
        "description": optional(string()),
        "permissions": optional(array(PERMISSION)),
    }
)


def fault(message: str, where: str, fix: str = "") -> errors.Fault:
    """Return the fault of one field of a request."""
    return errors.InvalidInput(message, violations=(Violation(message, where, fix),))


def limits(body: Sequence[dict[str, Any]], where: str = "body") -> list[NamedLimit]:
    """Return the limits of a request; `where` is the location of what holds `ratelimits`.

    Raises:
        InvalidInput: two have one name.
    """
    seen: set[str] = set()
    for index, one in enumerate(body):
        if one["name"] in seen:
            raise fault(f"the rate limit {one['name']} is given twice", f"{where}.ratelimits[{index}].name")
        seen.add(one["name"])
    return [NamedLimit(one["name"], one["limit"], one["duration"], one["autoApply"]) for one in body]


def show_identity(identity: Identity, limits: Iterable[HeldLimit] | None = None) -> dict[str, Any]:
    """Return an identity as answers hold it.

    Args:
        limits: its limits; None: as they are at hand, or fetched.
    """
    shown: dict[str, Any] = {"id": identity.id, "externalId": identity.external_id}
    if identity.meta:
        shown["meta"] = identity.meta
    if ratelimits := show_ratelimits(identity.ratelimits.all() if limits is None else limits):
        shown["ratelimits"] = ratelimits
    return shown


def show_ratelimits(rows: Iterable[Ratelimit | HeldLimit]) -> list[dict[str, Any]]:
    """Return limits as answers hold them."""
    return [
        {
            "id": row.id,
            "name": row.name,
            "limit": row.limit,
            "duration": row.duration_ms,
            "autoApply": row.auto_apply,
        }
        for row in rows
    ]


def show_permissions(rows: Iterable[Permission]) -> list[Any]:
    """Return permissions as answers hold them."""
    return [
        {"id": row.id, "name": row.name, "slug": row.slug}
        | ({"description": row.description} if row.description else {})
        for row in rows
    ]


def show_roles(rows: "QuerySet[Role] | Iterable[Role]") -> list[Any]:
    """Return roles with their permissions as answers hold them."""
    roles = rows.prefetch_related("permissions") if isinstance(rows, QuerySet) else rows
    return [
        {"id": role.id, "name": role.name}
        | ({"description": role.description} if role.description else {})
        | ({"permissions": shown} if (shown := show_permissions(role.permissions.all())) else {})
        for role in roles
    ]
