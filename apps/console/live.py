"""Live progress by server-sent events, under feed's ASGI: one poller for all connections of a process.

    GET /api/workspaces/<workspace>/events?ticket=…          what the ticket is for
    GET /api/workspaces/<workspace>/events?deployment=d_…    by session or personal token; &logs=1

Events: `deployment`, `step`, `instances` (each as a whole whenever it changes), `log` (new lines), `end`
(the stream may not go on). The id of an event says what its reader has seen, so that any process can
resume it: by `Last-Event-ID`, or by `lastEventId` in the address, since a page that asks for a new
ticket opens a new EventSource.

A reader's position is all that is kept of it: what it has not taken yet is not queued but read again
from the topic's present state. One that takes nothing for a while is cut off.
"""

import asyncio
import http.cookies
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import structlog
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import User
from django.db import Error, connection
from django.http import HttpRequest
from prometheus_client import Gauge

from apps.console import progress, tickets
from apps.console.progress import Part, Parts, Place
from apps.console.rest import problems
from apps.deployments import queries as deployments
from apps.workspaces import members
from unkey import clock, errors, ids
from unkey.errors import Fault
from unkey.tenancy import workspace_scope

POLL_SECONDS = 0.25
LOG_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0
PATIENCE_SECONDS = 20.0  # that one write may take
MOST_STREAMS = 2000
MOST_OF_ONE = 20
KEPT_LINES = 2000
LINES_AT_ONCE = 200

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Known = dict[str, str]
_T = TypeVar("_T")

log = structlog.get_logger(__name__)
STREAMS = Gauge("unkey_feed_console_streams", "Open streams of live progress.")

_PATH = re.compile(r"/api/workspaces/([^/]+)/events\Z")
_SEEN = re.compile(r"([a-z_.]{1,40})=([0-9a-f]{6})")
_LOG = re.compile(r"log=(\d{1,15})-(\d{1,6})")
_CHANGED = re.compile(r"changed=(\d{1,15})")


@dataclass(eq=False, slots=True)
class Log:
    """The lines of a deployment that were written lately, in the order of their arrival.

    Args:
        first: number of the oldest line that is kept; numbers grow by one.
        seen: by region and instance, the time of its last line and how many lines it had at that time.
    """

    lines: "deque[dict[str, Any]]" = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    first: int = 0
    seen: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def take(self, fetched: list[dict[str, Any]]) -> bool:
        """Keep the lines of a fetch that are new; say whether there were any."""
        at_time: dict[tuple[tuple[str, str], int], int] = {}
        before = self.end
        for line in fetched:
            who = (line.get("region", ""), line.get("instance", ""))
            time = line.get("time") or 0
            count = at_time[who, time] = at_time.get((who, time), 0) + 1
            if (time, count) <= self.seen.get(who, (-1, 0)):
                continue
            self.seen[who] = (time, count)
            if len(self.lines) == KEPT_LINES:
                self.first += 1
            self.lines.append(line)
        return self.end > before

    @property
    def end(self) -> int:
        """Number of the line that comes next."""
        return self.first + len(self.lines)

    def after(self, time: int, count: int) -> int:
        """Return the number of the first line that a reader has not seen.

        Args:
            time: of the last line that it has seen.
            count: how many lines of that time it has seen.
        """
        same = 0
        for number, line in enumerate(self.lines, self.first):
            written = line.get("time") or 0
            same += written == time
            if written > time or (written == time and same > count):
                return number
        return self.end


@dataclass(eq=False, slots=True)
class Topic:
    """What several readers follow: a deployment, or all of a workspace.

    Args:
        state: its parts as they were read last; None: not yet.
        polled: when that was, in Unix milliseconds.
    """

    deployment: str = ""
    workspace: str = ""
    state: Parts | None = None
    polled: int = 0
    log: Log | None = None
    readers: "set[Reader]" = field(default_factory=set)

    def wake(self) -> None:
        """Tell every reader that there is something new."""
        for reader in self.readers:
            reader.news.set()


