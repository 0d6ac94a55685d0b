"""What every `/v2` request goes through, outermost first.

1. recover from anything unforeseen, without telling the caller more than the request's id
2. find the route; read the body within its limit
3. validate headers and body: every fault at once
4. authenticate, then the workspace's own request limit
5. authorise and handle, inside the workspace's scope
6. write the envelope

Validation comes before authentication: an invalid body with an invalid key is a 400.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.request import UnreadablePostError

from apps.keys.portals import authenticate_session
from apps.vault.errors import VaultUnavailable
from apps.workspaces.services import authenticate_root_key
from unkey import clock, errors, ids
from unkey.actors import Actor, Principal
from unkey.env import env
from unkey.errors import Fault, Violation
from unkey.health import outage
from unkey.rpc import cors
from unkey.rpc.call import Call, Page
from unkey.rpc.client_address import from_headers
from unkey.rpc.patience import Wait, patience
from unkey.rpc.repetition import repeated_names
from unkey.rpc.request_limit import RequestLimit
from unkey.rpc.routes import Archive, Route, routes
from unkey.rpc.unavailable import unknown
from unkey.telemetry import telemetry
from unkey.tenancy import workspace_scope

log = structlog.get_logger("unkey.rpc")

BODY_LIMIT = 10 * 1024 * 1024
BODY_SECONDS = 30
UPLOAD_SECONDS = 600
_CHUNK = 256 * 1024
_LOGGED_BODY = 16 * 1024
_ATTEMPTS = 3
_DEADLOCK = 1213  # of MySQL and MariaDB; the transaction was rolled back as a whole
_BEARER = re.compile(r"Bearer +(\S+)\Z", re.IGNORECASE)
_JSON_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)\Z")
_NOBODY = Principal("", "rootkey", "", "", frozenset())


class Rpc:
    """Answers `/v2` requests; everything else goes on to Django.

    A middleware rather than a view, so that sessions, CSRF and the admin's other needs cost a
    management request nothing.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.limit = RequestLimit()
        # At the start of the process, not at the first request: a broken declaration must not serve.
        routes()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith("/v2/"):
            return self.get_response(request)
        events = telemetry()
        if events is None:
            return self.answer(request)
        began, started = clock.now_ms(), time.perf_counter()
        response = self.answer(request)
        events.record_request(
            getattr(request, "request_id", ""),
            began,
            getattr(request, "workspace_id", ""),
            host=request.META.get("HTTP_HOST", "")[:256],
            method=request.method or "",
            path=request.path_info[:512],
            status=response.status_code,
            error=getattr(response, "fault_code", ""),
            latency=round((time.perf_counter() - started) * 1000),
            user_agent=request.META.get("HTTP_USER_AGENT", "")[:512],
            ip_address=from_headers(request.META),
            region=env.REGION,
        )
        return response

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer one request in the envelope of the API, whatever happens."""
        if request.method == "OPTIONS":
            allowed = cors.preflight(request.method, request.headers)
            if allowed is not None:
                return HttpResponse(status=204, headers=allowed)
        response = self._answer(request)
        for name, value in cors.answered(request.META.get("HTTP_ORIGIN", "")).items():
            response[name] = value
        return response

    def _answer(self, request: HttpRequest) -> HttpResponse:
        request_id = getattr(request, "request_id", None) or ids.new("req")
        headers: dict[str, str] = {}
        try:
            return self._success(request, request_id, headers)
        except Fault as fault:
            return _failure(request, request_id, fault, headers)
        except VaultUnavailable:
            log.exception("rpc.vault", path=request.path_info)
            down = errors.ServiceUnavailable("The vault does not answer at the moment. Please try again.")
            return _failure(request, request_id, down, headers)
        except Exception as error:
            if told := outage(error):
                log.exception("rpc.database", path=request.path_info)
                return _failure(request, request_id, errors.ServiceUnavailable(told), headers)
            log.exception("rpc.unexpected", path=request.path_info)
            unforeseen = errors.UnexpectedError(
                "Something unexpected happened on our side. "
                f"Please tell us the request id {request_id} if it happens again."
            )
            return _failure(request, request_id, unforeseen, headers)

    def _success(self, request: HttpRequest, request_id: str, headers: dict[str, str]) -> HttpResponse:
        route = _find(request)
        upload: Path | None = None
        try:
            body: dict[str, Any] = {}
            faults = [] if route.public or route.session else _header_faults(request)
            if isinstance(route.request, Archive):
                # A body of this size is read only for somebody who may send it.
                _refuse(faults)
                _expect_type(request, route.request.content_type)
            elif route.checker:
                body = _json_body(request, route, faults)
            _refuse(faults)
            principal = _NOBODY if route.public else self._principal(route, request, headers)
            with workspace_scope(principal.workspace_id):
                remote_ip = from_headers(request.META)
                call = Call(
                    route=route,
                    request_id=request_id,
                    body=body,
                    headers=request.headers,
                    remote_ip=remote_ip,
                    principal=principal,
                    actor=_actor(principal, remote_ip, request),
                )
                if route.permission is not None and not route.permission.placeholders:
                    call.authorize()
                if isinstance(route.request, Archive):
                    upload = call.upload = receive(request, route.request.limit())
                _note(call, request)
                answer = _handled(route, call)
            if not (route.public or call.authorized):
                raise RuntimeError(f"{route.name} answered without checking its permission")
            return _envelope(route, request_id, answer, headers)
        finally:
            if upload is not None:
                upload.unlink(missing_ok=True)

    def _principal(self, route: Route, request: HttpRequest, headers: dict[str, str]) -> Principal:
        principal = _of_session(request) if route.session else _of_root_key(request)
        structlog.contextvars.bind_contextvars(workspace_id=principal.workspace_id, subject=principal.id)
        request.workspace_id = principal.workspace_id  # type: ignore[attr-defined]
        if principal.requests_per_minute is not None:
            headers.update(self.limit.check(principal.workspace_id, principal.requests_per_minute))
        return principal


def _of_root_key(request: HttpRequest) -> Principal:
    found = _BEARER.match(request.META["HTTP_AUTHORIZATION"].strip())
    if not found:
        raise errors.AuthenticationMalformed("The Authorization header must read 'Bearer <root key>'.")
    return authenticate_root_key(found[1])


def _of_session(request: HttpRequest) -> Principal:
    """Return who a portal's access token speaks for: of the cookie, or of a program that sends it as bearer."""
    found = _BEARER.match(request.META.get("HTTP_AUTHORIZATION", "").strip())
    token = found[1] if found else request.COOKIES.get("portal_session", "")
    if not token:
        raise errors.PortalTokenMissing("Send the portal's access token as the cookie portal_session.")
    if not found and not request.content_type:
        # What a foreign page can send with the cookie and without being asked first, it sends without a type.
        _refuse([Violation("Content-Type must be application/json", "header.Content-Type")])
    return authenticate_session(token)


