"""Refusals of `/api/` in one form: RFC 9457 problem details with a code of the catalogue."""

from typing import Any

import structlog
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from rest_framework import exceptions
from rest_framework.response import Response

from apps.vault.errors import VaultUnavailable
from unkey import errors
from unkey.errors import Fault, Violation
from unkey.health import outage

CONTENT_TYPE = "application/problem+json"

log = structlog.get_logger("unkey.api")


def fault_of(error: Exception, request_id: str) -> Fault:
    """Return the refusal that says what an exception means to a caller.

    What is unforeseen is logged, and told to nobody but by the request's id.
    """
    match error:
        case Fault():
            return error
        case exceptions.ValidationError():
            found = tuple(_violations(error.detail, "query"))
            return errors.InvalidInput(found[0].message, violations=found)
        case exceptions.ParseError():
            return errors.InvalidInput(str(error.detail), violations=(Violation(str(error.detail), "body"),))
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return errors.NotSignedIn(
                "Log in, or send a personal token: 'Authorization: Bearer unkey_pat_…'."
            )
        case exceptions.MethodNotAllowed():
            return errors.MethodNotAllowed(str(error.detail))
        case exceptions.UnsupportedMediaType():
            return errors.UnsupportedMediaType("Send the body as application/json.")
        case RequestDataTooBig():
            return errors.RequestBodyTooLarge("The request body is too large.")
        case UnreadablePostError():
            return errors.RequestBodyUnreadable("The request body could not be read to its end.")
        case VaultUnavailable():
            log.exception("api.vault")
            return errors.ServiceUnavailable("The vault does not answer at the moment. Please try again.")
    if told := outage(error):
        log.error("api.database", exc_info=error)
        return errors.ServiceUnavailable(told)
    log.error("api.unexpected", exc_info=error)
    return errors.UnexpectedError(
        "Something unexpected happened on our side. "
        f"Please tell us the request id {request_id} if it happens again."
    )


def content(fault: Fault, request_id: str) -> dict[str, Any]:
    """Return the members of the problem document (RFC 9457, section 3)."""
    return {
        "type": fault.kind.url,
        "title": fault.kind.title,
        "status": fault.kind.status,
        "detail": fault.detail,
        "code": fault.kind.code,
        "requestId": request_id,
        "violations": [
            {"message": each.message, "location": each.location} | ({"fix": each.fix} if each.fix else {})
            for each in fault.violations
        ],
    }


def response(error: Exception, request_id: str) -> Response:
    """Return the answer of a view that refused or failed."""
    fault = fault_of(error, request_id)
    answer = Response(
        content(fault, request_id),
        status=fault.kind.status,
        headers=fault.headers,
        content_type=CONTENT_TYPE,
    )
    if isinstance(fault, errors.NotSignedIn | errors.InvalidCredentials):
        answer.headers["WWW-Authenticate"] = 'Bearer realm="unkey"'
    return answer


def nothing_here(request: HttpRequest) -> HttpResponse:
    """Answer addresses under `/api/` that mean nothing."""
    request_id = str(getattr(request, "request_id", ""))
    fault = errors.RouteNotFound(f"There is nothing at {request.path[:256]}. See /api/docs.")
    return JsonResponse(content(fault, request_id), status=404, content_type=CONTENT_TYPE)


def _violations(detail: Any, here: str) -> list[Violation]:
    """Flatten what a serializer of query parameters complains about."""
    if isinstance(detail, dict):
        return [found for name, inner in detail.items() for found in _violations(inner, f"{here}.{name}")]
    if isinstance(detail, list):
        return [found for inner in detail for found in _violations(inner, here)]
    return [Violation(str(detail), here)]
