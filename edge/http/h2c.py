"""Connections to instances that speak HTTP/2 without TLS (h2c, with prior knowledge: RFC 9113, 3.3).

A connection carries one request at a time, as those of HTTP/1.1 do, so that the pool and its health are
the same; what it gains an app is its protocol: gRPC, trailers, and requests that can be taken back.
"""

from collections import deque
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from edge.http.framing import Frames
from edge.http.request import STATUS_LINES
from edge.http.upstream import Endpoint, Pool, Reading, ResponseHead, UpstreamConnection

if TYPE_CHECKING:
    from edge.http.proxy import Exchange

_WINDOW = 1024 * 1024
_CLOSED_STREAMS = 16
# Of HTTP/1.1 alone; a request that asks for another protocol goes on as one that does not.
_DROPPED = frozenset({b"host", b"connection", b"upgrade", b"transfer-encoding"})


class _Framing(H2Connection):
    MAX_CLOSED_STREAMS = _CLOSED_STREAMS

    def __init__(self, head_bytes: int) -> None:
        super().__init__(
            H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: head_bytes,
            },
        )
        self.decoder.max_header_list_size = head_bytes
        self.incoming = self.incoming_buffer = Frames(server=False)
        self.initiate_connection()
        self.increment_flow_control_window(_WINDOW - 65_535)


class H2cConnection(UpstreamConnection):
    """One connection to an instance that speaks HTTP/2."""

    __slots__ = ("_framing", "_full", "_pending", "_pending_ended", "_stream", "_trailers", "_waiting")

    def __init__(self, pool: Pool, endpoint: Endpoint) -> None:
        super().__init__(pool, endpoint)
        self._framing = _Framing(pool.limits.head_bytes)
        self._stream = 0
        self._pending: deque[memoryview] = deque()  # of the request's body
        self._pending_ended = False
        self._full = False  # the connection takes no more
        self._waiting = False  # the exchange knows that the body waits
        self._trailers = b""

    # -- the request

    def send(self, head: bytes, body: bytes, *, ended: bool) -> None:
        exchange = self.exchange
        if exchange is None:
            raise RuntimeError("a request is sent for an exchange")
        framing = self._framing
        number = self._stream = framing.get_next_available_stream_id()
        self._pending.clear()
        self._pending_ended = False
        self._waiting = False
        self._trailers = b""
        framing.send_headers(number, _fields(head, exchange), end_stream=ended and not body)
        if body or not ended:
            self.send_body(body, ended=ended)
        else:
            self._flush()

    def send_body(self, piece: bytes, *, ended: bool) -> None:
        if piece:
            self._pending.append(memoryview(piece))
        self._pending_ended = ended
        self._push()

    def _push(self) -> None:
        """Send what the windows allow, and tell the exchange whether that was all."""
        framing = self._framing
        number = self._stream
        while self._pending and not self._full:
            size = min(framing.local_flow_control_window(number), framing.max_outbound_frame_size)
            if size <= 0:
                break
            piece = self._pending.popleft()
            if len(piece) > size:
                self._pending.appendleft(piece[size:])
                piece = piece[:size]
            last = self._pending_ended and not self._pending
            framing.send_data(number, piece, end_stream=last)
            self._pending_ended = self._pending_ended and not last
        if self._pending_ended and not self._pending:
            framing.end_stream(number)
            self._pending_ended = False
        self._flush()
        waits = bool(self._pending)
        if waits != self._waiting and self.exchange is not None:
            self._waiting = waits
            if waits:
                self.exchange.upstream_full()
            else:
                self.exchange.upstream_drained()

    def _flush(self) -> None:
        data = self._framing.data_to_send()
        if data and not self.closed:
            self.transport.write(data)

    def pause_writing(self) -> None:
        self._full = True
        if self.exchange is not None and not self._waiting:
            self._waiting = True
            self.exchange.upstream_full()

    def resume_writing(self) -> None:
        self._full = False
        if self.exchange is not None:
            self._push()

    # -- the response

    def data_received(self, data: bytes) -> None:
        framing = self._framing
        try:
            events = framing.receive_data(data)
            for event in events:
                self._happened(event)
                if self.closed:
                    return
            self._flush()
        except ProtocolError:
            exchange = self.exchange
            if exchange is None:
                return self.close()
            return self._garbage(exchange)
        last = framing.incoming.last
        if last is None:
            return
        self.keep_alive = False
        if self.exchange is None:
            self.close()
        elif self._stream > last:  # it was never looked at
            self._lose()

    def _happened(self, event: Event) -> None:
        exchange = self.exchange
        if isinstance(event, DataReceived):
            # Whoever cannot take more stops the reading of the connection: its windows need not.
            if event.flow_controlled_length:
                self._framing.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if exchange is not None and event.stream_id == self._stream and event.data:
                exchange.write(exchange.framed(event.data))
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            if exchange is not None and self._pending:
                self._push()
        elif exchange is None or getattr(event, "stream_id", None) != self._stream:
            return
        elif isinstance(event, ResponseReceived):
            self.heard = True
            self._head(exchange, event)
        elif isinstance(event, InformationalResponseReceived):
            self.heard = True
            status, lines, _ = _read(event.headers)
            exchange.interim(ResponseHead(status, _line(status), lines, 0, True, b""))
        elif isinstance(event, TrailersReceived):
            self._trailers = _read(event.headers)[1]
        elif isinstance(event, StreamEnded):
            self._ended(exchange)
        elif isinstance(event, StreamReset):
            self._lose()

    def _head(self, exchange: "Exchange", event: ResponseReceived) -> None:
        status, lines, length = _read(event.headers)
        if status < 200 or len(event.headers) > self.pool.limits.header_count:
            return self._garbage(exchange)
        if length == -1 and event.stream_ended is not None:
            length = 0
        self.reading = Reading.LENGTH
        head = ResponseHead(status, _line(status), lines, length, True, b"")
        exchange.write(exchange.response_head(head, bodiless=exchange.bodiless(status)))

    def _ended(self, exchange: "Exchange") -> None:
        if end := exchange.framed_end(self._trailers):
            exchange.write(end)
        self.keep_alive = self._framing.incoming.last is None
        self._complete(exchange)

    def _lose(self) -> None:
        exchange, self.exchange = self.exchange, None
        self.close()
        if exchange is not None:
            exchange.upstream_lost(self)


def _fields(head: bytes, exchange: "Exchange") -> list[tuple[bytes, bytes]]:
    """Return the fields of a request from the head that HTTP/1.1 would have."""
    request = exchange.request
    fields = [
        (b":method", request.method),
        (b":scheme", b"http"),
        (b":authority", request.host_field),
        (b":path", request.target),
    ]
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        lower = name.lower()
        if lower and lower not in _DROPPED:
            fields.append((lower, value.strip(b" \t")))
    if (request.header(b"te") or b"").lower() == b"trailers":  # gRPC asks for it
        fields.append((b"te", b"trailers"))
    return fields


def _read(headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes, int]:
    """Return status, header lines and the length of the body, -1 if it is not told."""
    status, length = 0, -1
    lines = []
    for name, value in headers:
        if name == b":status":
            status = int(value) if value.isdigit() else 0
        elif name == b"content-length":
            length = int(value)
        elif not name.startswith(b":"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return status, b"".join(lines), length


def _line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
