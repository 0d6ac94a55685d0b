"""What every request under `/api/` goes through: who asks, in which workspace, what their role may do.

1. authenticate: a personal token, or a session with its CSRF token
2. find the workspace of the address among the caller's own; a token is of one workspace only
3. the role must allow what the method of the view needs: what is not declared is refused
4. act inside the workspace's scope, once for each Idempotency-Key
5. answer, or refuse by a problem document; an unchanged answer to a GET is a 304
"""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, cast

import msgspec
import structlog
from django.contrib.auth.models import User
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from rest_framework import authentication, exceptions
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.console.rest import once, problems
from apps.workspaces import members, roles
from apps.workspaces.models import Membership, PersonalToken, Workspace
from apps.workspaces.roles import Action
from unkey import errors, ids
from unkey.actors import Actor
from unkey.rpc.client_address import from_headers
from unkey.tenancy import workspace_scope

log = structlog.get_logger("unkey.api")

SAFE = frozenset({"GET", "HEAD"})
_ATTEMPTS = 3
_DEADLOCK = 1213  # of MySQL and MariaDB; the transaction was rolled back as a whole


class ByToken(authentication.BaseAuthentication):
    """`Authorization: Bearer unkey_pat_…`"""

    def authenticate(self, request: Request) -> tuple[User, members.Bearer] | None:
        """Return the token's person, and the token with its role.

        Raises:
            InvalidCredentials: the header is no such bearer, or the token does not work.
        """
        header = request.headers.get("Authorization", "").strip()
        if not header:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip().startswith(members.TOKEN_PREFIX):
            raise errors.InvalidCredentials(
                "The Authorization header must read 'Bearer unkey_pat_…', with a personal token."
            )
        bearer = members.authenticate_token(token.strip())
        return bearer.user, bearer

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class BySession(authentication.SessionAuthentication):
    """The cookie of a session; whatever changes something also needs the CSRF token."""

    def enforce_csrf(self, request: Request) -> None:
        """Refuse a request that may come from another site.

        Raises:
            CsrfFailed
        """
        # Django's own request, which does not parse the body: who may not send it has none read.
        check = authentication.CSRFCheck(_nothing)
        check.process_request(request._request)
        if check.process_view(request._request, _nothing, (), {}):
            raise errors.CsrfFailed("Send the csrfToken of GET /api/session in the header X-CSRFToken.")


def _nothing(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class AlwaysJson(BaseContentNegotiation):
    """Answers are JSON, whatever is asked for."""

    def select_parser(self, request: Request, parsers: Any) -> BaseParser | None:
        given = (request.content_type or "").partition(";")[0].strip().lower()
        return next((each for each in parsers if given in ("", each.media_type)), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class StrictJson(BaseParser):
    """Decodes a body; an empty one is an empty object."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """Return the decoded body.

        Raises:
            ParseError: it is not JSON.
        """
        raw = stream.read()
        if not raw.strip():
            return {}
        try:
            return msgspec.json.decode(raw)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise exceptions.ParseError(f"the body is not valid JSON: {error}") from error


class View(APIView):
    """The base of all views: problem documents, entity tags, repetition of what a deadlock undid."""

    authentication_classes: Any = (ByToken, BySession)
    permission_classes: Any = (IsAuthenticated,)
    content_negotiation_class = AlwaysJson
    parser_classes: Any = (StrictJson,)
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]

    keeps_answers: ClassVar[bool] = True
    """Whether an Idempotency-Key is heeded: not where repeating is harmless, or where an answer is secret."""

    _role: roles.Role | None = None

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer a request; see the module for the order."""
        self.args, self.kwargs = args, kwargs
        asked = self.initialize_request(request, *args, **kwargs)
        self.request = asked
        self.headers = self.default_response_headers
        with ExitStack() as self.inside:
            try:
                self.initial(asked, *args, **kwargs)
                answer = self._act(asked)
            except Exception as error:
                answer = self._refused(error)
        self.response = self.finalize_response(asked, answer, *args, **kwargs)
        return self.response

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        if request.method in SAFE and response.status_code == 200 and isinstance(response, Response):
            response = _unchanged(request, response)
        finished = super().finalize_response(request, response, *args, **kwargs)
        if "Cache-Control" not in finished.headers:
            finished.headers["Cache-Control"] = "private, no-cache"
        return finished

    @property
    def request_id(self) -> str:
        """`req_…`, also in the answer and in the logs."""
        return getattr(self.request._request, "request_id", None) or ids.new("req")

    @property
    def user(self) -> User:
        """Who asks."""
        return cast(User, self.request.user)

    @property
    def token(self) -> PersonalToken | None:
        """The personal token that the request bears, if it does."""
        bearer = self.request.auth
        return bearer.token if isinstance(bearer, members.Bearer) else None

    @property
    def actor(self) -> Actor:
        """Who asks, as the subject of changes."""
        return Actor(
            type="user",
            id=str(self.user.pk),
            name=self.user.get_username(),
            remote_ip=from_headers(self.request.META),
            user_agent=self.request.META.get("HTTP_USER_AGENT", "")[:512],
        )

    def _act(self, request: Request) -> Response:
        method = str(request.method).lower()
        named = method in self.http_method_names and getattr(self, method, None)
        handler = named or self.http_method_not_allowed

        def act() -> Response:
            answer: Response = handler(request, *self.args, **self.kwargs)
            return answer

        keeps = named and self.keeps_answers and request.method not in SAFE and request.user
        key = once.key_of(request) if keeps else None
        for _ in range(_ATTEMPTS - 1):
            try:
                return (
                    act() if key is None else once.answered_once(request, self.user, key, act, self._refused)
                )
            except OperationalError as error:
                if not error.args or error.args[0] != _DEADLOCK:
                    raise
                log.warning("api.deadlock", path=request.path)
        return act() if key is None else once.answered_once(request, self.user, key, act, self._refused)

    def _refused(self, error: Exception) -> Response:
        return problems.response(error, self.request_id)


class WorkspaceView(View):
    """The base of views below `/api/workspaces/<workspace>/`."""

    needs: ClassVar[Mapping[str, Action]] = {}
    """What the caller's role must allow, by method; HEAD needs what GET does."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        method = "GET" if request.method == "HEAD" else str(request.method)
        if not hasattr(self, method.lower()):
            self.http_method_not_allowed(request)
        self.workspace, self.role = self._place(kwargs["workspace"])
        structlog.contextvars.bind_contextvars(workspace_id=self.workspace.id, subject=self.user.pk)
        needed = self.needs.get(method)
        if needed is None or not roles.may(self.role, needed):
            raise errors.Forbidden(
                f"Your role {self.role} may not {needed or 'do this'}. Ask an owner of the workspace for more."
            )
        if not self.workspace.enabled and request.method not in SAFE:
            raise errors.WorkspaceDisabled("The workspace is disabled; nothing in it can be changed.")
        self.inside.enter_context(workspace_scope(self.workspace.id))

    def _place(self, name: str) -> tuple[Workspace, Membership.Role]:
        workspace, role = members.find_workspace(self.user, name)
        if isinstance(self.request.auth, members.Bearer):
            bearer = self.request.auth
            if bearer.token.workspace_id != workspace.id:
                raise errors.WorkspaceNotFound("The requested workspace does not exist.")
            role = bearer.role
        return workspace, role


def _unchanged(request: Request, response: Response) -> Response:
    digest = hashlib.sha256(msgspec.json.encode(response.data)).hexdigest()[:32]
    tag = f'W/"{digest}"'
    known = {each.strip() for each in request.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return response
