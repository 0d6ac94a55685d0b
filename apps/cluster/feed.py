"""The agents' watch stream: newline-delimited JSON under ASGI, one database poller for all of it.

    GET /internal/watch?region=local&version=7&agent=agent-1

Lines: `topology` (one changed row), `synced` (the backlog is sent; `full` where it was the whole
state, with the `reason`), `heartbeat` (every ten seconds). A reader resumes by the version that it
applied last. It gets the whole state at version 0 (`new`), at a version that this database has never
given out (`unknown_version`), and when ends that it has not seen may have been removed (`compacted`).

A reader is first given its backlog, page by page, at its own pace. Then it follows the region's ring: the
latest changes, kept once for all readers. So a connection holds one page at most; who falls behind the
ring, or takes nothing for a while, is cut off, and resumes where it was.

The event loop never touches the database: the poller and the backlogs run in threads.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import structlog
from django.db import Error, connection
from prometheus_client import Counter, Gauge

from apps.cluster import queries, tokens

POLL_SECONDS = 0.1
TOKEN_SECONDS = 5.0
HEARTBEAT_SECONDS = 10.0
STALL_SECONDS = 20.0
TICK_SECONDS = 0.25
PAGE = 200  # rows
CHUNK = 256 * 1024  # octets written at once, more or less
RING_OCTETS = 8 * 1024 * 1024
STALLED = "stalled"  # a reader that takes nothing any more

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
_T = TypeVar("_T")

log = structlog.get_logger(__name__)

CONNECTIONS = Gauge("unkey_feed_connections", "Agents that watch.")
READS = Counter("unkey_feed_database_reads", "Reads of the database.", ["of"])
ROWS = Counter("unkey_feed_rows", "Changed rows that the poller handed on, each once.")
CUT_OFF = Counter("unkey_feed_cut_off", "Readers that were cut off.", ["why"])


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the stream and the version that a reader has applied after it."""

    version: int
    text: bytes


class FellBehind(Exception):
    """The ring does not reach back to where a reader is."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll found: every change after `since` up to `until`."""

    since: int
    until: int
    lines: tuple[Line, ...]
    text: bytes


class Ring:
    """A region's latest changes, and who waits for the next ones.

    Args:
        head: the version up to which everything was committed before the first change that is kept here.
        octets: most text that is kept.
    """

    def __init__(self, head: int, octets: int) -> None:
        self.head = head
        self.followers: set[Follower] = set()
        self._batches: deque[Batch] = deque()
        self._held = 0
        self._octets = octets

    def publish(self, lines: Sequence[Line], until: int) -> None:
        """Keep the changes after the head, forget the oldest if need be, and wake everyone."""
        batch = Batch(self.head, until, tuple(lines), b"".join(line.text for line in lines))
        self.head = until
        self._batches.append(batch)
        self._held += len(batch.text)
        while self._held > self._octets and len(self._batches) > 1:
            self._held -= len(self._batches.popleft().text)
        for follower in self.followers:
            follower.wake()

    def after(self, version: int) -> tuple[bytes, int]:
        """Return the text that follows a version and the version that it leads to; empty if none does yet.

        Raises:
            FellBehind: what follows is not kept any more.
        """
        if version >= self.head:
            return b"", version
        if not self._batches or version < self._batches[0].since:
            raise FellBehind
        texts: list[bytes] = []
        size = 0
        for batch in self._since(version):
            if batch.since >= version:
                texts.append(batch.text)
            else:
                texts.extend(line.text for line in batch.lines if line.version > version)
            version = batch.until
            size += len(texts[-1]) if texts else 0
            if size > CHUNK:
                break
        return b"".join(texts), version

    def _since(self, version: int) -> list[Batch]:
        found: list[Batch] = []
        for batch in reversed(self._batches):
            if batch.until <= version:
                break
            found.append(batch)
        return found[::-1]


