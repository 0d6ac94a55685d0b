"""Connections to instances: kept alive per address, least loaded known, responses read strictly."""

import asyncio
import errno
import itertools
import logging
import random
import re
import time
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from edge.http.body import BadChunk, ChunkDecoder
from edge.http.corked import Outbox
from edge.http.limits import Limits
from unkey.errors import FrontlineInternalError

if TYPE_CHECKING:
    from edge.http.proxy import Exchange

log = logging.getLogger(__name__)

_WATCHED = frozenset({
    b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"proxy-connection",
    b"te", b"trailer", b"proxy-authenticate",
})  # fmt: skip
_LINE = re.compile(rb"HTTP/1\.([01]) [1-9][0-9]{2}(?: [\t -~\x80-\xff]*)?\r\n")
# What keeps us from connecting to anybody: it says nothing of this address.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_SWEEP_SECONDS = 1.0
_FIRST_KNOCK = 0.25
_SLOWEST_KNOCK = 5.0
_UNWANTED_SECONDS = 60.0


class Reading:
    """What the next bytes of the upstream are; plain numbers, compared for every packet."""

    NOTHING: Final = 0  # idle in the pool
    HEAD: Final = 1
    LENGTH: Final = 2
    CHUNKED: Final = 3
    UNTIL_CLOSE: Final = 4
    TUNNEL: Final = 5


class ResponseHead:
    """A parsed response head; a pure function of its bytes.

    Args:
        line: status line with CRLF, as HTTP/1.1.
        lines: headers to pass on, each with its CRLF, joined.
        length: of the body by Content-Length; -1 chunked, -2 until the connection closes.
        upgrade: value of Upgrade.
    """

    __slots__ = ("keep_alive", "length", "line", "lines", "status", "upgrade")

    def __init__(
        self, status: int, line: bytes, lines: bytes, length: int, keep_alive: bool, upgrade: bytes
    ) -> None:
        self.status = status
        self.line = line
        self.lines = lines
        self.length = length
        self.keep_alive = keep_alive
        self.upgrade = upgrade


class Endpoint:
    """What the pool knows of one address.

    `down`: it accepts no connection. `trial`: it does so again, and has not answered a request yet: it
    gets one at a time. `wanted_at`: when it was last among the addresses to choose from, while either.
    """

    __slots__ = ("address", "down", "host", "idle", "kind", "outstanding", "port", "trial", "wanted_at")

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.host = host.strip("[]")
        self.port = int(port)
        self.idle: list[UpstreamConnection] = []
        self.kind: type[UpstreamConnection] = UpstreamConnection  # the protocol that it speaks
        self.outstanding = 0  # exchanges that were sent here and are not over
        self.down = False
        self.trial = False
        self.wanted_at = 0.0


