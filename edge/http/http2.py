"""HTTP/2 to clients: each stream plays the part of a connection of HTTP/1.1, so that all behind it is the same.

`h2` frames, and keeps the states and windows. Here is what it leaves to its user: which requests are well
formed (RFC 9113, section 8), back-pressure in both directions, and what a client may cost.
"""

import asyncio
import base64
import functools
import logging
import os
import re
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

import httptools
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe import frame as frames

from edge.http import forwarded
from edge.http.connection import Phase
from edge.http.framing import Frames
from edge.http.proxy import FORBIDDEN_TRAILERS, Exchange
from edge.http.request import Field, Head, Request, host_name
from edge.http.upstream import ResponseHead
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
    from edge.http.server import Server

log = logging.getLogger(__name__)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_PATH = re.compile(rb"/[!\"$-~]*")
_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
# RFC 9113, 8.2.2: what is said of one connection has no place in a message of HTTP/2.
_OF_CONNECTIONS = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
_MALFORMED = "The request is malformed: {}."

_CONNECTION_WINDOW = 1024 * 1024
_LAST_STREAM = 2**31 - 1
_TABLE_BYTES = 4096  # of the compression of our own headers, however much the client would let us have
_CLOSED_STREAMS = 1000  # that are remembered by how they ended
_FULL_BYTES = 256 * 1024  # written and not taken, at which a client is not read any more
_GRACE_SECONDS = 0.5  # for requests that were on their way when the client was told to send no more

# What a client may do that costs it next to nothing, and us something: rapid resets (CVE-2023-44487), floods of
# pings, settings and priorities (CVE-2019-9512 to 9518). Its patience is used up by each and grows back with time,
# with what is sent to it, and with requests that it lets finish.
_PATIENCE = 2000.0
_PATIENCE_BY_SECOND = 100.0
_COSTS: dict[type[frames.Frame], float] = {
    frames.RstStreamFrame: 10.0,
    frames.SettingsFrame: 10.0,
    frames.PingFrame: 2.0,
    frames.PriorityFrame: 1.0,
    frames.WindowUpdateFrame: 1.0,
    frames.ContinuationFrame: 5.0,
    frames.ExtensionFrame: 2.0,
    frames.AltSvcFrame: 2.0,
}
_RESET_BY_US = 10.0
_SENT_FRAME = 2.0
_FINISHED = 5.0


class _Frames(Frames):
    """The frames that came, as long as there is patience for them."""

    def __init__(self) -> None:
        super().__init__(server=True)
        self.patience = _PATIENCE

    def __next__(self) -> frames.Frame:
        frame = super().__next__()
        cost = _COSTS.get(type(frame))
        if cost is None and isinstance(frame, frames.DataFrame) and not frame.data:
            cost = 0.0 if "END_STREAM" in frame.flags else 5.0
        if cost:
            self.patience -= cost
            if self.patience < 0:
                raise DenialOfServiceError("too many frames that ask for nothing")
        return frame


class _Framing(H2Connection):
    """The state machines of a server's connection, in bounds."""

    MAX_CLOSED_STREAMS = _CLOSED_STREAMS

    def __init__(self, server: "Server") -> None:
        # What comes is checked by `_read_head`; what goes was checked by the parser of responses.
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        limits = server.limits
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.buffer_bytes,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        # What is a little too large is answered, by 431; what is far too large ends the connection.
        self.decoder.max_header_list_size = 4 * limits.head_bytes
        self.incoming = self.incoming_buffer = _Frames()
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)

    def reopen(self) -> None:
        """Go on after a GOAWAY of ours, as RFC 9113, 6.8, does, and the library does not."""
        self.state_machine.state = ConnectionState.SERVER_OPEN


