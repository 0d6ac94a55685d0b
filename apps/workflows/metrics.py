"""Prometheus metrics of the engine: what the database holds, and what this process has done.

The first are the same on every process that is scraped; web and feed show them. The second grow where
steps are run: scrape the workers too (WORKER_METRICS_PORT).
"""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import Count, Exists, OuterRef, Q
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from apps.workflows.counters import BOUNDS, counters
from apps.workflows.models import ENDED, State, WorkflowKey, WorkflowRun
from unkey import clock
from unkey.tokens import bears_agent_token

log = structlog.get_logger("workflows")

KEEP_SECONDS = 10.0
UNENDED = tuple(state for state in State if state not in ENDED)


class EngineCollector(Collector):
    """Gives the engine's metrics at scrape time.

    What is read from the database is kept for `KEEP_SECONDS`, so that many scrapers cost no more than
    one. Ended runs are counted as they end, not in the table, which holds a month of them.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._guard = threading.Lock()
        self._read_at: float | None = None
        self._kept: list[Metric] = []

    def describe(self) -> Iterator[Metric]:
        """Say nothing: naming the metrics must not ask the database when the process starts."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return the metrics; without those of the database while that is away."""
        yield from self._of_the_database()
        yield from _of_the_process()

    def _of_the_database(self) -> list[Metric]:
        with self._guard:
            now = self._seconds()
            if self._read_at is None or now - self._read_at >= KEEP_SECONDS:
                try:
                    self._kept = _read()
                except (DatabaseError, InterfaceError) as error:
                    log.warning("metrics of the database left out", error=str(error))
                    connection.close()
                    self._kept = []
                self._read_at = now
            return self._kept


def _read() -> list[Metric]:
    runs = GaugeMetricFamily(
        "unkey_workflow_runs", "Runs that have not ended, by service and state", labels=["service", "state"]
    )
    rows = WorkflowRun.objects.filter(state__in=UNENDED).order_by().values_list("service", "state")
    for service, state, count in rows.annotate(count=Count("id")):
        runs.add_metric([service, state], count)
    now = clock.now()
    taken = WorkflowKey.objects.filter(
        Q(lease_expires_at__gt=now) | (Q(exclusive=True) & ~Q(holder="") & ~Q(holder=OuterRef("id"))),
        key=OuterRef("key"),
    )
    due = WorkflowRun.objects.filter(~Exists(taken), next_at__lte=now).order_by("next_at")
    oldest = due.values_list("next_at", flat=True).first()
    lag = GaugeMetricFamily(
        "unkey_workflow_lag_seconds",
        "How long the oldest due run waits for a worker",
        value=0.0 if oldest is None else (now - oldest).total_seconds(),
    )
    return [runs, lag]


def _of_the_process() -> Iterator[Metric]:
    steps = CounterMetricFamily(
        "unkey_workflow_steps", "Turns of steps by outcome", labels=["service", "step", "outcome"]
    )
    retries = CounterMetricFamily(
        "unkey_workflow_retries", "Attempts that failed, to be tried again", labels=["service"]
    )
    retried: dict[str, int] = {}
    for (service, step, outcome), count in list(counters.steps.items()):
        steps.add_metric([service, step, outcome], count)
        if outcome == "retried":
            retried[service] = retried.get(service, 0) + count
    for service, count in retried.items():
        retries.add_metric([service], count)
    yield steps
    yield retries
    seconds = HistogramMetricFamily(
        "unkey_workflow_step_seconds",
        "From the beginning of an attempt's first part to its commit",
        labels=["service", "step"],
    )
    for (service, step), histogram in list(counters.seconds.items()):
        buckets, total = [], 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        seconds.add_metric([service, step], buckets, histogram.total)
    yield seconds
    ended = CounterMetricFamily(
        "unkey_workflow_runs_ended", "Runs that ended here", labels=["service", "state"]
    )
    for (service, state), count in list(counters.runs_ended.items()):
        ended.add_metric([service, state], count)
    yield ended
    for name, text, value in (
        ("lease_losses", "Outcomes refused because their lease was taken over", counters.lease_losses),
        ("lease_lapses", "Lapsed leases of others that were taken over", counters.lease_lapses),
        ("commits", "Transactions of the engine", counters.commits),
    ):
        yield CounterMetricFamily(f"unkey_workflow_{name}", text, value=value)
    for name, text, value in (
        ("outside_running", "Outside parts that run now", counters.outside_running),
        (
            "outside_abandoned",
            "Outside parts that ran out of time and whose threads have not ended",
            counters.outside_abandoned,
        ),
    ):
        yield GaugeMetricFamily(f"unkey_workflow_{name}", text, value=value)


def register() -> None:
    """Show the engine's metrics wherever this process shows any."""
    REGISTRY.register(EngineCollector())


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/metrics":
            self._answer(404, b"only /metrics is here\n")
        elif not bears_agent_token(self.headers.get("Authorization", "")):
            self._answer(401, b"bearer AGENT_TOKEN needed\n")
        else:
            self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log no scrapes."""


def serve(address: str, port: int) -> ThreadingHTTPServer:
    """Serve `/metrics` of this process to bearers of AGENT_TOKEN, in threads of its own.

    Args:
        address: to listen on.
        port: TCP port; 0: a free one.

    Raises:
        OSError: the port cannot be listened on.
    """
    server = ThreadingHTTPServer((address, port), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
