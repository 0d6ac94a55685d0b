"""A client's connection: reads requests in order, one at a time, and writes their responses.

llhttp (by httptools) checks every head; what it lets pass and a gateway must not is refused here.
Bytes that arrive while a request is being answered are held back, bounded, and read afterwards:
pipelined requests are answered in order and never overtake one another.
"""

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import httptools

from edge.http import forwarded
from edge.http.body import BadChunk, ChunkDecoder
from edge.http.request import STATUS_LINES, Field, Head, Request, host_name
from unkey.errors import (
    Fault,
    FrontlineInternalError,
    GatewayTimeout,
    MalformedRequest,
    MethodNotAllowed,
    RequestBodyTooLarge,
    RequestHeadersTooLarge,
    RequestTimeout,
)

if TYPE_CHECKING:
    from edge.http.proxy import Exchange
    from edge.http.server import Quick, Server

log = logging.getLogger(__name__)

_WATCHED = frozenset({
    b"host", b"connection", b"content-length", b"transfer-encoding", b"upgrade", b"expect", *forwarded.TOLD_BY,
})  # fmt: skip
_BARE_LF = re.compile(rb"(?<!\r)\n")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?.*)?", re.IGNORECASE | re.DOTALL)
_LINE = re.compile(rb"([A-Z]+) (/[!\"$-~]*+) HTTP/1\.1")
_MALFORMED = "The request is malformed: {}."
_DISCARD_BYTES = 64 * 1024
_LINGER_SECONDS = 2.0
_HEADS = 8  # that a connection remembers where requests may be answered quickly
_UNTIMED = 64 - 1  # of the quick answers for each that is timed, see `Server.settle`


class Phase:
    """What the next bytes of the client are; plain numbers, since they are compared for every packet."""

    HEAD: Final = 0
    BODY: Final = 1
    BUSY: Final = 2  # the request is complete, its response is not; bytes belong to the next request
    TUNNEL: Final = 3
    LINGER: Final = 4  # all was said; bytes are dropped until the client hangs up


