"""A client's request as the edge's roles see it: parsed facts, the body, and how to answer."""

import asyncio
import functools
import itertools
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from edge.http import refusal
from unkey.errors import Fault, MalformedRequest, RequestBodyTooLarge

if TYPE_CHECKING:
    from edge.http.forwarded import Hearsay
    from edge.http.proxy import Exchange

Field = tuple[bytes, bytes, bytes]
"""A header: lower-case name, name as sent, value."""

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

REASONS = {
    200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content",
    301: b"Moved Permanently", 302: b"Found", 304: b"Not Modified", 308: b"Permanent Redirect",
    400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden",
    404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
    412: b"Precondition Failed", 413: b"Content Too Large", 421: b"Misdirected Request",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
}  # fmt: skip
STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, reason) for status, reason in REASONS.items()}

# No comma, though RFC 3986 has it: in X-Forwarded-Host it would make two hosts of one.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|(?!\.)[A-Za-z0-9._~!$&'()*+;=%-]+?)\.?(?::[0-9]{0,5})?")

_ID_PREFIX = f"req_{os.urandom(5).hex()}"
_id_numbers = itertools.count()


def new_request_id() -> str:
    """Return an id that is unique among all processes: a random part per process and a number."""
    return f"{_ID_PREFIX}{next(_id_numbers):08x}"


@functools.lru_cache(maxsize=4096)
def host_name(value: bytes) -> str | None:
    """Return a Host header's name in lower case, without port and final dot; None if it is malformed."""
    match = _HOST.fullmatch(value)
    return match[1].decode("ascii").lower() if match else None


class BodySink(Protocol):
    """Takes a request's body as it arrives."""

    def body_received(self, piece: bytes, ended: bool) -> None:
        """Take the next piece; `ended`: it was the last."""

    def body_failed(self) -> None:
        """The client broke the body off or sent garbage; no more of it comes."""


class Channel(Protocol):
    """What requests come by: a connection of HTTP/1.1, or one stream of HTTP/2.

    `exchange_type` passes its requests on; None: the one for HTTP/1.1. `deadline` is in monotonic
    seconds; `eof`: the client has ended its side.
    """

    request: "Request | None"
    exchange: "Exchange | None"
    phase: int
    deadline: float
    eof: bool

    @property
    def exchange_type(self) -> "type[Exchange] | None": ...

    @property
    def secure(self) -> bool: ...

    @property
    def transport(self) -> asyncio.Transport: ...

    def respond(self, request: "Request", status: int, headers: bytes, body: bytes) -> None: ...

    def send_continue(self) -> None: ...

    def finish(self, request: "Request") -> None: ...

    def fail(self, fault: Fault) -> None: ...

    def connection_line(self, request: "Request") -> bytes: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def take_held(self) -> bytes: ...


class Told:
    """What the API reads of a head.

    Args:
        headers: as text by lower-case name.
        authorization: the header as sent.
        quick: answers `(authorization, peer, body)` from memory, None if it cannot; None: nobody does.
    """

    __slots__ = ("authorization", "headers", "quick")

    def __init__(
        self,
        headers: dict[str, str],
        authorization: bytes,
        quick: Callable[[bytes, bytes, bytes], bytes | None] | None,
    ) -> None:
        self.headers = headers
        self.authorization = authorization
        self.quick = quick


class Head:
    """The facts of a request's head: they follow from its bytes and the peer; a repeated one is read once.

    Args:
        method: as sent, upper case.
        target: origin form (`/path?query`), or `*`.
        host: lower case, without port.
        host_field: the Host header as sent.
        fields: every header in order.
        http10: the client speaks HTTP/1.0.
        keep_alive: the client lets the connection live on.
        length: bytes of the body, 0 for none, -1 for chunked.
        upgrade: the protocol that the client asks for, else empty.
        expects_continue: the client waits for a 100 before it sends the body.
        client: address of the client: the socket's peer, or whom trusted proxies name.
        hops: `X-Forwarded-For` for upstream: the client, then the proxies between it and here.
        secure: whether the client came by TLS, as a trusted proxy has told; None: none has.
        asked_host: whom the client asked for, as a trusted proxy has told; empty: none has.
    """

    __slots__ = (
        "asked_host", "client", "expects_continue", "fields", "hops", "host", "host_field", "http10", "keep_alive",
        "length", "method", "onward", "secure", "size", "target", "told", "upgrade",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, host: str, host_field: bytes, fields: list[Field]
    ) -> None:
        self.method = method
        self.target = target
        self.host = host
        self.host_field = host_field
        self.fields = fields
        self.http10 = False
        self.keep_alive = True
        self.length = 0
        self.upgrade = b""
        self.expects_continue = False
        self.client = b""
        self.hops = b""
        self.secure: bool | None = None
        self.asked_host = b""
        self.size = 0  # of the head itself, in bytes
        self.onward = b""  # what goes upstream of it after the request line, once that was put together
        self.told: Told | None = None  # what the API reads of it, once it has

    def told_by(self, told: "Hearsay | None") -> None:
        """Take what a trusted proxy tells of the client; see `edge.http.forwarded`."""
        if told is not None:
            self.client, self.hops = told.client, b", ".join(told.hops)
            self.secure, self.asked_host = told.secure, told.host

    def retargeted(self, target: bytes) -> "Head":
        """Return the head of a request that differs in its target alone."""
        head = Head(self.method, target, self.host, self.host_field, self.fields)
        head.keep_alive = self.keep_alive
        head.length = self.length
        head.upgrade = self.upgrade
        head.expects_continue = self.expects_continue
        head.client = self.client
        head.hops = self.hops
        head.secure = self.secure
        head.asked_host = self.asked_host
        head.onward = self.onward
        return head


