"""Clients that are slow, silent, or too many: each is bounded, and the others are served."""

import socket
import threading
import time
from ipaddress import ip_network

import pytest

from edge.http import connection
from edge.http.limits import Limits
from edge.http.server import _TICK_SECONDS
from edge.http.tests.rig import PATIENCE
from unkey.env import env

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n"
MEGABYTE = b"x" * 1024 * 1024


def test_a_body_that_stops_coming_times_out_though_the_request_has_time_left(rig):
    server = rig.serve(lambda request: None, Limits(body_seconds=0.2))
    client = rig.client(server).send(POST + b"12345")
    assert client.rest().startswith(b"HTTP/1.1 408 ")


def test_a_body_of_which_something_came_since_the_last_look_has_time_again(rig):
    server = rig.serve(lambda request: None, Limits(body_seconds=PATIENCE))
    client = rig.client(server).send(POST)
    deadline = time.monotonic() + PATIENCE
    for count in range(1, 4):
        client.send(b"1")
        while rig.loop.call(lambda: _bodies(server)) != [count]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        rig.loop.call(lambda: [each.timed_out() for each in server.connections])
        assert rig.loop.call(lambda: _bodies(server)) == [count]
    rig.loop.call(lambda: [each.timed_out() for each in server.connections])
    assert client.rest().startswith(b"HTTP/1.1 408 ")


def _bodies(server) -> list[int]:
    """Return how much has come of each body that is under way."""
    return [each.request.size for each in server.connections if each.request is not None]


def test_a_client_that_waits_for_continue_is_not_silent(rig):
    said = []

    def handle(request):
        said.append(request)

    server = rig.serve(handle, Limits(body_seconds=0))
    client = rig.client(server).send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    client.socket.settimeout(1.2)  # two looks of the server at its connections
    with pytest.raises(TimeoutError):
        client.rest()
    rig.loop.call(lambda: said[0].respond(200, b"", b""))
    assert client.answer()[0] == 200


@pytest.mark.parametrize("whole", [True, False])
def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(rig, whole):
    def script(upstream: socket.socket) -> None:
        upstream.recv(65536)
        upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(MEGABYTE)))
        for _ in range(64):
            upstream.sendall(MEGABYTE)

    if whole:
        server = rig.serve(lambda request: request.respond(200, b"", MEGABYTE * 32), Limits(send_seconds=0.2))
    else:
        server = rig.proxy(rig.origin(script=script).address, limits=Limits(send_seconds=0.2))
    client = rig.client(server, receive_buffer=4096).send(GET)
    client.until(b"\r\n\r\n")
    _until(rig, server, 0)
    assert server.slow == 1


def _until(rig, server, count: int) -> None:
    """Wait until a server has so few connections."""
    deadline = time.monotonic() + PATIENCE
    while rig.loop.call(lambda: len(server.connections)) > count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_takes_its_answer_late_gets_all_of_it(rig, monkeypatch):
    monkeypatch.setattr(connection, "_LINGER_SECONDS", 0)
    server = rig.serve(
        lambda request: request.respond(200, b"", MEGABYTE * 16), Limits(send_seconds=PATIENCE)
    )
    client = rig.client(server).send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    client.until(b"\r\n\r\n")
    time.sleep(2 * _TICK_SECONDS)  # the answer waits for it beyond the time that is given for hanging up
    assert len(client.rest()) == 16 * len(MEGABYTE)
    assert server.slow == 0


def test_connections_of_an_address_are_bounded_but_for_trusted_proxies(rig, monkeypatch):
    server = rig.serve(lambda request: request.respond(200, b"", b""), Limits(address_connections=2))
    trusted = [rig.client(server).send(GET).answer()[0] for _ in range(3)]
    assert trusted == [200] * 3
    for client in rig.clients:
        client.close()
    _until(rig, server, 0)
    monkeypatch.setitem(env._values, "TRUSTED_PROXIES", (ip_network("10.0.0.0/8"),))
    kept = [rig.client(server).send(GET) for _ in range(2)]
    assert [client.answer()[0] for client in kept] == [200] * 2
    assert rig.client(server).rest() == b""
    assert server.crowded == 1
    kept[0].close()
    _until(rig, server, 1)
    assert rig.client(server).send(GET).answer()[0] == 200


def test_connections_are_bounded_in_all(rig):
    server = rig.serve(lambda request: request.respond(200, b"", b""), Limits(connections=2))
    kept = [rig.client(server).send(GET) for _ in range(2)]
    assert [client.answer()[0] for client in kept] == [200] * 2
    assert rig.client(server).rest() == b""
    assert kept[0].send(GET).answer()[0] == 200


@pytest.mark.parametrize(
    ("host", "most"), [("a.test", 20), ("b.test", 5), ("x.c.test", 0), ("y.x.c.test", 5), ("c.test", 5)]
)
def test_routes_have_bounds_of_bodies_of_their_own(host, most):
    limits = Limits(body_bytes=5, body_bytes_of={"a.test": 20, "*.c.test": 0})
    assert limits.most_body(host) == most


def test_a_body_that_is_too_large_for_its_route_is_refused_and_for_another_it_is_not(rig):
    origin = rig.origin()
    server = rig.proxy(origin.address, limits=Limits(body_bytes=5, body_bytes_of={"a.test": 20}))
    assert rig.client(server).send(POST + b"1234567890").answer()[0] == 200
    other = rig.client(server).send(POST.replace(b"a.test", b"b.test") + b"1234567890").rest()
    assert other.startswith(b"HTTP/1.1 413 ")
    chunked = b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n"
    assert rig.client(server).send(chunked % b"a.test").answer()[0] == 200
    assert rig.client(server).send(chunked % b"b.test").rest().startswith(b"HTTP/1.1 413 ")


def test_a_gentle_stop_answers_idle_connections_once_more(rig):
    server = rig.serve(lambda request: request.respond(200, b"", b""))
    idle = rig.client(server)
    assert idle.send(GET).answer()[1].get("connection") is None
    stopping = threading.Thread(target=rig.loop.run, args=(server.stop(gently=True),))
    stopping.start()
    while not rig.loop.call(lambda: server.draining):
        time.sleep(0.01)
    status, headers, _ = idle.send(GET).answer()
    assert (status, headers["connection"]) == (200, "close")
    assert idle.rest() == b""
    idle.close()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
