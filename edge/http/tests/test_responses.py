"""What an upstream may answer, well or badly: passed on exactly, or told as a bad gateway, never as something else."""

import socket
import threading

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.http.limits import Limits
from edge.http.tests.rig import PATIENCE, Rig

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

SOUND = {
    "a length": (OK + b"Content-Length: 2\r\n\r\nab", 200, b"ab"),
    "a length of zero": (OK + b"Content-Length: 0\r\n\r\n", 200, b""),
    "chunks": (CHUNKED + b"1\r\na\r\n1;x=y\r\nb\r\n0\r\n\r\n", 200, b"ab"),
    "chunked in capitals": (OK + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", 200, b"a"),
    "until the end": (OK + b"\r\nab", 200, b"ab"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nab", 200, b"ab"),
    "no reason": (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 200, b""),
    "an odd reason": (b"HTTP/1.1 200 Caf\xe9 & more\r\nContent-Length: 0\r\n\r\n", 200, b""),
    "an unknown status": (b"HTTP/1.1 299 Odd\r\nContent-Length: 1\r\n\r\na", 299, b"a"),
    "a status beyond 599": (b"HTTP/1.1 999 Odd\r\nContent-Length: 1\r\n\r\na", 999, b"a"),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
    "304 with a coding": (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304, b""),
    "its own error": (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nmine", 500, b"mine"),
    "100 that nobody asked for": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na",
        200,
        b"a",
    ),
    "a field without space": (OK + b"Content-Length:1\r\n\r\na", 200, b"a"),
    "a high byte in a field": (OK + b"A: \xe9\r\nContent-Length: 1\r\n\r\na", 200, b"a"),
}
BAD = {
    "nothing": b"",
    "an empty line": b"\r\n\r\n",
    "words": b"hello\r\n\r\n",
    "a request": GET,
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "a status with a sign": b"HTTP/1.1 +20 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "a space before the line": b" " + OK + b"\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "a CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "a bare LF after the line": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "a bare LF after a field": OK + b"A: b\nContent-Length: 0\r\n\r\n",
    "bare LFs only, and the end": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a bare CR in a field": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "obs-fold": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "a space in a name": OK + b"A B: c\r\nContent-Length: 0\r\n\r\n",
    "no colon": OK + b"A\r\nContent-Length: 0\r\n\r\n",
    "no name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "NUL in a field": OK + b"A: \x00\r\nContent-Length: 0\r\n\r\n",
    "a control character in a field": OK + b"A: \x07\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two equal lengths": OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": OK + b"Content-Length: 1, 1\r\n\r\na",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "a signed length": OK + b"Content-Length: +1\r\n\r\na",
    "an empty length": OK + b"Content-Length:\r\n\r\n",
    "a length beyond all bounds": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "length and coding": OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    "gzip as coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity as coding": OK + b"Transfer-Encoding: identity\r\n\r\na",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "a head that does not end": OK + b"A: " + b"b" * 40_000,
    "a head that is too large": OK + b"A: " + b"b" * 40_000 + b"\r\n\r\n",
    "too many fields": OK + b"A: b\r\n" * 101 + b"\r\n",
    "a head that breaks off": OK + b"Content-Length: 1\r\n",
    "a coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "only 100": b"HTTP/1.1 100 Continue\r\n\r\n",
}
BROKEN = {
    "a body that is cut": OK + b"Content-Length: 9\r\n\r\nabc",
    "a chunk that is cut": CHUNKED + b"9\r\nabc",
    "chunks without an end": CHUNKED + b"3\r\nabc\r\n",
    "a size that is none": CHUNKED + b"3\r\nabc\r\nxyz\r\n",
    "a chunk that is longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "a bare LF after a size": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a size that wraps": CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a trailer that is none": CHUNKED + b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n",
}


@pytest.fixture(scope="module")
def rig():
    rig = Rig()
    yield rig
    rig.close()


def scripted(rig, text, by_bytes=False):
    """Start a proxy before an upstream that answers each request by the text, and hangs up."""

    def script(upstream: socket.socket) -> None:
        if upstream.recv(65536):
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (text[at : at + 1] for at in range(len(text))) if by_bytes else [text]:
                upstream.sendall(piece)

    origin = rig.origin(script=script)
    return rig.proxy(origin.address)


@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize(("text", "status", "body"), SOUND.values(), ids=SOUND.keys())
def test_a_sound_response_passes(rig, text, status, body, by_bytes):
    client = rig.client(scripted(rig, text, by_bytes)).send(GET)
    answer = client.answer()
    assert (answer[0], answer[2]) == (status, body)
    assert client.send(GET).answer()[0] == status


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_response_is_a_bad_gateway(rig, text):
    client = rig.client(scripted(rig, text))
    for _ in range(2):  # the client's connection is none the worse for it
        status, _, body = client.send(GET).answer()
        assert (status, b"err:frontline:upstream:bad_gateway" in body) == (502, True)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_response_that_is_not_whole_does_not_look_so(rig, text):
    client = rig.client(scripted(rig, text)).send(GET)
    whole = h11.Connection(h11.CLIENT)
    whole.send(h11.Request(method="GET", target="/", headers=[("host", "a.test")]))
    whole.send(h11.EndOfMessage())
    whole.receive_data(client.rest())
    whole.receive_data(b"")
    assert isinstance(whole.next_event(), h11.Response)
    with pytest.raises(h11.RemoteProtocolError):
        list(iter(whole.next_event, None))


def test_an_upstream_of_a_byte_now_and_then_is_passed_on_byte_by_byte_and_keeps_nobody_waiting(rig):
    go_on = [threading.Event() for _ in range(3)]

    def script(upstream: socket.socket) -> None:
        if b"slow" not in upstream.recv(65536):
            upstream.sendall(OK + b"Content-Length: 1\r\n\r\na")
            return
        upstream.sendall(CHUNKED)
        for number, event in enumerate(go_on):
            upstream.sendall(b"1\r\n%d\r\n" % number)
            assert event.wait(PATIENCE)  # the next one is not sent before this one was seen
        upstream.sendall(b"0\r\n\r\n")

    server = rig.proxy(rig.origin(script=script).address)
    slow = rig.client(server).send(GET.replace(b"GET /", b"GET /slow"))
    slow.until(b"\r\n\r\n")
    for number, event in enumerate(go_on):
        assert slow.take(6) == b"1\r\n%d\r\n" % number
        assert rig.client(server).send(GET).answer()[2] == b"a"
        event.set()
    assert slow.until(b"0\r\n\r\n") == b"0\r\n\r\n"


PIECES = st.one_of(
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b":",
            b"\x00",
            b"0\r\n\r\n",
            b"1\r\nx\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"abc",
        ]
    ),
    st.builds(
        lambda name, value: name + b": " + value + b"\r\n",
        st.sampled_from(
            [b"Content-Length", b"Transfer-Encoding", b"Connection", b"A", b"Upgrade", b"Keep-Alive"]
        ),
        st.sampled_from([b"1", b"0", b"5", b"chunked", b"close", b"keep-alive", b"x"]),
    ),
    st.binary(max_size=4),
)


