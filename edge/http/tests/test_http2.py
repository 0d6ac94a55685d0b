"""HTTP/2 to clients: what passes, what waits, what is refused, and what is sent away."""

import os
import socket
import subprocess
import threading

import h2.errors
import h2.settings
import httpx
import pytest
from hyperframe import frame as frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.http import http2
from edge.http.limits import Limits
from edge.http.tests.h2client import H2Client
from edge.http.tests.rig import PATIENCE, Client, certificate
from edge.http.tls import Certificates

MEGABYTE = bytes(range(256)) * 4096
CALM = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
PROTOCOL = h2.errors.ErrorCodes.PROTOCOL_ERROR


def response(body, lines=b"", status=b"200 OK"):
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, lines, len(body), body)


def narrow(connection, size=65536):
    """Let the system hold little of what a connection sends."""
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


@pytest.fixture(scope="module")
def tls():
    """A listener's context with a certificate for any name."""
    issued = certificate("shop.test", 1)
    return Certificates(lambda name: issued, "shop.test").listener_context()


@pytest.fixture
def proxy(rig, tls):
    """A server that forwards all to its addresses, by TLS."""

    def start(*addresses, limits=None):
        return rig.proxy(*addresses, limits=limits, tls=tls)

    return start


@pytest.fixture
def connect(rig):
    """Open a connection of HTTP/2 to a server."""

    def open_to(server, **options):
        client = H2Client(rig.ports[server], **options)
        rig.clients.append(client)
        return client

    return open_to


def test_requests_and_responses_pass_side_by_side(rig, proxy, connect):
    origin = rig.origin(
        lambda seen: response(seen.target.encode(), b"X-A: b\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n")
    )
    client = connect(proxy(origin.address))
    numbers = {client.get(f"/{index}?q=1"): f"/{index}?q=1" for index in range(100)}
    for number, path in numbers.items():
        answer = client.answer(number)
        assert (answer.status, answer.body, answer.reset) == (200, path.encode(), None)
        assert answer.headers == {"x-a": "b", "set-cookie": "b", "content-length": str(len(path))}
    assert {seen.target for seen in origin.seen} == set(numbers.values())


def test_an_app_sees_what_it_would_of_http_1_1(rig, proxy, connect):
    origin = rig.origin()
    client = connect(proxy(origin.address))
    more = [
        ("cookie", "a=1"), ("x-kept", "1"), ("te", "trailers"), ("x-unkey-principal", "{}"), ("cookie", "b=2"),
        ("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4"), ("host", "SHOP.test"),
    ]  # fmt: skip
    assert client.ask("/a?b=c", more).status == 200
    assert (origin.seen[0].method, origin.seen[0].target) == ("GET", "/a?b=c")
    assert [field for field in origin.seen[0].headers if "forwarded" not in field[0]] == [
        ("host", "shop.test"),
        ("x-kept", "1"),
        ("cookie", "a=1; b=2"),
    ]


@pytest.mark.parametrize("length", [True, False])
def test_large_bodies_pass_both_ways(rig, proxy, connect, length):
    origin = rig.origin(lambda seen: response(seen.body))
    client = connect(proxy(origin.address))
    more = [("content-length", str(len(MEGABYTE)))] if length else []
    number = client.open(client.fields("POST", "/", more), end=False)
    client.data(number, MEGABYTE, end=True)
    assert client.answer(number).body == MEGABYTE
    told = origin.seen[0].get("content-length") or origin.seen[0].get("transfer-encoding")
    assert told == ([str(len(MEGABYTE))] if length else ["chunked"])


