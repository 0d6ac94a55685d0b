"""Instances that speak HTTP/2: what they get, what comes back, and what is theirs to break."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, TrailersReceived
from hyperframe import frame as frames

from edge.http.h2c import H2cConnection
from edge.http.proxy import forward
from edge.http.tests.h2client import H2Client
from edge.http.tests.rig import PATIENCE, certificate
from edge.http.tls import Certificates

MEGABYTE = bytes(range(256)) * 4096
GET = b"GET /a?b=c HTTP/1.1\r\nHost: shop.test\r\n\r\n"


@dataclass
class Asked:
    """A request as it came, and the means to answer it."""

    h2: H2Connection
    socket: socket.socket
    stream: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    reset: int | None = None

    def get(self, name):
        return [value for key, value in self.headers if key == name]

    def answer(self, body=b"", *, status=200, headers=(), trailers=(), end=True):
        if status:
            fields = [(":status", str(status)), *headers]
            self.h2.send_headers(self.stream, fields, end_stream=end and not body and not trailers)
        while body:
            size = min(self.h2.local_flow_control_window(self.stream), self.h2.max_outbound_frame_size)
            if not size:
                self.flush()
                self.h2.receive_data(self.socket.recv(65536))
                continue
            piece, body = body[:size], body[size:]
            self.h2.send_data(self.stream, piece, end_stream=end and not body and not trailers)
        if trailers:
            self.h2.send_headers(self.stream, list(trailers), end_stream=True)
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())


def echo(asked):
    asked.answer(asked.body, headers=[("content-length", str(len(asked.body)))])


@dataclass
class App:
    """An app that speaks HTTP/2: `early` is called with each head, `answer` with each whole request."""

    answer: Callable[[Asked], object] = echo
    early: Callable[[Asked], object] | None = None
    seen: list[Asked] = field(default_factory=list)
    origin: Any = None

    def serve(self, raw):
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        h2.initiate_connection()
        raw.sendall(h2.data_to_send())
        open_requests = {}
        while data := raw.recv(65536):
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    asked = Asked(h2, raw, event.stream_id, cast(Any, event.headers))
                    open_requests[event.stream_id] = asked
                    self.seen.append(asked)
                    if self.early is not None:
                        self.early(asked)
                elif isinstance(event, DataReceived):
                    open_requests[event.stream_id].body += event.data
                    if event.flow_controlled_length:
                        h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamReset):
                    open_requests[event.stream_id].reset = int(event.error_code)
                elif isinstance(event, StreamEnded):
                    self.answer(open_requests[event.stream_id])
                else:
                    assert not isinstance(event, TrailersReceived)
            raw.sendall(h2.data_to_send())


@pytest.fixture
def proxy(rig):
    """Start a server before an app that speaks HTTP/2."""

    def start(app, **options):
        origin = rig.origin(script=app.serve)
        app.origin = origin
        address = origin.address
        return rig.serve(
            lambda request: forward(request, rig.pool, (address,), kind=H2cConnection), **options
        )

    return start


def test_a_request_of_http_1_1_reaches_an_app_that_speaks_http_2(rig, proxy):
    app = App(
        lambda asked: asked.answer(b"hello", headers=[("x-a", "b"), ("set-cookie", "a"), ("set-cookie", "b")])
    )
    client = rig.client(proxy(app))
    for _ in range(3):
        client.send(
            b"GET /a?b=c HTTP/1.1\r\nHost: Shop.test:80\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\r\n"
        )
        assert client.until(b"\r\n\r\n") == (
            b"HTTP/1.1 200 OK\r\nx-a: b\r\nset-cookie: a\r\nset-cookie: b\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert client.until(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"
    assert [field for field in app.seen[0].headers if "forwarded" not in field[0]] == [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "Shop.test:80"),
        (":path", "/a?b=c"),
        ("x-kept", "1"),
    ]
    assert app.origin.connections == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 1048576\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_large_bodies_pass_both_ways(rig, proxy, framing):
    app = App()
    client = rig.client(proxy(app))
    body = MEGABYTE if b"Length" in framing else b"100000\r\n%b\r\n0\r\n\r\n" % MEGABYTE
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n%b" % (framing, body))
    assert client.answer()[2] == MEGABYTE
    assert app.seen[0].get("content-length") == (["1048576"] if b"Length" in framing else [])
    assert app.seen[0].get("transfer-encoding") == []


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_keep_the_connection(rig, proxy, status):
    app = App(lambda asked: asked.answer(status=status))
    client = rig.client(proxy(app))
    for _ in range(2):
        assert client.send(GET).answer()[0] == status
    assert app.origin.connections == 1


def test_an_empty_answer_and_head_have_their_length(rig, proxy):
    app = App(
        lambda asked: asked.answer(
            headers=[("content-length", "5")] if asked.get(":method") == ["HEAD"] else []
        )
    )
    client = rig.client(proxy(app))
    assert client.send(GET).answer()[1]["content-length"] == "0"
    status, headers, body = client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer(head=True)
    assert (status, headers["content-length"], body) == (200, "5", b"")


def test_grpc_passes_from_end_to_end(rig, proxy):
    def answer(asked):
        headers = [("content-type", "application/grpc")]
        asked.answer(
            b"\0\0\0\0\x05hello", headers=headers, trailers=[("grpc-status", "0"), ("grpc-message", "fine")]
        )

    issued = certificate("shop.test", 1)
    app = App(answer)
    server = proxy(app, tls=Certificates(lambda name: issued, "shop.test").listener_context())
    client = H2Client(rig.ports[server])
    rig.clients.append(client)
    number = client.open(client.fields("POST", "/pkg.Service/Call", [("te", "trailers")]), end=False)
    client.data(number, b"\0\0\0\0\x02hi", end=True)
    got = client.answer(number)
    assert (got.status, got.body) == (200, b"\0\0\0\0\x05hello")
    assert got.trailers == {"grpc-status": "0", "grpc-message": "fine"}
    assert (app.seen[0].get("te"), app.seen[0].body) == (["trailers"], b"\0\0\0\0\x02hi")


def test_both_directions_stream_at_once(rig, proxy):
    heard = threading.Event()

    def early(asked):
        asked.answer(status=103, headers=[("link", "</a.css>")], end=False)
        asked.answer(b"first", end=False)
        heard.set()

    app = App(lambda asked: asked.answer(b"last", status=0), early)
    client = rig.client(proxy(app))
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 103 ")
    client.until(b"5\r\nfirst\r\n")
    assert heard.wait(PATIENCE)
    client.send(b"0\r\n\r\n")
    assert client.until(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"


def test_a_client_that_leaves_takes_its_connection_along(rig, proxy):
    begun, gone = threading.Event(), threading.Event()

    class Leaves(App):
        def serve(self, raw):
            with contextlib.suppress(OSError):
                super().serve(raw)
            gone.set()

    app = Leaves(lambda asked: begun.set())
    client = rig.client(proxy(app)).send(GET)
    assert begun.wait(PATIENCE)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert gone.wait(PATIENCE)


def raw_frames(*sent, asked):
    asked.flush()
    asked.socket.sendall(b"".join(frame.serialize() for frame in sent))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda asked: asked.h2.reset_stream(asked.stream, 2), id="a reset"),
        pytest.param(
            lambda asked: asked.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), id="HTTP/1.1"
        ),
        pytest.param(
            lambda asked: raw_frames(
                frames.HeadersFrame(asked.stream, b"\x88\x00\x01A\x01b", flags=("END_HEADERS",)), asked=asked
            ),
            id="an upper-case name",
        ),
        pytest.param(
            lambda asked: raw_frames(
                frames.HeadersFrame(asked.stream, b"\x88\x00\x01a\x04b\r\nc", flags=("END_HEADERS",)),
                asked=asked,
            ),
            id="a line break in a value",
        ),
        pytest.param(
            lambda asked: raw_frames(
                frames.HeadersFrame(asked.stream, b"\x00\x07:status\x03abc", flags=("END_HEADERS",)),
                asked=asked,
            ),
            id="no status",
        ),
        pytest.param(
            lambda asked: asked.answer(headers=[(f"x-{index}", "y") for index in range(150)]),
            id="too many headers",
        ),
        pytest.param(lambda asked: asked.answer(headers=[("x", "y" * 40_000)]), id="too large headers"),
        pytest.param(lambda asked: asked.socket.close(), id="nothing"),
    ],
)
def test_what_is_no_answer_is_a_bad_gateway(rig, proxy, answer):
    class Breaks(App):
        def serve(self, raw):
            with contextlib.suppress(OSError):
                super().serve(raw)

    client = rig.client(proxy(Breaks(answer)))
    assert client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").answer()[0] == 502


def test_an_answer_that_is_reset_looks_broken_off(rig, proxy):
    def answer(asked):
        asked.answer(b"half", headers=[("content-length", "8")], end=False)
        asked.h2.reset_stream(asked.stream, 2)
        asked.flush()

    client = rig.client(proxy(App(answer))).send(GET)
    client.until(b"\r\n\r\n")
    assert client.rest() == b"half"


def test_after_a_goodbye_another_connection_is_used(rig, proxy):
    def answer(asked):
        asked.socket.sendall(frames.GoAwayFrame(0, last_stream_id=asked.stream).serialize())
        echo(asked)

    app = App(answer)
    client = rig.client(proxy(app))
    for _ in range(3):
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        assert client.answer()[::2] == (200, b"hi")
    assert app.origin.connections == 3


def test_an_app_that_does_not_take_a_body_stops_its_client(rig, proxy):
    go_on = threading.Event()
    app = App(early=lambda asked: go_on.wait(PATIENCE))
    server = proxy(app)
    client = rig.client(server)
    count = 5
    sending = threading.Thread(
        target=partial(
            client.send,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (count * len(MEGABYTE))
            + count * MEGABYTE,
        )
    )
    sending.start()
    while not rig.loop.call(lambda: any(each.paused for each in server.connections)):
        pass
    went = rig.loop.call(lambda: max(each.request.size for each in server.connections))
    assert went < len(MEGABYTE)
    go_on.set()
    sending.join(PATIENCE)
    assert client.answer()[2] == count * MEGABYTE
