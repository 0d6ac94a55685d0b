"""The PROXY protocol, before a request and before a TLS handshake."""

import asyncio
import contextlib
import socket
import ssl
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http.limits import Limits
from edge.http.proxied import BadHeader, read_header
from edge.http.tests.rig import PATIENCE, Client, certificate
from edge.http.tls import Certificates
from unkey.env import env

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
V4 = ip_address("203.0.113.9").packed + ip_address("10.0.0.1").packed + struct.pack("!HH", 4711, 443)
V6 = ip_address("2001:db8::9").packed + ip_address("2001:db8::1").packed + struct.pack("!HH", 4711, 443)


def block(body: bytes, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", size) + body


def read(text: bytes, cut: int = 1000) -> tuple[bytes | None, bytes]:
    """Return the address and what was left unread."""
    rest = text

    async def receive(count: int) -> bytes:
        nonlocal rest
        count = min(count, cut)
        piece, rest = rest[:count], rest[count:]
        return piece

    return asyncio.run(read_header(receive)), rest


SOUND = {
    "version 1": (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n", b"203.0.113.9"),
    "version 1 of IPv6": (b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 443\r\n", b"2001:db8::9"),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "version 1, unknown with words": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "version 2": (block(V4), b"203.0.113.9"),
    "version 2 of IPv6": (block(V6, family=0x21), b"2001:db8::9"),
    "version 2 with more behind the addresses": (block(V4 + b"\x01\x00\x02h2"), b"203.0.113.9"),
    "version 2, a check of the balancer": (block(b"", command=0x20, family=0), None),
    "version 2, a Unix socket": (block(bytes(216), family=0x31), None),
    "version 2, UDP": (block(V4, family=0x12), None),
    "version 2, a mapped address": (
        block(ip_address("::ffff:203.0.113.9").packed + V6[16:], family=0x21),
        b"203.0.113.9",
    ),
}
BROKEN = {
    "nothing": b"",
    "a request": GET,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),
    "no port": b"PROXY TCP4 203.0.113.9 10.0.0.1\r\n",
    "a port that is none": b"PROXY TCP4 203.0.113.9 10.0.0.1 99999 443\r\n",
    "an address that is none": b"PROXY TCP4 203.0.113.999 10.0.0.1 1 2\r\n",
    "an address of the other kind": b"PROXY TCP4 2001:db8::9 2001:db8::1 1 2\r\n",
    "a bare LF": b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\n",
    "two spaces": b"PROXY TCP4  203.0.113.9 10.0.0.1 1 2\r\n",
    "lower case": b"proxy tcp4 203.0.113.9 10.0.0.1 1 2\r\n",
    "UDP": b"PROXY UDP4 203.0.113.9 10.0.0.1 1 2\r\n",
    "a line without end": b"PROXY TCP4 " + b"1" * 200,
    "a line that is cut": b"PROXY TCP4 203.0.113.9",
    "version 3": block(V4, command=0x31),
    "an unknown command": block(V4, command=0x22),
    "addresses that are cut": block(V4[:8]),
    "a block that is cut": block(V4[:8], length=12),
    "a block that is too long": block(b"", length=65535),
    "half a signature": SIGNATURE[:8],
}


@pytest.mark.parametrize("cut", [1, 1000])
@pytest.mark.parametrize(("header", "address"), SOUND.values(), ids=SOUND.keys())
def test_a_header_is_read_and_nothing_beyond_it(header, address, cut):
    assert read(header + GET, cut) == (address, GET)


@pytest.mark.parametrize("header", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_header_is_refused(header):
    with pytest.raises(BadHeader):
        read(header)


@given(
    st.one_of(
        st.binary(max_size=120),
        st.tuples(
            st.sampled_from([b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY ", SIGNATURE, block(V4)[:14]]),
            st.binary(max_size=60),
        ).map(b"".join),
    )
)
def test_whatever_comes_is_a_header_or_refused(text):
    try:
        address, _ = read(text)
    except BadHeader:
        return
    if address is not None:
        ip_address(address.decode())


def serve(rig, **limits):
    peers = []

    def handle(request):
        peers.append(request.peer)
        request.respond(200, b"", b"")

    return rig.serve(handle, Limits(**limits), proxied=True), peers


@pytest.mark.parametrize("header", [SOUND["version 1"][0], SOUND["version 2"][0]])
def test_the_client_is_whom_the_header_names(rig, header):
    server, peers = serve(rig)
    client = rig.client(server).send(header + GET)
    assert client.answer()[0] == 200
    assert client.send(GET).answer()[0] == 200
    assert peers == [b"203.0.113.9"] * 2


def test_the_balancers_own_checks_are_answered(rig):
    server, peers = serve(rig)
    assert rig.client(server).send(b"PROXY UNKNOWN\r\n" + GET).answer()[0] == 200
    assert peers == [b"127.0.0.1"]


@pytest.mark.parametrize("start", [GET, b"PROXY TCP4 1.2.3.4\r\n", b""])
def test_a_trusted_proxy_that_does_not_speak_it_is_hung_up_on(rig, start):
    server, peers = serve(rig, header_seconds=0.2)
    assert rig.client(server).send(start).rest() == b""
    assert peers == []
    assert server.refused == 1


def test_others_are_served_as_who_they_are(rig, monkeypatch):
    monkeypatch.setitem(env._values, "TRUSTED_PROXIES", (ip_network("10.0.0.0/8"),))
    server, peers = serve(rig)
    assert rig.client(server).send(GET).answer()[0] == 200
    assert peers == [b"127.0.0.1"]
    forged = rig.client(server).send(SOUND["version 1"][0] + GET).rest()
    assert forged.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_says_nothing_does_not_keep_others_waiting(rig):
    server, _ = serve(rig)
    silent = rig.client(server)
    assert rig.client(server).send(SOUND["version 1"][0] + GET).answer()[0] == 200
    silent.close()


def test_the_listener_closes_with_headers_half_read(rig):
    server, _ = serve(rig)
    client = rig.client(server).send(b"PROXY TCP4 1.2")
    rig.client(server).send(SOUND["version 1"][0] + GET).answer()
    rig.loop.run(server.stop())
    assert client.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        Client(rig.ports[server])


def test_the_address_is_counted_for_the_bound_of_connections(rig):
    server, _ = serve(rig, address_connections=1)
    first = rig.client(server).send(SOUND["version 1"][0] + GET)
    assert first.answer()[0] == 200
    assert rig.client(server).send(SOUND["version 2"][0] + GET).rest() == b""
    assert rig.client(server).send(SOUND["version 1 of IPv6"][0] + GET).answer()[0] == 200
    assert server.crowded == 1
    first.socket.shutdown(socket.SHUT_RDWR)


def test_the_header_comes_before_the_handshake(rig):
    issued = certificate("a.test", 1)
    told = []

    def handle(request):
        told.append((request.peer, request.secure))
        request.respond(200, b"", b"")

    tls = Certificates(lambda name: issued, "a.test").listener_context()
    server = rig.serve(handle, tls=tls, proxied=True)
    plain = socket.create_connection(("127.0.0.1", rig.ports[server]), timeout=PATIENCE)
    plain.sendall(SOUND["version 1"][0])
    context = ssl.create_default_context(cadata=issued.chain)
    with contextlib.closing(Client.over(context.wrap_socket(plain, server_hostname="a.test"))) as client:
        assert client.send(GET).answer()[0] == 200
    assert told == [(b"203.0.113.9", True)]


def test_a_handshake_that_does_not_come_has_the_time_of_a_head(rig):
    issued = certificate("a.test", 1)
    tls = Certificates(lambda name: issued, "a.test").listener_context()
    for proxied, start in ((True, SOUND["version 2"][0]), (False, b"")):
        server = rig.serve(lambda request: None, Limits(header_seconds=0.2), tls=tls, proxied=proxied)
        assert rig.client(server).send(start + b"\x16\x03\x01").rest() == b""