class Request:
    """One request on a connection, until its response is complete; see `Head` for what it asks."""

    __slots__ = (
        "body_ended", "connection", "expects_continue", "fields", "found", "head", "host", "host_field", "http10",
        "id", "keep_alive", "length", "method", "pieces", "sink", "size", "started", "status", "target", "trailers",
        "upgrade",
    )  # fmt: skip

    def __init__(self, connection: Channel, head: Head) -> None:
        self.connection = connection
        self.head = head
        self.method = head.method
        self.target = head.target
        self.host = head.host
        self.host_field = head.host_field
        self.fields = head.fields
        self.http10 = head.http10
        self.keep_alive = head.keep_alive
        self.length = head.length
        self.upgrade = head.upgrade
        self.expects_continue = head.expects_continue
        self.id = new_request_id()
        self.started = time.monotonic()
        self.status = 0  # of the response, once its head was sent
        self.body_ended = True
        self.pieces: list[bytes] = []
        self.size = 0  # bytes of body received so far
        self.sink: BodySink | None = None
        self.trailers = b""  # lines that came behind a chunked body
        self.found: Any = None  # what the handler has found out of it, for whoever notes requests

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """What follows the first `?` of the target."""
        return self.target.partition(b"?")[2]

    @property
    def peer(self) -> bytes:
        """The client's address, without port; past the proxies in `TRUSTED_PROXIES`."""
        return self.head.client

    @property
    def secure(self) -> bool:
        """Whether the client came by TLS, here or at a trusted proxy."""
        told = self.head.secure
        return self.connection.secure if told is None else told

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header (lower-case name), without surrounding space."""
        for lower, _, value in self.fields:
            if lower == name:
                return value.strip(b" \t")
        return None

    def headers(self, name: bytes) -> list[bytes]:
        """Return every value of a header (lower-case name)."""
        return [value.strip(b" \t") for lower, _, value in self.fields if lower == name]

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Answer at once.

        Args:
            headers: complete lines, each with its CRLF, without framing and Connection.
            body: left out for HEAD, 204 and 304, where only its length is told.
        """
        self.connection.respond(self, status, headers, body)

    def refuse(self, fault: Fault, *, headers: bytes = b"") -> None:
        """Answer by an error page or JSON, as `Accept` asks for."""
        kind = fault.kind
        accept = self.header(b"accept") or b""
        described, body = refusal.render(kind, fault.detail, self.id, accept, fault.violations)
        extra = b"".join(f"{name}: {value}\r\n".encode() for name, value in fault.headers.items())
        lines = b"x-unkey-request-id: %b\r\n" % self.id.encode()
        self.respond(kind.status, described + lines + extra + headers, body)

    def take_body(self) -> bytes:
        """Return what has arrived of the body and was not taken yet."""
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def keep_body(self, body: bytes) -> None:
        """Put the whole body back that was read, so that it can be sent on."""
        self.pieces = [body] if body else []
        if self.expects_continue:
            # The client was told to go on: nobody has to tell it once more.
            self.expects_continue = False
            self.head = self.head.retargeted(self.head.target)
            self.head.onward = b""

    def read_body(
        self,
        limit: int,
        use: Callable[["Request", bytes], None],
        refuse: Callable[["Request", Fault], None],
    ) -> None:
        """Call `use` with the whole body, now if it is here; `refuse` if it has more than `limit` bytes."""
        if self.length > limit or self.size > limit:
            refuse(self, RequestBodyTooLarge(f"The body may have {limit} bytes at most."))
        elif self.body_ended:
            use(self, self.take_body())
        else:
            self.sink = _WholeBody(self, limit, use, refuse)
            self.connection.resume_reading()
            if self.expects_continue:
                self.connection.send_continue()


class _WholeBody:
    """Collects a body until it is complete."""

    __slots__ = ("limit", "refuse", "request", "use")

    def __init__(
        self,
        request: Request,
        limit: int,
        use: Callable[[Request, bytes], None],
        refuse: Callable[[Request, Fault], None],
    ) -> None:
        self.request = request
        self.limit = limit
        self.use = use
        self.refuse = refuse

    def body_received(self, piece: bytes, ended: bool) -> None:
        request = self.request
        request.pieces.append(piece)
        if request.size > self.limit:
            request.sink = None
            self.refuse(request, RequestBodyTooLarge(f"The body may have {self.limit} bytes at most."))
        elif ended:
            request.sink = None
            self.use(request, request.take_body())

    def body_failed(self) -> None:
        self.request.keep_alive = False
        self.refuse(self.request, MalformedRequest("The body ended early or is malformed."))
