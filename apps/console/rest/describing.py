"""How operations of `/api/` are declared: the body that they take, the query, the answer.

Bodies are checked against the schemas of `/v2`, so that both say the same of the same mistake.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerFieldExtension
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
    inline_serializer,
)
from rest_framework import serializers
from rest_framework.request import Request

from apps.console.rest import once, pages, problems
from unkey import clock, errors
from unkey.errors import Violation
from unkey.rpc.routes import routes
from unkey.rpc.schema import Checker, Field, Schema, nullable, obj, string

_F = TypeVar("_F", bound=Callable[..., Any])
_LAST_MOMENT = 4_102_444_800_000


class Body:
    """A request body: an object that a schema describes; unknown fields are refused.

    Args:
        fields: name to schema, as `unkey.rpc.schema.obj` takes them.
    """

    def __init__(self, fields: Mapping[str, Schema | Field], *, exactly_one: tuple[str, ...] = ()) -> None:
        self._set(obj(fields, exactly_one=exactly_one))

    @classmethod
    def of(cls, operation: str, *, without: Iterable[str] = ()) -> "Body":
        """Return the body of a `/v2` operation, less what the address says already."""
        schema = routes()[operation].request
        if not isinstance(schema, dict):
            raise TypeError(f"{operation} has no JSON body")
        gone = set(without)
        kept = {name: each for name, each in schema["properties"].items() if name not in gone}
        body = cls.__new__(cls)
        required = [name for name in schema.get("required", ()) if name not in gone]
        body._set(
            {key: value for key, value in schema.items() if key != "required"}
            | {"properties": kept}
            | ({"required": required} if required else {})
        )
        return body

    def _set(self, schema: Schema) -> None:
        self.schema = schema
        self._checker = Checker(schema)

    def read(self, request: Request) -> dict[str, Any]:
        """Return the body of a request with defaults filled in.

        Raises:
            InvalidInput: with every fault and its location.
        """
        decoded = request.data
        found = self._checker.violations(decoded)
        if found:
            raise errors.InvalidInput(found[0].message, violations=tuple(found))
        read: dict[str, Any] = self._checker.complete(decoded)
        return read


NOTHING = Body({})
"""An empty object, or no body at all."""


class Moment(serializers.Field):
    """A point in time as Unix milliseconds."""

    default_error_messages = {"invalid": "must be a time in Unix milliseconds"}

    def to_internal_value(self, data: Any) -> datetime:
        text = str(data)
        if not (text.isascii() and text.isdigit()) or len(text) > 13 or int(text) > _LAST_MOMENT:
            self.fail("invalid")
        return clock.from_ms(int(text))

    def to_representation(self, value: datetime) -> int:
        return clock.to_ms(value)


extend_schema_field({"type": "integer", "format": "int64", "minimum": 0})(Moment)


class Many(serializers.Field):
    """A query parameter of several values: `?status=ready&status=failed`, or with commas.

    Args:
        choices: what may be given; None: any text.
    """

    def __init__(self, choices: Iterable[str] | None = None, **kwargs: Any) -> None:
        self.choices = list(choices) if choices is not None else None
        super().__init__(**kwargs)

    def get_value(self, dictionary: Any) -> Any:
        given = dictionary.getlist(self.field_name)
        return [part for text in given for part in text.split(",") if part] if given else serializers.empty

    def to_internal_value(self, data: list[str]) -> list[str]:
        for value in data:
            if self.choices is not None and value not in self.choices:
                raise serializers.ValidationError(f"must be some of {', '.join(self.choices)}")
            if len(value) > 256:
                raise serializers.ValidationError("must have at most 256 characters")
        if len(data) > 100:
            raise serializers.ValidationError("must be at most 100 values")
        return data


class ManySchema(OpenApiSerializerFieldExtension):
    """Describes `Many`."""

    target_class = Many

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        """Return the schema of the parameter."""
        item: Schema = {"type": "string"}
        if self.target.choices is not None:
            item["enum"] = self.target.choices
        return {"type": "array", "items": item}


class ByTokenScheme(OpenApiAuthenticationExtension):
    """Describes authentication by a personal token."""

    target_class = "apps.console.rest.access.ByToken"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> Any:
        """Return the security scheme."""
        return {"type": "http", "scheme": "bearer", "description": "A personal token: unkey_pat_…"}


class BySessionScheme(OpenApiAuthenticationExtension):
    """Describes authentication by the session's cookie."""

    target_class = "apps.console.rest.access.BySession"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> Any:
        """Return the security scheme."""
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": "Set by logging in; what changes something also needs the header X-CSRFToken.",
        }