class StreamExchange(Exchange):
    """An exchange whose client takes its answer as frames: what is written is the body alone."""

    __slots__ = ()

    client: "Stream"

    def write(self, data: bytes) -> None:
        """Write a piece of the response's body."""
        if data:
            self.client.write(data)

    def interim(self, head: ResponseHead) -> None:
        """Pass a 1xx on."""
        if head.status != 100 or self.request.expects_continue:
            self.client.send_head(head.status, _pairs(head.lines), ended=False)

    def response_head(self, head: ResponseHead, *, bodiless: bool = False) -> bytes:
        """Send the response's head; nothing of it is left to write."""
        self.request.status = head.status
        fields = _pairs(head.lines + self._response_lines)
        if head.length >= 0 and head.status != 204:
            fields.append((b"content-length", b"%d" % head.length))
        self.client.send_head(head.status, fields, ended=bodiless or head.length == 0)
        if head.length > 0:
            self.client.expect(head.length)
        return b""

    def framed(self, piece: bytes) -> bytes:
        """Return a piece of the response's body as it is."""
        return piece

    def framed_end(self, trailers: bytes) -> bytes:
        """Keep the trailers that may be passed on for the end of the stream."""
        pairs = _pairs(trailers)
        self.client.trailers = [(name, value) for name, value in pairs if name not in FORBIDDEN_TRAILERS]
        return b""

    def switch(self, head: ResponseHead) -> bool:
        """Answer an extended CONNECT (RFC 8441) by 200, where HTTP/1.1 has 101."""
        if not self.request.upgrade or not head.upgrade:
            return False
        self.request.status = 200
        fields = [
            pair for pair in _pairs(head.lines + self._response_lines) if pair[0] != b"sec-websocket-accept"
        ]
        self.client.send_head(200, fields, ended=False)
        self._tunnel()
        return True