@dataclass(eq=False, slots=True)
class Reader:
    """A connection, and what it has seen.

    Args:
        known: digest by name of a part.
        since: of a workspace: Unix milliseconds from which on changes are shown.
        line: number of the log line that comes next; None: from `log_seen` on.
        log_seen: time of the last line that it has seen, and how many lines of that time.
        end: why the stream may not go on; empty: it may.
    """

    place: Place
    topic: Topic
    known: Known
    since: int
    log_seen: tuple[int, int]
    line: int | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    end: str = ""

    def events(self) -> Iterator[bytes]:
        """Yield what the reader has not seen, each as an event whose id says what it has seen then."""
        topic = self.topic
        for name, part in (topic.state or {}).items():
            if self.known.get(name) != part.digest:
                self.known[name] = part.digest
                yield _event(part, self._id())
        if topic.workspace and topic.state is not None:
            self.known = {name: part.digest for name, part in topic.state.items()}
            self.since = topic.polled
        if topic.log is not None:
            yield from self._lines(topic.log)

    def _lines(self, kept: Log) -> Iterator[bytes]:
        if self.line is None:
            self.line = kept.after(*self.log_seen)
        missed = max(kept.first - self.line, 0)
        self.line += missed
        while self.line < kept.end:
            start = self.line - kept.first
            lines = [kept.lines[at] for at in range(start, min(start + LINES_AT_ONCE, len(kept.lines)))]
            for line in lines:
                time = line.get("time") or 0
                same = self.log_seen[1] if time == self.log_seen[0] else 0
                self.log_seen = (time, same + 1)
            self.line += len(lines)
            payload = msgspec.json.encode({"lines": lines, "missed": missed})
            missed = 0
            yield _event(Part("log", "", payload), self._id())

    def _id(self) -> str:
        if self.topic.workspace:
            return f"changed={self.topic.polled}"
        seen = [f"{name}={digest}" for name, digest in self.known.items()]
        if self.topic.log is not None:
            seen.append(f"log={self.log_seen[0]}-{self.log_seen[1]}")
        return ";".join(seen)


class Poller:
    """Reads what all topics show, a few times a second and only while somebody reads."""

    def __init__(self) -> None:
        self._topics: dict[tuple[str, bool], Topic] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="console-poller")
        self._logs = ThreadPoolExecutor(4, thread_name_prefix="console-logs")
        self._doors = ThreadPoolExecutor(4, thread_name_prefix="console-doors")

    @property
    def readers(self) -> list[Reader]:
        """Return all readers."""
        return [reader for topic in self._topics.values() for reader in topic.readers]

    def topic(self, workspace: str, deployment: str, logs: bool) -> Topic:
        """Return the topic of these, made when it is new."""
        key = (deployment or workspace, logs)
        topic = self._topics.get(key)
        if topic is None:
            topic = Topic(deployment, "" if deployment else workspace, log=Log() if logs else None)
            self._topics[key] = topic
        return topic

    def add(self, reader: Reader) -> None:
        """Begin to wake a reader; it is woken as soon as its topic was read."""
        reader.topic.readers.add(reader)
        if reader.topic.state is not None:
            reader.news.set()
        if not self._tasks or any(task.done() for task in self._tasks):
            loop = asyncio.get_running_loop()
            for task in self._tasks:
                task.cancel()
            self._tasks = [loop.create_task(self._run()), loop.create_task(self._run_logs())]

    def remove(self, reader: Reader) -> None:
        """Forget a reader, and its topic with the last one."""
        reader.topic.readers.discard(reader)
        for key, topic in list(self._topics.items()):
            if topic is reader.topic and not topic.readers:
                del self._topics[key]

    async def in_thread(self, read: Callable[[], _T]) -> _T:
        """Run a read of the database in the poller's thread: reads never overtake each other."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _reading, read)

    async def at_the_door(self, read: Callable[[], _T]) -> _T:
        """Run a read that decides who comes in, beside the poller's."""
        return await asyncio.get_running_loop().run_in_executor(self._doors, _reading, read)

    async def _run(self) -> None:
        failing = False
        checked = clock.now_ms()
        while self._topics:
            try:
                await self._poll()
                if clock.now_ms() - checked >= HEARTBEAT_SECONDS * 1000:
                    checked = clock.now_ms()
                    await self._check_places()
                failing = False
            except Error as error:
                if not failing:
                    log.warning("console_feed_without_database", error=str(error))
                failing = True
            except Exception:
                # What is shown is read anew each time: nobody has to go for one failure.
                log.exception("console_feed_failed")
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        topics = list(self._topics.values())
        now = clock.now_ms()
        since = {
            topic.workspace: clock.from_ms(min([reader.since for reader in topic.readers], default=now))
            for topic in topics
            if topic.workspace
        }
        wanted = {topic.deployment for topic in topics if topic.deployment}
        found, changed = await self.in_thread(
            lambda: (progress.of_deployments(wanted), progress.of_workspaces(since))
        )
        for topic in topics:
            state = found.get(topic.deployment, {}) if topic.deployment else changed[topic.workspace]
            topic.polled = now
            if topic.deployment and not state:
                for reader in topic.readers:
                    reader.end = "The deployment was deleted."
            if state != topic.state:
                topic.state = state
                topic.wake()

    async def _check_places(self) -> None:
        readers = self.readers
        lost = await self.in_thread(lambda: progress.lost(reader.place for reader in readers))
        for reader in readers:
            if reader.place in lost:
                reader.end = "You are no longer a member of the workspace, or the token no longer works."
                reader.news.set()

    async def _run_logs(self) -> None:
        while self._topics:
            with suppress(Error):
                await asyncio.gather(
                    *(self._fetch(topic) for topic in list(self._topics.values()) if topic.log is not None)
                )
            await asyncio.sleep(LOG_SECONDS)

    async def _fetch(self, topic: Topic) -> None:
        loop = asyncio.get_running_loop()
        lines, _notes = await loop.run_in_executor(
            self._logs, _reading, lambda: progress.log_of(topic.deployment)
        )
        if topic.log is not None and topic.log.take(lines):
            topic.wake()