class UpstreamConnection(asyncio.Protocol):
    """One connection to an instance: carries one exchange at a time."""

    __slots__ = (
        "_decoder", "_held", "_last", "_last_bytes", "_lines", "_parser", "_remaining", "_watched", "closed", "endpoint", "exchange",
        "fresh", "heard", "idle_since", "keep_alive", "paused", "pool", "reading", "transport",
    )  # fmt: skip

    def __init__(self, pool: "Pool", endpoint: Endpoint) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.exchange: Exchange | None = None
        self.reading: int = Reading.NOTHING
        self.fresh = True  # no exchange has been completed on it
        self.heard = False  # bytes of the current response have come
        self.keep_alive = True
        self.closed = False
        self.paused = False
        self.idle_since = 0.0
        self._parser: Any = None
        self._held = b""
        self._last_bytes = b""
        self._last: ResponseHead | None = None
        self._lines: list[bytes] = []
        self._watched: list[tuple[bytes, bytes]] = []
        self._remaining = 0
        self._decoder: ChunkDecoder | None = None

    # -- from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.pool.outbox.cork(cast(asyncio.Transport, transport))
        self.pool.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.open.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            if self in self.endpoint.idle:
                self.endpoint.idle.remove(self)
        elif self.reading == Reading.UNTIL_CLOSE and exc is None:
            exchange.response_closed()
        else:
            exchange.upstream_lost(self)
        self._parser = None

    def eof_received(self) -> bool:
        if self.reading == Reading.TUNNEL and self.exchange is not None:
            return self.exchange.tunnel_upstream_eof()
        return False

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_full()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_drained()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()  # nothing was asked: not an answer to anything
            return
        reading = self.reading
        if reading == Reading.HEAD:
            self._read_head(exchange, data)
        elif reading == Reading.LENGTH:
            self._read_length(exchange, b"", data)
        elif reading == Reading.CHUNKED:
            self._read_chunked(exchange, b"", data)
        elif reading == Reading.UNTIL_CLOSE:
            exchange.response_body(data)
        else:
            exchange.tunnel_from_upstream(data)

    # -- parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in _WATCHED:
            self._watched.append((lower, value.strip(b" \t").lower()))
        else:
            self._lines.append(b"%b: %b\r\n" % (name, value))

    # -- writing

    def send(self, head: bytes, body: bytes, *, ended: bool) -> None:
        """Write a request's head, and what there is of its body; `ended`: that is all."""
        exchange = self.exchange
        if exchange is not None and exchange.request.length < 0:
            body = _chunk(exchange, body, ended=ended)
        self.transport.write(head + body if body else head)

    def send_body(self, piece: bytes, *, ended: bool) -> None:
        """Write another piece of the body; `ended`: the last."""
        exchange = self.exchange
        if exchange is not None and exchange.request.length < 0:
            piece = _chunk(exchange, piece, ended=ended)
        if piece:
            self.transport.write(piece)

    # -- reading

    def begin(self, exchange: "Exchange") -> None:
        """Expect the response of an exchange, whose request is about to be written."""
        self.exchange = exchange
        self.reading = Reading.HEAD
        self.heard = False

    def _read_head(self, exchange: "Exchange", data: bytes) -> None:
        self.heard = True
        if self._held:
            data = self._held + data
            self._held = b""
        while True:
            last = self._last_bytes
            if last and data.startswith(last):  # an app repeats itself, within a second even its Date
                end = len(last)
            else:
                end = data.find(b"\r\n\r\n") + 4
                if end == 3:
                    if len(data) > self.pool.limits.head_bytes:
                        return self._garbage(exchange)
                    self._held = data
                    return
                text = data[:end]
                self._last_bytes = b""
                self._last = self._parse(text) if end <= self.pool.limits.head_bytes else None
                if self._last is None:
                    return self._garbage(exchange)
                self._last_bytes = text
            head = cast(ResponseHead, self._last)
            if head.status >= 200 or head.status == 101:
                break
            exchange.interim(head)
            data = data[end:]
            if not data:
                return
        rest = data[end:] if end < len(data) else b""
        self.keep_alive = head.keep_alive
        if head.status == 101:
            if not exchange.switch(head):
                return self._garbage(exchange)
            self.reading = Reading.TUNNEL
            if rest:
                exchange.tunnel_from_upstream(rest)
        elif exchange.bodiless(head.status):
            self._parser = None  # it may wait for the body that a HEAD would have had as GET
            exchange.write(exchange.response_head(head, bodiless=True))
            self.keep_alive = self.keep_alive and not rest
            self._complete(exchange)
        elif head.length >= 0:
            if head.length:
                self._parser = None  # it waits for a body, which is read here
            self._remaining = head.length
            self.reading = Reading.LENGTH
            self._read_length(exchange, exchange.response_head(head), rest)
        elif head.length == -1:
            self._parser = None
            self._decoder = ChunkDecoder()
            self.reading = Reading.CHUNKED
            self._read_chunked(exchange, exchange.response_head(head), rest)
        else:
            self._parser = None
            self.reading = Reading.UNTIL_CLOSE
            self.keep_alive = False
            exchange.write(exchange.response_head(head) + exchange.framed(rest))

    def _parse(self, text: bytes) -> ResponseHead | None:
        """Return a head's facts, None if it is not one that may be passed on."""
        self._lines = []
        self._watched = []
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(text)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError:
            return None
        status = parser.get_status_code()
        first = _LINE.match(text)  # llhttp takes any octet for a reason
        if first is None:
            return None
        http10 = first[1] == b"0"
        keep_alive = not http10
        if status < 100 or len(self._lines) > self.pool.limits.header_count:
            return None
        length, upgrade = -2, b""
        for name, value in self._watched:
            if name == b"content-length":
                if not value.isdigit():
                    return None
                length = int(value)
            elif name == b"transfer-encoding":
                if value != b"chunked" or length == -1 or http10:
                    return None
                length = -1
            elif name == b"connection":
                for token in value.split(b","):
                    token = token.strip(b" \t")
                    if token == b"close":
                        keep_alive = False
                    elif token == b"keep-alive":
                        keep_alive = keep_alive or http10
                    elif token and token != b"upgrade":
                        named = token + b":"
                        self._lines = [line for line in self._lines if not line.lower().startswith(named)]
            elif name == b"upgrade":
                upgrade = value
        line = b"HTTP/1.1" + text[8 : text.index(b"\r\n") + 2]
        return ResponseHead(status, line, b"".join(self._lines), length, keep_alive, upgrade)

    def _read_length(self, exchange: "Exchange", start: bytes, data: bytes) -> None:
        count = len(data)
        if count < self._remaining:
            self._remaining -= count
            if start or data:
                exchange.write(start + data if start else data)
            return
        if count > self._remaining:
            data = data[: self._remaining]
            self.keep_alive = False
        exchange.write(start + data)
        self._complete(exchange)

    def _read_chunked(self, exchange: "Exchange", start: bytes, data: bytes) -> None:
        decoder = self._decoder
        if decoder is None:
            raise RuntimeError("a chunked response has a decoder")
        try:
            pieces, ended, rest = decoder.feed(data)
        except BadChunk:
            if start:
                exchange.write(start)
            return self._garbage(exchange)
        text = start + exchange.framed(b"".join(pieces))
        if ended:
            self.keep_alive = self.keep_alive and not rest
            text += exchange.framed_end(decoder.trailers)
            self._decoder = None
        if text:
            exchange.write(text)
        if ended:
            self._complete(exchange)

    def _complete(self, exchange: "Exchange") -> None:
        self.exchange = None
        self.reading = Reading.NOTHING
        self.fresh = False
        if self.endpoint.trial:
            self.pool.trust(self.endpoint)
        self.pool.release(self, usable=self.keep_alive and exchange.sent)
        exchange.response_ended()

    def _garbage(self, exchange: "Exchange") -> None:
        self.exchange = None
        self.close()
        exchange.upstream_garbage()

    def close(self) -> None:
        """Close without waiting for anything."""
        self.closed = True
        self.transport.abort()

    def pause_reading(self) -> None:
        """Let the upstream wait: the client does not keep up."""
        if not self.paused and not self.closed:
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes of the upstream again."""
        if self.paused:
            self.paused = False
            if not self.closed and not self.transport.is_closing():
                self.transport.resume_reading()


def _chunk(exchange: "Exchange", piece: bytes, *, ended: bool) -> bytes:
    text = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
    return b"%b0\r\n%b\r\n" % (text, exchange.request_trailers()) if ended else text


class Pool:
    """Upstream connections of one edge process, by address `host:port`.

    Args:
        limits: time-outs and sizes; `upstream_idle_seconds` says how long a connection is kept.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.outbox = Outbox()
        self.endpoints: dict[str, Endpoint] = {}
        self.open: set[UpstreamConnection] = set()
        self.suspects: dict[str, Endpoint] = {}  # those that are down or on trial
        self.dials = 0
        self.dial_failures = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to close connections that were idle for too long."""
        self._sweep(asyncio.get_running_loop())

    def stop(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self.open):
            connection.close()

    def endpoint(self, address: str) -> Endpoint:
        """Return what is known of an address.

        Raises:
            ValueError: not `host:port`.
        """
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            endpoint = self.endpoints[address] = Endpoint(address)
        return endpoint

    def speak(self, endpoint: Endpoint, kind: type[UpstreamConnection]) -> None:
        """Note that an address speaks another protocol than before: another app has it now."""
        endpoint.kind = kind
        for connection in list(endpoint.idle):
            connection.close()
        endpoint.idle.clear()

    def choose(self, tiers: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
        """Return the addresses to try: tier by tier, and last of all those that accept no connection.

        Args:
            tiers: addresses of equal standing, best tier first; none of them empty.
        """
        if not self.suspects:
            first = self.order(tiers[0])
            return first if len(tiers) == 1 else (*first, *itertools.chain(*map(self.order, tiers[1:])))
        chosen: list[str] = []
        busy: list[str] = []
        down: list[str] = []
        for tier in tiers:
            for address in self.order(tier):
                endpoint = self.suspects.get(address)
                if endpoint is None:
                    chosen.append(address)
                    continue
                endpoint.wanted_at = time.monotonic()
                if endpoint.down:
                    down.append(address)
                elif endpoint.outstanding:
                    busy.append(address)
                else:
                    chosen.append(address)
        return (*chosen, *busy, *down)

    def order(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Return the addresses to try, first the less loaded of two random ones.

        The power of two choices (Mitzenmacher, 2001) keeps the fullest queue short at no cost.
        """
        count = len(addresses)
        if count < 2:
            return addresses
        one = int(random.random() * count)  # noqa: S311
        other = int(random.random() * (count - 1))  # noqa: S311
        if other >= one:
            other += 1
        if self.endpoint(addresses[other]).outstanding < self.endpoint(addresses[one]).outstanding:
            one = other
        return (addresses[one], *addresses[one + 1 :], *addresses[:one])

    def idle(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """Take the most recently used idle connection, None if there is none that is young enough."""
        connections = endpoint.idle
        while connections:
            connection = connections.pop()
            if connection.closed or connection.transport.is_closing():
                continue
            if time.monotonic() - connection.idle_since > self.limits.upstream_idle_seconds:
                connection.close()
                continue
            return connection
        return None

    def connect(self, endpoint: Endpoint, exchange: "Exchange") -> None:
        """Open a connection and hand it to the exchange, or tell it that this failed."""
        task = asyncio.get_running_loop().create_task(self._connect(endpoint, exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, endpoint: Endpoint, exchange: "Exchange") -> None:
        try:
            await self._dial(endpoint, exchange)
        except Exception:
            log.exception("a connection could not be used", extra={"request_id": exchange.request.id})
            exchange.client_gone()
            if exchange.client.request is exchange.request:
                exchange.client.fail(FrontlineInternalError("The edge failed to handle this request."))

    async def _dial(self, endpoint: Endpoint, exchange: "Exchange") -> None:
        loop = asyncio.get_running_loop()
        self.dials += 1
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: endpoint.kind(self, endpoint), endpoint.host, endpoint.port
                )
        except OSError as error:  # TimeoutError is one
            self.dial_failures += 1
            if error.errno not in _OURS:
                self._is_down(endpoint)
            exchange.connect_failed(error)
        except ValueError as error:  # an address that cannot be one
            self.dial_failures += 1
            exchange.connect_failed(OSError(f"{endpoint.address}: {error}"))
        else:
            exchange.connected(connection)

    def _is_down(self, endpoint: Endpoint) -> None:
        """Send no more requests to an address while there is another, until it accepts connections again."""
        if endpoint.down:
            return
        endpoint.down, endpoint.trial = True, False
        endpoint.wanted_at = time.monotonic()
        self.endpoints[endpoint.address] = self.suspects[endpoint.address] = endpoint
        task = asyncio.get_running_loop().create_task(self._knock(endpoint))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _knock(self, endpoint: Endpoint) -> None:
        """Try an address that is down, ever less often, as long as somebody wants it."""
        pause = _FIRST_KNOCK
        while time.monotonic() - endpoint.wanted_at < _UNWANTED_SECONDS:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
            pause = min(pause * 2, _SLOWEST_KNOCK)
            try:
                async with asyncio.timeout(self.limits.connect_seconds):
                    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            except OSError:
                continue
            writer.transport.abort()
            endpoint.down, endpoint.trial = False, True
            return
        self.trust(endpoint)

    def trust(self, endpoint: Endpoint) -> None:
        """Hold nothing against an address any more."""
        endpoint.down = endpoint.trial = False
        self.suspects.pop(endpoint.address, None)

    def release(self, connection: UpstreamConnection, *, usable: bool) -> None:
        """Take a connection back whose exchange is over."""
        idle = connection.endpoint.idle
        if usable and len(idle) < self.limits.upstream_idle_count and not connection.closed:
            connection.resume_reading()
            connection.idle_since = time.monotonic()
            idle.append(connection)
        else:
            connection.close()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep, loop)
        oldest = time.monotonic() - self.limits.upstream_idle_seconds
        for endpoint in list(self.endpoints.values()):
            while endpoint.idle and endpoint.idle[0].idle_since < oldest:
                endpoint.idle.pop(0).close()
            if endpoint.trial and time.monotonic() - endpoint.wanted_at > _UNWANTED_SECONDS:
                self.trust(endpoint)
            if not endpoint.idle and not endpoint.outstanding and endpoint.address not in self.suspects:
                del self.endpoints[endpoint.address]