def _handled(route: Route, call: Call) -> Any:
    """Run the handler; again if the database chose its transaction to break a deadlock by."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return route.handler(call)
        except OperationalError as error:
            if not error.args or error.args[0] != _DEADLOCK:
                raise
            log.warning("rpc.deadlock", operation=route.name, request_id=call.request_id)
    return route.handler(call)


def _find(request: HttpRequest) -> Route:
    name = request.path_info.removeprefix("/v2/")
    route = routes().get(name)
    if route is None:
        raise unknown(name)
    if request.method != route.method:
        raise errors.MethodNotAllowed(
            f"{name} is called by {route.method}, not {request.method}.", headers={"Allow": route.method}
        )
    return route


def _header_faults(request: HttpRequest) -> list[Violation]:
    if request.META.get("HTTP_AUTHORIZATION", "").strip():
        return []
    return [
        Violation(
            "the Authorization header is required",
            "header.Authorization",
            "Send 'Authorization: Bearer <root key>'.",
        )
    ]


def _expect_type(request: HttpRequest, content_type: str) -> None:
    given = (request.content_type or "").lower()
    if given != content_type:
        _refuse([Violation(f"Content-Type must be {content_type}", "header.Content-Type")])


def _json_body(request: HttpRequest, route: Route, faults: list[Violation]) -> dict[str, Any]:
    raw = _read(request, BODY_LIMIT)
    given = (request.content_type or "").lower()
    if given and not _JSON_TYPE.match(given):
        faults.append(Violation("Content-Type must be application/json", "header.Content-Type"))
        return {}
    if not raw.strip():
        faults.append(Violation("a JSON body is required", "body", "Send at least {}."))
        return {}
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        faults.append(Violation(f"the body is not valid JSON: {error}", "body"))
        return {}
    if repeated := repeated_names(raw):
        faults.extend(repeated)
        return {}
    assert route.checker is not None
    found = route.checker.violations(decoded)
    if found:
        faults.extend(found)
        return {}
    completed: dict[str, Any] = route.checker.complete(decoded)
    return completed


def _refuse(faults: list[Violation]) -> None:
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=tuple(faults))


def _source(request: HttpRequest) -> Any:
    # Django reads nothing from a chunked body; the server has undone the chunks and marks the end.
    if "CONTENT_LENGTH" not in request.META and request.META.get("wsgi.input_terminated"):
        return request.META["wsgi.input"]
    return request


def _announced(request: HttpRequest, limit: int) -> int:
    """Return how many bytes a body is said to have, 0 if that is not said."""
    text = request.META.get("CONTENT_LENGTH") or "0"
    length = int(text) if text.isascii() and text.isdigit() else 0
    if length > limit:
        raise _too_large(limit)
    return length


def _too_large(limit: int) -> Fault:
    return errors.RequestBodyTooLarge(f"The request body must not exceed {limit} bytes.")


def _read(request: HttpRequest, limit: int) -> bytes:
    announced = _announced(request, limit)
    cut: Exception | None = None
    raw = b""
    with patience.reading(request.META.get("gunicorn.socket"), BODY_SECONDS) as wait:
        try:
            raw = _source(request).read(limit + 1)
        except (UnreadablePostError, OSError) as error:
            cut = error
        over = wait.over
    if len(raw) > limit:
        raise _too_large(limit)
    if cut is not None or len(raw) < announced:
        raise _unfinished(over) from cut
    return raw


def _unfinished(over: bool) -> Fault:
    """Return why a body came to no end: its time was up, or the connection."""
    if over:
        return errors.RequestTimeout("The request body did not arrive in time. Send it at once.")
    return errors.RequestBodyUnreadable("The request body could not be read to its end.")


def receive(request: HttpRequest, limit: int) -> Path:
    """Stream a body to a temporary file; the caller removes it."""
    announced = _announced(request, limit)
    source = _source(request)
    path: Path | None = None
    try:
        with (
            tempfile.NamedTemporaryFile(prefix="unkey-upload-", delete=False) as file,
            patience.reading(request.META.get("gunicorn.socket"), UPLOAD_SECONDS) as wait,
        ):
            path = Path(file.name)
            size = 0
            while chunk := _chunk(source, wait):
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                file.write(chunk)
            if size < announced:
                raise _unfinished(wait.over)
        return path
    except (OSError, Fault) as error:
        if path is not None:
            path.unlink()
        if isinstance(error, Fault):
            raise
        log.error("rpc.upload_not_kept", error=str(error))
        kept = errors.ServiceUnavailable("The upload cannot be kept at the moment. Please try again.")
        raise kept from error


def _chunk(source: Any, wait: Wait) -> bytes:
    try:
        chunk: bytes = source.read(_CHUNK)
    except (UnreadablePostError, OSError) as error:
        raise _unfinished(wait.over) from error
    return chunk


def _actor(principal: Principal, remote_ip: str, request: HttpRequest) -> Actor:
    return principal.actor(remote_ip=remote_ip, user_agent=request.META.get("HTTP_USER_AGENT", ""))


def _note(call: Call, request: HttpRequest) -> None:
    """Log what is asked, with the fields hidden that the schema marks."""
    if call.route.public:
        return
    noted: dict[str, Any] = {"operation": call.route.name, "request_id": call.request_id}
    if call.route.checker and int(request.META.get("CONTENT_LENGTH") or 0) <= _LOGGED_BODY:
        noted["body"] = call.route.checker.redacted(call.body)
    log.debug("rpc", remote_ip=call.remote_ip, **noted)


def _envelope(route: Route, request_id: str, answer: Any, headers: Mapping[str, str]) -> HttpResponse:
    content: dict[str, Any] = {"meta": {"requestId": request_id}}
    if isinstance(answer, Page):
        content["data"] = answer.items
        content["pagination"] = {"hasMore": answer.cursor is not None}
        if answer.cursor is not None:
            content["pagination"]["cursor"] = answer.cursor
    elif not route.wrapped:
        content.update(answer)
    elif route.response is not None:
        content["data"] = answer
    return _respond(content, route.status, "application/json", headers)


def _failure(request: HttpRequest, request_id: str, fault: Fault, headers: Mapping[str, str]) -> HttpResponse:
    error: dict[str, Any] = {
        "title": fault.kind.title,
        "detail": fault.detail,
        "status": fault.kind.status,
        "type": fault.kind.url,
    }
    if fault.kind.status == 400:
        # The published clients require the list in every 400.
        error["errors"] = [
            {"message": violation.message, "location": violation.location}
            | ({"fix": violation.fix} if violation.fix else {})
            for violation in fault.violations
        ]
    plain = bool(fault.violations) or isinstance(fault, errors.UnexpectedError)
    content_type = "application/json" if plain or not _takes_problems(request) else "application/problem+json"
    content = {"meta": {"requestId": request_id}, "error": error}
    response = _respond(content, fault.kind.status, content_type, {**headers, **fault.headers})
    response.fault_code = fault.kind.code  # type: ignore[attr-defined]
    return response


def _takes_problems(request: HttpRequest) -> bool:
    accept = request.META.get("HTTP_ACCEPT", "")
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint({"application/problem+json", "application/*", "*/*"})


def _respond(content: Any, status: int, content_type: str, headers: Mapping[str, str]) -> HttpResponse:
    encoded = msgspec.json.encode(content)
    return HttpResponse(
        encoded,
        status=status,
        content_type=content_type,
        headers={**headers, "Content-Length": str(len(encoded))},
    )
