"""WebSockets through the edge, by public clients and servers: nothing is added, held back or lost."""

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import threading
from typing import Any

import pytest
import websockets.sync.client
import websockets.sync.server
import wsproto
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from edge.http.limits import Limits
from edge.http.tests.rig import PATIENCE, Client, certificate
from edge.http.tls import Certificates

MEGABYTE = bytes(range(256)) * 4096


def echo(connection):
    """Send every message back; a text that is a number closes with it as the code."""
    for message in connection:
        if isinstance(message, str) and message.isdigit():
            return connection.close(int(message), "as asked")
        connection.send(message)


def said(closed):
    """Return code and reason of the close frame that was received."""
    assert closed.rcvd is not None
    return closed.rcvd.code, closed.rcvd.reason


@pytest.fixture
def app():
    """Start a server of the `websockets` library; return its address."""
    servers = []

    def start(handler=echo, **options):
        server = websockets.sync.server.serve(handler, "127.0.0.1", 0, max_size=None, **options)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.socket.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(PATIENCE)


@pytest.fixture
def dial(rig):
    """Open a WebSocket to a server of the rig."""
    with contextlib.ExitStack() as opened:

        def connect(server, path="/", **options):
            url = f"ws://127.0.0.1:{rig.ports[server]}{path}"
            options = {"max_size": None, "proxy": None, "close_timeout": 1} | options
            return opened.enter_context(websockets.sync.client.connect(url, **options))

        yield connect


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_pass_as_they_are(rig, app, dial, compression):
    paths = []

    def handler(connection):
        paths.append((connection.request.path, connection.subprotocol))
        echo(connection)

    address = app(handler, subprotocols=["chat"])
    client = dial(rig.proxy(address), "/room?a=b", subprotocols=["chat"], compression=compression)
    assert client.subprotocol == "chat"
    for message in ("", "héllo", b"", b"\0\xff", "x" * 125, b"y" * 126, "z" * 65536, MEGABYTE):
        client.send(message)
        assert client.recv(PATIENCE) == message
    assert paths == [("/room?a=b", "chat")]


def test_fragments_stay_fragments(rig, app, dial):
    pieces = []

    def handler(connection):
        for piece in connection.recv_streaming():
            pieces.append(piece)
        connection.send(iter(["a", "b", "c"]))
        connection.recv()

    client = dial(rig.proxy(app(handler)))
    client.send(iter([b"one", b"two", b"three"]))
    assert list(client.recv_streaming()) == ["a", "b", "c", ""]
    assert b"".join(pieces) == b"onetwothree"
    assert len(pieces) >= 3


def test_pings_pass_both_ways_and_are_not_answered_on_the_way(rig, app, dial):
    heard = []

    def handler(connection):
        heard.append(connection.ping(b"of the app").wait(PATIENCE))
        echo(connection)

    client = dial(rig.proxy(app(handler)))
    assert client.ping(b"of the client").wait(PATIENCE)
    client.send("after")
    assert client.recv(PATIENCE) == "after"
    assert heard == [True]


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 3000, 4999])
def test_close_codes_pass_from_the_app(rig, app, dial, code):
    client = dial(rig.proxy(app()))
    client.send(str(code))
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(PATIENCE)
    assert said(closed.value) == (code, "as asked")
    assert isinstance(closed.value, ConnectionClosedOK if code in (1000, 1001) else ConnectionClosedError)


def test_close_codes_pass_from_the_client(rig, app, dial):
    codes = []
    done = threading.Event()

    def handler(connection):
        try:
            connection.recv(PATIENCE)
        except ConnectionClosed as closed:
            codes.append(said(closed))
        done.set()

    client = dial(rig.proxy(app(handler)))
    client.close(4321, "that was it")
    assert done.wait(PATIENCE)
    assert codes == [(4321, "that was it")]


