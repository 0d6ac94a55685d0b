"""Operations on standalone rate limits: `ratelimit.*`."""

from typing import Any

import msgspec

from apps.ratelimits import limiting, queries, services
from apps.ratelimits.models import Override
from edge.verify.limit_request import LIMIT, MULTI_LIMIT, LimitBody, show, show_all
from edge.verify.limiter import MIN_DURATION_MS
from unkey import errors
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import Field, Schema, array, boolean, integer, obj, optional, string

NAMESPACE = string(1, 512, about="id or name")
IDENTIFIER = string(1, 512, about="a text, or a pattern in which * stands for any text")
NAME = {"namespace": NAMESPACE, "identifier": IDENTIFIER}
OVERRIDE = obj(
    {
        "overrideId": string(),
        "identifier": IDENTIFIER,
        "limit": integer(0),
        "duration": integer(MIN_DURATION_MS),
    }
)
OUTCOME: dict[str, Schema | Field] = {
    "limit": integer(0),
    "remaining": integer(0),
    "reset": integer(0, about="end of the window, Unix milliseconds"),
    "overrideId": optional(string()),
}
LIMITED = obj({**OUTCOME, "success": boolean()})
ALL_LIMITED = obj(
    {
        "passed": boolean(about="all of them passed, and were counted"),
        "limits": array(obj({"namespace": string(), "identifier": string(), **OUTCOME, "passed": boolean()})),
    }
)
# `limiting.limit` checks it for each namespace of a request, and makes those that are missing.
USE = T("ratelimit.{namespace}.limit")
OVERRIDES = "ratelimits/namespaces/{namespace}/overrides/*"
READ = T("ratelimit.{namespace}.read_override")


@route(
    "ratelimit.limit",
    request=LIMIT,
    response=LIMITED,
    permission=USE,
    errors=[errors.RatelimitNamespaceGone],
)
def limit(call: Call) -> JSON:
    """Count a request against a limit, and say whether it may pass; the namespace is made at its first use."""
    body = msgspec.convert(call.body, LimitBody)
    _, asked, outcomes = limiting.limit(call, [body])
    return show(asked[0], outcomes[0])


@route(
    "ratelimit.multiLimit",
    request=MULTI_LIMIT,
    response=ALL_LIMITED,
    permission=USE,
    errors=[errors.RatelimitNamespaceGone],
)
def multi_limit(call: Call) -> JSON:
    """Count a request against several limits: all of them, or none if one is exceeded."""
    bodies = msgspec.convert(call.body, list[LimitBody])
    return show_all(*limiting.limit(call, bodies))


@route(
    "ratelimit.setOverride",
    request=obj({**NAME, "limit": integer(0), "duration": integer(MIN_DURATION_MS)}),
    response=obj({"overrideId": string()}),
    permission=T("ratelimit.{namespace}.set_override") | U(f"{OVERRIDES}#set_override"),
    errors=[errors.RatelimitNamespaceNotFound],
)
def set_override(call: Call) -> JSON:
    """Give an identifier, or all that match a pattern, another limit than requests say."""
    body = call.body
    namespace = queries.get_namespace(body["namespace"])
    call.authorize(namespace=namespace.id)
    override = services.set_override(
        namespace, body["identifier"], limit=body["limit"], duration_ms=body["duration"], actor=call.actor
    )
    return {"overrideId": override.id}


@route(
    "ratelimit.getOverride",
    request=obj(NAME),
    response=OVERRIDE,
    permission=READ | U("ratelimits/namespaces/{namespace}/overrides/{override}#read_override"),
    errors=[errors.RatelimitNamespaceNotFound, errors.RatelimitOverrideNotFound],
)
def get_override(call: Call) -> JSON:
    """Return the override that counts for an identifier: its own, else that of a pattern."""
    identifier = call.body["identifier"]
    namespace = queries.get_namespace(call.body["namespace"])
    found = limiting.space_of(namespace, identifier).resolve(identifier)
    call.authorize(
        namespace=namespace.id,
        override="*" if found is None else found.id,
        masked=lambda: queries.override_not_found(identifier),
    )
    if found is None:
        raise queries.override_not_found(identifier)
    return _shown(found.id, found.identifier, found.limit, found.duration)


@route(
    "ratelimit.listOverrides",
    request=obj(
        {
            "namespace": NAMESPACE,
            "cursor": optional(string(0, 1024)),
            "limit": optional(integer(1, 100), default=10),
        }
    ),
    response=array(OVERRIDE, most=100),
    permission=READ | U(f"{OVERRIDES}#read_override"),
    paginated=True,
    errors=[errors.RatelimitNamespaceNotFound],
)
def list_overrides(call: Call) -> Page:
    """List the overrides of a namespace, ordered by id."""
    namespace = queries.get_namespace(call.body["namespace"])
    call.authorize(namespace=namespace.id)

    def show_page(page: list[Override]) -> list[Any]:
        return [_shown(row.id, row.identifier, row.limit, row.duration_ms) for row in page]

    return paginate(queries.live_overrides(namespace), call.body, show_page)


@route(
    "ratelimit.deleteOverride",
    request=obj(NAME),
    response=obj({}),
    permission=T("ratelimit.{namespace}.delete_override") | U(f"{OVERRIDES}#delete_override"),
    errors=[errors.RatelimitNamespaceNotFound, errors.RatelimitOverrideNotFound],
)
def delete_override(call: Call) -> JSON:
    """Delete the override of exactly this identifier or pattern."""
    namespace = queries.get_namespace(call.body["namespace"])
    call.authorize(namespace=namespace.id)
    services.delete_override(namespace, call.body["identifier"], actor=call.actor)
    return {}


def _shown(override_id: str, identifier: str, limit: int, duration: int) -> dict[str, Any]:
    return {"overrideId": override_id, "identifier": identifier, "limit": limit, "duration": duration}