def test_a_post_without_a_body_has_the_length_0(rig, proxy, connect):
    origin = rig.origin()
    client = connect(proxy(origin.address))
    assert client.answer(client.open(client.fields("POST"))).body == b"POST / 0"
    assert origin.seen[0].get("content-length") == ["0"]


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"204 No Content"), ("GET", b"304 Not Modified")]
)
def test_answers_without_a_body(rig, proxy, connect, method, status):
    origin = rig.origin(lambda seen: b"HTTP/1.1 %b\r\nContent-Length: 5\r\n\r\n" % status)
    client = connect(proxy(origin.address))
    for _ in range(2):
        answer = client.answer(client.open(client.fields(method)))
        assert (answer.status, answer.body, answer.ended) == (int(status[:3]), b"", True)
        assert answer.headers.get("content-length") == (None if status.startswith(b"204") else "5")


def test_trailers_pass_as_those_of_grpc(rig, proxy, connect):
    origin = rig.origin(
        lambda seen: (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\ngrpc-status: 0\r\ngrpc-message: fine\r\nContent-Length: 9\r\n\r\n"
        )
    )
    client = connect(proxy(origin.address))
    number = client.open(client.fields("POST", "/pkg.Service/Call", [("te", "trailers")]), end=False)
    client.data(number, b"\0\0\0\0\x05hello", end=True)
    answer = client.answer(number)
    assert (answer.body, answer.trailers) == (b"hello", {"grpc-status": "0", "grpc-message": "fine"})
    assert "transfer-encoding" not in answer.headers


def test_trailers_of_a_request_end_it(rig, proxy, connect):
    origin = rig.origin()
    client = connect(proxy(origin.address))
    number = client.open(client.fields("POST"), end=False)
    client.data(number, b"hello")
    client.h2.send_headers(number, [("x-checksum", "1")], end_stream=True)
    client.flush()
    assert client.answer(number).body == b"POST / 5"


def test_interim_answers_pass(rig, proxy, connect):
    def script(upstream):
        served = Client.over(upstream)
        served.until(b"\r\n\r\n")
        served.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        assert served.until(b"0\r\n\r\n").startswith(b"5\r\nhello")
        served.send(response(b"done"))

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address))
    number = client.open(client.fields("POST", "/", [("expect", "100-continue")]), end=False)
    client.until(lambda: client.answers[number].interim == [100, 103])
    client.data(number, b"hello", end=True)
    assert client.answer(number).body == b"done"


def test_a_response_until_close_ends_the_stream(rig, proxy, connect):
    origin = rig.origin(lambda seen: b"HTTP/1.1 200 OK\r\n\r\nall of it")
    client = connect(proxy(origin.address))
    assert client.ask().body == b"all of it"
    assert client.ask().body == b"all of it"


def test_events_arrive_one_by_one(rig, proxy, connect):
    heard = threading.Semaphore(0)

    def script(upstream):
        served = Client.over(upstream)
        served.until(b"\r\n\r\n")
        served.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for index in range(5):
            assert heard.acquire(timeout=PATIENCE)
            served.send(b"9\r\ndata: %d\n\n\r\n" % index)
        assert heard.acquire(timeout=PATIENCE)
        served.send(b"0\r\n\r\n")

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address))
    number = client.get()
    for index in range(5):
        heard.release()
        client.until(lambda count=index + 1: client.answers[number].body.count(b"\n\n") == count)
    heard.release()
    assert client.answer(number).ended


def test_a_slow_reader_stops_the_upstream_and_nobody_else(rig, proxy, connect):
    sent: list[int] = []
    stopped = threading.Event()

    def script(upstream):
        served = Client.over(upstream)
        path = served.until(b"\r\n\r\n").split()[1]
        if path == b"/small":
            return served.send(response(b"small", b"Connection: close\r\n"))
        upstream.settimeout(0.5)
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            for _ in range(1000):
                upstream.sendall(MEGABYTE)
                sent.append(len(MEGABYTE))
        except TimeoutError:
            stopped.set()

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address), greedy=False)
    number = client.get("/large")
    client.until(lambda: len(client.answers[number].body) == 65535)  # the whole window
    # Its connection's window is used up, too: it has to be opened for the others.
    client.h2.increment_flow_control_window(10_000)
    client.flush()
    assert stopped.wait(PATIENCE)
    assert sum(sent) < 20 * len(MEGABYTE)
    assert client.ask("/small").body == b"small"
    client.h2.reset_stream(number)
    client.flush()
    assert client.ask("/small").body == b"small"


