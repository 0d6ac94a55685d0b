"""Requests on their way through: framing, streaming, pools, failures, upgrades, draining."""

import contextlib
import socket
import threading
import time
from ipaddress import ip_network

import pytest

from edge.http.connection import Connection
from edge.http.limits import Limits
from edge.http.proxy import forward
from edge.http.tests.rig import PATIENCE, free_port
from unkey import errors
from unkey.env import env

GET = b"GET /a?b=c HTTP/1.1\r\nHost: shop.test:8080\r\n\r\n"
MEGABYTE = bytes(range(256)) * 4096


def post(body, lines=b""):
    return b"POST / HTTP/1.1\r\nHost: shop.test\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)


def response(body, lines=b"", status=b"200 OK"):
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, lines, len(body), body)


def test_a_request_and_its_response_pass(rig):
    origin = rig.origin(lambda seen: response(b"hello", b"X-A: b\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"))
    raw = rig.client(rig.proxy(origin.address)).send(GET)
    assert raw.until(b"\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nX-A: b\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\ncontent-length: 5\r\n\r\n"
    )
    assert raw.take(5) == b"hello"
    assert (origin.seen[0].method, origin.seen[0].target) == ("GET", "/a?b=c")
    assert origin.seen[0].get("host") == ["shop.test:8080"]


def test_hop_by_hop_headers_and_names_of_ours_are_not_passed_on(rig):
    origin = rig.origin(
        lambda seen: response(
            b"", b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nUpgrade: h2c\r\n"
        )
    )
    client = rig.client(rig.proxy(origin.address))
    client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n"
        b"TE: trailers\r\nProxy-Authorization: x\r\nProxy-Connection: x\r\nX-Unkey-Principal: {}\r\n"
        b"x-unkey-anything: 1\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: front.test\r\nX-Forwarded-Proto: https\r\n"
        b"Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Kept: 1\r\n\r\n"
    )
    _, headers, _ = client.answer()
    assert headers == {"x-kept": "1", "content-length": "0"}
    assert origin.seen[0].headers == [
        ("host", "a"),
        ("x-kept", "1"),
        ("forwarded", "for=1.2.3.4;host=front.test;proto=https, for=127.0.0.1"),
        ("x-forwarded-for", "1.2.3.4, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "front.test"),
    ]


def test_an_absolute_target_is_passed_on_in_origin_form(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    assert client.send(b"GET http://A.test?x HTTP/1.1\r\nHost: a.test\r\n\r\n").answer()[0] == 200
    assert origin.seen[0].target == "/?x"


def test_pipelined_requests_are_answered_in_order_on_one_upstream_connection(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    count = 500
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(count)))
    answers = [client.answer()[2] for _ in range(count)]
    assert answers == [b"GET /%d 0" % number for number in range(count)]
    assert origin.connections == 1


def test_pipelined_requests_that_are_answered_at_once_need_no_stack(rig):
    server = rig.serve(lambda request: request.respond(200, b"", request.target))
    client = rig.client(server)
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3000)))
    assert [client.answer()[2] for _ in range(3000)] == [b"/%d" % number for number in range(3000)]


def test_a_head_may_come_byte_by_byte(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for index in range(len(GET)):
        client.send(GET[index : index + 1])
    assert client.answer()[2] == b"GET /a?b=c 0"


def test_head_has_the_length_and_no_body(rig):
    origin = rig.origin(lambda seen: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        status, headers, body = client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer(head=True)
        assert (status, headers["content-length"], body) == (200, "5", b"")
    assert origin.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body_keep_both_connections(rig, status):
    origin = rig.origin(lambda seen: b"HTTP/1.1 %b\r\nETag: x\r\n\r\n" % status)
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        got, headers, _ = client.send(GET).answer()
        assert (got, headers) == (int(status[:3]), {"etag": "x"})
    assert origin.connections == 1


def test_a_chunked_response_passes_with_its_trailers_and_without_its_extensions(rig):
    origin = rig.origin(
        lambda seen: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n"
            b"X-Sum: 1\r\nContent-Length: 9\r\n\r\n"
        )
    )
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        status, headers, body = client.send(GET).answer()
        assert (status, body, headers["trailers"]) == (200, b"abcde", "X-Sum: 1\r\n")
    assert origin.connections == 1


def test_a_response_until_close_becomes_chunked_and_the_client_stays(rig):
    origin = rig.origin(lambda seen: b"HTTP/1.1 200 OK\r\n\r\nall of it")
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        status, headers, body = client.send(GET).answer()
        assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"all of it")