class Live:
    """ASGI application of `/api/workspaces/<workspace>/events`."""

    def __init__(self) -> None:
        self._poller = Poller()

    @staticmethod
    def serves(path: str) -> bool:
        """Say whether an address is one of ours."""
        return _PATH.match(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        origin = _allowed_origin(headers)
        try:
            if scope["method"] != "GET":
                raise errors.MethodNotAllowed("Use GET.", headers={"Allow": "GET"})
            query = {
                name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()
            }
            named = _PATH.match(scope["path"])
            ticket = await self._poller.at_the_door(
                lambda: _ticket(named[1] if named else "", query, headers)
            )
            reader = self._reader(ticket, headers.get("last-event-id") or query.get("lastEventId", ""))
        except (Fault, Error) as error:
            await _refuse(send, error, origin)
            return
        gone = asyncio.create_task(_disconnected(receive))
        self._poller.add(reader)
        STREAMS.inc()
        try:
            await self._serve(reader, gone, send, origin)
        except TimeoutError:
            log.info("console_reader_cut_off", user=reader.place.user)
            # Ending the response would wait for the reader to take what was written before.
            if abort := scope.get("extensions", {}).get("unkey.abort", {}).get("abort"):
                abort()
        finally:
            STREAMS.dec()
            self._poller.remove(reader)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    def _reader(self, ticket: tickets.Ticket, last_id: str) -> Reader:
        readers = self._poller.readers
        own = sum(reader.place.user == ticket.user for reader in readers)
        if len(readers) >= MOST_STREAMS or own >= MOST_OF_ONE:
            raise errors.WorkspaceRateLimited(
                f"You may follow {MOST_OF_ONE} streams at a time. Close one and try again.",
                headers={"Retry-After": "5"},
            )
        known, since, log_seen = _position(last_id)
        return Reader(
            Place(ticket.user, ticket.workspace, ticket.token),
            self._poller.topic(ticket.workspace, ticket.deployment, ticket.logs),
            known,
            since or clock.now_ms(),
            log_seen,
        )

    async def _serve(
        self, reader: Reader, gone: "asyncio.Task[None]", send: Send, origin: list[tuple[bytes, bytes]]
    ) -> None:
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
                *origin,
            ],
        }
        await _in_time(send(start))
        await _in_time(_write(send, b"retry: 2000\n\n"))
        while not gone.done():
            heard = await _news(reader, gone)
            reader.news.clear()
            if reader.end:
                reason = Part("end", "", msgspec.json.encode({"reason": reader.end}))
                await _in_time(_write(send, _event(reason, "")))
                await _in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))
                return
            if not heard and not gone.done():
                await _in_time(_write(send, b": heartbeat\n\n"))
            for event in reader.events():
                await _in_time(_write(send, event))