def test_a_slow_upstream_stops_its_client_and_no_other_stream(rig, proxy, connect):
    go_on = threading.Event()
    data = 2 * MEGABYTE

    def script(upstream):
        served = Client.over(upstream)
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        head = served.until(b"\r\n\r\n")
        if head.startswith(b"GET"):
            return served.send(response(b"small", b"Connection: close\r\n"))
        assert go_on.wait(PATIENCE)
        assert served.take(len(data)) == data
        served.send(response(b"took it"))

    origin = rig.origin(script=script)
    server = proxy(origin.address)
    client = connect(server)
    large = client.open(client.fields("POST", "/", [("content-length", str(len(data)))]), end=False)

    def waiting():
        return rig.loop.call(
            lambda: any(s.paused for each in server.connections for s in each._streams.values())
        )

    while not rig.loop.call(lambda: len(rig.pool.open)):
        pass
    rig.loop.call(lambda: [narrow(each) for each in rig.pool.open])
    took = 0
    while True:
        window = min(client.h2.local_flow_control_window(large), client.h2.max_outbound_frame_size)
        if window > 0:
            client.h2.send_data(large, data[took : took + window])
            took += window
            assert took < len(data)
        elif waiting():
            break
        else:
            client.h2.ping(b"any more")
        client.flush()
        if window <= 0:
            client.step()
    assert client.ask("/small").body == b"small"
    go_on.set()
    client.data(large, data[took:], end=True)
    assert client.answer(large).body == b"took it"


def test_a_stream_that_is_reset_takes_its_upstream_connection_along(rig, proxy, connect):
    begun, gone = threading.Event(), threading.Event()

    def script(upstream):
        served = Client.over(upstream)
        served.until(b"\r\n\r\n")
        begun.set()
        if served.rest() == b"":
            gone.set()

    origin = rig.origin(script=script)
    server = proxy(origin.address)
    client = connect(server)
    number = client.get()
    assert begun.wait(PATIENCE)
    client.h2.reset_stream(number, 8)
    client.flush()
    assert gone.wait(PATIENCE)
    assert server.aborted == 1


def test_a_broken_answer_is_a_reset(rig, proxy, connect):
    def script(upstream):
        served = Client.over(upstream)
        served.until(b"\r\n\r\n")
        served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    answer = connect(proxy(rig.origin(script=script).address)).ask()
    assert (answer.body, answer.ended, answer.reset) == (b"half", False, 2)


def test_an_upstream_that_is_not_there_is_told_by_the_usual_page(rig, proxy, connect):
    client = connect(proxy("127.0.0.1:1"))
    answer = client.ask("/", [("accept", "text/html")])
    assert (answer.status, answer.headers["content-type"]) == (503, "text/html; charset=utf-8")


def test_a_body_that_is_too_large_is_refused_before_it_has_come(rig, proxy, connect):
    took = []

    def script(upstream):
        took.append(Client.over(upstream).rest())

    client = connect(proxy(rig.origin(script=script).address, limits=Limits(body_bytes=100_000)))
    number = client.open(client.fields("POST", "/", [("content-length", "100001")]), end=False)
    answer = client.answer(number)
    client.until(lambda: answer.reset is not None)
    assert (answer.status, answer.reset) == (413, 0)
    number = client.open(client.fields("POST"), end=False)
    client.data(number, bytes(100_001))
    answer = client.answer(number)
    client.until(lambda: answer.reset is not None)
    assert (answer.status, answer.reset) == (413, 0)
    assert not any(text.endswith(b"0\r\n\r\n") for text in took)


def test_time_is_limited_as_for_http_1_1(rig, proxy, connect):
    origin = rig.origin(script=lambda upstream: Client.over(upstream).rest())
    client = connect(proxy(origin.address, limits=Limits(request_seconds=0.1)))
    waiting = client.get()
    slow = client.open(client.fields("POST"), end=False)
    assert client.answer(waiting).status == 504
    assert client.answer(slow).status == 504


