"""What is refused before anything of it reaches an upstream, and what is passed on."""

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.http.limits import Limits
from edge.http.tests.rig import Rig

HOST = b"Host: a.test\r\n"


def get(lines: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + lines + b"\r\n"


REFUSED = {
    "two equal lengths": get(b"Content-Length: 1\r\nContent-Length: 1\r\n") + b"x",
    "two different lengths": get(b"Content-Length: 1\r\nContent-Length: 2\r\n") + b"xx",
    "a list of lengths": get(b"Content-Length: 1, 1\r\n") + b"x",
    "a signed length": get(b"Content-Length: +1\r\n") + b"x",
    "a negative length": get(b"Content-Length: -1\r\n"),
    "a hexadecimal length": get(b"Content-Length: 0x1\r\n") + b"x",
    "an empty length": get(b"Content-Length: \r\n"),
    "a length with a space inside": get(b"Content-Length: 1 0\r\n") + b"x" * 10,
    "a length beyond all bounds": get(b"Content-Length: 99999999999999999999999\r\n"),
    "length, then chunked": get(b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "chunked, then length": get(b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n") + b"0\r\n\r\n",
    "chunked twice": get(b"Transfer-Encoding: chunked, chunked\r\n") + b"0\r\n\r\n",
    "chunked in two headers": get(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "chunked, then identity": get(b"Transfer-Encoding: chunked, identity\r\n"),
    "an unknown coding": get(b"Transfer-Encoding: xchunked\r\n"),
    "gzip and chunked": get(b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunked with a vertical tab": get(b"Transfer-Encoding: \x0bchunked\r\n"),
    "chunked in quotes": get(b'Transfer-Encoding: "chunked"\r\n'),
    "chunked in HTTP/1.0": b"GET / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": get(b"Host: b.test\r\n"),
    "two equal hosts": get(HOST),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host with a slash": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".replace(b"a, b", b"a b"),
    "a port that is no number": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "no host in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "a bare LF after the request line": b"GET / HTTP/1.1\nHost: a.test\r\n\r\n",
    "a bare LF after a header": b"GET / HTTP/1.1\r\nHost: a.test\nA: b\r\n\r\n",
    "bare LFs only": b"GET / HTTP/1.1\nHost: a.test\n\n",
    "a bare CR in a value": get(b"A: b\rc\r\n"),
    "obs-fold": get(b"A: b\r\n c\r\n"),
    "a space before the first header": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "a space before the colon": get(b"A : b\r\n"),
    "a tab before the colon": get(b"Content-Length\t: 1\r\n") + b"x",
    "no colon": get(b"A\r\n"),
    "no name": get(b": b\r\n"),
    "NUL in a value": get(b"A: b\x00c\r\n"),
    "a control character in a value": get(b"A: \x01\r\n"),
    "DEL in a value": get(b"A: \x7f\r\n"),
    "a control character in a name": get(b"A\x01: b\r\n"),
    "a high byte in a name": get(b"A\xff: b\r\n"),
    "a bracket in a name": get(b"A(b): c\r\n"),
    "two spaces after the method": get(line=b"GET  / HTTP/1.1"),
    "two spaces before the version": get(line=b"GET /  HTTP/1.1"),
    "a tab in the request line": get(line=b"GET\t/ HTTP/1.1"),
    "a space in the target": get(line=b"GET /a b HTTP/1.1"),
    "a control character in the target": get(line=b"GET /\x01 HTTP/1.1"),
    "a high byte in the target": get(line=b"GET /\xff HTTP/1.1"),
    "a fragment in the target": get(line=b"GET /#a HTTP/1.1"),
    "a relative target": get(line=b"GET a HTTP/1.1"),
    "an asterisk for GET": get(line=b"GET * HTTP/1.1"),
    "an absolute target of another host": get(line=b"GET http://b.test/ HTTP/1.1"),
    "an absolute target with a user": get(line=b"GET http://u@a.test/ HTTP/1.1"),
    "an absolute target of another scheme": get(line=b"GET ftp://a.test/ HTTP/1.1"),
    "a lower-case method": get(line=b"get / HTTP/1.1"),
    "an unknown method": get(line=b"FOO / HTTP/1.1"),
    "HTTP/1.2": get(line=b"GET / HTTP/1.2"),
    "HTTP/2.0": get(line=b"GET / HTTP/2.0"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 spelt out": get(line=b"GET / HTTP/0.9"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "RTSP": get(line=b"OPTIONS * RTSP/1.0"),
    "ICE": b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n",
    "lower-case http": get(line=b"GET / http/1.1"),
    "space before the request": b" " + get(),
    "three empty lines before the request": b"\r\n\r\n\r\n" + get(),
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
BROKEN_BODIES = {
    "a size that is no number": b"g\r\n",
    "a negative size": b"-1\r\n",
    "a size with 0x": b"0x1\r\na\r\n0\r\n\r\n",
    "a size with a space before": b" 1\r\na\r\n0\r\n\r\n",
    "a bare LF after the size": b"1\na\r\n0\r\n\r\n",
    "a bare LF after the content": b"1\r\na\n0\r\n\r\n",
    "a chunk longer than its size": b"1\r\nab\r\n0\r\n\r\n",
    "a size beyond all bounds": b"fffffffffffffffff\r\n",
    "a trailer without colon": b"0\r\nabc\r\n\r\n",
    "a trailer with a bare LF": b"0\r\na: b\n\r\n",
    "a NUL in an extension": b"1;\x00\r\na\r\n0\r\n\r\n",
    "a bare CR in an extension": b"1;a\rb\r\na\r\n0\r\n\r\n",
    "a bare LF in an extension": b"1;a\nb\r\na\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_head_is_refused_closed_and_not_forwarded(rig, raw):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))

    answer = client.send(raw + get(line=b"GET /smuggled HTTP/1.1")).rest()

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer
    assert origin.seen == []
    assert origin.connections == 0


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
def test_a_broken_chunked_body_ends_the_connection(rig, body):
    origin = rig.origin()
    client = rig.client(rig.proxy(origin.address))

    answer = client.send(get(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.1") + body).rest()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert origin.seen == []


def test_connect_is_refused(rig):
    client = rig.client(rig.proxy("127.0.0.1:1"))
    answer = client.send(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").rest()
    assert answer.startswith(b"HTTP/1.1 405 ")


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
