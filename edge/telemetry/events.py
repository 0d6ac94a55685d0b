"""Events of requests: noted in memory at once, written to segment files by a thread of their own.

    telemetry = Telemetry(Spool(folder), region="local")
    telemetry.start()

    # keys.verifyKey, and keyauth of the gateway (source="gateway"); facts are made once per key
    facts = key_facts(workspace_id, key_space_id, identity_id, external_id, key_id)
    telemetry.record_verification(request_id, now_ms, facts, b"VALID", spent=1, latency=0.03)

    # ratelimit.limit and multiLimit, one event per limit; facts may be kept per identifier
    facts = ratelimit_facts(workspace_id, namespace_id, identifier)
    telemetry.record_ratelimit(request_id, now_ms, facts, True, 10, 9, reset_ms, cost=1, latency=0.02)

    telemetry.record_request(request_id, now_ms, workspace_id, host=…, method=…, path=…, status=200, …)
    telemetry.stop()          # everything that was recorded is on disk

Recording costs a tuple and an append. It never waits and never fails: while the disk is slower than the
requests, events beyond `most` are dropped and counted. A killed process loses what it recorded since the
last flush: `FLUSH_SECONDS`, or what the disk had not taken, `most` events per table at the utmost.

Every event has an id, `<writer>-<number>`: a writer is one run of one process, its numbers have no gaps
but those of drops.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from edge.telemetry.clickhouse import Server, Shipper
from edge.telemetry.spool import Segment, Spool
from edge.telemetry.tables import API_REQUESTS, GATEWAY_REQUESTS, RATELIMITS, VERIFICATIONS, Table
from unkey import ids

log = structlog.get_logger("telemetry")

FLUSH_SECONDS = 1.0
MOST = 100_000
_YIELD = 64

Row = tuple[Any, ...]
Details = Callable[[], tuple[list[str], str, list[str], str]]
_NO_DETAILS: tuple[list[str], str, list[str], str] = ([], "", [], "")
# What was recorded of a request to an app; its last part stands for four columns.
_WITH_DETAILS = len(GATEWAY_REQUESTS.columns) - 1 - 3

_encode = msgspec.json.encode


class Telemetry:
    """The events of one process.

    Args:
        spool: where segments are written.
        region: told in every event.
        most: events of a table that may wait to be written.
        ship: called again and again with the spool and our own name in it, to send on what was written.

    Attributes:
        recorded: events by table since start, without dropped ones.
        dropped: events that there was no room for, by table.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        region: str,
        most: int = MOST,
        ship: Callable[[Spool, str], object] | None = None,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._spool = spool
        self._most = most
        self._ship = ship
        self._writer = ids.new("w")[2:]
        # A row's text, for its number and what was recorded; none: it is put together by the encoder.
        mark = b'["%b-%%d",' % self._writer.encode()
        place = _encode(region).replace(b"%", b"%%")
        verification = mark + b'"%%b",%%d,%%b,%b,%%b,"%%b",%%b,%%d,%%.3f]\n' % place
        ratelimit = mark + b'"%b",%d,%b,%b,%.3f,"%b",%d,%d,%d,%d]\n'
        self._verifications: deque[Row] = deque()
        self._ratelimits: deque[Row] = deque()
        self._requests: deque[Row] = deque()
        self._gateway: deque[Row] = deque()
        self._buffers: tuple[tuple[Table, deque[Row], bytes], ...] = (
            (VERIFICATIONS, self._verifications, verification),
            (RATELIMITS, self._ratelimits, ratelimit),
            (API_REQUESTS, self._requests, b""),
            (GATEWAY_REQUESTS, self._gateway, b""),
        )
        self._numbers: dict[str, int] = {table.name: 0 for table, _, _ in self._buffers}
        # Written as text, not yet taken by the disk; per table, so that its size is bounded.
        self._unwritten: dict[str, Segment] = {}
        self._flushing = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    # Recording

    def record_verification(
        self,
        request_id: bytes,
        time: int,
        facts: bytes,
        outcome: bytes,
        spent: int = 0,
        latency: float = 0.0,
        tags: bytes = b"[]",
        source: bytes = b'"api",""',
    ) -> None:
        """Note that a key was verified.

        Args:
            request_id: `req_…`.
            time: Unix milliseconds.
            facts: see `edge.telemetry.facts.key_facts`.
            outcome: a code such as `VALID`.
            spent: credits.
            latency: milliseconds since the key was looked up.
            tags: the request's tags as a JSON list.
            source: two JSON strings: `api` or `gateway`, and the app that the gateway stands before.
        """
        waiting = self._verifications
        if len(waiting) < self._most:
            waiting.append((request_id, time, facts, source, outcome, tags, spent, latency))
        else:
            self.dropped[VERIFICATIONS.name] += 1

    def record_ratelimit(
        self,
        request_id: bytes,
        time: int,
        facts: bytes,
        passed: bool,
        limit: int,
        remaining: int,
        reset_at: int,
        *,
        cost: int = 1,
        latency: float = 0.0,
        override_id: str = "",
    ) -> None:
        """Note a decision of a standalone rate limit.

        Args:
            request_id: `req_…`.
            time: Unix milliseconds.
            facts: see `edge.telemetry.facts.ratelimit_facts`.
            passed: whether the request was let through.
            limit, remaining, reset_at: as the caller was told.
            cost: tokens that were asked for.
            latency: milliseconds that the decision took.
            override_id: the override that applied, if one did.
        """
        waiting = self._ratelimits
        verdict = b"true" if passed else b"false"
        if len(waiting) < self._most:
            waiting.append(
                (
                    request_id,
                    time,
                    facts,
                    verdict,
                    latency,
                    override_id.encode(),
                    limit,
                    remaining,
                    reset_at,
                    cost,
                )
            )
        else:
            self.dropped[RATELIMITS.name] += 1

    def record_request(
        self,
        request_id: str,
        time: int,
        workspace_id: str,
        *,
        host: str,
        method: str,
        path: str,
        status: int,
        error: str,
        latency: int,
        user_agent: str,
        ip_address: str,
        region: str,
    ) -> None:
        """Note a request of the management API.

        Args:
            request_id: `req_…`.
            time: when it began, Unix milliseconds.
            workspace_id: whose root key asked; empty: not known.
            error: code of the catalogue, empty for a success.
            latency: milliseconds until it was answered.
            host, method, path, status, user_agent, ip_address, region: of the request and its answer.
        """
        waiting = self._requests
        if len(waiting) < self._most:
            waiting.append(
                (
                    *(request_id, time, workspace_id, host, method, path, status, error, latency),
                    *(user_agent, ip_address, region),
                )
            )
        else:
            self.dropped[API_REQUESTS.name] += 1

    def record_gateway_request(
        self,
        request_id: str,
        time: int,
        workspace_id: str,
        place: tuple[str, str, str, str],
        *,
        edge_id: str,
        region: str,
        method: str,
        host: str,
        path: str,
        query: str,
        status: int,
        user_agent: str,
        ip_address: str,
        latency: int,
        policies: Sequence[str] = (),
        details: Details | None = None,
    ) -> None:
        """Note a request to a deployed app.

        Args:
            request_id: `req_…`.
            time: when it began, Unix milliseconds.
            workspace_id: whose app it is.
            place: project, app, environment and deployment.
            latency: milliseconds until its answer was written.
            policies: what came of each, see `edge.sentinel.decision.State.trace`.
            details: returns headers and bodies of request and answer, called in the thread that writes.
            edge_id, region, method, host, path, query, status, user_agent, ip_address: of the request.
        """
        waiting = self._gateway
        if len(waiting) < self._most:
            waiting.append(
                (
                    *(request_id, time, workspace_id, *place, edge_id, region, method, host, path, query),
                    *(status, user_agent, ip_address, latency, policies, details),
                )
            )
        else:
            self.dropped[GATEWAY_REQUESTS.name] += 1

    # Writing

    @property
    def recorded(self) -> dict[str, int]:
        """Events by table that have been taken out of memory."""
        return dict(self._numbers)

    def start(self) -> None:
        """Begin to write in the background, and to send on."""
        for name, do in (("telemetry", self.flush), ("telemetry-ship", self._shipped)):
            if not self._threads or self._ship is not None:
                thread = threading.Thread(target=self._again, args=(do,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def stop(self) -> None:
        """Write what is left, and end; recording after this is in vain."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self.flush()
        self._shipped()

    def _again(self, do: Callable[[], None]) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            try:
                do()
            except Exception:
                log.exception("telemetry.failed")

    def flush(self) -> None:
        """Write what waits to segments; what the disk refuses is kept for the next time."""
        with self._flushing:
            for table, waiting, shape in self._buffers:
                self._write(table, waiting, shape)

    def _shipped(self) -> None:
        # A thread of its own: a server that does not answer must not keep events in memory.
        if self._ship is not None:
            self._ship(self._spool, self._writer)

    def _write(self, table: Table, waiting: deque[Row], shape: bytes) -> None:
        """Write what the disk refused before, then all that waits now."""
        if table.name in self._unwritten and not self._kept(table):
            return
        if waiting:
            segment = self._segment(table, waiting, shape)
            if segment.rows:
                self._unwritten[table.name] = segment
                self._kept(table)

    def _kept(self, table: Table) -> bool:
        segment = self._unwritten[table.name]
        try:
            fits = self._spool.write(segment)
        except OSError as error:
            log.error("telemetry.disk_refuses", table=table.name, reason=str(error))
            return False
        del self._unwritten[table.name]
        if not fits:
            self.dropped[table.name] += segment.rows
        return True

    def _segment(self, table: Table, waiting: deque[Row], shape: bytes) -> Segment:
        first = number = self._numbers[table.name] + 1
        left = len(waiting)  # what comes meanwhile is the next segment's
        parts: list[bytes] = []
        for place in range(left):
            if place % _YIELD == 0:
                # Whoever answers requests waits for this thread: not for milliseconds, as threads take turns.
                time.sleep(0)
            event = waiting.popleft()
            try:
                parts.append(shape % (number, *event) if shape else self._line(number, event))
            except (TypeError, ValueError) as error:  # a text that is no UTF-8: one event is not all
                self.dropped[table.name] += 1
                log.error("telemetry.event_unreadable", table=table.name, reason=str(error))
            else:
                number += 1
        self._numbers[table.name] = number - 1
        return Segment(table.name, self._writer, first, number - 1, b"".join(parts))

    def _line(self, number: int, event: Row) -> bytes:
        if len(event) == _WITH_DETAILS:
            *known, details = event
            event = (*known, *(_NO_DETAILS if details is None else details()))
        return _encode([f"{self._writer}-{number}", *event]) + b"\n"


def telemetry_of(env: Any) -> Telemetry:
    """Return a process's telemetry as the settings ask for it; not started.

    Raises:
        ValueError: CLICKHOUSE_URL is not a URL of a server.
    """
    ship = Shipper(Server(env.CLICKHOUSE_URL)) if env.CLICKHOUSE_URL else None
    return Telemetry(Spool(env.UNKEY_VAR / "analytics" / "spool"), region=env.REGION, ship=ship)
