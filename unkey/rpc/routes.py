"""The table of operations: one declaration per route of `/v2/<group>.<operation>`.

    @route(
        "apis.getApi",
        request=obj({"apiId": identifier(8)}),
        response=obj({"id": identifier(8), "name": string(3, 256)}),
        permission=T("api.{api}.read_api"),
        errors=(ApiNotFound,),
    )
    def get_api(call: Call) -> JSON:
        call.authorize(api=call.body["apiId"])
        ...

A permission without placeholders is checked before the handler runs. One with placeholders must be
given its ids by `call.authorize(...)`; a handler that forgets to is refused its answer.

Apps declare their routes in `api.py`, which is found by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from django.utils.module_loading import autodiscover_modules

from unkey.errors import Fault
from unkey.rpc.authorization import Rule
from unkey.rpc.schema import Checker, Schema

if TYPE_CHECKING:
    from unkey.rpc.call import Call, Page

JSON = dict[str, Any] | list[Any]
Handler = Callable[["Call"], "JSON | Page"]


@dataclass(frozen=True, slots=True)
class Archive:
    """A body that is not JSON: streamed to a temporary file.

    Args:
        content_type: the only one that is accepted.
        limit: returns the largest size in bytes.
    """

    content_type: str
    limit: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Args:
        name: `group.operation`.
        handler: what answers it.
        request: schema of the body, an `Archive`, or None when there is no body.
        response: schema of `data`; None: the answer has none.
        permission: what the caller needs; None only for public routes.
        method: HTTP method.
        status: HTTP status of success.
        public: neither authenticated nor limited.
        session: authenticated by a portal session, whose permissions are its scopes, instead of a root key.
        wrapped: whether the answer stands in `data`; else its fields stand beside `meta`.
        paginated: the answer carries `pagination`.
        errors: faults that the operation itself raises, for the OpenAPI document.
        summary: the first line of the handler's docstring.
    """

    name: str
    handler: Handler
    request: Schema | Archive | None
    response: Schema | None
    permission: Rule | None
    method: Literal["GET", "POST"] = "POST"
    status: int = 200
    public: bool = False
    session: bool = False
    wrapped: bool = True
    paginated: bool = False
    errors: tuple[type[Fault], ...] = ()
    summary: str = ""
    checker: Checker | None = field(default=None, compare=False)
    response_checker: Checker | None = field(default=None, compare=False)

    @property
    def path(self) -> str:
        """`/v2/<group>.<operation>`."""
        return f"/v2/{self.name}"


_ROUTES: dict[str, Route] = {}


def route(
    name: str,
    *,
    request: Schema | Archive | None,
    response: Schema | None,
    permission: Rule | None = None,
    method: Literal["GET", "POST"] = "POST",
    status: int = 200,
    public: bool = False,
    session: bool = False,
    wrapped: bool = True,
    paginated: bool = False,
    errors: Sequence[type[Fault]] = (),
) -> Callable[[Handler], Handler]:
    """Declare an operation; see `Route` for the arguments.

    Raises:
        ValueError: the name is taken, or a route that is not public names no permission.
    """
    if name in _ROUTES:
        raise ValueError(f"{name} is declared twice")
    if permission is None and not public:
        raise ValueError(f"{name} needs a permission")

    def declare(handler: Handler) -> Handler:
        _ROUTES[name] = Route(
            name=name,
            handler=handler,
            request=request,
            response=response,
            permission=permission,
            method=method,
            status=status,
            public=public,
            session=session,
            wrapped=wrapped,
            paginated=paginated,
            errors=tuple(errors),
            summary=(handler.__doc__ or "").strip().partition("\n")[0],
            checker=Checker(request) if isinstance(request, dict) else None,
            response_checker=Checker(response) if response is not None else None,
        )
        return handler

    return declare


@cache
def routes() -> dict[str, Route]:
    """Return every declared route by name, having imported the `api` module of every app."""
    autodiscover_modules("api")
    return dict(sorted(_ROUTES.items()))
