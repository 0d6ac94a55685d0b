"""The HTTP client of the CLI: `POST /v2/<operation>`, envelopes in and out, over one connection."""

import http.client
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli import VERSION

TIMEOUT_SECONDS = 30.0
PATIENCE_SECONDS = 30.0
AGAIN_SECONDS = 0.6


class Refused(Exception):
    """The API answered with an error envelope.

    Args:
        status: HTTP status.
        title: short text.
        detail: a sentence for people.
        code: the catalogue's code without its documentation prefix.
        violations: faults of the request, as `location: message`.
        request_id: for support.
    """

    def __init__(
        self, status: int, title: str, detail: str, code: str, violations: list[str], request_id: str
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.code = code
        self.violations = violations
        self.request_id = request_id


class BadAddress(Exception):
    """The base URL or the root key cannot be used at all."""


class Unreachable(Exception):
    """No answer: the address is wrong, nothing listens, or the connection broke."""


class Client:
    """Calls operations of the API.

    Args:
        base_url: for example `http://127.0.0.1:7070`.
        root_key: sent as a bearer token.
    """

    def __init__(self, base_url: str, root_key: str) -> None:
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError as error:
            raise BadAddress(f"{base_url!r} is not a URL: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadAddress(f"{base_url!r} is not an http:// or https:// URL")
        if not (root_key.isascii() and root_key.isprintable()):
            raise BadAddress("the root key has characters that no key has: copy it again")
        self._base_url = base_url
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {root_key}", "X-Unkey-Client": f"unkey-cli/{VERSION}"}
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT_SECONDS)

    def call(self, operation: str, body: dict[str, Any]) -> Any:
        """Return the `data` of an operation's answer.

        Raises:
            Refused: the API answered with an error.
            Unreachable: no answer.
        """
        return self._send(operation, json.dumps(body).encode(), "application/json")["data"]

    def ask(self, operation: str, body: dict[str, Any]) -> Any:
        """Call an operation that changes nothing, again and again while the API is away for a moment.

        Such as while its process restarts: what was asked for before goes on meanwhile.

        Raises:
            Refused: the API answered with an error.
            Unreachable: no answer, for half a minute.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.call(operation, body)
            except Unreachable:
                if time.monotonic() > until:
                    raise
            except Refused as refused:
                if refused.status < 500 or time.monotonic() > until:
                    raise
            time.sleep(AGAIN_SECONDS)

    def pages(self, operation: str, body: dict[str, Any]) -> list[Any]:
        """Return all rows of a paginated operation."""
        rows: list[Any] = []
        cursor: str | None = None
        while True:
            page = self._send(
                operation,
                json.dumps(body | ({"cursor": cursor} if cursor else {})).encode(),
                "application/json",
            )
            rows += page["data"]
            pagination = page.get("pagination", {})
            cursor = pagination.get("cursor")
            if not pagination.get("hasMore") or not cursor:
                return rows

    def upload(self, operation: str, file: Path, digest: str) -> Any:
        """Send a packed archive; `digest` is the SHA-256 that the server must find."""
        headers = {"Content-Length": str(file.stat().st_size), "X-Unkey-Digest": f"sha256:{digest}"}
        with file.open("rb") as body:
            return self._send(operation, body, "application/gzip", headers)["data"]

    def _send(
        self, operation: str, body: Any, content_type: str, headers: dict[str, str] | None = None
    ) -> Any:
        # A kept connection may have been closed by the other side: the first failure is tried once more,
        # on a new one, when nothing of the answer was received and the body can be sent again.
        for last in (False, True):
            fresh = self._connection.sock is None
            try:
                self._connection.request(
                    "POST",
                    f"{self._prefix}/v2/{operation}",
                    body,
                    {**self._headers, "Content-Type": content_type, **(headers or {})},
                )
                response = self._connection.getresponse()
                payload = response.read()
                break
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                self._connection.close()
                if last or fresh or not isinstance(body, bytes):
                    raise Unreachable(f"{self._base_url} closed the connection: {error}") from None
            except (OSError, socket.gaierror, http.client.HTTPException) as error:
                self._connection.close()
                raise Unreachable(f"cannot reach {self._base_url}: {error}") from None
        return _unwrap(response.status, payload)


def _unwrap(status: int, payload: bytes) -> Any:
    try:
        envelope = json.loads(payload)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict) or "meta" not in envelope:
        raise Refused(status, "Unexpected answer", "the server's answer is not an API envelope", "", [], "")
    if status < 400:
        return envelope
    error = envelope.get("error", {})
    raise Refused(
        status,
        error.get("title", ""),
        error.get("detail") or error.get("message", ""),
        str(error.get("type", "")).split("/errors/")[-1],
        [f"{fault.get('location', '')}: {fault.get('message', '')}" for fault in error.get("errors", [])],
        envelope["meta"].get("requestId", ""),
    )
