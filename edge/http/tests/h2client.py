"""A client of HTTP/2 that can also say what no good client says."""

import select
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hyperframe.frame import Frame

from edge.http.tests.rig import PATIENCE

Headers = Iterable[tuple[str, str]]


def texts(headers: Any) -> dict[str, str]:
    """Return headers by name, the last of each."""
    return {str(name): str(value) for name, value in headers}


@dataclass
class Answer:
    """What came of one stream so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    interim: list[int] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class H2Client:
    """One connection over TLS.

    Args:
        greedy: give every byte's window back at once.
        preface: begin at once.
    """

    def __init__(
        self,
        port: int,
        name: str = "shop.test",
        *,
        greedy: bool = True,
        preface: bool = True,
        receive_buffer: int = 0,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(PATIENCE)
        try:
            raw.connect(("127.0.0.1", port))
            self.socket = context.wrap_socket(raw, server_hostname=name)
        except OSError:
            raw.close()
            raise
        self.name = name
        self.greedy = greedy
        self.answers: dict[int, Answer] = {}
        self.goaway: list[ConnectionTerminated] = []
        self.events: list[Event] = []
        self.answering = preface  # acknowledge what the server says
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        if preface:
            self.h2.initiate_connection()
            self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def send_frames(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def fields(self, method: str = "GET", path: str = "/", more: Headers = ()) -> list[tuple[str, str]]:
        return [
            (":method", method),
            (":scheme", "https"),
            (":authority", self.name),
            (":path", path),
            *more,
        ]

    def open(self, fields: Headers, *, end: bool = True) -> int:
        """Begin a request; return the number of its stream."""
        number = self.h2.get_next_available_stream_id()
        self.answers[number] = Answer()
        self.h2.send_headers(number, list(fields), end_stream=end)
        self.flush()
        return number

    def get(self, path: str = "/", more: Headers = ()) -> int:
        return self.open(self.fields("GET", path, more))

    def data(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send a body, as the windows allow, reading meanwhile."""
        while data:
            window = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if window <= 0:
                self.flush()
                self.step()
                continue
            piece, data = data[:window], data[window:]
            self.h2.send_data(number, piece, end_stream=end and not data)
        self.flush()

    def step(self) -> bool:
        """Read once; False: the server has closed."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._note(event)
        if self.answering:
            self.flush()
        return True

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, ConnectionTerminated):
            self.goaway.append(event)
            self.h2.state_machine.state = type(self.h2.state_machine.state).CLIENT_OPEN
            return
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if answer is None:
            return
        if isinstance(event, InformationalResponseReceived):
            answer.interim.append(int(texts(event.headers)[":status"]))
        elif isinstance(event, ResponseReceived):
            answer.headers = texts(event.headers)
            answer.status = int(answer.headers.pop(":status"))
        elif isinstance(event, DataReceived):
            answer.body += event.data
            if self.greedy and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            answer.trailers = texts(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if not self.step():
                raise EOFError(self.goaway)

    def answer(self, number: int) -> Answer:
        """Read until a stream is over."""
        answer = self.answers[number]
        self.until(lambda: answer.over)
        return answer

    def ask(self, path: str = "/", more: Headers = ()) -> Answer:
        return self.answer(self.get(path, more))

    def until_closed(self) -> int | None:
        """Read until the server closes; return the last error that it gave as its reason."""
        while self.step():
            pass
        return self.reason

    def pour(self, data: bytes) -> int | None:
        """Send data whether or not they are read, until the server closes; return the last error that it gave.

        All in one thread: two of them in one connection of OpenSSL end the process.
        """
        self.socket.setblocking(False)
        left = memoryview(data)
        while True:
            if not any(select.select([self.socket], [self.socket] if left else [], [], PATIENCE)):
                raise TimeoutError("the server neither reads nor closes")
            try:
                if left:
                    left = left[self.socket.send(left[:16_384]) :]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:  # the server has closed; what it said before may still be read
                left = left[:0]
            try:
                if not self.step():
                    return self.reason
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue

    @property
    def reason(self) -> int | None:
        """The last error that the server gave as its reason to close."""
        return int(self.goaway[-1].error_code or 0) if self.goaway else None

    def close(self) -> None:
        self.socket.close()
