"""The agents' watch stream: newline-delimited JSON under ASGI, one database poller for all of it.

    GET /internal/watch?region=local&version=7&agent=agent-1

Lines: `topology` (one changed row), `synced` (the backlog is sent; `full` where it was the whole
state), `heartbeat` (every ten seconds). A reader resumes by the version that it applied last; version
0, or one that this database has never given out, gets the whole state.

The event loop never touches the database: the poller and the backlogs run in threads.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import structlog
from django.db import Error, connection

from apps.cluster import queries
from unkey.tokens import bears_agent_token

POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 10.0
MAX_WAITING = 10_000

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the stream and the version that a reader has applied after it."""

    version: int
    text: bytes


@dataclass(eq=False, slots=True)
class Subscriber:
    """A connection: which region it watches, and the lines that wait for it.

    A reader that falls behind by `MAX_WAITING` lines is cut off; it resumes where it was.
    """

    region: str
    lines: "asyncio.Queue[Line]" = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))
    cut_off: bool = False


class Poller:
    """Asks the database for new versions ten times a second and hands them to every connection.

    Runs only while somebody watches.
    """

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._sent: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        # One thread: one database connection, and reads of one region never overtake each other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed-poller")
        self._backlogs = ThreadPoolExecutor(4, thread_name_prefix="feed-backlog")

    async def subscribe(self, subscriber: Subscriber) -> None:
        """Begin to hand a region's changes to a new connection.

        Everything committed after this returns is handed on, so a backlog that is read then has no gap.
        """
        heads = await self._in(self._thread, queries.topology_heads)
        self._sent.setdefault(subscriber.region, heads.get(subscriber.region, 0))
        self._subscribers.add(subscriber)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a connection."""
        self._subscribers.discard(subscriber)
        if all(each.region != subscriber.region for each in self._subscribers):
            self._sent.pop(subscriber.region, None)

    async def backlog(self, region: str, version: int) -> list[Line]:
        """Return the lines after a version, the last of them `synced`."""
        return await self._in(self._backlogs, lambda: _backlog(region, version))

    async def _run(self) -> None:
        failing = False
        try:
            while self._subscribers:
                try:
                    await self._poll()
                    failing = False
                except Error as error:
                    if not failing:
                        log.warning("feed_without_database", error=str(error))
                    failing = True
                await asyncio.sleep(POLL_SECONDS)
        finally:
            # Nobody may wait for a poller that has died of something unforeseen.
            for subscriber in self._subscribers:
                subscriber.cut_off = True

    async def _poll(self) -> None:
        heads = await self._in(self._thread, queries.topology_heads)
        for region in list(self._sent):
            head = heads.get(region, 0)
            sent = self._sent.get(region, head)
            if head <= sent:
                continue
            lines = await self._in(self._thread, partial(_lines, region, sent))
            for subscriber in [each for each in self._subscribers if each.region == region]:
                self._hand(subscriber, lines)
            if region in self._sent:
                self._sent[region] = max(head, lines[-1].version if lines else 0)

    @staticmethod
    def _hand(subscriber: Subscriber, lines: list[Line]) -> None:
        try:
            for line in lines:
                subscriber.lines.put_nowait(line)
        except asyncio.QueueFull:
            subscriber.cut_off = True

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, _reading, read)


def _reading(read: Callable[[], _T]) -> _T:
    """Run a read in this thread; a connection that failed is not kept."""
    try:
        return read()
    except Error:
        connection.close()
        raise


def _lines(region: str, version: int) -> list[Line]:
    return [Line(event["version"], _encode(event)) for event in queries.topologies_after(region, version)]


def _backlog(region: str, version: int) -> list[Line]:
    # The head is read first: rows that come meanwhile have greater versions and may be sent twice,
    # never missed.
    head = queries.topology_heads().get(region, 0)
    full = version == 0 or version > head
    lines = _lines(region, 0 if full else version)
    at = max([head, *(line.version for line in lines)])
    synced = Line(at, _encode({"type": "synced", "version": at, "full": full}))
    return [*lines, synced]


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


class Feed:
    """ASGI application of `/internal/watch`."""

    def __init__(self) -> None:
        self._poller = Poller()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not bears_agent_token(headers.get(b"authorization", b"").decode("latin-1")):
            await _refuse(send, 401, "Unauthorized", "Send the AGENT_TOKEN as a bearer token.")
            return
        if scope["method"] != "GET":
            await _refuse(send, 405, "Method Not Allowed", "Use GET.")
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        region = query.get("region", [""])[0]
        version = query.get("version", ["0"])[0]
        if not region or not version.isascii() or not version.isdigit() or len(version) > 18:
            await _refuse(send, 400, "Bad Request", "Give a region, and the version that was applied last.")
            return
        subscriber = Subscriber(region)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await self._serve(subscriber, int(version), gone, send)
        finally:
            self._poller.unsubscribe(subscriber)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _serve(
        self, subscriber: Subscriber, version: int, gone: "asyncio.Task[None]", send: Send
    ) -> None:
        try:
            await self._poller.subscribe(subscriber)
            backlog = await self._poller.backlog(subscriber.region, version)
        except Error as error:
            log.warning("feed_without_database", error=str(error))
            await _refuse(send, 503, "Service Unavailable", "The database does not answer.")
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")],
            }
        )
        await _write(send, b"".join(line.text for line in backlog))
        position = backlog[-1].version
        while not gone.done() and not subscriber.cut_off:
            line = await _next(subscriber, gone)
            if line is None:
                await _write(send, _encode({"type": "heartbeat", "version": position}))
            elif line.version > position:
                await _write(send, line.text)
                position = line.version
        if not gone.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next(subscriber: Subscriber, gone: "asyncio.Task[None]") -> Line | None:
    """Return the next line, or None when a heartbeat is due or the reader has gone."""
    arriving = asyncio.ensure_future(subscriber.lines.get())
    try:
        await asyncio.wait({arriving, gone}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return arriving.result() if arriving.done() else None
    finally:
        arriving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, octets: bytes) -> None:
    await send({"type": "http.response.body", "body": octets, "more_body": True})


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