def test_a_client_that_is_silent_within_a_body_is_told(rig, proxy, connect):
    origin = rig.origin(script=lambda upstream: Client.over(upstream).rest())
    client = connect(proxy(origin.address, limits=Limits(body_seconds=0.1)))
    number = client.open(client.fields("POST"), end=False)
    client.data(number, b"some")
    assert client.answer(number).status in (408, 504)


def test_a_client_that_takes_nothing_of_an_answer_loses_it_and_keeps_the_others(rig, proxy, connect):
    origin = rig.origin(lambda seen: response(MEGABYTE if seen.target == "/large" else b"small"))
    server = proxy(origin.address, limits=Limits(send_seconds=0.1))
    client = connect(server, greedy=False)
    number = client.get("/large")
    client.until(lambda: len(client.answers[number].body) == 65535)
    client.h2.increment_flow_control_window(10_000)
    client.flush()
    assert client.answer(number).reset == h2.errors.ErrorCodes.INTERNAL_ERROR
    assert server.slow == 1
    assert client.ask("/small").body == b"small"


def test_a_connection_that_takes_nothing_at_all_is_ended(rig, proxy, connect):
    origin = rig.origin(lambda seen: response(8 * MEGABYTE))
    server = proxy(origin.address, limits=Limits(send_seconds=0.1))
    client = connect(server, receive_buffer=65536)
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
    client.h2.increment_flow_control_window(2**30)
    client.flush()
    client.step()
    rig.loop.call(lambda: [narrow(each) for each in server.connections])
    client.get()
    while rig.loop.call(lambda: len(server.connections)):
        pass
    assert server.slow == 1


def test_a_connection_that_is_not_used_is_ended_with_a_word(rig, proxy, connect):
    client = connect(proxy(rig.origin().address, limits=Limits(idle_seconds=0.1)))
    assert client.ask().status == 200
    assert client.until_closed() == 0


def test_a_connection_that_never_begins_is_ended(rig, proxy, connect):
    client = connect(proxy(rig.origin().address, limits=Limits(header_seconds=0.1)), preface=False)
    client.h2.initiate_connection()  # which is not sent
    assert client.until_closed() == 0


PSEUDO = [(":method", "GET"), (":scheme", "https"), (":authority", "shop.test"), (":path", "/")]


def without(name):
    return [field for field in PSEUDO if field[0] != name]