def test_a_refusal_of_the_app_reaches_the_client(rig, app, dial):
    address = app(process_request=lambda connection, request: connection.respond(403, "not you\n"))
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        dial(rig.proxy(address))
    assert (refused.value.response.status_code, refused.value.response.body) == (403, b"not you\n")


def test_messages_cross_each_other(rig, app, dial):
    """Both sides send at once, more than the way between them holds."""

    def handler(connection):
        sending = threading.Thread(target=lambda: [connection.send(MEGABYTE) for _ in range(8)])
        sending.start()
        for _ in range(8):
            assert connection.recv(PATIENCE) == MEGABYTE
        sending.join(PATIENCE)
        connection.recv(PATIENCE)
        connection.close()

    client = dial(rig.proxy(app(handler, compression=None)), compression=None)
    sending = threading.Thread(target=lambda: [client.send(MEGABYTE) for _ in range(8)])
    sending.start()
    assert all(client.recv(PATIENCE) == MEGABYTE for _ in range(8))
    sending.join(PATIENCE)
    client.send("done")
    with pytest.raises(ConnectionClosedOK):
        client.recv(PATIENCE)


def test_websockets_pass_over_tls(rig, app):
    issued = certificate("shop.test", 1)
    server = rig.proxy(app(), tls=Certificates(lambda name: issued, "shop.test").listener_context())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    url = f"wss://127.0.0.1:{rig.ports[server]}/"
    with websockets.sync.client.connect(url, ssl=context, max_size=None, proxy=None) as client:
        for message in ("hello", MEGABYTE):
            client.send(message)
            assert client.recv(PATIENCE) == message


def test_a_slow_reader_stops_the_app(rig):
    sent: list[int] = []
    stopped = threading.Event()

    def script(upstream):
        upgrade(upstream)
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        upstream.settimeout(0.5)
        try:
            for _ in range(1000):
                upstream.sendall(MEGABYTE)
                sent.append(len(MEGABYTE))
        except TimeoutError:
            stopped.set()

    server = rig.proxy(rig.origin(script=script).address)
    client = rig.client(server, receive_buffer=65536).send(UPGRADE)
    client.until(b"\r\n\r\n")
    assert stopped.wait(PATIENCE)
    assert sum(sent) < 20 * len(MEGABYTE)
    held = rig.loop.call(lambda: max(each.transport.get_write_buffer_size() for each in server.connections))
    assert held < 2 * len(MEGABYTE)


def test_draining_leaves_a_websocket_its_time(rig, app, dial):
    server = rig.proxy(app())
    client = dial(server)
    client.send("before")
    assert client.recv(PATIENCE) == "before"
    stopping = threading.Thread(target=lambda: rig.loop.run(server.stop()))
    stopping.start()
    while not server.draining:
        pass
    client.send("while it drains")
    assert client.recv(PATIENCE) == "while it drains"
    client.close()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()


def test_a_websocket_that_outstays_draining_is_broken_off(rig, app, dial):
    server = rig.proxy(app(), limits=Limits(drain_seconds=0.05))
    client = dial(server)
    rig.loop.run(server.stop())
    with pytest.raises(ConnectionClosedError):
        client.recv(PATIENCE)


def test_a_websocket_that_is_silent_is_ended(rig, app, dial):
    server = rig.proxy(app(), limits=Limits(upgrade_idle_seconds=0.2, request_seconds=0.1))
    client = dial(server, ping_interval=None)
    with pytest.raises(ConnectionClosedError):
        client.recv(PATIENCE)


def test_whatever_passes_lets_a_websocket_go_on(rig, app, dial):
    server = rig.proxy(app())
    client = dial(server, ping_interval=None)

    def quiet_at():
        return rig.loop.call(lambda: next(iter(server.connections)).exchange.quiet_at)

    first = quiet_at()
    client.send("hello")
    client.recv(PATIENCE)
    then = quiet_at()
    assert client.ping().wait(PATIENCE)
    assert first < then < quiet_at()


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def upgrade(upstream):
    served = Client.over(upstream)
    served.until(b"\r\n\r\n")
    served.send(SWITCHED)
    return served


