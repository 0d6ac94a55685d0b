"""One request on its way through: sent to an instance, its response passed back, both streamed.

Callbacks from both connections drive it; on the common path (a kept connection, everything in one
packet) a request costs two writes and no task.
"""

import time
from collections.abc import Callable

from edge.http import forwarded
from edge.http.connection import Phase
from edge.http.request import IDEMPOTENT, Channel, Request
from edge.http.upstream import Endpoint, Pool, ResponseHead, UpstreamConnection
from unkey.errors import BadGateway, Fault, GatewayTimeout, MalformedRequest, UpstreamUnavailable

_NOT_FORWARDED = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"content-length", b"upgrade", b"host", b"expect",
    b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port",
    b"forwarded", b"x-real-ip", b"http2-settings",
})  # fmt: skip
FORBIDDEN_TRAILERS = _NOT_FORWARDED | {b"authorization", b"set-cookie", b"cache-control", b"content-type"}
_REPLAY_BYTES = 64 * 1024
_UNREACHABLE = "The app cannot be reached. It may be starting, or it does not listen on its PORT."
_BROKEN = "The app broke the connection off before it answered."
_GARBAGE = "The app's answer is not valid HTTP."

Refuse = Callable[[Request, Fault], None]


def refuse_by_page(request: Request, fault: Fault) -> None:
    """Answer by the edge's own page or JSON."""
    request.refuse(fault)


def forward(
    request: Request,
    pool: Pool,
    addresses: tuple[str, ...],
    *,
    request_lines: bytes = b"",
    response_lines: bytes = b"",
    refuse: Refuse = refuse_by_page,
    kind: type[UpstreamConnection] = UpstreamConnection,
    record: Callable[[type["Exchange"]], Callable[..., "Exchange"]] | None = None,
) -> None:
    """Send a request to the first address that a connection can be had to, and pass the response back.

    Args:
        addresses: at least one `host:port`, in the order to try.
        request_lines: headers to add towards the upstream, each line with CRLF.
        response_lines: headers to add towards the client.
        refuse: answers the request when no response can be had.
        kind: speaks the protocol of the upstream.
        record: makes of a kind of exchange one that is recorded.
    """
    passing_on: Callable[..., Exchange] = request.connection.exchange_type or Exchange
    if record is not None:
        passing_on = record(request.connection.exchange_type or Exchange)
    exchange = passing_on(request, pool, addresses, response_lines, refuse, kind)
    head = request.head
    onward = head.onward
    if not onward:
        onward = head.onward = request_head(request)
    exchange.start(b"%b %b HTTP/1.1\r\n%b%b\r\n" % (request.method, request.target, onward, request_lines))


def request_head(request: Request) -> bytes:
    """Build the headers that go upstream, without the head's end.

    Hop-by-hop headers (RFC 9110, 7.6.1) and those that only an edge may set are left out.
    """
    named: set[bytes] = set()
    lines = [b"Host: %b\r\n" % request.host_field]
    for lower, name, value in request.fields:
        if lower == b"connection":
            named.update(token.strip(b" \t") for token in value.lower().split(b","))
        elif not _ours(lower.replace(b"_", b"-")):  # which are one and the same to WSGI and CGI
            lines.append(b"%b: %b\r\n" % (name, value))
    if named - {b"keep-alive", b"close", b"upgrade"}:
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0].lower() not in named]
    if request.length > 0 or (request.length == 0 and _has_length(request)):
        lines.append(b"Content-Length: %d\r\n" % request.length)
    elif request.length < 0:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if request.expects_continue:
        lines.append(b"Expect: 100-continue\r\n")
    if request.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade)
    head = request.head
    lines.append(
        forwarded.lines(head.hops.split(b", "), request.secure, head.asked_host or request.host_field)
    )
    return b"".join(lines)


def _ours(name: bytes) -> bool:
    return name in _NOT_FORWARDED or name.startswith(b"x-unkey-")


def _has_length(request: Request) -> bool:
    return request.method not in (b"GET", b"HEAD") and request.header(b"content-length") is not None


def _passed_on(trailers: bytes) -> bytes:
    if not trailers:
        return b""
    kept = []
    for line in trailers.split(b"\r\n")[:-1]:
        name = line.partition(b":")[0].lower().replace(b"_", b"-")
        if name not in FORBIDDEN_TRAILERS and not name.startswith(b"x-unkey-"):
            kept.append(line + b"\r\n")
    return b"".join(kept)