class Connection(asyncio.Protocol):
    """One client connection of a `Server`."""

    exchange_type: "ClassVar[type[Exchange] | None]" = None

    __slots__ = (
        "_begun",
        "_believes",
        "_decoder",
        "_ends",
        "_fields",
        "_full_since",
        "_heads",
        "_held",
        "_last",
        "_last_bytes",
        "_parser",
        "_reading",
        "_remaining",
        "_seen",
        "_target",
        "_watched",
        "deadline",
        "eof",
        "exchange",
        "full",
        "paused",
        "peer",
        "phase",
        "request",
        "secure",
        "server",
        "transport",
    )  # fmt: skip

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.request: Request | None = None
        self.exchange: Exchange | None = None
        self.phase: int = Phase.HEAD
        self.deadline = 0.0
        self.peer = b""
        self.secure = server.secure
        self.eof = False
        self.full = False  # the client does not take its answers
        self.paused = False
        self._ends = 0.0  # when the request must be over
        self._full_since = 0.0
        self._seen = 0  # bytes of the body when the client was last looked after
        self._begun = False  # a head has begun to come, and has not ended
        self._believes: bool | None = None
        self._parser: Any = None
        self._held = b""
        self._last_bytes = b""
        self._last: Head = cast(Head, None)
        # Bodies of other lengths have other heads: the last few of a client of the API come again and again.
        self._heads: dict[bytes, Head] = {}
        self._reading = False
        self._fields: list[Field] = []
        self._watched: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._remaining = 0
        self._decoder: ChunkDecoder | None = None

    # -- from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.server.outbox.cork(cast(asyncio.Transport, transport))
        self.peer = self.server.peer_of(transport)
        self.deadline = self.server.now + self.server.limits.header_seconds
        if not self.server.joined(self):
            self.transport.abort()
        elif self.server.draining and not self.server.gently:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.left(self)
        if self.exchange is not None:
            self.exchange.client_gone()
        if self.request is not None and self.request.method:
            self.server.aborted += 1
            self.server.finished(self.request, complete=False)
        self.request = self.exchange = None
        self._parser = None

    def data_received(self, data: bytes) -> None:
        try:
            phase = self.phase
            if phase == Phase.HEAD:
                quick = self.server.quick
                if (
                    quick is not None
                    and (data.startswith(self._last_bytes) or self._recalled(data))
                    and self._answer_quickly(quick, data)
                ):
                    return
                if self._held:
                    data = self._held + data
                    self._held = b""
                self._read(data)
            elif phase == Phase.BODY:
                self._read_body(data)
            elif phase == Phase.BUSY:
                self._held += data
                if len(self._held) > self.server.limits.buffer_bytes:
                    self.pause_reading()
            elif phase == Phase.TUNNEL and self.exchange is not None:
                self.exchange.tunnel_from_client(data)
        except Exception:  # the event loop would close the connection, and the client had no answer
            self._fault()

    def _fault(self) -> None:
        """Answer what could not be handled; called while the exception is."""
        request = self.request
        log.exception("a request could not be handled", extra={"request_id": request and request.id})
        if self.exchange is not None:
            self.exchange.client_gone()
        if request is None or not request.method:
            self.transport.abort()
        else:
            self.fail(FrontlineInternalError("The edge failed to handle this request."))

    def eof_received(self) -> bool:
        self.eof = True
        if self.phase == Phase.BUSY:
            return not self.secure  # half-closed: the answer still goes out; TLS knows no such state
        if self.phase == Phase.TUNNEL and self.exchange is not None:
            return self.exchange.tunnel_client_eof() and not self.secure
        if self.phase == Phase.BODY and self.request is not None and self.request.sink is not None:
            self.request.sink.body_failed()
        self.transport.close()  # with what is still to be written, which the event loop itself would drop
        return False

    def pause_writing(self) -> None:
        self.full = True
        self._full_since = self.server.now
        self.deadline = min(self.deadline, self.server.now + self.server.limits.send_seconds)
        if self.exchange is not None:
            self.exchange.client_full()
        elif self.phase == Phase.HEAD:
            self.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.exchange is not None:
            self.exchange.client_drained()
        elif self.phase == Phase.HEAD and not self.transport.is_closing():
            self.next_request()

    def _recalled(self, data: bytes) -> bool:
        """Go back to a head that came earlier on this connection, if the data begin with one."""
        heads = self._heads
        if len(heads) < 2 or self._held:
            return False
        text = data[: data.find(b"\r\n\r\n") + 4]
        head = heads.get(text)
        if head is None:
            return False
        self._last = head
        self._last_bytes = text
        return True

    def _answer_quickly(self, quick: "Quick", data: bytes) -> bool:
        """Answer a request that is wholly here, after the head of the last one; False: nothing was done."""
        head = self._last
        server = self.server
        if not self._last_bytes or self._held or not head.keep_alive or head.http10 or server.draining:
            return False
        length = head.length
        if length < 0 or len(data) - head.size != length or head.expects_continue:
            return False
        started = 0.0 if ~server.answered_quickly & _UNTIMED else time.monotonic()
        try:
            answer = quick(head, data[head.size :], head.client)
        except Exception:
            log.exception("a request could not be answered quickly")
            return False
        if answer is None:
            return False
        self.transport.write(answer)
        self.deadline = server.now + server.limits.idle_seconds
        server.answered_quickly += 1
        if started:
            server.timed(time.monotonic() - started)
        return True

    # -- parser callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        self._fields.append((lower, name, value))
        if lower in _WATCHED:
            self._watched.append((lower, value.strip(b" \t")))

    # -- reading

    def _read(self, data: bytes) -> None:
        # A loop, not recursion: a request that is answered at once makes room for the pipelined next one.
        if self._reading:
            self._held = data
            return
        self._reading = True
        try:
            while data and self.phase == Phase.HEAD:
                self._read_head(data)
                data = b""
                if (
                    self.phase == Phase.HEAD
                    and self.request is None
                    and not self.full
                    and self._complete_head()
                ):
                    data, self._held = self._held, b""
        finally:
            self._reading = False

    def _complete_head(self) -> bool:
        return b"\r\n\r\n" in self._held

    def _read_head(self, data: bytes) -> None:
        last = self._last_bytes
        if last and data.startswith(last):  # clients repeat themselves on a kept connection
            return self._begin(data, len(last))
        limits = self.server.limits
        while data.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request are read over
            data = data[2:]
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            if data and not self._begun:
                self._begun = True
                self.deadline = self.server.now + limits.header_seconds
            if len(data) > limits.head_bytes:
                self._refuse_head(RequestHeadersTooLarge(f"A head may have {limits.head_bytes} bytes."))
            elif _BARE_LF.search(data):
                self._refuse_head(MalformedRequest(_MALFORMED.format("a line ends without CR")))
            else:
                self._held = data
            return
        if end > limits.head_bytes:
            return self._refuse_head(RequestHeadersTooLarge(f"A head may have {limits.head_bytes} bytes."))
        text = data[:end]  # the same object if nothing follows
        try:
            self._last = (self._retargeted(text) if last else None) or self._parse(text)
        except Fault as fault:
            return self._refuse_head(fault)
        self._last_bytes = text
        self._last.size = end
        if self.server.quick is not None:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[text] = self._last
        self._begin(data, end)

    def _retargeted(self, text: bytes) -> Head | None:
        """Return the facts of a head that repeats the last one but for its target, None if it does not."""
        last = self._last_bytes
        fields = last[last.index(b"\r\n") :]
        line = text.index(b"\r\n")
        if len(text) - line != len(fields) or not text.endswith(fields):
            return None
        match = _LINE.fullmatch(text, 0, line)
        head = self._last
        if match is None or match[1] != head.method or head.http10:
            return None
        return head.retargeted(match[2])

    def _begin(self, data: bytes, end: int) -> None:
        """Begin with the request whose head, the last one read, ends at `end`."""
        limits = self.server.limits
        request = Request(self, self._last)
        self.request = request
        self._begun = False
        self._ends = self.deadline = self.server.now + limits.request_seconds
        if request.length:
            self._seen = 0
            self.deadline = min(self._ends, self.server.now + limits.body_seconds)
            if request.length > 0:
                self._remaining = request.length
            else:
                self._decoder = ChunkDecoder()
            self.phase = Phase.BODY
            request.body_ended = False
            if end < len(data):
                self._read_body(data[end:])
                if self.request is None:
                    return
        else:
            self.phase = Phase.BUSY
            if end < len(data):
                self._held = data[end:]
        try:
            self.server.handle(request)
        except Exception:
            self._fault()

    def _parse(self, text: bytes) -> Head:
        """Read a head by llhttp, and raise what a gateway refuses beyond."""
        self._fields = []
        self._watched = []
        self._target = b""
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(text)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError as error:
            self._parser = None
            raise MalformedRequest(_MALFORMED.format(error)) from None
        head = self._accept(parser.get_method(), text)
        if head.length:
            self._parser = None  # it waits for a body, which is read here
        return head

    def _accept(self, method: bytes, head: bytes) -> Head:
        target = self._target
        # Exactly one space, nothing before, no other protocol name: llhttp is generous in the first line.
        if head.startswith(b"%b %b HTTP/1.1\r\n" % (method, target)):
            http10 = False
        elif head.startswith(b"%b %b HTTP/1.0\r\n" % (method, target)):
            http10 = True
        else:
            raise MalformedRequest(_MALFORMED.format("the request line is not that of HTTP/1.1"))
        if len(self._fields) > self.server.limits.header_count:
            raise RequestHeadersTooLarge(f"A request may have {self.server.limits.header_count} headers.")
        if method == b"CONNECT":
            raise MethodNotAllowed("This is not a forward proxy.")
        if method == b"TRACE":  # it would show a page's script what cookies its browser hides from it
            raise MethodNotAllowed("TRACE is not passed on.")
        length, keep_alive = 0, not http10
        host_field: bytes | None = None
        upgrade, wants_upgrade, expects = b"", False, False
        told = False
        for name, value in self._watched:
            if name == b"host":
                if host_field is not None:
                    raise MalformedRequest(_MALFORMED.format("several Host headers"))
                host_field = value
            elif name == b"connection":
                for token in value.lower().split(b","):
                    token = token.strip(b" \t")
                    if token == b"close":
                        keep_alive = False
                    elif token == b"keep-alive" and http10:
                        keep_alive = True
                    elif token == b"upgrade":
                        wants_upgrade = True
            elif name == b"content-length":
                length = int(value) if value.isdigit() else self._no_length()
            elif name == b"transfer-encoding":
                if http10 or value.lower() != b"chunked":
                    raise MalformedRequest(_MALFORMED.format("Transfer-Encoding can only be chunked"))
                length = -1
            elif name == b"upgrade":
                upgrade = value
            elif name in forwarded.TOLD_BY:
                told = True
            else:
                expects = not http10 and value.lower() == b"100-continue"
        if target[0] != 0x2F:
            target, host_field = self._absolute(method, target, host_field)
        if b"#" in target:
            raise MalformedRequest(_MALFORMED.format("a fragment in the request line"))
        host = host_name(host_field) if host_field else None
        if host is None or host_field is None:
            raise MalformedRequest(_MALFORMED.format("no valid Host header"))
        limit = self.server.limits.most_body(host)
        if limit and length > limit:
            raise RequestBodyTooLarge(f"A body may have {limit} bytes.")
        facts = Head(method, target, host, host_field, self._fields)
        facts.client = facts.hops = self.peer
        if told and self._believed():
            facts.told_by(forwarded.told(self.peer, self._fields))
        facts.http10 = http10
        facts.keep_alive = keep_alive
        facts.length = length
        facts.expects_continue = expects and length != 0
        # h2c would carry requests past the policies, inside a tunnel.
        if wants_upgrade and upgrade and not length and not http10 and b"h2c" not in upgrade.lower():
            facts.upgrade = upgrade
        return facts

    def _believed(self) -> bool:
        """Say whether the peer is a trusted proxy, looked up once."""
        if self._believes is None:
            self._believes = forwarded.believed(self.peer)
        return self._believes

    @staticmethod
    def _no_length() -> int:
        raise MalformedRequest(_MALFORMED.format("Content-Length is not a number"))

    @staticmethod
    def _absolute(method: bytes, target: bytes, host_field: bytes | None) -> tuple[bytes, bytes | None]:
        if target == b"*" and method == b"OPTIONS":
            return target, host_field
        match = _ABSOLUTE.fullmatch(target)
        if match is None or host_field is None or host_field.lower() != match[1].lower():
            raise MalformedRequest(_MALFORMED.format("the target does not agree with Host"))
        return (match[2] or b"/") + (match[3] or b""), host_field

    def _read_body(self, data: bytes) -> None:
        request = self.request
        if request is None:
            return
        decoder = self._decoder
        if decoder is None:
            count = len(data)
            if count <= self._remaining:
                self._remaining -= count
                piece, rest = data, b""
            else:
                piece, rest = data[: self._remaining], data[self._remaining :]
                self._remaining = 0
            ended = not self._remaining
        else:
            try:
                pieces, ended, rest = decoder.feed(data)
            except BadChunk as error:
                return self._broken_body(request, MalformedRequest(_MALFORMED.format(error)))
            piece = b"".join(pieces)
        request.size += len(piece)
        limit = self.server.limits.most_body(request.host)
        if limit and request.size > limit:
            return self._broken_body(request, RequestBodyTooLarge(f"A body may have {limit} bytes."))
        if ended:
            if decoder is not None:
                request.trailers = decoder.trailers
            self._decoder = None
            self._held = rest
            self.phase = Phase.BUSY
            request.body_ended = True
        if request.sink is not None:
            request.sink.body_received(piece, ended)
        elif piece:
            request.pieces.append(piece)
            if request.size > self.server.limits.buffer_bytes and not ended:
                self.pause_reading()

    def _broken_body(self, request: Request, fault: Fault) -> None:
        request.keep_alive = False
        if self.exchange is not None:
            self.exchange.client_gone()
        self.fail(fault)

    def pause_reading(self) -> None:
        """Let the client wait: what it sends cannot be taken now."""
        if not self.paused and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes of the client again."""
        if self.paused:
            self.paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # -- writing

    def send_continue(self) -> None:
        """Tell the client that its body is wanted."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def respond(self, request: Request, status: int, headers: bytes, body: bytes) -> None:
        """Answer the current request by one write; see `Request.respond`."""
        if self.request is not request:
            return  # the client has gone
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        bodiless = status == 204 or status == 304
        framing = b"" if bodiless else b"content-length: %d\r\n" % len(body)
        request.status = status
        text = b"%b%b%b%b\r\n" % (line, headers, framing, self.connection_line(request))
        if not bodiless and request.method != b"HEAD":
            text += body
        self.transport.write(text)
        self.finish(request)

    def connection_line(self, request: Request) -> bytes:
        """Return the Connection header that this response must carry, often none."""
        if self.server.draining or (self.phase == Phase.BODY and not self._worth_discarding()):
            request.keep_alive = False
        if not request.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if request.http10 else b""

    def _worth_discarding(self) -> bool:
        # An unread rest that is small, and that the client sends for certain, is cheaper than a new connection.
        request = self.request
        return (
            request is not None
            and not request.expects_continue
            and self._decoder is None
            and self._remaining <= _DISCARD_BYTES
        )

    def finish(self, request: Request) -> None:
        """The response is written: go on with the next request, or close."""
        self.request = None
        self.exchange = None
        request.sink = None
        self.server.finished(request, complete=True)
        if not request.keep_alive:
            return self._hang_up()
        if self.phase == Phase.BODY:
            self.request = _Discarded(self)
            self.resume_reading()
            return
        self.next_request()

    def next_request(self) -> None:
        """Read the head that follows a complete exchange."""
        self.phase = Phase.HEAD
        self.deadline = self.server.now + self.server.limits.idle_seconds
        if self.full:  # no more is begun for a client that does not read
            self.deadline = self._next_look(self.deadline)
            return self.pause_reading()
        if self.paused:
            self.resume_reading()
        if self._held and not self._reading:
            data, self._held = self._held, b""
            self._read(data)
        if self.eof and self.request is None and not self._reading:
            self.transport.close()

    def _hang_up(self) -> None:
        self.phase = Phase.LINGER
        if self.eof:
            return self.transport.close()
        # Closing while the client still sends would reset the connection and take the answer with it
        # (RFC 9112, 9.6).
        self._seen = self.transport.get_write_buffer_size()
        self.deadline = self.server.now + (self.server.limits.send_seconds if self._seen else _LINGER_SECONDS)
        self.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _refuse_head(self, fault: Fault) -> None:
        """Answer a head that cannot be trusted, and close: what follows cannot be told apart."""
        head = Head(b"GET", b"/", "", b"", self._fields)
        head.client = head.hops = self.peer
        request = Request(self, head)
        request.keep_alive = False
        self.request = request
        self.phase = Phase.BODY  # more may be on its way: see `_hang_up`
        self.server.refused += 1
        self.server.refuse(request, fault)

    def fail(self, fault: Fault) -> None:
        """Answer the current request by an error, or break the connection off if an answer has begun."""
        request = self.request
        if request is None:
            return
        if request.status:
            self.transport.abort()
        else:
            request.keep_alive = False
            request.sink = None
            self.server.refuse(request, fault)

    # -- from the server's clock

    def timed_out(self) -> None:
        """The deadline has passed."""
        request = self.request
        if self.transport.is_closing() or self._reads_too_slowly():
            return self.transport.abort()
        if self.phase == Phase.TUNNEL and self.exchange is not None:
            if self.exchange.quiet_at < self.server.now:
                return self.transport.abort()
            self.deadline = self._next_look(self.exchange.quiet_at)
            return
        if request is not None and self.phase != Phase.LINGER and self._is_busy(request):
            self.deadline = self._next_look(self._ends)
            return
        if request is None or self.phase == Phase.LINGER:
            if self.phase == Phase.LINGER:
                self._linger()
            elif self._held and self.phase == Phase.HEAD:
                self._refuse_head(RequestTimeout("The request's head took too long."))
            else:
                self.transport.close()
            return
        exchange = self.exchange
        if self.phase == Phase.BODY and self.server.now < self._ends:
            self._broken_body(request, RequestTimeout("The request's body took too long."))
        elif exchange is not None:
            exchange.client_gone()
            self.fail(GatewayTimeout("The app took too long to answer."))
        else:
            self.fail(RequestTimeout("The request took too long."))

    def _linger(self) -> None:
        """Wait on for a client that takes what is left of its answer, however slowly; for no other."""
        waits = self.transport.get_write_buffer_size()
        if not 0 < waits < self._seen:
            return self.transport.abort()
        self._seen = waits
        self.deadline = self.server.now + self.server.limits.send_seconds

    def _reads_too_slowly(self) -> bool:
        waits = self.full and self.server.now - self._full_since >= self.server.limits.send_seconds
        self.server.slow += waits
        return waits

    def _is_busy(self, request: Request) -> bool:
        """Say whether a request has time left, and its client sends what it still has to."""
        if self.server.now < self._ends and self.phase == Phase.BODY:
            # The app may make it wait; and it waits for a word of the app before it sends a body that it announced.
            waits = self.paused or (request.expects_continue and not request.size)
            moved, self._seen = request.size > self._seen, request.size
            return moved or waits
        return self.server.now < self._ends

    def _next_look(self, ends: float) -> float:
        limits = self.server.limits
        if self.full:
            ends = min(ends, self._full_since + limits.send_seconds)
        return min(ends, self.server.now + limits.body_seconds) if self.phase == Phase.BODY else ends

    def drain(self) -> None:
        """The server is stopping: close if idle; a response in flight says `Connection: close`."""
        if self.request is None and self.phase == Phase.HEAD:
            self.transport.close()

    def take_held(self) -> bytes:
        """Take the bytes that came after the request; they belong to the protocol upgraded to."""
        held, self._held = self._held, b""
        return held


class _Discarded(Request):
    """Stands for a request that was answered before its body had come: the rest is read and dropped."""

    __slots__ = ()

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, Head(b"", b"/", "", b"", []))
        self.sink = self

    def body_received(self, piece: bytes, ended: bool) -> None:
        if ended:
            self.connection.request = None
            cast(Connection, self.connection).next_request()

    def body_failed(self) -> None:
        """Nobody waits for it."""
