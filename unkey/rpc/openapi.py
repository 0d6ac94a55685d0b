"""The OpenAPI 3.1 document of `/v2`, made from the same declarations that requests are checked against."""

from collections import defaultdict
from functools import cache
from typing import Any

import msgspec

from unkey import errors
from unkey.errors import Fault
from unkey.rpc.routes import Archive, Route, routes
from unkey.rpc.schema import Schema, array, boolean, integer, obj, optional, string

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"

# What any operation may answer, whatever it does: of the transport, then of whoever asks.
_TRANSPORT = (
    errors.InvalidInput,
    errors.RequestBodyUnreadable,
    errors.RequestBodyTooLarge,
    errors.RequestTimeout,
    errors.UnexpectedError,
    errors.ServiceUnavailable,
)
_CALLER = (
    errors.AuthenticationMalformed,
    errors.RootKeyNotFound,
    errors.InsufficientPermissions,
    errors.Forbidden,
    errors.KeyDisabled,
    errors.WorkspaceDisabled,
    errors.WorkspaceRateLimited,
)
_SESSION = (
    errors.PortalTokenMissing,
    errors.PortalSessionNotFound,
    errors.InsufficientPermissions,
    errors.WorkspaceDisabled,
    errors.WorkspaceRateLimited,
)
_META = obj({"requestId": string(about="names this request in our logs; quote it when you ask for help")})
_PAGINATION = obj(
    {
        "hasMore": boolean(about="whether there is another page"),
        "cursor": optional(string(about="give it as `cursor` to get the next page")),
    }
)
_VIOLATION = obj(
    {
        "message": string(about="what is wrong"),
        "location": string(about="where: `body.keys[0].hash`, `header.Authorization`"),
        "fix": optional(string(about="how to mend it")),
    }
)
_ABOUT = """Create, verify and manage API keys; deploy and guard the programs behind them.

Every operation is `POST /v2/<group>.<operation>` with a JSON body and a root key as bearer. Unknown fields
are refused, and every fault of a request is reported at once. An answer is `{meta, data}`, with `pagination`
where there are pages; a refusal is `{meta, error}`, whose `type` is the address of a page about its code.
"""


def faults_of(route: Route) -> list[type[Fault]]:
    """Return every fault that an operation may answer with."""
    general = (*_TRANSPORT, *(() if route.public else _CALLER))
    if route.session:
        general = (*_TRANSPORT, *_SESSION)
    if route.method == "GET":
        general = tuple(fault for fault in general if fault.kind.status >= 500)
    return [*route.errors, *(fault for fault in general if fault not in route.errors)]


@cache
def document() -> dict[str, Any]:
    """Return the document as plain JSON values; made once in a process."""
    declared = routes().values()
    groups = dict.fromkeys(route.name.partition(".")[0] for route in declared)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Unkey API", "version": "2.0.0", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"rootKey": []}],
        "tags": [{"name": group} for group in groups],
        "paths": {route.path: {route.method.lower(): _operation(route)} for route in declared},
        "components": {
            "securitySchemes": {
                "rootKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A root key of the workspace.",
                },
                "portalSession": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "portal_session",
                    "description": "The access token of a portal session; taken as bearer, too.",
                },
            },
            "schemas": {
                "Meta": _META,
                "Pagination": _PAGINATION,
                "Violation": _VIOLATION,
                "Error": _error(with_list=False),
                "BadRequest": _error(with_list=True),
            },
        },
    }


@cache
def encoded() -> bytes:
    """Return the document as JSON text."""
    return msgspec.json.encode(document())


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.name.partition(".")[0]],
        "summary": route.summary,
        "responses": {str(route.status): _success(route), **_refusals(route)},
    }
    if route.permission is not None:
        operation["description"] = f"Needs `{route.permission}`."
    if route.public:
        operation["security"] = []
    elif route.session:
        operation["security"] = [{"portalSession": []}, {"rootKey": []}]
    if isinstance(route.request, Archive):
        body = {"content": {route.request.content_type: {"schema": {"type": "string", "format": "binary"}}}}
        operation["requestBody"] = {"required": True, **body}
    elif route.request is not None:
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": route.request}}}
    return operation


def _success(route: Route) -> dict[str, Any]:
    schema: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"meta": _ref("Meta")},
        "required": ["meta"],
    }
    if route.response is not None and route.wrapped:
        schema["properties"]["data"] = route.response
        schema["required"].append("data")
    elif route.response is not None:
        schema["properties"] |= route.response["properties"]
        schema["required"] += route.response["required"]
    if route.paginated:
        schema["properties"]["pagination"] = _ref("Pagination")
        schema["required"].append("pagination")
    return {"description": "It is done.", "content": {JSON_TYPE: {"schema": schema}}}


def _refusals(route: Route) -> dict[str, Any]:
    kinds: dict[int, list[errors.Kind]] = defaultdict(list)
    for fault in faults_of(route):
        kinds[fault.kind.status].append(fault.kind)
    return {
        str(status): {
            "description": "\n".join(f"- [`{kind.code}`]({kind.url})" for kind in kinds[status]),
            "content": {
                media: {
                    "schema": _ref("BadRequest" if status == errors.InvalidInput.kind.status else "Error")
                }
                for media in (JSON_TYPE, PROBLEM_TYPE)
            },
        }
        for status in sorted(kinds)
    }


def _error(*, with_list: bool) -> Schema:
    fields = {
        "title": string(about="the kind of the refusal, for people"),
        "detail": string(about="what is wrong and what to do"),
        "status": integer(400, 599),
        "type": string(about="the address of a page about the code"),
    }
    if with_list:
        fields["errors"] = array(_ref("Violation"), about="every fault of the request")
    return obj({"meta": _ref("Meta"), "error": obj(fields)})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
