"""What happens around every request of web: its identifier, its context in the logs, its numbers."""

import time
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse
from prometheus_client import Histogram

from unkey import ids
from unkey.health import PROBES, outage

log = structlog.get_logger("unkey.web")

SECONDS = Histogram(
    "unkey_web_request_seconds",
    "Time to answer a request.",
    ["method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)


class RequestContext:
    """Gives each request `request.request_id`, binds it in the logs, and writes one line when it is answered."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if probe := PROBES.get(request.path):
            return probe(request)
        request_id = ids.new("req")
        request.request_id = request_id  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        response = self.get_response(request)
        seconds = time.perf_counter() - started
        response.headers.setdefault("X-Request-Id", request_id)
        SECONDS.labels(request.method, response.status_code).observe(seconds)
        log.info(
            "request",
            method=request.method,
            path=request.path,
            status=response.status_code,
            ms=round(seconds * 1000, 1),
        )
        return response

    def process_exception(self, _request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Say in one line that the database is away, instead of a page of where that was noticed."""
        told = outage(error)
        if told is None:
            return None
        log.warning("database_away", error=str(error))
        return HttpResponse(f"{told}\n", status=503, content_type="text/plain", headers={"Retry-After": "1"})
