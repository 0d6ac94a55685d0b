"""A listener: accepts connections, keeps their deadlines by one timer, drains them at the end."""

import asyncio
import bisect
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from edge.http.connection import Connection, Phase
from edge.http.corked import Outbox
from edge.http.forwarded import believed
from edge.http.http2 import Http2Connection
from edge.http.limits import Limits
from edge.http.proxied import ProxiedListener
from edge.http.request import Head, Request
from unkey.errors import Fault

log = logging.getLogger(__name__)

Handler = Callable[[Request], None]
Refuse = Callable[[Request, Fault], None]
Quick = Callable[[Head, bytes, bytes], bytes | None]
"""Head, body and peer to a whole response with status 200, None to have the request handled as usual."""

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TICK_SECONDS = 0.5
_SAMPLED = 64  # one of so many quick answers is timed


def bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Bind a socket without listening: until somebody does, connections are refused and not kept waiting.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


class _Negotiated(asyncio.Protocol):
    """Hands a connection over to the protocol that its handshake has agreed on (ALPN, RFC 7301)."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        protocol: Connection | Http2Connection
        if tls.selected_alpn_protocol() == "h2":
            protocol = Http2Connection(self._server)
        else:
            protocol = Connection(self._server)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class Server:
    """One listening port and its connections.

    Args:
        name: of the listener, for metrics and logs.
        handle: called with every request; answers it at once or later.
        observe: called with every request that is over.
        refuse: answers what the listener itself cannot take, such as a malformed head.
        quick: asked before `handle` where a request is complete in one packet on a kept connection.
        proxied: trusted proxies begin each connection with the PROXY protocol.
    """

    def __init__(
        self,
        name: str,
        handle: Handler,
        limits: Limits,
        *,
        tls: ssl.SSLContext | None = None,
        observe: Callable[[Request, bool], None] | None = None,
        quick: Quick | None = None,
        refuse: Refuse = Request.refuse,
        proxied: bool = False,
    ) -> None:
        self.name = name
        self.refuse = refuse
        self.quick = quick
        self.handle = handle
        self.limits = limits
        self.secure = tls is not None
        self.outbox = Outbox()
        self.connections: set[Connection | Http2Connection] = set()
        self.draining = False
        self.gently = False
        self.now = time.monotonic()
        self.statuses: dict[int, int] = {}
        self.latencies = [0] * (len(LATENCY_BUCKETS) + 1)
        self.latency_sum = 0.0
        self.answered_quickly = 0  # by `quick`, since the start
        self._settled = 0  # of them, counted among `statuses`
        self.refused = 0
        self.aborted = 0
        self.crowded = 0  # connections that were one too many
        self.slow = 0  # clients that did not take their answers
        self._proxied = proxied
        self._told: dict[Any, bytes] = {}  # whose connection a proxy passes on, by its own address
        self._by_address: dict[bytes, int] = {}
        self._tls = tls
        self._observe = observe
        self._listener: asyncio.Server | ProxiedListener | None = None
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        if self._listener is None:
            raise RuntimeError("the server is not started")
        return int(self._listener.sockets[0].getsockname()[1])

    async def start(
        self, host: str, port: int, *, reuse_port: bool = False, listening: socket.socket | None = None
    ) -> None:
        """Listen; port 0 takes a free one.

        Args:
            reuse_port: share the port with other processes (SO_REUSEPORT).
            listening: a socket that is bound already; None: bind one.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        try:
            if listening is None:
                listening = bound(host, port, reuse_port=reuse_port)
            if self._proxied:
                seconds = self.limits.header_seconds
                self._listener = ProxiedListener(listening, believed, seconds, self._take, self._note_refused)
            else:
                patience = None if self._tls is None else self.limits.header_seconds
                self._listener = await loop.create_server(
                    self._protocol,
                    sock=listening,
                    ssl=self._tls,
                    backlog=1024,
                    ssl_handshake_timeout=patience,
                )
        except OSError:
            if listening is not None:
                listening.close()
            raise
        self._tick(loop)

    def _protocol(self) -> asyncio.Protocol:
        return Connection(self) if self._tls is None else _Negotiated(self)

    async def _take(self, client: socket.socket, address: bytes | None) -> None:
        """Take a connection over that was accepted, and whose client a proxy has named."""
        peer = client.getpeername()
        if address is not None:
            self._told[peer] = address
        patience = None if self._tls is None else self.limits.header_seconds
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, client, ssl=self._tls, ssl_handshake_timeout=patience
            )
        except OSError as error:  # the handshake has failed, or has taken too long
            log.debug("a connection was not taken: %s", error)
        finally:
            self._told.pop(peer, None)

    def _note_refused(self) -> None:
        self.refused += 1

    def peer_of(self, transport: asyncio.BaseTransport) -> bytes:
        """Return the address of a connection's client."""
        peer = transport.get_extra_info("peername")
        if not peer:
            return b"unknown"
        return self._told.get(peer) or str(peer[0]).encode()

    def joined(self, connection: "Connection | Http2Connection") -> bool:
        """Count a connection that begins; False: it is one too many."""
        self.connections.add(connection)
        peer = connection.peer
        count = self._by_address[peer] = self._by_address.get(peer, 0) + 1
        limits = self.limits
        if limits.connections and len(self.connections) > limits.connections:
            welcome = False
        else:
            most = limits.address_connections
            welcome = not most or count <= most or believed(peer)
        self.crowded += not welcome
        return welcome

    def left(self, connection: "Connection | Http2Connection") -> None:
        """Count a connection that has ended."""
        self.connections.discard(connection)
        peer = connection.peer
        count = self._by_address[peer] = self._by_address[peer] - 1
        if not count:
            del self._by_address[peer]

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticker = loop.call_later(_TICK_SECONDS, self._tick, loop)
        now = self.now = time.monotonic()
        for connection in [each for each in self.connections if each.deadline < now]:
            try:
                connection.timed_out()
            except Exception:
                log.exception("a connection could not be timed out")
                connection.transport.abort()

    def finished(self, request: Request, *, complete: bool) -> None:
        """Count a request that is over; `complete`: its whole response was written."""
        self.answered(request.status, time.monotonic() - request.started)
        if self._observe is not None:
            self._observe(request, complete)

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer and the time that it took."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.latency_sum += seconds

    def settle(self) -> None:
        """Count what was answered quickly among the answers, with status 200.

        Statuses are exact. Times are a sample, since two readings of the clock would be a good part
        of what such an answer costs: the last one of every 64 is timed, from its packet to the
        writing of its answer, and counts for all of them. Up to 63 are therefore not among the
        times yet.
        """
        count = self.answered_quickly - self._settled
        if count:
            self._settled = self.answered_quickly
            self.statuses[200] = self.statuses.get(200, 0) + count

    def timed(self, seconds: float) -> None:
        """Count the time of a quick answer for the 64 that it stands for; see `settle`."""
        self.latencies[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += _SAMPLED
        self.latency_sum += seconds * _SAMPLED

    async def stop(self, *, gently: bool = False) -> None:
        """Stop accepting, let requests in flight finish, then break off what is left.

        Args:
            gently: leave idle connections open as long: a request that is just on its way is answered, too,
                and its answer ends the connection.
        """
        self.draining, self.gently = True, gently
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            if not gently or isinstance(connection, Http2Connection):
                connection.drain()
        deadline = time.monotonic() + self.limits.drain_seconds
        while (self.connections if gently else self._in_flight()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.transport.abort()
        if self._ticker is not None:
            self._ticker.cancel()
        await asyncio.sleep(0)

    def _in_flight(self) -> bool:
        # What lingers has only to be written out.
        return any(
            each.phase != Phase.HEAD
            and (each.phase != Phase.LINGER or each.transport.get_write_buffer_size() > 0)
            for each in self.connections
        )