def test_a_client_of_http_1_0_gets_no_chunks(rig):
    origin = rig.origin(
        lambda seen: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    client = rig.client(rig.proxy(origin.address))
    answer = client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").rest()
    assert answer == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"


def test_a_client_of_http_1_0_may_keep_its_connection(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        assert client.answer()[1]["connection"] == "keep-alive"


def test_large_bodies_pass_both_ways(rig):
    origin = rig.origin(lambda seen: response(seen.body))
    client = rig.client(rig.proxy(origin.address))
    for _ in range(2):
        assert client.send(post(MEGABYTE)).answer()[2] == MEGABYTE


def test_a_chunked_request_passes_and_the_next_one_is_not_part_of_it(rig):
    origin = rig.origin(lambda seen: response(seen.body))
    client = rig.client(rig.proxy(origin.address))
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n"
    client.send(chunked + GET)
    assert client.answer()[2] == b"abcde"
    assert client.answer()[2] == b""
    assert [seen.method for seen in origin.seen] == ["POST", "GET"]


@pytest.mark.parametrize("cut", [0, 7])
def test_trailers_of_a_request_pass_but_for_those_that_say_more_than_a_trailer_may(rig, cut):
    received = bytearray()

    def script(connection):
        while not received.endswith(b"\r\n\r\n") or b"0\r\n" not in received:
            received.extend(connection.recv(65536))
        connection.sendall(response(b"ok"))

    client = rig.client(rig.proxy(rig.origin(script=script).address))
    text = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    trailers = (
        b"X-Sum: 1\r\nContent-Length: 9\r\nX_Unkey_Principal: root\r\nAuthorization: x\r\nX-Last: 2\r\n\r\n"
    )
    client.send(text + trailers[:cut])
    client.send(trailers[cut:])
    assert client.answer()[0] == 200
    assert bytes(received).endswith(b"\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\nX-Last: 2\r\n\r\n")


def test_a_streamed_response_arrives_piece_by_piece(rig):
    go_on = threading.Event()

    def script(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert go_on.wait(PATIENCE)
        connection.sendall(b"data: 2\n\n")

    client = rig.client(rig.proxy(rig.origin(script=script).address)).send(GET)
    client.until(b"data: 1\n\n\r\n")
    go_on.set()
    client.until(b"data: 2\n\n\r\n")
    client.until(b"0\r\n\r\n")


def test_a_slow_reader_stops_the_upstream(rig):
    size = 64 * 1024 * 1024
    sent: list[int] = []

    def script(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.settimeout(1)
        try:
            while sum(sent) < size:
                sent.append(connection.send(MEGABYTE))
        except TimeoutError:
            sent.append(0)

    client = rig.client(rig.proxy(rig.origin(script=script).address), receive_buffer=65536).send(GET)
    client.until(b"\r\n\r\n")
    rig.origins[0]._threads[-1].join(PATIENCE)
    assert sent[-1] == 0
    assert sum(sent) < size // 2


def test_a_slow_upstream_stops_the_client(rig):
    def script(connection):
        connection.recv(1)
        release.wait(PATIENCE)

    release = threading.Event()
    client = rig.client(rig.proxy(rig.origin(script=script).address))
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n")
    client.socket.settimeout(1)
    sent: list[int] = []
    with pytest.raises(TimeoutError):
        sent.extend(iter(lambda: client.socket.send(MEGABYTE), 0))
    release.set()
    assert sum(sent) < 32 * 1024 * 1024


def test_continue_is_the_upstreams_to_say(rig):
    def script(connection):
        head = connection.recv(65536)
        assert b"\r\nExpect: 100-continue\r\n" in head
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert connection.recv(5) == b"hello"
        connection.sendall(response(b"thanks"))

    client = rig.client(rig.proxy(rig.origin(script=script).address))
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert client.answer()[0] == 100
    assert client.send(b"hello").answer()[2] == b"thanks"


def test_an_early_refusal_of_a_body_ends_the_connection_and_arrives(rig):
    origin = rig.origin(
        script=lambda connection: (
            connection.recv(65536) and connection.sendall(response(b"no", status=b"403 Forbidden"))
        )
    )
    client = rig.client(rig.proxy(origin.address))
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + MEGABYTE[:100])
    status, headers, body = client.answer()
    assert (status, headers["connection"], body) == (403, "close", b"no")


def test_early_hints_pass(rig):
    origin = rig.origin(
        lambda seen: b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + response(b"page")
    )
    client = rig.client(rig.proxy(origin.address)).send(GET)
    assert client.answer()[:2] == (103, {"link": "</a.css>"})
    assert client.answer()[2] == b"page"


def test_an_upgrade_becomes_a_tunnel(rig):
    def script(connection):
        head = connection.recv(65536).lower()
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in head
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-A: b\r\n\r\nhi"
        )
        while data := connection.recv(65536):
            connection.sendall(data.upper())

    client = rig.client(rig.proxy(rig.origin(script=script).address))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    status, headers, _ = client.answer()
    assert (status, headers["upgrade"], headers["x-a"]) == (101, "websocket", "b")
    assert client.take(2) == b"hi"
    assert client.send(b"abc").take(3) == b"ABC"
    client.send(b"end").socket.shutdown(socket.SHUT_WR)
    assert client.rest() == b"END"


def test_an_upgrade_that_the_upstream_declines_is_a_common_request(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
    assert client.answer()[2] == b"GET / 0"
    assert client.answer()[2] == b"GET /a?b=c 0"


def test_a_switch_that_nobody_asked_for_is_a_bad_gateway(rig):
    origin = rig.origin(lambda seen: b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert rig.client(rig.proxy(origin.address)).send(GET).answer()[0] == 502


def test_a_half_closed_client_still_gets_its_answer(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address)).send(GET)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.answer()[2] == b"GET /a?b=c 0"
    assert client.rest() == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_garbage_of_the_upstream_is_a_bad_gateway(rig, garbage):
    origin = rig.origin(lambda seen: garbage)
    client = rig.client(rig.proxy(origin.address))
    status, _, body = client.send(GET).answer()
    assert (status, errors.BadGateway.kind.code.encode() in body) == (502, True)


def test_an_upstream_that_hangs_up_without_a_word_is_a_bad_gateway(rig):
    origin = rig.origin(script=lambda connection: connection.recv(65536))
    assert rig.client(rig.proxy(origin.address)).send(GET).answer()[0] == 502


@pytest.mark.parametrize(
    "part", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc"]
)
def test_a_response_that_breaks_off_looks_broken_off(rig, part):
    origin = rig.origin(
        script=lambda connection: connection.recv(65536) and connection.sendall(b"HTTP/1.1 200 OK\r\n" + part)
    )
    client = rig.client(rig.proxy(origin.address)).send(GET)
    with pytest.raises(EOFError):
        client.answer()


def test_bytes_beyond_a_response_are_not_the_next_one(rig):
    origin = rig.origin(lambda seen: response(b"one") + response(b"evil"))
    client = rig.client(rig.proxy(origin.address))
    assert [client.send(GET).answer()[2] for _ in range(3)] == [b"one"] * 3
    assert origin.connections == 3


def test_nothing_listening_is_unavailable(rig):
    status, _, body = rig.client(rig.proxy(f"127.0.0.1:{free_port()}")).send(GET).answer()
    assert (status, errors.UpstreamUnavailable.kind.code.encode() in body) == (503, True)


def test_the_next_instance_is_tried_when_one_does_not_listen_whatever_the_method(rig):
    origin = rig.origin(lambda seen: response(seen.body))
    client = rig.client(rig.proxy(f"127.0.0.1:{free_port()}", origin.address))
    assert client.send(post(MEGABYTE)).answer()[2] == MEGABYTE


def closes_after_one(connection):
    request = connection.recv(65536)
    connection.sendall(response(b"one"))
    if b"GET" in request or b"POST" in request:
        connection.recv(65536)  # takes the second request and closes without a word


def test_a_kept_connection_that_the_upstream_drops_costs_no_request(rig):
    origin = rig.origin(script=closes_after_one)
    client = rig.client(rig.proxy(origin.address))
    assert [client.send(GET).answer()[0] for _ in range(2)] == [200, 200]
    assert origin.connections == 2


def test_a_request_that_may_have_been_acted_on_is_not_sent_again(rig):
    origin = rig.origin(script=closes_after_one)
    client = rig.client(rig.proxy(origin.address))
    assert client.send(GET).answer()[0] == 200
    assert client.send(post(b"pay")).answer()[0] == 502
    assert origin.connections == 1


def test_a_client_that_leaves_takes_its_upstream_connection_along(rig):
    gone = threading.Event()

    def script(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        gone.set()

    client = rig.client(rig.proxy(rig.origin(script=script).address)).send(GET)
    client.until(b"abc")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert gone.wait(PATIENCE)


def test_an_upstream_that_does_not_answer_is_a_gateway_timeout(rig):
    origin = rig.origin(script=lambda connection: (connection.recv(65536), connection.recv(65536)))
    server = rig.proxy(origin.address, limits=Limits(request_seconds=0))
    assert rig.client(server).send(GET).answer()[0] == 504


def test_draining_ends_idle_connections_and_lets_requests_finish(rig):
    arrived, go_on = threading.Event(), threading.Event()

    def script(connection):
        connection.recv(65536)
        arrived.set()
        assert go_on.wait(PATIENCE)
        connection.sendall(response(b"done"))

    server = rig.proxy(rig.origin(script=script).address)
    idle, busy = rig.client(server), rig.client(server)
    busy.send(GET)
    assert arrived.wait(PATIENCE)
    stopping = threading.Thread(target=rig.loop.run, args=(server.stop(),))
    stopping.start()
    assert idle.rest() == b""
    go_on.set()
    status, headers, body = busy.answer()
    assert (status, headers["connection"], body) == (200, "close", b"done")
    stopping.join(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        rig.client(server)


def test_a_handler_that_fails_is_an_internal_error(rig, caplog):
    def handle(request):
        raise ZeroDivisionError

    status, _, body = rig.client(rig.serve(handle)).send(GET).answer()
    assert (status, errors.FrontlineInternalError.kind.code.encode() in body) == (500, True)


def test_heads_that_differ_in_the_target_alone_are_told_apart(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    fields = b"Host: a.test\r\nX-One: 1\r\nX-Unkey-Principal: me\r\n"
    for target in (b"/", b"/", b"/b?c=%20", b"/b", b"//x", b"/"):
        assert client.send(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, fields)).answer()[0] == 200
        assert origin.seen[-1].target == target.decode()
        assert origin.seen[-1].get("x-one") == ["1"]
        assert origin.seen[-1].get("x-unkey-principal") == []
    for line, fields_of_this in (
        (b"DELETE /d", fields),
        (b"GET /e", b"Host: a.test\r\nX-One: 2\r\n"),
        (b"GET http://a.test/f", fields),
    ):
        client.send(b"%b HTTP/1.1\r\n%b\r\n" % (line, fields_of_this)).answer()
    assert [(seen.method, seen.target, seen.get("x-one")) for seen in origin.seen[-3:]] == [
        ("DELETE", "/d", ["1"]),
        ("GET", "/e", ["2"]),
        ("GET", "/f", ["1"]),
    ]


@pytest.mark.parametrize(
    "line", [b"GET /a#b HTTP/1.1", b"GET  /a HTTP/1.1", b"GET /a b HTTP/1.1", b"GET /a HTTP/2.1"]
)
def test_a_line_that_is_refused_is_refused_after_a_head_like_it_too(rig, line):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    fields = b"\r\nHost: a.test\r\n\r\n"
    assert client.send(b"GET / HTTP/1.1" + fields).answer()[0] == 200
    assert client.send(line + fields).answer()[0] == 400
    assert len(origin.seen) == 1


def test_an_address_that_cannot_be_one_is_answered_like_one_that_cannot_be_reached(rig):
    client = rig.client(rig.proxy(f"{'a' * 64}.test:80"))
    assert client.send(GET).answer()[0] == 503


def test_a_fault_in_timing_a_connection_out_ends_that_one_only(rig, monkeypatch):
    server = rig.serve(lambda request: request.respond(200, b"", b""), limits=Limits(idle_seconds=0))
    whole = Connection.timed_out
    faults: list[Connection] = []

    def faulty(self):
        if not faults:
            faults.append(self)
            raise RuntimeError("not foreseen")
        whole(self)

    monkeypatch.setattr(Connection, "timed_out", faulty)
    first, second = rig.client(server), rig.client(server)
    assert first.send(GET).answer()[0] == second.send(GET).answer()[0] == 200
    for client in (first, second):
        with contextlib.suppress(ConnectionResetError):
            assert client.socket.recv(1) == b""
    assert len(faults) == 1


@pytest.mark.parametrize("way", ["quick", "usual", "pipelined"])
def test_a_client_that_asks_without_reading_is_not_read_any_more(rig, way):
    body = b"x" * 20_000
    count = 1000

    def quick(head, content, peer):
        return response(body) if way == "quick" else None

    server = rig.serve(lambda request: request.respond(200, b"", body), quick=quick)
    client = rig.client(server, receive_buffer=4096)
    assert client.send(post(b"first")).answer()[0] == 200
    size = 50 if way == "pipelined" else 1

    def ask():
        for _ in range(count // size):
            client.socket.sendall(post(b"again") * size)

    asking = threading.Thread(target=ask)
    asking.start()

    def buffered():
        (connection,) = server.connections
        return connection.transport.get_write_buffer_size() if connection.full else None

    until = time.monotonic() + PATIENCE
    while (size_now := rig.loop.call(buffered)) is None:
        assert time.monotonic() < until
    assert size_now < 500_000
    for _ in range(count):
        assert client.answer()[2] == body
        most = rig.loop.call(lambda: next(iter(server.connections)).transport.get_write_buffer_size())
        assert most < 500_000
    asking.join(PATIENCE)


@pytest.mark.parametrize(
    ("lines", "client_address", "chain"),
    [
        (b"", "127.0.0.1", "127.0.0.1"),
        (b"X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9", "203.0.113.9, 127.0.0.1"),
        (b"X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n", "203.0.113.9", "203.0.113.9, 127.0.0.1"),
        (
            b"X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nx-forwarded-for: 127.0.0.2\r\n",
            "203.0.113.9",
            "203.0.113.9, 127.0.0.2, 127.0.0.1",
        ),
        (b"X-Forwarded-For: [2001:db8::1]:443\r\n", "2001:db8::1", "2001:db8::1, 127.0.0.1"),
        (b"X-Forwarded-For: \xff\xfe\r\n", "127.0.0.1", "127.0.0.1"),
        (b"X-Forwarded-For:\r\n", "127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_client_is_whom_a_trusted_proxy_names(rig, lines, client_address, chain):
    origin = rig.origin()
    peers = []

    def handle(request):
        peers.append(request.peer.decode())
        forward(request, rig.pool, (origin.address,))

    client = rig.client(rig.serve(handle))
    for target in (b"/a", b"/a", b"/b"):
        client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, lines)).answer()
    assert peers == [client_address] * 3
    assert [seen.get("x-forwarded-for") for seen in origin.seen] == [[chain]] * 3


def test_nobody_else_is_believed(rig, monkeypatch):
    monkeypatch.setitem(env._values, "TRUSTED_PROXIES", (ip_network("10.0.0.0/8"),))
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))
    client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: evil\r\n"
        b"X-Forwarded-Proto: https\r\nForwarded: for=203.0.113.9;host=evil;proto=https\r\n\r\n"
    ).answer()
    assert origin.seen[0].headers == [
        ("host", "a"),
        ("forwarded", "for=127.0.0.1;host=a;proto=http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a"),
    ]