def test_frames_in_any_pieces_pass_octet_by_octet(rig):
    """wsproto on both sides; what is sent before the answer is not lost."""

    def script(upstream):
        served = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        while data := upstream.recv(65536):
            served.receive_data(data)
            for event in served.events():
                if isinstance(event, Request):
                    upstream.sendall(served.send(AcceptConnection()))
                elif isinstance(event, Ping):
                    upstream.sendall(served.send(event.response()))
                elif isinstance(event, TextMessage | BytesMessage):
                    again: Any = type(event)
                    upstream.sendall(served.send(again(event.data, message_finished=event.message_finished)))
                elif isinstance(event, CloseConnection):
                    upstream.sendall(served.send(event.response()))
                    return

    raw = rig.client(rig.proxy(rig.origin(script=script).address)).socket
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    raw.sendall(client.send(Request(host="shop.test", target="/")))
    large = os.urandom(70_000)
    sent = [
        TextMessage("hé", message_finished=False),
        Ping(b"within"),
        TextMessage("llo", message_finished=True),
        BytesMessage(large, message_finished=True),
        CloseConnection(code=4000, reason="enough"),
    ]
    got: list[Any] = []
    unsent = list(sent)
    while not (got and isinstance(got[-1], CloseConnection)):
        client.receive_data(raw.recv(65536))
        for event in client.events():
            if isinstance(event, AcceptConnection):
                stream = b"".join(client.send(each) for each in unsent)
                for at in range(0, 300):
                    raw.sendall(stream[at : at + 1])
                raw.sendall(stream[300:])
            else:
                got.append(event)
    text = "".join(event.data for event in got if isinstance(event, TextMessage))
    octets = b"".join(bytes(event.data) for event in got if isinstance(event, BytesMessage))
    assert (text, octets) == ("héllo", large)
    assert [event.payload for event in got if isinstance(event, Pong)] == [b"within"]
    assert (got[-1].code, got[-1].reason) == (4000, "enough")


def test_the_key_and_its_answer_pass_unchanged(rig):
    def script(upstream):
        head = Client.over(upstream).until(b"\r\n\r\n").decode()
        key = next(line[19:] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key: "))
        proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        upstream.sendall(SWITCHED[:-2] + b"Sec-WebSocket-Accept: " + base64.b64encode(proof) + b"\r\n\r\n")

    client = rig.client(rig.proxy(rig.origin(script=script).address)).send(UPGRADE)
    assert client.answer()[1]["sec-websocket-accept"] == "BACScCJPNqyz+UBoqMH89VmURoA="


@pytest.mark.parametrize("side", ["client", "app"])
def test_a_half_closed_tunnel_still_carries_the_other_direction(rig, side):
    go_on = threading.Event()

    def script(upstream):
        served = upgrade(upstream)
        if side == "app":
            upstream.shutdown(socket.SHUT_WR)
            assert served.until(b"last words") == b"last words"
        else:
            assert served.rest() == b""
            served.send(b"last words")
        go_on.set()

    client = rig.client(rig.proxy(rig.origin(script=script).address)).send(UPGRADE)
    client.until(b"\r\n\r\n")
    if side == "app":
        assert client.socket.recv(1) == b""
        client.send(b"last words")
    else:
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b"last words"
    assert go_on.wait(PATIENCE)


def test_another_protocol_may_be_upgraded_to(rig):
    def script(upstream):
        head = Client.over(upstream).until(b"\r\n\r\n").lower()
        assert b"upgrade: other/1.0\r\n" in head
        upstream.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other/1.0\r\n\r\nhello"
        )
        assert Client.over(upstream).take(2) == b"hi"

    client = rig.client(rig.proxy(rig.origin(script=script).address))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other/1.0\r\n\r\n")
    assert client.answer()[1]["upgrade"] == "other/1.0"
    assert client.take(5) == b"hello"
    client.send(b"hi")
    assert client.rest() == b""