def _ticket(workspace: str, query: dict[str, str], headers: dict[str, str]) -> tickets.Ticket:
    """Return what a request may follow, whatever it proves that by. Reads the database."""
    if "ticket" in query:
        ticket = tickets.read(query["ticket"])
        user = User.objects.filter(pk=ticket.user, is_active=True).first()
    else:
        user, token = _person(headers)
        ticket = tickets.Ticket(
            user.pk, "", query.get("deployment", ""), query.get("logs") == "1", token.pk if token else ""
        )
        if token and token.workspace_id != members.find_workspace(user, workspace)[0].id:
            raise errors.WorkspaceNotFound("The requested workspace does not exist.")
    if user is None:
        raise errors.NotSignedIn("The person of the ticket is no longer there.")
    found, _role = members.find_workspace(user, workspace)
    if ticket.workspace not in ("", found.id):
        raise errors.WorkspaceNotFound("The requested workspace does not exist.")
    if progress.lost([Place(user.pk, found.id, ticket.token)]):
        raise errors.NotSignedIn("The token that the ticket was made by no longer works.")
    if ticket.deployment:
        with workspace_scope(found.id):
            deployments.find(ticket.deployment)
    return tickets.Ticket(user.pk, found.id, ticket.deployment, ticket.logs, ticket.token)


def _person(headers: dict[str, str]) -> tuple[User, Any]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise errors.InvalidCredentials("The Authorization header must read 'Bearer unkey_pat_…'.")
        bearer = members.authenticate_token(token.strip())
        return bearer.user, bearer.token
    cookies = http.cookies.SimpleCookie()
    with suppress(http.cookies.CookieError):
        cookies.load(headers.get("cookie", ""))
    morsel = cookies.get(settings.SESSION_COOKIE_NAME)
    if morsel is not None:
        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(morsel.value)
        user = get_user(request)
        if isinstance(user, User):
            return user, None
    raise errors.NotSignedIn("Ask for a ticket, log in, or send a personal token as a bearer.")


def _position(last_id: str) -> tuple[Known, int, tuple[int, int]]:
    """Return what an event's id says that its reader has seen: parts, since when, last line."""
    known: Known = {}
    since, log_seen = 0, (-1, 0)
    for text in last_id[:4096].split(";"):
        if seen := _SEEN.fullmatch(text):
            known[seen[1]] = seen[2]
        elif line := _LOG.fullmatch(text):
            log_seen = (int(line[1]), int(line[2]))
        elif changed := _CHANGED.fullmatch(text):
            since = int(changed[1])
    return known, since, log_seen


def _allowed_origin(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Let pages read the stream that come from the same host by another port, as web's do."""
    origin = headers.get("origin", "")
    host = _host(f"//{headers.get('host', '')}")
    same = origin in settings.CSRF_TRUSTED_ORIGINS or (host and _host(origin) == host)
    if not origin or not same:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
    ]


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _reading(read: Callable[[], _T]) -> _T:
    """Run a read in this thread; a connection that failed is not kept."""
    try:
        return read()
    except Error:
        connection.close()
        raise


def _event(part: Part, identifier: str) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (identifier.encode(), part.event.encode(), part.payload)


async def _news(reader: Reader, gone: "asyncio.Task[None]") -> bool:
    """Wait for news; False when a heartbeat is due or the reader has gone."""
    arriving = asyncio.ensure_future(reader.news.wait())
    try:
        await asyncio.wait({arriving, gone}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return arriving.done()
    finally:
        arriving.cancel()


async def _in_time(writing: Awaitable[None]) -> None:
    await asyncio.wait_for(writing, PATIENCE_SECONDS)


async def _write(send: Send, octets: bytes) -> None:
    await send({"type": "http.response.body", "body": octets, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, error: Exception, origin: list[tuple[bytes, bytes]]) -> None:
    request_id = ids.new("req")
    fault = problems.fault_of(error, request_id)
    body = msgspec.json.encode(problems.content(fault, request_id))
    headers = [
        (b"content-type", problems.CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in fault.headers.items()),
        *origin,
    ]
    await send({"type": "http.response.start", "status": fault.kind.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