class Follower:
    """A connection that reads a region's ring.

    Whether a heartbeat is due, and whether a write takes too long, is looked at by one task for all
    connections: a timer of its own for every write would cost more than the write.

    Args:
        bearer: whom its token names.
    """

    def __init__(self, bearer: tokens.Bearer) -> None:
        self.bearer = bearer
        self.refused = ""
        self.gone = False
        self.beat_due = False
        self._task = asyncio.current_task()
        self._waiting: asyncio.Future[None] | None = None
        self._writing = False
        self._since = asyncio.get_running_loop().time()

    def wake(self) -> None:
        """Let it look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def cut(self, why: str) -> None:
        """Let it end; `why` is told to metrics."""
        self.refused = why
        self.wake()

    def leave(self) -> None:
        """Take note that its peer has gone."""
        self.gone = True
        self.wake()

    async def pause(self) -> None:
        """Wait until it is woken: for changes, for its end, or because a heartbeat is due."""
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def write(self, send: Send, octets: bytes) -> None:
        """Send a piece of the body; an empty one ends it.

        Raises:
            asyncio.CancelledError: with `refused` set to STALLED: what was sent before has not been
                taken for too long.
        """
        self._since, self._writing, self.beat_due = asyncio.get_running_loop().time(), True, False
        try:
            await send({"type": "http.response.body", "body": octets, "more_body": bool(octets)})
        finally:
            self._writing = False

    def tick(self, now: float) -> None:
        """Look at the time: end a write that stalls, ask for a heartbeat after a silence."""
        silence = now - self._since
        if self._writing:
            if silence > STALL_SECONDS and self.refused != STALLED and self._task is not None:
                self.refused = STALLED
                self._task.cancel()
        elif silence > HEARTBEAT_SECONDS:
            self.beat_due = True
            self.wake()


class Poller:
    """Asks the database for new versions ten times a second and hands them to every connection.

    Runs only while somebody watches. What it asks does not depend on how many do.
    """

    def __init__(self) -> None:
        self.rings: dict[str, Ring] = {}
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        # One thread: one database connection, and reads of one region never overtake each other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed-poller")
        self._backlogs = ThreadPoolExecutor(4, thread_name_prefix="feed-backlog")

    async def bearer(self, authorization: str) -> tokens.Bearer | None:
        """Return whom a header names, None for nobody.

        Raises:
            django.db.Error: the database does not answer, and it is no token of the settings.
        """
        if tokens.is_installation(authorization):
            return tokens.INSTALLATION
        return await self._in(self._backlogs, partial(tokens.bearer, authorization), "token")

    async def follow(self, region: str, follower: Follower) -> Ring:
        """Begin to hand a region's changes to a new connection.

        Everything committed after this returns is in the ring, so a backlog that is read then has no gap.
        """
        if region not in self.rings:
            heads = await self._in(self._thread, queries.topology_heads, "heads")
            self.rings.setdefault(region, Ring(heads.get(region, 0), RING_OCTETS))
        ring = self.rings[region]
        ring.followers.add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return ring

    def leave(self, region: str, follower: Follower) -> None:
        """Forget a connection, and a ring that nobody follows."""
        ring = self.rings.get(region)
        if ring is not None:
            ring.followers.discard(follower)
            if not ring.followers:
                del self.rings[region]

    async def bounds(self, region: str) -> tuple[int, int]:
        """Return a region's last version, and that up to which it is compacted."""
        return await self._in(self._backlogs, partial(queries.topology_bounds, region), "backlog")

    async def page(self, region: str, version: int, settled: int) -> tuple[list[Line], int | None]:
        """Return the lines of the next page, and with the last page the version that it leads to."""
        return await self._in(self._backlogs, partial(_page, region, version, settled), "backlog")

    async def _run(self) -> None:
        failing = False
        checked = asyncio.get_running_loop().time()
        try:
            while self.rings:
                try:
                    await self._poll()
                    if asyncio.get_running_loop().time() - checked > TOKEN_SECONDS:
                        await self._check_tokens()
                        checked = asyncio.get_running_loop().time()
                    failing = False
                except Error as error:
                    if not failing:
                        log.warning("feed_without_database", error=str(error))
                    failing = True
                await asyncio.sleep(POLL_SECONDS)
        finally:
            # Nobody may wait for a poller that has died of something unforeseen.
            for follower in self._followers():
                follower.cut("poller")

    async def _tick(self) -> None:
        """Look after every connection, also while the database does not answer."""
        while self.rings:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            for follower in self._followers():
                follower.tick(now)

    async def _poll(self) -> None:
        heads = await self._in(self._thread, queries.topology_heads, "heads")
        for region, ring in list(self.rings.items()):
            head = heads.get(region, 0)
            while ring.head < head and self.rings.get(region) is ring:
                lines = await self._in(self._thread, partial(_lines, region, ring.head), "changes")
                ROWS.inc(len(lines))
                last = lines[-1].version if lines else 0
                ring.publish(lines, last if len(lines) == PAGE else max(head, last))

    async def _check_tokens(self) -> None:
        used = {follower.bearer.token_id for follower in self._followers()} - {""}
        if not used:
            return
        valid = await self._in(self._thread, partial(tokens.still_valid, used), "token")
        for follower in self._followers():
            if follower.bearer.token_id in used - valid:
                follower.cut("token")

    def _followers(self) -> list[Follower]:
        return [follower for ring in self.rings.values() for follower in ring.followers]

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, read: Callable[[], _T], of: str) -> _T:
        READS.labels(of).inc()
        return await asyncio.get_running_loop().run_in_executor(pool, _reading, read)