def instead(name, value):
    return [(key, value if key == name else text) for key, text in PSEUDO]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(without(":method"), id="no method"),
        pytest.param(without(":scheme"), id="no scheme"),
        pytest.param(without(":path"), id="no path"),
        pytest.param(instead(":path", ""), id="an empty path"),
        pytest.param(instead(":method", "GE T"), id="a space in the method"),
        pytest.param([*PSEUDO, (":path", "/b")], id="two paths"),
        pytest.param([*PSEUDO, (":authority", "shop.test")], id="two authorities"),
        pytest.param([*PSEUDO, (":status", "200")], id="a pseudo-header of responses"),
        pytest.param([*PSEUDO, (":other", "1")], id="an unknown pseudo-header"),
        pytest.param([*PSEUDO[:3], ("a", "b"), PSEUDO[3]], id="a pseudo-header after others"),
        pytest.param([*PSEUDO, (":protocol", "websocket")], id="a protocol without CONNECT"),
        pytest.param([*PSEUDO, ("X-Upper", "1")], id="an upper-case name"),
        pytest.param([*PSEUDO, ("x y", "1")], id="a space in a name"),
        pytest.param([*PSEUDO, ("x:y", "1")], id="a colon in a name"),
        pytest.param([*PSEUDO, ("", "1")], id="an empty name"),
        pytest.param([*PSEUDO, ("x\r\ny", "1")], id="a line break in a name"),
        pytest.param([*PSEUDO, ("x", "1\r\ny: 2")], id="a line break in a value"),
        pytest.param([*PSEUDO, ("x", "1\ny: 2")], id="a line feed in a value"),
        pytest.param([*PSEUDO, ("x", "1\0")], id="a NUL in a value"),
        pytest.param([*PSEUDO, ("x", " 1")], id="space before a value"),
        pytest.param([*PSEUDO, ("x", "1\t")], id="space after a value"),
        pytest.param(instead(":path", "/\r\nx: 1"), id="a line break in the path"),
        pytest.param(instead(":authority", "a\r\nb"), id="a line break in the authority"),
        pytest.param(instead(":method", "GET / HTTP/1.1\r\nx: y\r\n\r\n"), id="a request in the method"),
        pytest.param([*PSEUDO, ("connection", "close")], id="connection"),
        pytest.param([*PSEUDO, ("keep-alive", "5")], id="keep-alive"),
        pytest.param([*PSEUDO, ("proxy-connection", "close")], id="proxy-connection"),
        pytest.param([*PSEUDO, ("transfer-encoding", "chunked")], id="transfer-encoding"),
        pytest.param([*PSEUDO, ("upgrade", "h2c")], id="upgrade"),
        pytest.param([*PSEUDO, ("te", "gzip")], id="te"),
        pytest.param([*PSEUDO, ("host", "shop.test"), ("host", "shop.test")], id="two hosts"),
        pytest.param([*PSEUDO, ("content-length", "5")], id="a length without a body"),
        pytest.param([*PSEUDO, ("content-length", "0"), ("content-length", "0")], id="two lengths"),
    ],
)
def test_what_is_no_request_is_reset_and_the_others_go_on(rig, proxy, connect, fields):
    origin = rig.origin()
    client = connect(proxy(origin.address))
    assert client.answer(client.open(fields)).reset == PROTOCOL
    assert client.ask("/next").body == b"GET /next 0"
    assert [seen.target for seen in origin.seen] == ["/next"]


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        pytest.param(400, without(":authority"), id="no host"),
        pytest.param(400, [*PSEUDO, ("host", "other.test")], id="authority and host differ"),
        pytest.param(400, instead(":authority", "user@shop.test"), id="a user in the authority"),
        pytest.param(400, instead(":authority", "a b"), id="a space in the authority"),
        pytest.param(400, instead(":path", "/a b"), id="a space in the path"),
        pytest.param(400, instead(":path", "/a#b"), id="a fragment"),
        pytest.param(400, instead(":path", "*"), id="an asterisk"),
        pytest.param(400, instead(":path", "http://shop.test/"), id="an absolute path"),
        pytest.param(400, instead(":scheme", "http"), id="another scheme"),
        pytest.param(400, instead(":method", "get"), id="a method in lower case"),
        pytest.param(400, instead(":method", "XGET"), id="an unknown method"),
        pytest.param(405, [(":method", "CONNECT"), (":authority", "shop.test:443")], id="CONNECT"),
        pytest.param(405, instead(":method", "TRACE"), id="TRACE"),
        pytest.param(431, [*PSEUDO, *[(f"x-{index}", "1") for index in range(101)]], id="too many headers"),
        pytest.param(431, [*PSEUDO, ("x", "y" * 33_000)], id="too large"),
    ],
)
def test_what_http_1_1_refuses_is_refused_alike(rig, proxy, connect, status, fields):
    origin = rig.origin()
    client = connect(proxy(origin.address))
    assert client.answer(client.open(fields)).status == status
    assert client.ask("/next").body == b"GET /next 0"
    assert [seen.target for seen in origin.seen] == ["/next"]


