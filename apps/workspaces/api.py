"""Operations on root keys and on the workspace itself: `rootKeys.*` and `workspace.*`."""

from datetime import timedelta
from typing import Any

from apps.deployments import capacity
from apps.workspaces import queries, services
from apps.workspaces.models import RootKey, Workspace
from unkey import clock, errors
from unkey.errors import Violation
from unkey.rpc.authorization import U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import (
    array,
    boolean,
    identifier,
    integer,
    moment,
    nullable,
    number,
    obj,
    optional,
    string,
)

KEY_ID = identifier(3)
NAME = string(1, 255)
PERMISSIONS = array(string(1, 512), most=1000)
NOTHING = obj({})
NEW_KEY = obj({"keyId": string(), "key": string(redact=True)})
ROOT_KEY = obj(
    {
        "keyId": string(),
        "name": nullable(string()),
        "start": string(),
        "end": string(),
        "enabled": boolean(),
        "createdAt": integer(0),
        "lastUsedAt": integer(0, about="0: not yet"),
        "expires": nullable(integer(0)),
        "permissions": array(string()),
    }
)
WRITE = U("rootKeys/{key}#write")
DELETE = U("rootKeys/{key}#delete")
_LONGEST_GRACE = 100 * 366 * 86_400_000
_USAGE_DAYS = 90


@route(
    "rootKeys.createKey",
    request=obj(
        {"name": optional(NAME), "permissions": PERMISSIONS, "expires": optional(nullable(moment()))}
    ),
    response=NEW_KEY,
    permission=U("rootKeys/*#write"),
    errors=[errors.Forbidden],
)
def create_key(call: Call) -> JSON:
    """Make a root key that holds some of the caller's permissions, and return its text, this once."""
    expires = call.body.get("expires")
    root_key, plaintext = services.create_root_key(
        Workspace.objects.get(pk=call.workspace_id),
        call.body.get("name", ""),
        call.body["permissions"],
        actor=call.actor,
        expires_at=None if expires is None else clock.from_ms(expires),
        giver=call.principal,
    )
    return {"keyId": root_key.id, "key": plaintext}


@route(
    "rootKeys.listKeys",
    request=obj({"limit": optional(integer(1, 100), default=100), "cursor": optional(string())}),
    response=array(ROOT_KEY, most=100),
    permission=U("rootKeys/{key}#read"),
    paginated=True,
)
def list_keys(call: Call) -> Page:
    """List the root keys that the caller may read, ordered by id."""
    call.allows({"key": "*"})  # Who may read none sees an empty page.
    found = queries.readable_root_keys(call.workspace_id, call.principal.permissions)
    return paginate(found, call.body, lambda rows: [_show(row) for row in rows])


@route(
    "rootKeys.updateKey",
    request=obj(
        {
            "keyId": KEY_ID,
            "name": optional(nullable(NAME)),
            "enabled": optional(boolean()),
            "permissions": optional(PERMISSIONS),
        }
    ),
    response=NOTHING,
    permission=WRITE,
    errors=[errors.KeyNotFound, errors.Forbidden],
)
def update_key(call: Call) -> JSON:
    """Change a root key's name, state or permissions."""
    body = call.body
    call.authorize(key=body["keyId"])
    given: dict[str, Any] = {name: body[name] for name in ("enabled", "permissions") if name in body}
    if "name" in body:
        given["name"] = body["name"] or ""
    services.update_root_key(body["keyId"], **given, actor=call.actor, giver=call.principal)
    return {}


@route(
    "rootKeys.rerollKey",
    request=obj({"keyId": KEY_ID, "expiration": nullable(integer(0, _LONGEST_GRACE))}),
    response=NEW_KEY,
    permission=WRITE,
    errors=[errors.KeyNotFound, errors.Forbidden],
)
def reroll_key(call: Call) -> JSON:
    """Make a root key anew and let the old one end; return the new one's text, this once."""
    key, expiration = call.body["keyId"], call.body["expiration"]
    call.authorize(key=key)
    if expiration is not None:
        call.authorize(DELETE, key=key)
    root_key, plaintext = services.reroll_root_key(
        key,
        None if expiration is None else timedelta(milliseconds=expiration),
        actor=call.actor,
        giver=call.principal,
    )
    return {"keyId": root_key.id, "key": plaintext}


@route(
    "rootKeys.deleteKey",
    request=obj({"keyId": KEY_ID}),
    response=NOTHING,
    permission=DELETE,
    errors=[errors.KeyNotFound],
)
def delete_key(call: Call) -> JSON:
    """Stop a root key for good."""
    call.authorize(key=call.body["keyId"])
    services.delete_root_key(queries.find_root_key(call.body["keyId"]), actor=call.actor)
    return {}


def _show(row: RootKey) -> dict[str, Any]:
    return {
        "keyId": row.id,
        "name": row.name or None,
        "start": row.start,
        "end": row.end,
        "enabled": row.enabled,
        "createdAt": clock.to_ms(row.created_at),
        "lastUsedAt": clock.to_ms(row.last_used_at) if row.last_used_at else 0,
        "expires": clock.to_ms(row.expires_at) if row.expires_at else None,
        "permissions": row.permissions,
    }