def _reading(read: Callable[[], _T]) -> _T:
    """Run a read in this thread; a connection that failed is not kept."""
    try:
        return read()
    except Error:
        connection.close()
        raise


def _lines(region: str, version: int, settled: int = 0) -> list[Line]:
    events = queries.topologies_after(region, version, limit=PAGE, settled=settled)
    return [Line(event["version"], _encode(event)) for event in events]


def _page(region: str, version: int, settled: int) -> tuple[list[Line], int | None]:
    # The head is read first: rows that come meanwhile have greater versions and may be sent twice,
    # never missed.
    head, _ = queries.topology_bounds(region)
    lines = _lines(region, version, settled)
    if len(lines) == PAGE:
        return lines, None
    return lines, max([head, version, *(line.version for line in lines)])


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


class Feed:
    """ASGI application of `/internal/watch`."""

    def __init__(self) -> None:
        self._poller = Poller()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        region, version, agent = (query.get(name, [""])[0] for name in ("region", "version", "agent"))
        try:
            bearer = await self._poller.bearer(headers.get(b"authorization", b"").decode("latin-1"))
        except Error as error:
            log.warning("feed_without_database", error=str(error))
            return await _refuse(send, 503, "Service Unavailable", "The database does not answer.")
        if bearer is None:
            return await _refuse(send, 401, "Unauthorized", tokens.HOW)
        if scope["method"] != "GET":
            return await _refuse(send, 405, "Method Not Allowed", "Use GET.")
        version = version or "0"
        if not region or not version.isascii() or not version.isdigit() or len(version) > 18:
            detail = "Give a region, and the version that was applied last."
            return await _refuse(send, 400, "Bad Request", detail)
        if why := bearer.refusal(tokens.AGENT, agent, region):
            return await _refuse(send, 403, "Forbidden", why)
        follower = Follower(bearer)
        watching = asyncio.create_task(_disconnected(receive, follower))
        CONNECTIONS.inc()
        try:
            await self._serve(region, int(version), follower, send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if follower.refused != STALLED or task is None or task.uncancel():
                raise
            log.warning("reader_stalled", region=region, agent=agent)
            # Closed in the ordinary way, it would be waited for until all that was sent is taken.
            abort = scope.get("extensions", {}).get("unkey.abort")
            if abort is not None:
                abort["abort"]()
        finally:
            CONNECTIONS.dec()
            if follower.refused:
                CUT_OFF.labels(follower.refused).inc()
            self._poller.leave(region, follower)
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _serve(self, region: str, version: int, follower: Follower, send: Send) -> None:
        try:
            ring = await self._poller.follow(region, follower)
            head, compacted = await self._poller.bounds(region)
        except Error as error:
            log.warning("feed_without_database", error=str(error))
            return await _refuse(send, 503, "Service Unavailable", "The database does not answer.")
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")],
            }
        )
        try:
            reason = _why_full(version, head, compacted)
            position = await self._send_backlog(region, version, head, reason, follower, send)
            while not follower.gone and not follower.refused:
                text, position = ring.after(position)
                if text:
                    await follower.write(send, text)
                elif follower.beat_due:
                    await follower.write(send, _encode({"type": "heartbeat", "version": position}))
                elif ring.head <= position:
                    await follower.pause()
        except FellBehind:
            follower.refused = "behind"
        except Error as error:  # in the middle of a backlog: the reader goes on where it was
            log.warning("feed_without_database", error=str(error))
            follower.refused = "database"
        if not follower.gone:
            await follower.write(send, b"")

    async def _send_backlog(
        self, region: str, version: int, head: int, reason: str, follower: Follower, send: Send
    ) -> int:
        """Send what the reader lacks, a page at a time; return the version that it has then."""
        position, settled = (0, head) if reason else (version, 0)
        until: int | None = None
        while until is None:
            lines, until = await self._poller.page(region, position, settled)
            if lines:
                await follower.write(send, b"".join(line.text for line in lines))
                position = lines[-1].version
            if follower.gone or follower.refused:
                return position
        synced = {"type": "synced", "version": until, "full": bool(reason)}
        await follower.write(send, _encode(synced | ({"reason": reason} if reason else {})))
        return until


def _why_full(version: int, head: int, compacted: int) -> str:
    """Say why a reader needs the whole state; empty when it does not."""
    if version == 0:
        return "new"
    if version > head:
        return "unknown_version"
    return "compacted" if version < compacted else ""


async def _disconnected(receive: Receive, follower: Follower) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    follower.leave()


async def _refuse(send: Send, status: int, title: str, detail: str) -> None:
    body = json.dumps({"error": {"title": title, "detail": detail, "status": status}}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