@pytest.mark.parametrize("sizes", [(4,), (6,), (3, 3)])
def test_a_body_of_another_length_than_told_never_passes_as_whole(rig, proxy, connect, sizes):
    took = []

    def script(upstream):
        took.append(Client.over(upstream).rest().partition(b"\r\n\r\n")[2])

    client = connect(proxy(rig.origin(script=script).address))
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = client.open(client.fields("POST", "/", [("content-length", "5")]), end=False)
    client.h2.ping(b"12345678")
    client.flush()
    for index, size in enumerate(sizes):
        client.data(number, bytes(size), end=index == len(sizes) - 1)
    assert client.until_closed() == PROTOCOL
    assert not any(len(body) >= 5 for body in took)


def test_a_body_that_trailers_end_early_never_passes_as_whole(rig, proxy, connect):
    took = []

    def script(upstream):
        took.append(Client.over(upstream).rest().partition(b"\r\n\r\n")[2])

    client = connect(proxy(rig.origin(script=script).address))
    number = client.open(client.fields("POST", "/", [("content-length", "5")]), end=False)
    client.data(number, b"four")
    client.h2.send_headers(number, [("x", "y")], end_stream=True)
    client.flush()
    assert client.answer(number).status == 400
    assert not any(len(body) >= 5 for body in took)


def headers_frame(client, number, *, flags=("END_HEADERS", "END_STREAM"), more=()):
    return frames.HeadersFrame(number, client.h2.encoder.encode(client.fields("GET", "/", more)), flags=flags)


def settings_frame(**values):
    codes = {getattr(frames.SettingsFrame, name): value for name, value in values.items()}
    return frames.SettingsFrame(0, settings=codes)


FLOODS = {
    "rapid reset": lambda client, index: [
        headers_frame(client, 2 * index + 1),
        frames.RstStreamFrame(2 * index + 1, error_code=8),
    ],
    "pings": lambda client, index: [frames.PingFrame(0, b"12345678")],
    "settings": lambda client, index: [settings_frame(INITIAL_WINDOW_SIZE=index)],
    "priorities": lambda client, index: [frames.PriorityFrame(2 * index + 101, depends_on=0)],
    "windows": lambda client, index: [frames.WindowUpdateFrame(0, window_increment=1)],
    "unknown frames": lambda client, index: [frames.ExtensionFrame(0xBB, 0, body=b"")],
    "empty bodies": lambda client, index: [
        headers_frame(client, 1, flags=("END_HEADERS",)) if index == 0 else frames.DataFrame(1, b"")
    ],
    "no requests": lambda client, index: [headers_frame(client, 2 * index + 1, more=[("Upper", "1")])],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_what_costs_nothing_is_sent_away(rig, proxy, connect, flood):
    origin = rig.origin()
    server = proxy(origin.address)
    client = connect(server)
    client.answering = False
    frames_of = FLOODS[flood]
    sent = b"".join(frame.serialize() for index in range(2500) for frame in frames_of(client, index))

    # More at once than streams are allowed is against the rules as well. The word is lost where more still comes.
    assert client.pour(sent) in ((PROTOCOL if flood == "no requests" else CALM), None)
    assert connect(server).ask("/next").body == b"GET /next 0"
    assert origin.connections <= 1


def test_a_frame_that_is_too_large_is_not_waited_for(rig, proxy, connect):
    client = connect(proxy(rig.origin().address))
    client.socket.sendall((16_385).to_bytes(3, "big") + bytes([0, 0, 0, 0, 0, 1]))
    assert client.until_closed() == h2.errors.ErrorCodes.FRAME_SIZE_ERROR


def test_headers_that_never_end_are_sent_away(rig, proxy, connect):
    server = proxy(rig.origin().address)
    client = connect(server)
    client.send_frames(headers_frame(client, 1, flags=()))
    client.send_frames(*(frames.ContinuationFrame(1, b"") for _ in range(100)))
    assert client.until_closed() in (CALM, PROTOCOL)
    assert connect(server).ask().status == 200


def test_headers_that_grow_when_they_are_read_are_sent_away(rig, proxy, connect):
    server = proxy(rig.origin().address)
    client = connect(server)
    block = client.h2.encoder.encode([*PSEUDO, ("x-bomb", "y" * 3000)])
    for _ in range(1000):  # each one octet, that stands for 3,000
        block += client.h2.encoder.encode([("x-bomb", "y" * 3000)])
    assert len(block) < 16_384
    client.send_frames(frames.HeadersFrame(1, block, flags=("END_HEADERS", "END_STREAM")))
    assert client.until_closed() == CALM
    assert connect(server).ask().status == 200


def test_more_streams_than_agreed_are_not_begun(rig, proxy, connect):
    go_on = threading.Event()

    def script(upstream):
        Client.over(upstream).until(b"\r\n\r\n")
        go_on.wait(PATIENCE)

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address, limits=Limits(streams=3)))
    client.send_frames(*(headers_frame(client, number) for number in (1, 3, 5, 7)))
    assert client.until_closed() == PROTOCOL
    go_on.set()
    assert origin.connections <= 3
    settled = next(event for event in client.events if hasattr(event, "changed_settings"))
    assert settled.changed_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 3


