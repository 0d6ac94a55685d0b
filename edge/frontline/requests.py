"""Requests to deployed apps as events: noted when they are over, with what their route says."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from edge.http.request import Request
from edge.sentinel.decision import State
from edge.sentinel.recording import redact_pairs
from edge.store.records import Route
from edge.telemetry.events import Telemetry
from unkey import clock

_LONGEST = 1024


class Routes(Protocol):
    """What is needed of the store."""

    def route(self, host: str) -> Route | None:
        """Return the route of a host name."""


class Requests:
    """Notes requests; a `Server` calls it with each that is over.

    Args:
        store: knows whose a host name is.
        telemetry: takes the events.
        edge_id, region: told in every event.
    """

    def __init__(self, store: Routes, telemetry: Telemetry, edge_id: str, region: str) -> None:
        self._store = store
        self._telemetry = telemetry
        self._edge_id = edge_id
        self._region = region

    def __call__(self, request: Request, complete: bool) -> None:
        """Note a request; one whose host is nobody's is not."""
        route = self._store.route(request.host)
        if route is None:
            return
        found: State | None = request.found
        query = _text(request.query)
        policies: Sequence[str] = ()
        details = None
        if found is not None:
            policies = found.trace
            query = redact_pairs(query, found.hidden)
            if found.recorder is not None:
                details = partial(found.recorder.columns, request.fields)
        took = round((time.monotonic() - request.started) * 1000)
        self._telemetry.record_gateway_request(
            request.id,
            clock.now_ms() - took,
            route.workspace_id,
            (route.project_id, route.app_id, route.environment_id, route.deployment_id),
            edge_id=self._edge_id,
            region=self._region,
            method=_text(request.method),
            host=request.host,
            path=_text(request.path),
            query=query,
            status=request.status,
            user_agent=_text(
                next((value for lower, _, value in request.fields if lower == b"user-agent"), b"")
            ),
            ip_address=_text(request.peer),
            latency=took,
            policies=policies,
            details=details,
        )


def _text(raw: bytes) -> str:
    return raw[:_LONGEST].decode("utf-8", "replace").strip()