class Query(serializers.Serializer[Any]):
    """The base of query parameters: unknown ones are refused."""

    def read(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request.

        Raises:
            InvalidInput: with every fault.
        """
        known = set(self.fields)
        unknown = sorted(set(request.query_params) - known)
        bound = type(self)(data=request.query_params)
        bound.is_valid()
        choices = ", ".join(sorted(known)) or "none"
        found = [
            Violation(
                f"{name[:64]} is not a parameter", f"query.{name[:64]}", f"The parameters are: {choices}."
            )
            for name in unknown
        ]
        found += [
            Violation(str(message), f"query.{name}")
            for name, messages in bound.errors.items()
            for message in messages
        ]
        if found:
            raise errors.InvalidInput(found[0].message, violations=tuple(found))
        read: dict[str, Any] = bound.validated_data
        return read


class NoQuery(Query):
    """No parameters at all."""


class PageQuery(Query):
    """Which page of a list."""

    limit = serializers.IntegerField(min_value=1, max_value=pages.LARGEST, default=pages.LIMIT)
    cursor = serializers.CharField(max_length=512, required=False)


class SearchQuery(PageQuery):
    """Which page of a list, and what its rows contain."""

    search = serializers.CharField(max_length=256, required=False, allow_blank=True, trim_whitespace=False)


class ViolationSerializer(serializers.Serializer[Any]):
    """One fault of a request."""

    message = serializers.CharField()
    location = serializers.CharField(help_text="for example body.policies[0].name")
    fix = serializers.CharField(required=False)


class ProblemSerializer(serializers.Serializer[Any]):
    """A refusal (RFC 9457)."""

    type = serializers.URLField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="what is wrong and what to do")
    code = serializers.CharField(help_text="err:<system>:<category>:<specific>")
    requestId = serializers.CharField()
    violations = ViolationSerializer(many=True)


_PROBLEM = OpenApiResponse(ProblemSerializer, description="Refused.")
_KEY = OpenApiParameter(
    once.HEADER,
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="A repetition with the same key within 24 hours gets the first answer.",
)


@cache
def _collection(answer: type[serializers.Serializer[Any]], page: bool) -> Any:
    fields: dict[str, Any] = {"items": answer(many=True)}
    if page:
        fields["nextCursor"] = serializers.CharField(allow_null=True)
    kind = "Page" if page else "List"
    return inline_serializer(f"{answer.__name__.removesuffix('Serializer')}{kind}", fields)


def _success(status: int, shown: Any, media: str) -> dict[Any, Any]:
    if media:
        return {(status, media): OpenApiTypes.STR}
    return {status: shown if shown is not None else OpenApiResponse(description="Done.")}


def operation(
    name: str,
    *,
    answer: type[serializers.Serializer[Any]] | None = None,
    shape: Schema | None = None,
    media: str = "",
    page: bool = False,
    many: bool = False,
    body: Body | None = None,
    archive: str = "",
    query: type[Query] | None = None,
    status: int = 200,
    once_only: bool = True,
    public: bool = False,
) -> Callable[[_F], _F]:
    """Declare what a view's method takes and gives, for the OpenAPI document.

    Args:
        name: `<things>.<verb>`; the first part groups operations.
        answer: what is shown; None: no content, unless one of the next two says more.
        shape: the schema of what is shown, for what `/v2` shows likewise; of a page, that of its items.
        media: media type of an answer that is not JSON.
        page, many: a page of them, or an object with all of them as `items`.
        body: what it takes.
        archive: media type of a body that is not JSON.
        query: its parameters.
        status: of success.
        once_only: whether an Idempotency-Key is heeded.
        public: whether it is for everybody.
    """
    shown: Any = answer
    if answer is not None and (page or many):
        shown = _collection(answer, page)
    if shape is not None:
        shown = obj({"items": shape, "nextCursor": nullable(string())}) if page else shape
    request: Any = {"application/json": body.schema} if body else None
    if archive:
        request = {archive: OpenApiTypes.BINARY}
    parameters: list[Any] = [query] if query not in (None, NoQuery) else []
    if (body or archive) and once_only:
        parameters.append(_KEY)

    def declare(method: _F) -> _F:
        extend_schema(
            operation_id=name.replace(".", "_"),
            summary=(method.__doc__ or "").strip().partition("\n")[0].rstrip("."),
            tags=[name.partition(".")[0]],
            request=request,
            parameters=parameters,
            responses={
                **_success(status, shown, media),
                ("default", problems.CONTENT_TYPE): _PROBLEM,
            },
            auth=[] if public else None,
        )(method)
        return method

    return declare