class Stream(asyncio.Transport):
    """One stream of a connection: a request, and the answer to it. See `edge.http.request.Channel`."""

    exchange_type: ClassVar[type[Exchange]] = StreamExchange

    __slots__ = (
        "_credit", "_ending", "_ends", "_held", "_number", "_owner", "_pending", "_remaining", "_seen",
        "blocked_since", "deadline", "ended_in",
        "ended_out", "eof", "exchange", "full", "paused", "phase", "request", "server", "trailers",
    )  # fmt: skip

    def __init__(self, owner: "Http2Connection", number: int) -> None:
        self.server = owner.server
        self.request: Request | None = None
        self.exchange: Exchange | None = None
        self.phase: int = Phase.BUSY
        self._ends = self.deadline = owner.server.now + owner.server.limits.request_seconds
        self._seen = 0  # bytes of the body when the client was last looked after
        self.blocked_since = 0.0  # when anything of the answer was last taken, if `full`
        self.eof = False
        self.full = False  # the client does not take its answer
        self.paused = False
        self.ended_in = True  # nothing more of the request comes
        self.ended_out = False
        self.trailers: list[tuple[bytes, bytes]] = []
        self._owner = owner
        self._number = number
        self._pending: deque[memoryview] = deque()
        self._remaining = -1  # of a body whose length was told
        self._ending = False
        self._credit = 0  # bytes that came and may not be followed by others yet
        self._held: list[bytes] = []

    @property
    def secure(self) -> bool:
        """Whether the client came by TLS."""
        return self._owner.secure

    @property
    def transport(self) -> asyncio.Transport:
        """The stream itself: what is written is the body."""
        return self

    # -- the request

    def begin(self, head: Head, *, ended: bool) -> None:
        """Take the request up."""
        request = self.request = Request(self, head)
        self.ended_in = ended
        if not ended and not head.upgrade:
            self.phase = Phase.BODY
            self.deadline = min(self._ends, self.server.now + self.server.limits.body_seconds)
            request.body_ended = False
        try:
            self.server.handle(request)
        except Exception:
            log.exception("a request could not be handled", extra={"request_id": request.id})
            if self.exchange is not None:
                self.exchange.client_gone()
            self.fail(FrontlineInternalError("The edge failed to handle this request."))

    def refuse(self, head: Head, fault: Fault, *, ended: bool) -> None:
        """Answer a request that is none."""
        self.ended_in = ended
        self.phase = Phase.BUSY if ended else Phase.BODY
        self.request = Request(self, head)
        self.server.refused += 1
        self.server.refuse(self.request, fault)

    def received(self, piece: bytes, counted: int, *, ended: bool) -> None:
        """Take the next bytes of the body, or of the tunnel.

        Args:
            counted: bytes of the windows that they took, with their padding.
        """
        self.ended_in = self.ended_in or ended
        self._credit += counted
        request = self.request
        if request is None:
            return
        if self.phase == Phase.TUNNEL and self.exchange is not None:
            if piece:
                self.exchange.tunnel_from_client(piece)
            if ended:
                self.eof = True
                if not self.exchange.tunnel_client_eof():
                    self.close()
        elif self.phase == Phase.BODY:
            self._body(request, piece, ended)
        elif piece:
            self._held.append(piece)
        if not self.paused and self.phase != Phase.BUSY:
            self._give_credit()

    def _body(self, request: Request, piece: bytes, ended: bool) -> None:
        request.size += len(piece)
        limits = self.server.limits
        most = limits.most_body(request.host)
        if most and request.size > most:
            return self._broken_body(RequestBodyTooLarge(f"A body may have {most} bytes."))
        if ended:
            if 0 <= request.length != request.size:
                return self._broken_body(MalformedRequest("The body is not as long as Content-Length says."))
            self.phase = Phase.BUSY
            request.body_ended = True
        if request.sink is not None:
            if piece or ended:
                request.sink.body_received(piece, ended)
        elif piece:
            request.pieces.append(piece)
            if request.size > limits.buffer_bytes // 2 and not ended:
                self.pause_reading()

    def _broken_body(self, fault: Fault) -> None:
        if self.exchange is not None:
            self.exchange.client_gone()
        self.fail(fault)

    def _give_credit(self) -> None:
        if self._credit >= self.server.limits.buffer_bytes // 2 and not self.ended_in:
            credit, self._credit = self._credit, 0
            self._owner.give_credit(self._number, credit)

    def pause_reading(self) -> None:
        """Let the client wait: its window is not opened again."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take more of the client again."""
        self.paused = False
        if not self.ended_out:
            self._give_credit()

    def take_held(self) -> bytes:
        """Take the bytes that came before there was a tunnel."""
        held, self._held = self._held, []
        return b"".join(held)

    def lost(self) -> None:
        """The client has reset the stream, or has left."""
        self.ended_out = True
        self._pending.clear()
        if self.exchange is not None:
            self.exchange.client_gone()
        request, self.request, self.exchange = self.request, None, None
        if request is not None:
            self.server.aborted += 1
            self.server.finished(request, complete=False)

    def timed_out(self) -> None:
        """The deadline has passed, or it is time to look after the client."""
        now = self.server.now
        if self.full and now - self.blocked_since >= self.server.limits.send_seconds:
            self.server.slow += 1
            return self.abort()
        if self.phase == Phase.TUNNEL and self.exchange is not None:
            if self.exchange.quiet_at < now:
                return self.abort()
            return self._look_again(self.exchange.quiet_at)
        if now < self._ends and self._is_moving():
            return self._look_again(self._ends)
        if self.request is None:
            return self.abort()  # its answer is not taken
        if self.exchange is not None:
            self.exchange.client_gone()
            self.fail(GatewayTimeout("The app took too long to answer."))
        else:
            self.fail(RequestTimeout("The request took too long."))

    def _is_moving(self) -> bool:
        """Say whether the client sends what it still has to of the body, unless it may not."""
        request = self.request
        if request is None or self.phase != Phase.BODY:
            return True
        waits = self.paused or (request.expects_continue and not request.size)
        moved, self._seen = request.size > self._seen, request.size
        return waits or moved

    def _look_again(self, ends: float) -> None:
        limits = self.server.limits
        if self.full:
            ends = min(ends, self.blocked_since + limits.send_seconds)
        if self.phase == Phase.BODY:
            ends = min(ends, self.server.now + limits.body_seconds)
        self.deadline = ends

    # -- the answer

    def respond(self, request: Request, status: int, headers: bytes, body: bytes) -> None:
        """Answer; see `Request.respond`."""
        if self.request is not request:
            return  # the client has gone
        request.status = status
        fields = _pairs(headers)
        bodiless = status == 204 or status == 304
        if not bodiless:
            fields.append((b"content-length", b"%d" % len(body)))
        bodiless = bodiless or request.method == b"HEAD" or not body
        self.send_head(status, fields, ended=bodiless)
        if not bodiless:
            self.expect(len(body))
            self.write(body)
        self.finish(request)

    def fail(self, fault: Fault) -> None:
        """Answer by an error, or break off if an answer has begun."""
        request = self.request
        if request is None:
            return
        if request.status:
            self.close()
        else:
            request.sink = None
            self.server.refuse(request, fault)

    def send_continue(self) -> None:
        """Tell the client that its body is wanted."""
        self.send_head(100, [], ended=False)

    def send_head(self, status: int, fields: list[tuple[bytes, bytes]], *, ended: bool) -> None:
        """Send a response's head, or an interim one."""
        if not self.ended_out:
            self.ended_out = ended
            self._owner.send_headers(self._number, [(b":status", b"%d" % status), *fields], ended)

    def expect(self, length: int) -> None:
        """Know how long the body will be, so that its last frame can say that it is the last."""
        self._remaining = length

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a piece of the body, now as far as the windows allow."""
        if self.ended_out:
            return
        self._pending.append(memoryview(data))
        self._owner.push(self)

    def frame(self, window: int, most: int) -> tuple[memoryview, bool] | None:
        """Take what the next DATA frame holds, and whether it is the last; None if nothing can be sent.

        Args:
            window: bytes that the client takes.
            most: bytes of a frame.
        """
        if window <= 0 or not self._pending:
            return None
        piece = self._pending.popleft()
        size = min(window, most)
        if len(piece) > size:
            self._pending.appendleft(piece[size:])
            piece = piece[:size]
        if self._remaining >= 0:
            self._remaining -= len(piece)
            self.ended_out = self._remaining <= 0 and not self.trailers
        return piece, self.ended_out

    @property
    def number(self) -> int:
        """Of the stream."""
        return self._number

    @property
    def waiting(self) -> bool:
        """Whether there is something to send that the windows do not allow yet."""
        return bool(self._pending) and not self.ended_out

    @property
    def must_end(self) -> bool:
        """Whether nothing is left to send but the end."""
        return self._ending and not self._pending

    def finish(self, request: Request) -> None:
        """The response is complete, though perhaps not sent."""
        self.request = None
        self.exchange = None
        request.sink = None
        self.server.finished(request, complete=True)
        self._ending = True
        self._owner.push(self)

    def connection_line(self, request: Request) -> bytes:
        """HTTP/2 says nothing of its connections in a response."""
        return b""

    def write_eof(self) -> None:
        """End this direction of a tunnel."""
        self._ending = True
        self._owner.push(self)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.ended_out or self._ending

    def close(self) -> None:
        """End a tunnel; break off anything else."""
        if self.phase == Phase.TUNNEL and self._owner.alive(self):
            self._ending = True
            if self.exchange is not None:
                self.exchange.client_gone()
            request, self.request, self.exchange = self.request, None, None
            if request is not None:
                self.server.finished(request, complete=True)
            self._owner.push(self)
        else:
            self._owner.reset(self, ErrorCodes.INTERNAL_ERROR)

    def abort(self) -> None:
        """Break off."""
        self._owner.reset(self, ErrorCodes.INTERNAL_ERROR)


class Http2Connection(asyncio.Protocol):
    """One client connection of a `Server` that speaks HTTP/2."""

    __slots__ = (
        "_believes", "_blocked", "_draining", "_final", "_framing", "_full", "_full_since", "_pushing", "_scheduled", "_since",
        "_streams", "_unacknowledged", "_unsent", "deadline", "peer", "secure", "server", "transport",
    )  # fmt: skip

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.deadline = 0.0
        self.peer = b""
        self.secure = server.secure
        self._framing = _Framing(server)
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}
        self._believes: bool | None = None
        self._draining = False
        self._final = False
        self._full = False
        self._full_since = 0.0
        self._pushing = False
        self._scheduled = False
        self._since = server.now
        self._unacknowledged = 0
        self._unsent = 0  # bytes of bodies that are framed and not written

    @property
    def phase(self) -> int:
        """`Phase.HEAD` while nothing is under way."""
        return Phase.BUSY if self._streams or (self._draining and not self._final) else Phase.HEAD

    # -- from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer = self.server.peer_of(transport)
        self.deadline = self.server.now + self.server.limits.header_seconds
        if not self.server.joined(self):
            return self.transport.abort()
        self._send()
        if self.server.draining:
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.left(self)
        self._drop()

    def _drop(self) -> None:
        """Let go of every stream: nothing can be sent any more."""
        streams = list(self._streams.values())
        self._streams.clear()
        self._blocked.clear()
        for stream in streams:
            stream.lost()

    def data_received(self, data: bytes) -> None:
        framing = self._framing
        now = self.server.now
        incoming = framing.incoming
        if now > self._since:
            incoming.patience = min(_PATIENCE, incoming.patience + (now - self._since) * _PATIENCE_BY_SECOND)
            self._since = now
        self._pushing = True  # what is sent meanwhile goes out at once, below
        try:
            events = framing.receive_data(data)
        except ProtocolError:
            self._pushing = False
            return self._end()
        try:
            self._happened(events)
        except Exception:
            log.exception("a connection could not be served")
            return self.transport.abort()
        finally:
            self._pushing = False
        if incoming.patience < 0:
            framing.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            return self._end()
        self._send()
        if not self._streams and not self._draining:
            if incoming.last is not None:
                return self.transport.close()
            self._wait_for_more()
        if self._full and self.transport.get_write_buffer_size() > _FULL_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.transport.close()  # see `Connection.eof_received`
        return False

    def pause_writing(self) -> None:
        self._full = True
        self._full_since = self.server.now
        self.deadline = min(self.deadline, self.server.now + self.server.limits.send_seconds)

    def resume_writing(self) -> None:
        self._full = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self._push_all()

    def _end(self) -> None:
        """Close: the client broke the rules, or cost too much."""
        self.server.refused += 1
        if self._framing.incoming.patience < 0:
            log.warning("a client of HTTP/2 was sent away", extra={"peer": self.peer.decode()})
        self._drop()
        self._send()  # with the GOAWAY that says why
        self.transport.close()

    # -- events

    def _happened(self, events: list[Event]) -> None:
        reset = {event.stream_id for event in events if isinstance(event, StreamReset)}
        opened = False
        for event in events:
            if isinstance(event, DataReceived):
                self._data(event)
            elif isinstance(event, RequestReceived):
                # One that was taken back in the same breath is not begun.
                if event.stream_id not in reset:
                    self._open(event)
            elif isinstance(event, TrailersReceived):
                self._trailers(event)
            elif isinstance(event, StreamReset):
                self._gone(event.stream_id)
            elif isinstance(event, WindowUpdated):
                opened = True
            elif isinstance(event, RemoteSettingsChanged):
                opened = True
                if self._framing.encoder.header_table_size > _TABLE_BYTES:
                    self._framing.encoder.header_table_size = _TABLE_BYTES
        if opened and self._blocked:
            self._push_all()

    def _open(self, event: RequestReceived) -> None:
        number = event.stream_id
        if self._final:
            return self._framing.reset_stream(number, ErrorCodes.REFUSED_STREAM)
        ended = event.stream_ended is not None
        stream = Stream(self, number)
        try:
            head = self._read_head(event.headers, ended)
        except _Misframed:
            self.server.refused += 1
            self._framing.incoming.patience -= _RESET_BY_US
            return self._framing.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
        except Fault as fault:
            head = Head(b"GET", b"/", "", b"", [])
            head.client = head.hops = self.peer
            self._streams[number] = stream
            return stream.refuse(head, fault, ended=ended)
        alone = not self._streams
        self._streams[number] = stream
        stream.begin(head, ended=ended)
        self.deadline = stream.deadline if alone else min(self.deadline, stream.deadline)

    def _data(self, event: DataReceived) -> None:
        # The window of the connection is for all: one stream that is not read must not stop the others.
        self._unacknowledged += event.flow_controlled_length
        if self._unacknowledged >= _CONNECTION_WINDOW // 2:
            self._framing.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.received(event.data, event.flow_controlled_length, ended=event.stream_ended is not None)

    def _trailers(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        for name, value in event.headers:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name in _OF_CONNECTIONS:
                self._framing.incoming.patience -= _RESET_BY_US
                return self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
        stream.received(b"", 0, ended=True)

    def _gone(self, number: int) -> None:
        self._blocked.pop(number, None)
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.lost()
            self._rest()

    def _read_head(self, headers: list[tuple[bytes, bytes]], ended: bool) -> Head:
        """Check the fields of a request, by the rules of RFC 9113, 8.2 and 8.3, and those of HTTP/1.1 here.

        Raises:
            _Misframed: no request of HTTP/2.
            Fault: one that is refused.
        """
        limits = self.server.limits
        pseudo: dict[bytes, bytes] = {}
        fields: list[Field] = []
        hearsay = False
        host: bytes | None = None
        told: bytes | None = None
        expects = False
        size = 0
        for name, value in headers:
            size += len(name) + len(value) + 4
            if not _VALUE.fullmatch(value):
                raise _Misframed
            if name in _PSEUDO:
                if fields or name in pseudo:
                    raise _Misframed
                pseudo[name] = value
                continue
            if (
                not _NAME.fullmatch(name)
                or name in _OF_CONNECTIONS
                or (name == b"te" and value != b"trailers")
            ):
                raise _Misframed
            fields.append((name, name, value))
            if name == b"host":
                if host is not None:
                    raise _Misframed
                host = value
            elif name == b"content-length":
                if told is not None or (ended and value.strip(b"0")):
                    raise _Misframed
                told = value
            elif name == b"expect":
                expects = value.lower() == b"100-continue"
            elif name in forwarded.TOLD_BY:
                hearsay = True
        if size > limits.head_bytes:
            raise RequestHeadersTooLarge(f"A head may have {limits.head_bytes} bytes.")
        if len(fields) > limits.header_count:
            raise RequestHeadersTooLarge(f"A request may have {limits.header_count} headers.")
        method, target, upgrade = self._request_line(pseudo, fields, ended)
        authority = pseudo.get(b":authority", host)
        if host is not None and authority is not None and host.lower() != authority.lower():
            raise MalformedRequest(_MALFORMED.format(":authority does not agree with Host"))
        name_of_host = host_name(authority) if authority else None
        if authority is None or name_of_host is None:
            raise MalformedRequest(_MALFORMED.format("no valid host name"))
        length = int(told) if told else 0 if ended else -1  # the library has seen that it is a number
        most = limits.most_body(name_of_host)
        if most and length > most:
            raise RequestBodyTooLarge(f"A body may have {most} bytes.")
        if ended and method in _WITH_BODY and told is None:
            fields.append((b"content-length", b"content-length", b"0"))  # RFC 9110, 8.6
        head = Head(method, target, name_of_host, authority, fields)
        head.client = head.hops = self.peer
        if hearsay and self._believed():
            head.told_by(forwarded.told(self.peer, fields))
        head.length = 0 if upgrade else length
        head.expects_continue = expects and not ended and not upgrade
        head.upgrade = upgrade
        return head

    @staticmethod
    def _request_line(
        pseudo: dict[bytes, bytes], fields: list[Field], ended: bool
    ) -> tuple[bytes, bytes, bytes]:
        """Return method, target and the protocol to upgrade to, for a request of HTTP/1.1."""
        method = pseudo.get(b":method")
        protocol = pseudo.get(b":protocol")
        if method is None:
            raise _Misframed
        if method == b"CONNECT" and protocol is None:
            raise MethodNotAllowed("This is not a forward proxy.")
        if method == b"TRACE":  # see `Connection`
            raise MethodNotAllowed("TRACE is not passed on.")
        target = pseudo.get(b":path")
        if target is None or pseudo.get(b":scheme") is None:
            raise _Misframed
        if pseudo[b":scheme"] != b"https":
            raise MalformedRequest(_MALFORMED.format("the scheme is not https"))
        if not target or not _NAME.fullmatch(method.lower()):
            raise _Misframed
        if protocol is None and not _known(method):
            raise MalformedRequest(_MALFORMED.format("the method is not known"))
        if not _PATH.fullmatch(target) and not (target == b"*" and method == b"OPTIONS"):
            raise MalformedRequest(_MALFORMED.format("the path is not that of a request"))
        if protocol is None:
            return method, target, b""
        if method != b"CONNECT" or ended:
            raise _Misframed
        if protocol != b"websocket":
            raise MethodNotAllowed("CONNECT is for WebSocket alone.")
        # RFC 8441, 5: the key is a matter of HTTP/1.1, and for the edge to make.
        key = base64.b64encode(os.urandom(16))
        fields[:] = [field for field in fields if field[0] not in (b"sec-websocket-key", b"content-length")]
        fields.append((b"sec-websocket-key", b"Sec-WebSocket-Key", key))
        return b"GET", target, protocol

    def _believed(self) -> bool:
        """Say whether the peer is a trusted proxy, looked up once."""
        if self._believes is None:
            self._believes = forwarded.believed(self.peer)
        return self._believes

    # -- from the streams

    def alive(self, stream: Stream) -> bool:
        """Say whether a stream is one of the connection's still."""
        return self._streams.get(stream.number) is stream

    def send_headers(self, number: int, fields: Iterable[tuple[bytes, bytes]], ended: bool) -> None:
        """Send a head."""
        if number in self._streams:
            self._framing.send_headers(number, fields, end_stream=ended)
            self._schedule()

    def give_credit(self, number: int, count: int) -> None:
        """Let a client send so many bytes more."""
        if number in self._streams:
            self._framing.increment_flow_control_window(count, number)
            self._schedule()

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """Break a stream off."""
        if not self.alive(stream):
            return
        if not (stream.ended_out and stream.ended_in):  # else the library knows it no more
            self._framing.reset_stream(stream.number, code)
            self._schedule()
        self._gone(stream.number)

    def push(self, stream: Stream, frames_most: int = 0) -> None:
        """Send what there is of a stream, as far as the windows allow."""
        if not self.alive(stream):
            return
        framing = self._framing
        number = stream.number
        count = 0
        while stream.waiting and not self._full and not (frames_most and count >= frames_most):
            part = stream.frame(framing.local_flow_control_window(number), framing.max_outbound_frame_size)
            if part is None:
                break
            framing.send_data(number, part[0], end_stream=part[1])
            self._unsent += len(part[0])
            if self._unsent >= self.server.limits.buffer_bytes:
                self._send()  # an app may deliver megabytes in one turn of the loop; whether that is too much shows now
            framing.incoming.patience += _SENT_FRAME
            count += 1
        self._schedule()
        if stream.waiting:
            self._blocked[number] = stream
            if count or not stream.full:
                stream.blocked_since = self.server.now
                stream.deadline = min(stream.deadline, self.server.now + self.server.limits.send_seconds)
                self.deadline = min(self.deadline, stream.deadline)
            if not stream.full:
                stream.full = True
                if stream.exchange is not None:
                    stream.exchange.client_full()
            return
        self._blocked.pop(number, None)
        if stream.must_end or stream.ended_out:
            self._end_stream(stream)
        elif stream.full:
            stream.full = False
            if stream.exchange is not None:
                stream.exchange.client_drained()

    def _end_stream(self, stream: Stream) -> None:
        number = stream.number
        if not stream.ended_out:
            stream.ended_out = True
            if stream.trailers:
                self._framing.send_headers(number, stream.trailers, end_stream=True)
            else:
                self._framing.end_stream(number)
        if stream.request is not None:
            return  # the upstream has not said yet that it is done
        if not stream.ended_in:
            # RFC 9113, 8.1: the answer is whole, the rest of the request is not wanted.
            self._framing.reset_stream(number, ErrorCodes.NO_ERROR)
        self._framing.incoming.patience += _FINISHED
        del self._streams[number]
        self._rest()

    def _push_all(self) -> None:
        """Send what waits, a few frames of each stream in turn."""
        while self._blocked and not self._full:
            before = self._framing.outbound_flow_control_window
            for number, stream in list(self._blocked.items()):
                self._blocked.pop(number, None)  # to the end of the row
                self.push(stream, 2)
                if self._full:
                    break
            self._send()
            if self._framing.outbound_flow_control_window == before:
                break

    def _rest(self) -> None:
        """A stream is over: wait for the next one, or close."""
        if self._streams:
            return
        if self._final or self._framing.incoming.last is not None:
            self._schedule()
            asyncio.get_running_loop().call_soon(self.transport.close)
        elif not self._draining:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        limits = self.server.limits
        self.deadline = self.server.now + limits.idle_seconds
        if self._full:
            self.deadline = min(self.deadline, self._full_since + limits.send_seconds)

    def _schedule(self) -> None:
        if not self._scheduled and not self._pushing:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        self._unsent = 0
        data = self._framing.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    # -- from the server

    def timed_out(self) -> None:
        """Look for streams whose time is over; close if there are none."""
        now = self.server.now
        if self.transport.is_closing():
            return self.transport.abort()
        if self._full and now - self._full_since >= self.server.limits.send_seconds:
            self.server.slow += 1
            return self.transport.abort()
        for stream in list(self._streams.values()):
            if stream.deadline < now:
                stream.timed_out()
        if self._draining and not self._final:
            self._final = True
            self._goodbye(self._framing.highest_inbound_stream_id)
        if self._streams:
            self.deadline = min(stream.deadline for stream in self._streams.values())
            if self._full:
                self.deadline = min(self.deadline, self._full_since + self.server.limits.send_seconds)
        elif self._draining:
            self.transport.close()
        elif self.deadline < now:
            self._goodbye(self._framing.highest_inbound_stream_id)
            self.transport.close()

    def drain(self) -> None:
        """Tell the client to open no more streams; those that are on their way are still served."""
        if self._draining:
            return
        self._draining = True
        self._goodbye(_LAST_STREAM)
        self.deadline = self.server.now + _GRACE_SECONDS

    def _goodbye(self, last: int) -> None:
        self._framing.close_connection(last_stream_id=last)
        self._framing.reopen()
        self._send()


@functools.lru_cache(maxsize=256)
def _known(method: bytes) -> bool:
    """Say whether a method (a token) is one that llhttp knows: what HTTP/1.1 refuses here, HTTP/2 does, too."""
    try:
        httptools.HttpRequestParser(_Nothing()).feed_data(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method)
    except httptools.HttpParserUpgrade:
        return False  # CONNECT
    except httptools.HttpParserError:
        return False
    return True


class _Nothing:
    """Takes no callbacks of a parser."""


class _Misframed(Exception):
    """A request that HTTP/2 does not know; its stream is reset."""


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Split header lines, each with its CRLF, into names in lower case and values."""
    pairs = []
    for line in lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b":")
            pairs.append((name.lower(), value.strip(b" \t")))
    return pairs
