"""Bounds of heads and bodies, time-outs, and fuzzing; what is refused by its form is in the corpus."""

import contextlib

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.http.limits import Limits
from edge.http.tests.rig import Rig

HOST = b"Host: a.test\r\n"


def get(lines: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + lines + b"\r\n"


def test_a_head_that_is_too_large_is_refused(rig):
    server = rig.proxy("127.0.0.1:1", limits=Limits(head_bytes=1000))
    whole = rig.client(server).send(get(b"A: " + b"b" * 1000 + b"\r\n"))
    assert whole.rest().startswith(b"HTTP/1.1 431 ")
    endless = rig.client(server).send(b"GET /" + b"a" * 1001)
    assert endless.rest().startswith(b"HTTP/1.1 431 ")


def test_too_many_headers_are_refused(rig):
    client = rig.client(rig.proxy("127.0.0.1:1", limits=Limits(header_count=10)))
    assert client.send(get(b"A: b\r\n" * 10)).rest().startswith(b"HTTP/1.1 431 ")


def test_a_body_that_is_too_large_is_refused(rig):
    origin = rig.origin()
    server = rig.proxy(origin.address, limits=Limits(body_bytes=10))
    announced = rig.client(server).send(get(b"Content-Length: 11\r\n", b"POST / HTTP/1.1"))
    assert announced.rest().startswith(b"HTTP/1.1 413 ")
    chunked = rig.client(server).send(
        get(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.1") + b"b\r\n" + b"x" * 11
    )
    assert chunked.rest().startswith(b"HTTP/1.1 413 ")
    assert origin.seen == []


def test_a_head_that_does_not_end_times_out(rig):
    client = rig.client(rig.proxy("127.0.0.1:1", limits=Limits(header_seconds=0)))
    assert client.send(b"GET / HT").rest().startswith(b"HTTP/1.1 408 ")


def test_a_client_that_sends_a_head_byte_by_byte_has_no_more_time_for_it(rig):
    server = rig.proxy("127.0.0.1:1", limits=Limits(header_seconds=0.3))
    slow, empty = rig.client(server), rig.client(server)
    for client, first, more in ((slow, b"GET / HTTP/1.1\r\nA: ", b"a"), (empty, b"\r\n", b"\r\n")):
        client.send(first)
        client.socket.settimeout(0.02)
        answer = None
        while answer is None:
            with contextlib.suppress(ConnectionError):
                client.send(more)
            try:
                answer = client.socket.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:
                answer = b""
        assert answer.startswith(b"HTTP/1.1 408 ") if client is slow else answer == b""


def test_an_idle_connection_is_closed(rig):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address, limits=Limits(idle_seconds=0)))
    assert client.send(get()).answer()[0] == 200
    assert client.rest() == b""


def test_an_error_is_html_for_a_browser_and_json_for_others(rig):
    server = rig.proxy("127.0.0.1:1")
    browser = rig.client(server).send(get(b"Accept: text/html,*/*;q=0.8\r\n"))
    status, headers, body = browser.answer()
    assert (status, headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert b"err:frontline:upstream:service_unavailable" in body
    program = rig.client(server).send(get(b"Accept: */*\r\n"))
    status, headers, body = program.answer()
    assert (status, headers["content-type"]) == (503, "application/json")
    assert b'"code":"err:frontline:upstream:service_unavailable"' in body


NAMES = [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"X-A", b"Expect", b"Upgrade"]
VALUES = [b"a.test", b"1", b"0", b"5", b"chunked", b"close", b"keep-alive", b"X-A", b"x", b"100-continue"]
PIECES = st.one_of(
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b":",
            b"\t",
            b"\x00",
            b"0\r\n\r\n",
            b"1\r\nx\r\n",
            b"GET / HTTP/1.1\r\n",
        ]
    ),
    st.builds(
        lambda name, value: name + b": " + value + b"\r\n", st.sampled_from(NAMES), st.sampled_from(VALUES)
    ),
    st.binary(max_size=4),
)


@pytest.fixture(scope="module")
def fuzzed():
    rig = Rig()
    origin = rig.origin()
    yield rig, origin, rig.proxy(origin.address, limits=Limits(head_bytes=2048))
    rig.close()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    pieces=st.lists(PIECES, max_size=8),
    cut=st.integers(0, 200),
    line=st.sampled_from([b"GET / HTTP/1.1\r\n", b"POST /p HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n"]),
    host=st.booleans(),
)
def test_whatever_is_sent_the_upstream_sees_only_sound_requests(fuzzed, pieces, cut, line, host):
    rig, origin, server = fuzzed
    raw = line + (HOST if host else b"") + b"".join(pieces) + b"\r\n"
    before = len(origin.seen)
    client = rig.client(server)
    client.send(raw[:cut])
    client.send(raw[cut:])
    client.socket.shutdown(1)
    answers = client.rest()
    client.close()
    # A body that the client breaks off is broken off upstream too: nothing else would tell of it.
    assert [fault for fault in origin.faults if "without sending complete" not in fault] == [], raw
    assert b"HTTP/1.1 500 " not in answers
    forwarded = len(origin.seen) - before
    assert forwarded <= _most_requests(raw), raw


def _most_requests(raw: bytes) -> int:
    """Count the requests that h11, as strict as the edge, finds in the bytes."""
    connection, count = h11.Connection(h11.SERVER), 0
    connection.receive_data(raw)
    while True:
        try:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                count += 1
                rest = connection.trailing_data[0]
                connection = h11.Connection(h11.SERVER)
                connection.receive_data(rest)
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return count
        except h11.RemoteProtocolError:
            return count
