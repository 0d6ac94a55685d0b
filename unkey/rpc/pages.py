"""Pages of `/v2` for people: `/docs/api`, a page per error code, and the document at `/openapi.json`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import path
from django.views.decorators.http import require_safe

from unkey.rpc import error_pages, openapi
from unkey.rpc.routes import Archive, Route, routes
from unkey.rpc.schema import Schema

_LIMITS = {
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
    "minProperties": "fields ≥ {}",
    "maxProperties": "fields ≤ {}",
    "pattern": "{}",
}
_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Field:
    """A row of a table of fields.

    Args:
        name: path inside its body: `credits.refill.amount`, `keys[].hash`.
        kind: type, in words.
        required: whether it must be there, where what holds it is.
        limits: what a value must keep to, in words.
        about: what it is.
        depth: how deep it is nested.
    """

    name: str
    kind: str
    required: bool
    limits: tuple[str, ...] = ()
    about: str = ""
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as its page shows it."""

    route: Route
    request: tuple[Field, ...]
    response: tuple[Field, ...]
    upload: str
    example: str
    errors: tuple[error_pages.Page, ...]

    @property
    def action(self) -> str:
        """The name without its group."""
        return self.route.name.partition(".")[2] or self.route.name


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one group."""

    name: str
    operations: list[Operation] = field(default_factory=list)


@require_safe
def document(_request: HttpRequest) -> HttpResponse:
    """Answer with the OpenAPI document, to pages of any origin."""
    return HttpResponse(
        openapi.encoded(),
        content_type="application/vnd.oai.openapi+json;version=3.1",
        headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=60"},
    )


@require_safe
def api(_request: HttpRequest) -> HttpResponse:
    """Show every operation on one page, which searches itself."""
    return HttpResponse(_api())


@require_safe
def errors(_request: HttpRequest) -> HttpResponse:
    """List the error codes."""
    return HttpResponse(render_to_string("docs/errors.html", {"pages": error_pages.pages()}))


@require_safe
def error(_request: HttpRequest, code: str) -> HttpResponse:
    """Explain an error code."""
    page = error_pages.page_of(code)
    if page is None:
        raise Http404(f"there is no error code {code}")
    return HttpResponse(render_to_string("docs/error.html", {"page": page}))


urlpatterns = [
    path("openapi.json", document),
    path("docs/api", api),
    path("docs/errors", errors),
    path("docs/errors/<path:code>", error),
]


@cache
def _api() -> str:
    groups: dict[str, Group] = {}
    for route in routes().values():
        name = route.name.partition(".")[0]
        groups.setdefault(name, Group(name)).operations.append(_operation(route))
    return render_to_string("docs/api.html", {"groups": list(groups.values()), "count": len(routes())})


def _operation(route: Route) -> Operation:
    upload = route.request.content_type if isinstance(route.request, Archive) else ""
    request = route.request if isinstance(route.request, dict) else None
    kinds = {fault.kind for fault in openapi.faults_of(route)}
    return Operation(
        route=route,
        request=tuple(fields(request)) if request else (),
        response=tuple(fields(route.response)) if route.response else (),
        upload=upload,
        example=_example(route),
        errors=tuple(
            error_pages.Page(kind, *error_pages.text_of(kind))
            for kind in sorted(kinds, key=lambda kind: (kind.status, kind.code))
        ),
    )


def fields(schema: Schema, prefix: str = "", depth: int = 0) -> Iterator[Field]:
    """Yield the fields of a schema, each before those inside it."""
    if "items" in schema and "properties" not in schema:
        if depth == 0:
            yield Field("[]", f"list of {_kind(schema['items'])}", True, _limits(schema))
        yield from fields(schema["items"], f"{prefix}[]", depth + (depth == 0))
        return
    required = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        full = f"{prefix}.{name}" if prefix else name
        yield Field(full, _kind(inner), name in required, _limits(inner), inner.get("description", ""), depth)
        yield from fields(inner, full, depth + 1)


def _kind(schema: Schema) -> str:
    kinds = schema.get("type", "object")
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    if "items" in schema:
        names = [f"list of {_kind(schema['items'])}" if name == "array" else name for name in names]
    return " or ".join(names)


def _limits(schema: Schema) -> tuple[str, ...]:
    found = [
        words.format(schema[name])
        for name, words in _LIMITS.items()
        if name in schema and schema[name] != _INT64
    ]
    if "enum" in schema:
        found.append(" · ".join("null" if one is None else str(one) for one in schema["enum"]))
    if "default" in schema:
        found.append(f"default {json.dumps(schema['default'])}")
    if "oneOf" in schema:
        found.append(f"exactly one of {', '.join(branch['required'][0] for branch in schema['oneOf'])}")
    return tuple(found)


def _example(route: Route) -> str:
    """Return a call of an operation by curl, with what it cannot do without."""
    lines = [f"curl $UNKEY_API_URL{route.path}"]
    if not route.public:
        lines.append('-H "Authorization: Bearer $UNKEY_ROOT_KEY"')
    if isinstance(route.request, Archive):
        lines += [f"-H 'Content-Type: {route.request.content_type}'", "--data-binary @source.tar.gz"]
    elif route.request is not None:
        lines += ["-H 'Content-Type: application/json'", f"-d '{json.dumps(_least(route.request, 'x'))}'"]
    return " \\\n  ".join(lines)


def _least(schema: Schema, name: str) -> Any:
    """Return a small value of a schema, in words that tell what belongs there."""
    if "enum" in schema:
        return schema["enum"][0]
    kinds = schema.get("type", "object")
    match kinds if isinstance(kinds, str) else kinds[0]:
        case "string":
            return "…" if name == "x" else f"<{name}>"
        case "integer" | "number":
            return schema.get("minimum") or 1
        case "boolean":
            return True
        case "array":
            return [_least(schema["items"], name.removesuffix("s"))]
        case _:
            wanted = [*schema.get("required", ())]
            if "oneOf" in schema:
                wanted += schema["oneOf"][0]["required"]
            return {one: _least(schema["properties"][one], one) for one in wanted}
