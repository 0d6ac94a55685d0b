"""The API listener: `keys.verifyKey` and rate limits from memory, everything else streamed to web.

One base URL serves a whole SDK: what this edge does not answer itself is web's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from edge.http.proxy import forward
from edge.http.request import Head, Request, Told
from edge.http.upstream import Pool
from unkey.errors import Fault, FrontlineInternalError, RouteNotFound, ServiceUnavailable, UnexpectedError

log = logging.getLogger(__name__)

_BODY_BYTES = 10 * 1024 * 1024
# Headers of the API's own contract that begin as those that only an edge may set.
_OF_CLIENTS = (b"x-unkey-client", b"x-unkey-digest", b"x-unkey-metrics")
_TOLD = (b"authorization", b"content-type", b"accept", b"user-agent", b"x-unkey-metrics")
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
_PLAIN = {"content-type": "application/json"}

Answer = tuple[int, bytes, dict[str, str]]


class VerifyKey(Protocol):
    """What the listener needs of `edge.verify.verifier.Verifier`."""

    def handle_verify_key(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/keys.verifyKey`: status, JSON body, extra headers."""

    def quick_verify_key(self, authorization: bytes, remote_ip: bytes, body: bytes) -> bytes | None:
        """Answer a request that was answered before, with its JSON body; None: it has to be handled."""


class Limits(Protocol):
    """What the listener needs of `edge.verify.ratelimits.Ratelimits`."""

    def handle_limit(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/ratelimit.limit`: status, JSON body, extra headers."""

    def handle_multi_limit(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/ratelimit.multiLimit`: status, JSON body, extra headers."""

    def quick_limit(self, authorization: bytes, remote_ip: bytes, body: bytes) -> bytes | None:
        """Answer `POST /v2/ratelimit.limit` with its JSON body; None: it has to be handled."""


class _Operation(NamedTuple):
    handle: Callable[[Mapping[str, str], bytes, str], Answer | Awaitable[Answer]]
    quick: Callable[[bytes, bytes, bytes], bytes | None] | None = None


class Api:
    """Serves the `/v2` API on the edge.

    Args:
        verifier: answers `keys.verifyKey`.
        limits: answers `ratelimit.limit` and `ratelimit.multiLimit`.
        pool: connections to web.
        web_url: base URL of web, `http://host:port`.

    Raises:
        ValueError: `web_url` is not plain HTTP.
    """

    def __init__(self, verifier: VerifyKey, limits: Limits, pool: Pool, web_url: str) -> None:
        url = urlsplit(web_url)
        if url.scheme != "http" or not url.hostname:
            raise ValueError(f"WEB_URL must be http://host:port, not {web_url}")
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        self._web = (f"{host}:{url.port or 80}",)
        self._own = {
            b"/v2/keys.verifyKey": _Operation(verifier.handle_verify_key, verifier.quick_verify_key),
            b"/v2/ratelimit.limit": _Operation(limits.handle_limit, limits.quick_limit),
            b"/v2/ratelimit.multiLimit": _Operation(limits.handle_multi_limit),
        }
        self._pool = pool
        self._answering: set[asyncio.Task[None]] = set()

    def handle(self, request: Request) -> None:
        """Answer one request; a `Server` calls this."""
        own = self._own.get(request.target)
        if own is not None and request.method == b"POST":
            request.read_body(_BODY_BYTES, partial(self._ask, own), self.refuse)
        elif request.target.startswith(b"/v2/"):
            forward(request, self._pool, self._web, request_lines=_own_headers(request), refuse=self.refuse)
        else:
            self.refuse(request, RouteNotFound("This port serves the API, at /v2/."))

    def quick(self, head: Head, body: bytes, peer: bytes) -> bytes | None:
        """Answer a request from memory, with the whole response; a `Server` asks this first."""
        told = head.told
        if told is None or told.quick is None:  # None: nothing of our own has come with this head
            return None
        answer = told.quick(told.authorization, peer, body)
        return None if answer is None else b"%b%d\r\n\r\n%b" % (_OK, len(answer), answer)

    def _ask(self, own: _Operation, request: Request, body: bytes) -> None:
        try:
            answer = own.handle(self._headers(own, request.head), body, request.peer.decode())
        except Exception:
            return self._failed(request)
        if isinstance(answer, tuple):
            return self._answer(request, answer)
        task = asyncio.get_running_loop().create_task(self._answer_later(request, answer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer_later(self, request: Request, answering: Awaitable[Answer]) -> None:
        try:
            self._answer(request, await answering)
        except Exception:
            self._failed(request)

    def _failed(self, request: Request) -> None:
        log.exception("an operation failed", extra={"request_id": request.id})
        self.refuse(request, UnexpectedError("The request could not be answered; try again."))

    @staticmethod
    def _headers(own: _Operation, head: Head) -> Mapping[str, str]:
        told = head.told
        if told is None:
            found = {
                lower.decode(): value.strip(b" \t").decode("latin-1")
                for lower, _, value in head.fields
                if lower in _TOLD
            }
            # Who wants no count of a request in analytics is answered the long way.
            quick = None if "x-unkey-metrics" in found else own.quick
            told = head.told = Told(found, found.get("authorization", "").encode("latin-1"), quick)
        return told.headers

    @staticmethod
    def _answer(request: Request, answer: Answer) -> None:
        status, body, headers = answer
        if headers == _PLAIN:
            return request.respond(status, b"content-type: application/json\r\n", body)
        lines = b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()])
        if "content-type" not in headers and "Content-Type" not in headers:
            lines += b"content-type: application/json\r\n"
        request.respond(status, lines, body)

    @staticmethod
    def refuse(request: Request, fault: Fault) -> None:
        """Answer by an error in the envelope of the API; a `Server` and `forward` call this.

        Clients of the API need not know that there is a gateway: what they meet there is told as an
        error of the API.
        """
        if isinstance(fault, FrontlineInternalError):
            fault = UnexpectedError("The request could not be handled; try again.")
        elif fault.kind.status >= 500 and not isinstance(fault, UnexpectedError):
            fault = ServiceUnavailable("The management API cannot be reached; try again in a moment.")
        kind = fault.kind
        error: dict[str, object] = {
            "title": kind.title,
            "detail": fault.detail,
            "status": kind.status,
            "type": kind.url,
        }
        if kind.status == 400:
            error["errors"] = []  # the published clients require the list in every 400
        body = msgspec.json.encode({"meta": {"requestId": request.id}, "error": error})
        request.respond(kind.status, b"content-type: application/json\r\n", body)


def _own_headers(request: Request) -> bytes:
    """Return the header lines of clients' own that go on to web although they begin with `X-Unkey-`."""
    return b"".join(
        b"%b: %b\r\n" % (name, value) for lower, name, value in request.fields if lower in _OF_CLIENTS
    )
