"""The PROXY protocol, versions 1 and 2: a load balancer tells whose connection it passes on, before all else.

Source: https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt. It is read from peers in TRUSTED_PROXIES, which
must speak it; whoever else connects is served as the client that it is.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

log = logging.getLogger(__name__)

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LEAST = 15  # bytes of the shortest header of version 1, PROXY UNKNOWN
_LONGEST_LINE = 107
_LONGEST_BLOCK = 4096
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n"
)
_PAUSE = 0.1

Read = Callable[[int], Awaitable[bytes]]
"""Waits for and returns at most so many bytes; none at the connection's end."""


class BadHeader(ValueError):
    """It is not the PROXY protocol, or the connection ended within."""


async def read_header(read: Read) -> bytes | None:
    """Read a header and nothing beyond it; return the client's address, None if the header tells none.

    Raises:
        BadHeader: it is malformed.
    """
    start = await _exactly(read, _LEAST)
    if start.startswith(_SIGNATURE):
        return await _read_block(start + await _exactly(read, 1), read)
    if not start.startswith(b"PROXY "):
        raise BadHeader("no header of the PROXY protocol")
    line = start
    while not line.endswith(b"\n"):
        if len(line) >= _LONGEST_LINE:
            raise BadHeader("the line does not end")
        line += await _exactly(read, 1)  # what follows is the client's, perhaps its TLS handshake
    return _of_line(line)


def _of_line(line: bytes) -> bytes | None:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadHeader("not a line of version 1")
    if match[1] is None:
        return None
    if int(match[4]) > 65535 or int(match[5]) > 65535:
        raise BadHeader("not a port")
    kind = IPv4Address if match[1] == b"TCP4" else IPv6Address
    try:
        source, _ = kind(match[2].decode()), kind(match[3].decode())
    except ValueError:
        raise BadHeader("not an address") from None
    return _plain(source)


async def _read_block(start: bytes, read: Read) -> bytes | None:
    command, family = start[12], start[13]
    length = int.from_bytes(start[14:16], "big")
    if command >> 4 != 2 or command & 0xF > 1:
        raise BadHeader("not version 2, or an unknown command")
    if length > _LONGEST_BLOCK:
        raise BadHeader("the header is too long")
    block = await _exactly(read, length)
    if command & 0xF == 0:  # LOCAL: the balancer itself, for its health check
        return None
    size = {0x11: 4, 0x21: 16}.get(family)
    if size is None:  # UDP, a Unix socket, or unspecified: nothing that a client's address could be
        return None
    if length < 2 * size + 4:
        raise BadHeader("the addresses are cut")
    return _plain(ip_address(block[:size]))


def _plain(address: IPv4Address | IPv6Address) -> bytes:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address).encode()


async def _exactly(read: Read, count: int) -> bytes:
    text = b""
    while len(text) < count:
        more = await read(count - len(text))
        if not more:
            raise BadHeader("the connection ended within the header")
        text += more
    return text


class ProxiedListener:
    """Accepts connections, and hands each on once its header was read.

    Args:
        listening: a bound socket.
        believed: says of a peer's address whether it must speak the protocol.
        seconds: how long a header may take.
        accept: is given the socket, and the client's address if the header told it.
        refused: is called for each connection that is hung up on.
    """

    def __init__(
        self,
        listening: socket.socket,
        believed: Callable[[bytes], bool],
        seconds: float,
        accept: Callable[[socket.socket, bytes | None], Awaitable[None]],
        refused: Callable[[], None],
    ) -> None:
        self.sockets = (listening,)
        self._refused = refused
        self._believed = believed
        self._seconds = seconds
        self._accept = accept
        self._greeting: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        listening.listen(1024)
        self._accepting = asyncio.get_running_loop().create_task(self._run(listening))

    async def _run(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, or the client has gone
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            task = loop.create_task(self._greet(client))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = str(client.getpeername()[0]).encode()
            address: bytes | None = None
            if self._believed(peer):
                async with asyncio.timeout(self._seconds):
                    address = await read_header(lambda count: loop.sock_recv(client, count))
        except (BadHeader, OSError) as error:  # TimeoutError is one
            self._refused()
            log.info("a connection without the PROXY protocol was refused: %s", error)
            client.close()
        except BaseException:
            client.close()
            raise
        else:
            await self._accept(client, address)

    def close(self) -> None:
        """Accept no more; headers that are being read are given up."""
        self._accepting.cancel()
        for task in list(self._greeting):
            task.cancel()
        self.sockets[0].close()