_LIMIT = obj({"limit": nullable(integer(0)), "current": optional(number(0))})
_LIMITS = (
    "apiBillableOperationsCountMaxPerMonth",
    "apiRequestsCountMaxPerMinute",
    "logsRetentionDaysMax",
    "logsAuditRetentionDaysMax",
    "logdrainsMax",
    "cpuCoresMax",
    "cpuCoresMaxPerInstance",
    "memoryMibMax",
    "memoryMibMaxPerInstance",
    "storageMibMax",
    "storageMibMaxPerInstance",
    "buildsConcurrentMax",
    "autoscalingReplicasMax",
    "customDomainsMax",
)


@route(
    "workspace.getLimits",
    request=None,
    response=obj(dict.fromkeys(_LIMITS, _LIMIT)),
    permission=U("limits#read"),
)
def get_limits(call: Call) -> JSON:
    """Return what the workspace may use, and how much of it is taken."""
    limits = queries.limits_of(call.workspace_id)
    usage = queries.usage_of(call.workspace_id, clock.now())
    taken = capacity.reserved(call.workspace_id)
    return {
        "apiBillableOperationsCountMaxPerMonth": {
            "limit": limits.billable_operations_per_month,
            "current": usage.verifications + usage.ratelimits,
        },
        "apiRequestsCountMaxPerMinute": {"limit": limits.api_requests_per_minute},
        "logsRetentionDaysMax": {"limit": limits.logs_retention_days},
        "logsAuditRetentionDaysMax": {"limit": limits.audit_retention_days},
        "logdrainsMax": {"limit": 0, "current": 0},
        "cpuCoresMax": {
            "limit": limits.cpu_millicores_max // 1000,
            "current": taken["cpuMillicores"] / 1000,
        },
        "cpuCoresMaxPerInstance": {"limit": limits.cpu_millicores_per_instance_max // 1000},
        "memoryMibMax": {"limit": limits.memory_mib_max, "current": taken["memoryMib"]},
        "memoryMibMaxPerInstance": {"limit": limits.memory_mib_per_instance_max},
        "storageMibMax": {"limit": limits.storage_mib_max, "current": taken["storageMib"]},
        "storageMibMaxPerInstance": {"limit": limits.storage_mib_per_instance_max},
        "buildsConcurrentMax": {"limit": limits.builds_concurrent_max},
        "autoscalingReplicasMax": {"limit": limits.replicas_max},
        "customDomainsMax": {"limit": 0, "current": 0},
    }


_COMPUTE = obj(
    {
        "cpuSeconds": number(0),
        "memoryGiBHours": number(0),
        "storageGiBHours": number(0),
        "egressGiB": number(0),
    }
)
_GATEWAY = obj({"activeKeys": integer(0)})
_RESOURCE = obj({"id": string(), "name": optional(string())})
_ENVIRONMENT = obj({"id": string(), "slug": optional(string())})


@route(
    "workspace.getUsage",
    request=obj({"period": optional(obj({"year": integer(1970, 2099), "month": integer(1, 12)}))}),
    response=obj(
        {
            "period": obj({"start": integer(0), "end": integer(0)}),
            "totals": obj(
                {
                    "api": obj({"verifications": integer(0), "ratelimits": integer(0)}),
                    "compute": _COMPUTE,
                    "gateway": _GATEWAY,
                }
            ),
            "breakdowns": obj(
                {
                    "byEnvironment": array(
                        obj(
                            {
                                "project": _RESOURCE,
                                "app": optional(_RESOURCE),
                                "environment": _ENVIRONMENT,
                                "compute": _COMPUTE,
                            }
                        )
                    ),
                    "byApp": array(
                        obj({"project": optional(_RESOURCE), "app": optional(_RESOURCE), "gateway": _GATEWAY})
                    ),
                }
            ),
        }
    ),
    permission=U("usage#read"),
)
def get_usage(call: Call) -> JSON:
    """Return what the workspace used in a calendar month, UTC: the current one unless another is named."""
    now = clock.now()
    wanted = call.body.get("period") or {"year": now.year, "month": now.month}
    start, end = queries.month(wanted["year"], wanted["month"])
    if start > now:
        raise _period_fault("period must not be in the future")
    if now - start > timedelta(days=_USAGE_DAYS):
        raise _period_fault(f"period must start within the last {_USAGE_DAYS} days")
    usage = queries.usage_of(call.workspace_id, start)
    return {
        "period": {"start": clock.to_ms(start), "end": clock.to_ms(min(end, now))},
        "totals": {
            "api": {"verifications": usage.verifications, "ratelimits": usage.ratelimits},
            # Compute and active keys of gateways are not metered.
            "compute": {"cpuSeconds": 0, "memoryGiBHours": 0, "storageGiBHours": 0, "egressGiB": 0},
            "gateway": {"activeKeys": 0},
        },
        "breakdowns": {"byEnvironment": [], "byApp": []},
    }


def _period_fault(message: str) -> errors.Fault:
    return errors.InvalidInput(message, violations=(Violation(message, "body.period"),))