def test_a_client_that_asks_without_reading_is_not_read_any_more(rig, tls, connect, monkeypatch):
    monkeypatch.setattr(http2, "_FULL_BYTES", 0)
    answered = []

    def answer(request):
        answered.append(request.id)
        request.respond(204, b"x: %b\r\n" % os.urandom(4000).hex().encode(), b"")

    server = rig.serve(answer, tls=tls)
    client = connect(server, receive_buffer=4096)
    client.h2.ping(b"12345678")
    client.flush()
    client.step()
    connection = rig.loop.call(lambda: next(iter(server.connections)))
    rig.loop.call(lambda: (narrow(connection, 4096), connection.transport.set_write_buffer_limits(16_384)))
    asked = 0
    while rig.loop.call(lambda: all(each.transport.is_reading() for each in server.connections)):
        if len(answered) == asked:
            assert asked < 2000
            client.send_frames(
                *(headers_frame(client, index) for index in range(2 * asked + 1, 2 * asked + 41, 2))
            )
            asked += 20


def test_draining_says_goodbye_and_lets_streams_finish(rig, proxy, connect):
    go_on = threading.Event()

    def script(upstream):
        served = Client.over(upstream)
        served.until(b"\r\n\r\n")
        served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        assert go_on.wait(PATIENCE)
        served.send(b"half")

    origin = rig.origin(script=script)
    server = proxy(origin.address)
    busy, idle = connect(server), connect(server)
    number = busy.get()
    busy.until(lambda: busy.answers[number].body == b"half")
    idle.h2.ping(b"12345678")
    idle.flush()
    idle.step()
    stopping = threading.Thread(target=lambda: rig.loop.run(server.stop()))
    stopping.start()
    assert idle.until_closed() == 0
    busy.until(lambda: len(busy.goaway) == 2)
    assert [event.last_stream_id for event in busy.goaway] == [2**31 - 1, number]
    late = busy.get()
    assert busy.answer(late).reset == h2.errors.ErrorCodes.REFUSED_STREAM
    go_on.set()
    assert busy.answer(number).body == b"halfhalf"
    assert busy.until_closed() == 0
    stopping.join(PATIENCE)
    assert not stopping.is_alive()


def test_a_client_that_says_goodbye_still_gets_its_answers(rig, proxy, connect):
    go_on = threading.Event()

    def script(upstream):
        Client.over(upstream).until(b"\r\n\r\n")
        assert go_on.wait(PATIENCE)
        upstream.sendall(response(b"all"))

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address))
    number = client.get()
    client.send_frames(frames.GoAwayFrame(0, last_stream_id=0))
    go_on.set()
    assert client.answer(number).body == b"all"


