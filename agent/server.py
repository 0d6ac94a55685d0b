"""The agent's own small HTTP server: health, metrics, logs of instances."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import msgspec
from prometheus_client import generate_latest

from agent import metrics
from agent.reconciler import Reconciler
from agent.wire import LogLine, Status

MAX_TAIL = 5000
DEFAULT_TAIL = 200
_MAX_HEAD = 16 * 1024
_READ_SECONDS = 10.0

Answer = tuple[int, str, bytes]


class Server:
    """Answers one request per connection.

    Args:
        reconciler: whose instances.
        token: AGENT_TOKEN; needed for metrics and logs. Its SHA-256 will do: of a token that is this
            agent's own, the control plane keeps no more than that.
        is_ready: whether the whole state was known once.
        previous: earlier tokens, taken while the control plane may not know the new one yet.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        token: str,
        is_ready: Callable[[], bool],
        previous: Sequence[str] = (),
    ) -> None:
        self._reconciler = reconciler
        accepted = [token, hashlib.sha256(token.encode()).hexdigest(), *previous]
        self._accepted = [f"Bearer {each}".encode() for each in accepted]
        self._is_ready = is_ready
        self._routes: dict[str, Callable[[dict[str, list[str]]], Awaitable[Answer]]] = {
            "/metrics": self._metrics,
            "/logs": self._logs,
        }
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> None:
        """Begin to answer.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD)

    async def close(self) -> None:
        """Stop to answer."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            status, kind, body = await self._answer(head)
            writer.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            writer.write(body)
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError):
            return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> Answer:
        request = parse_head(head)
        if request is None:
            return _refused(400, "This is no HTTP request.")
        method, target, authorization = request
        if method != "GET":
            return _refused(405, "Use GET.")
        parts = urlsplit(target)
        if parts.path in ("/health/live", "/health/startup"):
            return _json(200, {"status": "ok"})
        if parts.path == "/health/ready":
            if self._is_ready():
                return _json(200, {"status": "ok"})
            return _json(503, {"status": "unavailable", "reason": "the watch stream was not read yet"})
        route = self._routes.get(parts.path)
        if route is None:
            return _refused(404, "There is nothing here.")
        if not any(hmac.compare_digest(authorization, each) for each in self._accepted):
            return _refused(401, "Send the AGENT_TOKEN as a bearer token.")
        return await route(parse_qs(parts.query))

    async def _metrics(self, _query: dict[str, list[str]]) -> Answer:
        states = [state for each in self._reconciler.states().values() for state in each]
        for status in Status:
            metrics.INSTANCES.labels(status.value).set(sum(state.status is status for state in states))
        metrics.WANTED.set(sum(self._reconciler.counts().values()))
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(metrics.registry)

    async def _logs(self, query: dict[str, list[str]]) -> Answer:
        deployment_id = query.get("deployment", [""])[0]
        tail = query.get("tail", [str(DEFAULT_TAIL)])[0]
        if not deployment_id or not tail.isascii() or not tail.isdigit() or not 0 < len(tail) < 10:
            return _refused(400, "Give deployment, and tail as a number.")
        lines: list[LogLine] = await self._reconciler.logs(deployment_id, min(int(tail), MAX_TAIL))
        return 200, "application/json", msgspec.json.encode({"lines": lines})


def parse_head(head: bytes) -> tuple[str, str, bytes] | None:
    """Return method, target and Authorization of a request's head, or None if it is none (RFC 9112)."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.0", b"HTTP/1.1") or not parts[1].startswith(b"/"):
        return None
    try:
        method, target = parts[0].decode("ascii"), parts[1].decode("ascii")
        urlsplit(target)
    except ValueError:
        return None
    authorization = b""
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"authorization":
            authorization = value.strip()
    return method, target, authorization


def _json(status: int, body: object) -> Answer:
    return status, "application/json", json.dumps(body).encode()


def _refused(status: int, detail: str) -> Answer:
    return _json(status, {"error": {"title": HTTPStatus(status).phrase, "detail": detail, "status": status}})