@pytest.fixture(scope="module")
def fuzzed(rig):
    texts: list[list[bytes]] = []

    def script(upstream: socket.socket) -> None:
        if upstream.recv(65536):
            for piece in texts[-1]:
                upstream.sendall(piece)

    origin = rig.origin(script=script)
    return rig, texts, rig.proxy(origin.address, limits=Limits(head_bytes=2048))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    line=st.sampled_from(
        [OK, b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 100 Continue\r\n"]
    ),
    pieces=st.lists(PIECES, max_size=8),
    cut=st.integers(0, 120),
)
def test_whatever_an_upstream_sends_a_client_reads_http(fuzzed, line, pieces, cut):
    rig, texts, server = fuzzed
    text = line + b"".join(pieces)
    texts.append([text[:cut], text[cut:]])
    client = rig.client(server).send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    answer = client.rest()
    client.close()
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "a.test"), ("connection", "close")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(answer)
    reader.receive_data(b"")
    heads, fault = 0, ""
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            fault = str(error)
            break
        heads += isinstance(event, h11.Response)
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    assert heads == 1, (answer, text)
    # That an answer breaks off behind its head is all that a client may find fault with.
    assert not fault or "without sending complete" in fault, (answer, text)
    assert fault or reader.trailing_data[0] == b"", (answer, text)