class Exchange:
    """The state of one forwarded request.

    `sent` says whether the whole request was written upstream; an upstream connection whose request
    was not is never used again. `quiet_at`: when a tunnel is over, in monotonic seconds, if nothing more passes.
    """

    __slots__ = (
        "_addresses", "_chunked", "_endpoint", "_first", "_head", "_kind", "_refuse", "_replayable", "_response_lines",
        "_upstream_ended", "_upstream_full", "_waiting", "_waiting_ended", "client", "pool", "quiet_at", "request", "sent", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        pool: Pool,
        addresses: tuple[str, ...],
        response_lines: bytes,
        refuse: Refuse,
        kind: type[UpstreamConnection],
    ) -> None:
        self.request = request
        self.client: Channel = request.connection
        self.pool = pool
        self.upstream: UpstreamConnection | None = None
        self.sent = False
        self._addresses = addresses
        self._kind = kind
        self._endpoint: Endpoint | None = None
        self._head = b""
        self._first = b""
        self._replayable = False
        self._response_lines = response_lines
        self._refuse = refuse
        self._chunked = False  # the client gets the body in chunks
        self._waiting: list[bytes] = []  # body that came before there was a connection
        self._waiting_ended = False
        self._upstream_full = False
        self._upstream_ended = False  # its side of the tunnel
        self.quiet_at = 0.0

    # -- towards the upstream

    def start(self, head: bytes) -> None:
        """Begin: what has come of the body goes out together with the head."""
        request = self.request
        self.client.exchange = self
        request.sink = self
        self._head = head
        if request.length:
            self._waiting = [request.take_body()]
            self._waiting_ended = request.body_ended
        else:
            self._waiting_ended = True
        # Only what is safe to do twice, and is here in full, may be sent a second time (RFC 9110, 9.2.2).
        self._replayable = (
            self._waiting_ended
            and request.method in IDEMPOTENT
            and not request.upgrade
            and request.size <= _REPLAY_BYTES
        )
        self._try(0)

    def _try(self, index: int) -> None:
        self._leave_endpoint()
        self._addresses = self._addresses[index:]
        endpoint = self._endpoint = self.pool.endpoint(self._addresses[0])
        endpoint.outstanding += 1
        if endpoint.kind is not self._kind:
            self.pool.speak(endpoint, self._kind)
        connection = self.pool.idle(endpoint)
        if connection is not None:
            self.connected(connection)
        else:
            self.pool.connect(endpoint, self)

    def _leave_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.outstanding -= 1
            self._endpoint = None

    def connected(self, connection: UpstreamConnection) -> None:
        """Send what there is of the request on this connection."""
        if self.client.request is not self.request:  # the client has gone meanwhile
            self.pool.release(connection, usable=True)
            return
        self.upstream = connection
        connection.begin(self)
        if self._waiting:
            body = b"".join(self._waiting)
            if self._replayable:
                self._first = body
            self._waiting = []
        else:
            body = b""
        connection.send(self._head, body, ended=self._waiting_ended)
        self.sent = self._waiting_ended
        if not self.sent and not self._upstream_full:
            self.client.resume_reading()

    def connect_failed(self, error: OSError) -> None:
        """Try the next address: nothing was sent."""
        if self.client.request is not self.request:
            return self._leave_endpoint()
        if len(self._addresses) > 1:
            return self._try(1)
        if isinstance(error, TimeoutError):
            self._give_up(GatewayTimeout("The app did not accept a connection in time."))
        else:
            self._give_up(UpstreamUnavailable(_UNREACHABLE))

    def body_received(self, piece: bytes, ended: bool) -> None:
        """Pass a piece of the request's body on."""
        if self.upstream is None:
            self._waiting.append(piece)
            self._waiting_ended = ended
            if not ended and sum(map(len, self._waiting)) > self.pool.limits.buffer_bytes:
                self.client.pause_reading()
            return
        self.upstream.send_body(piece, ended=ended)
        self.sent = ended

    def body_failed(self) -> None:
        """The client broke its body off."""
        self.client_gone()
        self.request.keep_alive = False
        self.client.fail(MalformedRequest("The body ended early."))

    def upstream_full(self) -> None:
        """The upstream does not keep up: let the client wait."""
        self._upstream_full = True
        self.client.pause_reading()

    def upstream_drained(self) -> None:
        """The upstream takes bytes again."""
        self._upstream_full = False
        self.client.resume_reading()

    def request_trailers(self) -> bytes:
        """Return the lines behind the request's body that may be passed on."""
        return _passed_on(self.request.trailers)

    # -- towards the client

    def write(self, data: bytes) -> None:
        """Write bytes of the response."""
        self.client.transport.write(data)

    def bodiless(self, status: int) -> bool:
        """Say whether a response to this request has no body, whatever its headers say (RFC 9112, 6.3)."""
        return self.request.method == b"HEAD" or status == 204 or status == 304

    def interim(self, head: ResponseHead) -> None:
        """Pass a 1xx on; a client of HTTP/1.0, or one that did not ask for 100, does not know it."""
        if not self.request.http10 and (head.status != 100 or self.request.expects_continue):
            self.write(b"%b%b\r\n" % (head.line, head.lines))

    def response_head(self, head: ResponseHead, *, bodiless: bool = False) -> bytes:
        """Build the head for the client; decides how the body is framed."""
        request = self.request
        request.status = head.status
        if head.length >= 0:
            framing = b"" if head.status == 204 else b"content-length: %d\r\n" % head.length
        elif bodiless:
            framing = b""
        elif request.http10:
            framing = b""
            request.keep_alive = False
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
        return b"%b%b%b%b%b\r\n" % (
            head.line,
            head.lines,
            self._response_lines,
            framing,
            self.client.connection_line(request),
        )

    def framed(self, piece: bytes) -> bytes:
        """Return a piece of the response's body as the client gets it."""
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked and piece else piece

    def framed_end(self, trailers: bytes) -> bytes:
        """Return what ends the body, with those trailers that may be passed on."""
        if not self._chunked:
            return b""
        return b"0\r\n%b\r\n" % _passed_on(trailers)

    def response_body(self, piece: bytes) -> None:
        """Pass on a piece of a body that ends with the upstream's connection."""
        self.write(self.framed(piece))

    def response_closed(self) -> None:
        """The upstream has closed, and that was the end of the body."""
        if end := self.framed_end(b""):
            self.write(end)
        self.response_ended()

    def response_ended(self) -> None:
        """The response is complete."""
        self.upstream = None
        self._leave_endpoint()
        self.client.finish(self.request)

    def client_full(self) -> None:
        """The client does not keep up: let the upstream wait."""
        if self.upstream is not None:
            self.upstream.pause_reading()

    def client_drained(self) -> None:
        """The client takes bytes again."""
        if self.upstream is not None:
            self.upstream.resume_reading()

    def client_gone(self) -> None:
        """The client has left or failed: the upstream is told by closing."""
        upstream, self.upstream = self.upstream, None
        self._leave_endpoint()
        if self.client.exchange is self:
            self.client.exchange = None
        if upstream is not None:
            upstream.exchange = None
            if self.client.phase == Phase.TUNNEL:
                upstream.transport.close()  # what was written before still arrives
            else:
                upstream.close()

    # -- failures of the upstream

    def upstream_lost(self, connection: UpstreamConnection) -> None:
        """The upstream closed before the response was complete."""
        self.upstream = None
        if self.client.phase == Phase.TUNNEL:
            self._leave_endpoint()
            self.client.transport.close()
        elif self.request.status:
            self._break_off()
        elif self._replayable and not connection.fresh and not connection.heard:
            # It closed an idle connection just as we took it; the request was never looked at.
            self._waiting = [self._first] if self._first else []
            self.sent = False
            endpoint = self._endpoint
            if endpoint is not None:
                self.pool.connect(endpoint, self)
        else:
            self._give_up(BadGateway(_BROKEN))

    def upstream_garbage(self) -> None:
        """The upstream sent what is not HTTP."""
        self.upstream = None
        if self.request.status:
            self._break_off()
        else:
            self._give_up(BadGateway(_GARBAGE))

    def _break_off(self) -> None:
        # The head has gone out: only a missing end can tell the client that the body is not whole.
        self._leave_endpoint()
        self.client.exchange = None
        self.client.transport.close()

    def _give_up(self, fault: Fault) -> None:
        self._leave_endpoint()
        self.client.exchange = None
        self.request.sink = None
        self._refuse(self.request, fault)

    # -- after an upgrade

    def switch(self, head: ResponseHead) -> bool:
        """Pass a 101 on and become a tunnel; False if the client did not ask for one."""
        if not self.request.upgrade or not head.upgrade:
            return False
        self.request.status = 101
        self.write(
            b"%b%b%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
            % (head.line, head.lines, self._response_lines, head.upgrade)
        )
        self._tunnel()
        return True

    def _tunnel(self) -> None:
        self.client.phase = Phase.TUNNEL
        self._passed()
        self.client.deadline = self.quiet_at
        early = self.client.take_held()
        if early and self.upstream is not None:
            self.upstream.transport.write(early)
        self.client.resume_reading()

    def _passed(self) -> None:
        self.quiet_at = time.monotonic() + self.pool.limits.upgrade_idle_seconds

    def tunnel_from_client(self, data: bytes) -> None:
        """Pass bytes of the client on."""
        self._passed()
        if self.upstream is not None:
            self.upstream.transport.write(data)

    def tunnel_from_upstream(self, data: bytes) -> None:
        """Pass bytes of the upstream on."""
        self._passed()
        self.client.transport.write(data)

    def tunnel_client_eof(self) -> bool:
        """The client has ended its side; True to keep the other direction open."""
        if self.upstream is None or self._upstream_ended or self.upstream.transport.is_closing():
            return False
        self.upstream.transport.write_eof()
        return True

    def tunnel_upstream_eof(self) -> bool:
        """The upstream has ended its side; True to keep the other direction open."""
        self._upstream_ended = True
        if self.client.eof or self.client.secure:
            self.client.transport.close()
            return False
        self.client.transport.write_eof()
        return True
