"""The metrics listener: health for supervisors and Kubernetes, and Prometheus text."""

from collections.abc import Callable

from edge.http.request import Request
from edge.telemetry.metrics import Registry

_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_PROMETHEUS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Operations:
    """Serves `/health/live`, `/health/ready`, `/health/startup` and `/metrics`.

    Args:
        ready: whether something can be served: from the database or from the snapshot on disk.
    """

    def __init__(self, registry: Registry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready

    def handle(self, request: Request) -> None:
        """Answer one request; a `Server` calls this."""
        path = request.path
        if path == b"/metrics":
            request.respond(200, _PROMETHEUS, self._registry.render())
        elif path == b"/health/live":
            request.respond(200, _TEXT, b"ok\n")
        elif path in (b"/health/ready", b"/health/startup"):
            if self._ready():
                request.respond(200, _TEXT, b"ok\n")
            else:
                request.respond(503, _TEXT, b"nothing to serve from yet\n")
        else:
            request.respond(404, _TEXT, b"not found\n")