def test_websockets_pass_as_an_extended_connect(rig, proxy, connect):
    def script(upstream):
        served = Client.over(upstream)
        head = served.until(b"\r\n\r\n").decode().lower()
        assert head.startswith("get /chat http/1.1\r\n")
        assert "upgrade: websocket\r\n" in head
        assert "sec-websocket-key: " in head
        served.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
        )
        assert served.take(2) == b"hi"
        served.send(MEGABYTE)
        assert served.rest() == b""

    origin = rig.origin(script=script)
    client = connect(proxy(origin.address))
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), *instead(":path", "/chat")[1:]]
    number = client.open([*fields, ("sec-websocket-version", "13")], end=False)
    answer = client.answers[number]
    client.until(lambda: answer.body == b"hello")
    assert answer.status == 200
    client.data(number, b"hi")
    client.until(lambda: answer.body == b"hello" + MEGABYTE)
    client.h2.end_stream(number)
    client.flush()
    assert client.answer(number).ended


def test_an_extended_connect_that_the_app_declines_is_answered_by_it(rig, proxy, connect):
    origin = rig.origin(lambda seen: response(b"no", status=b"403 Forbidden"))
    client = connect(proxy(origin.address))
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), *PSEUDO[1:]]
    answer = client.answer(client.open(fields, end=False))
    assert (answer.status, answer.body) == (403, b"no")
    other = [(":method", "CONNECT"), (":protocol", "connect-udp"), *PSEUDO[1:]]
    assert client.answer(client.open(other, end=False)).status == 405


def test_httpx_speaks_to_it(rig, proxy):
    origin = rig.origin(lambda seen: response(seen.body))
    server = proxy(origin.address)
    url = f"https://127.0.0.1:{rig.ports[server]}/"
    with httpx.Client(http2=True, verify=False) as client:
        for size in (0, 10, len(MEGABYTE)):
            answer = client.post(url, content=MEGABYTE[:size])
            assert (answer.http_version, answer.status_code, answer.content) == (
                "HTTP/2",
                200,
                MEGABYTE[:size],
            )


@pytest.mark.services
def test_curl_speaks_to_it(rig, proxy, tmp_path):
    origin = rig.origin(lambda seen: response(seen.body))
    port = rig.ports[proxy(origin.address)]
    (tmp_path / "body").write_bytes(MEGABYTE)
    told = subprocess.run(
        ["curl", "-sk", "--http2", "--resolve", f"shop.test:{port}:127.0.0.1", "--max-time", str(PATIENCE),
         "--data-binary", f"@{tmp_path}/body", "-w", "%{http_version} %{http_code}", "-o", f"{tmp_path}/answer",
         f"https://shop.test:{port}/"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "2 200"
    assert (tmp_path / "answer").read_bytes() == MEGABYTE


def test_a_client_without_alpn_is_served_as_http_1_1(rig, proxy):
    origin = rig.origin()
    with httpx.Client(verify=False) as client:
        answer = client.get(f"https://127.0.0.1:{rig.ports[proxy(origin.address)]}/")
    assert (answer.http_version, answer.text) == ("HTTP/1.1", "GET / 0")


FRAME = st.builds(
    lambda kind, flags, number, body: (
        len(body).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + body
    ),
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]),
    st.one_of(st.binary(max_size=64), st.sampled_from([b"\x82\x87\x84\x41\x01a", b"\x00" * 8, b"\x00" * 4])),
)


@pytest.fixture(scope="module")
def fuzzed(tls):
    """One server for all examples."""
    from edge.http.tests.rig import Rig

    rig = Rig()
    origin = rig.origin()
    server = rig.proxy(origin.address, tls=tls)
    yield rig.ports[server]
    rig.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(FRAME, max_size=8), cut=st.integers(1, 64))
def test_no_frames_make_it_fail(fuzzed, caplog, sent, cut):
    caplog.clear()
    client = H2Client(fuzzed)
    try:
        stream = b"".join(sent) + frames.PingFrame(0, b"the last").serialize()
        try:
            for at in range(0, len(stream), cut):
                client.socket.sendall(stream[at : at + cut])
            client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        while True:  # it answers, or ends the connection; it does not hang
            try:
                if not client.socket.recv(65536):
                    break
            except OSError:
                break
    finally:
        client.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
