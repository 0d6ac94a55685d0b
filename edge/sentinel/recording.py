"""The logging policy: what is recorded of a request and its answer, and what of it nobody may read."""

import json
from collections.abc import Iterable, Mapping
from random import random
from typing import Any
from urllib.parse import unquote_plus

from edge.sentinel.decision import Call, State, Unsupported
from edge.sentinel.match import field

REDACTED = "[REDACTED]"
DEFAULT_BODY_BYTES = 64 * 1024
MOST_BODY_BYTES = 1024 * 1024
FLAGS = ("requestHeaders", "responseHeaders", "requestBody", "responseBody", "query")
ALWAYS_HIDDEN = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-unkey-principal", "x-unkey-debug"}
)
USUALLY_HIDDEN = frozenset(
    {
        "password",
        "secret",
        "token",
        "access_token",
        "refresh_token",
        "id_token",
        "client_secret",
        "api_key",
        "apikey",
    }
)
_MOST_HEADERS = 200
_LONGEST_HEADER = 4096


class Logging:
    """A compiled logging policy.

    Args:
        body: `requestHeaders`, `responseHeaders`, `requestBody`, `responseBody` and `query`, each true or
            false; `sampleRate`, the part of requests that it is for; `maxBodyBytes`; `redactHeaders` and
            `redactFields`, names of headers, and of fields of JSON and form bodies at any depth.

    Raises:
        Unsupported: the policy cannot be evaluated.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        flags = [field(body, name) for name in FLAGS]
        if any(each not in (None, True, False) for each in flags):
            raise Unsupported("logging says for each part true or false")
        self.request_headers, self.response_headers, self.request_body, self.response_body, _ = (
            each is True for each in flags
        )
        rate, limit = field(body, "sampleRate"), field(body, "maxBodyBytes")
        self._rate = 1.0 if rate is None else rate
        self.limit = DEFAULT_BODY_BYTES if limit is None else limit
        if (
            isinstance(self._rate, bool)
            or not isinstance(self._rate, int | float)
            or not 0 <= self._rate <= 1
        ):
            raise Unsupported("logging sampleRate is not a number from 0 to 1")
        if (
            isinstance(self.limit, bool)
            or not isinstance(self.limit, int)
            or not 1 <= self.limit <= MOST_BODY_BYTES
        ):
            raise Unsupported(f"logging maxBodyBytes is not a number of octets up to {MOST_BODY_BYTES}")
        self.headers = frozenset(_names(body, "redactHeaders"))
        self.fields = frozenset(_names(body, "redactFields"))

    def apply(self, call: Call, state: State) -> None:
        """Have the request recorded, or leave it out of the sample."""
        if self._rate < 1 and random() >= self._rate:  # noqa: S311
            return
        if state.recorder is None:
            state.recorder = Recorder()
        state.recorder.add(self)


def _names(body: Mapping[str, Any], name: str) -> Iterable[str]:
    given = field(body, name)
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(each, str) and each for each in given):
        raise Unsupported(f"logging {name} is not a list of names")
    return (each.lower() for each in given)


class Recorder:
    """What is recorded of one request: of several logging policies, what any of them asks for.

    It is filled while octets pass through, and read in the thread that writes events.
    """

    __slots__ = (
        "_fields", "_headers", "_limit", "_received", "_request_body", "_request_headers", "_response_body",
        "_response_headers", "_response_lines", "_sent", "_sizes",
    )  # fmt: skip

    def __init__(self) -> None:
        self._request_headers = self._response_headers = False
        self._request_body = self._response_body = False
        self._limit = 0
        self._headers = ALWAYS_HIDDEN
        self._fields: frozenset[str] = frozenset()
        self._response_lines = b""
        self._sent: list[bytes] = []
        self._received: list[bytes] = []
        self._sizes = [0, 0]

    def add(self, policy: Logging) -> None:
        """Record what a policy asks for, too."""
        self._request_headers |= policy.request_headers
        self._response_headers |= policy.response_headers
        self._request_body |= policy.request_body
        self._response_body |= policy.response_body
        self._limit = max(self._limit, policy.limit)
        self._headers |= policy.headers
        self._fields |= policy.fields

    def hide(self, headers: frozenset[str], fields: frozenset[str]) -> None:
        """Hide headers, and fields of bodies, whatever the policies say; all in lower case."""
        self._headers |= headers
        self._fields |= fields

    @property
    def watches(self) -> bool:
        """Whether what passes through has to be seen."""
        return self._request_body or self._response_body or self._response_headers

    def sent(self, piece: bytes) -> None:
        """Note a piece of the request's body."""
        if self._request_body:
            self._keep(0, self._sent, piece)

    def answered(self, lines: bytes) -> None:
        """Note the headers of the answer, as lines."""
        self._response_lines = lines

    def received(self, piece: bytes) -> None:
        """Note a piece of the answer's body."""
        if self._response_body:
            self._keep(1, self._received, piece)

    def _keep(self, which: int, parts: list[bytes], piece: bytes) -> None:
        room = self._limit - self._sizes[which]
        self._sizes[which] += len(piece)
        if room > 0 and piece:
            parts.append(bytes(piece[:room]))

    def columns(self, fields: Iterable[tuple[bytes, bytes, bytes]]) -> tuple[list[str], str, list[str], str]:
        """Return request headers, request body, response headers and response body, redacted.

        Args:
            fields: the request's headers: name in lower case, name, value.
        """
        asked = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for _, name, value in fields]
        answered = []
        for line in self._response_lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                answered.append((name.decode("latin-1"), value.strip().decode("utf-8", "replace")))
        return (
            self._told(asked) if self._request_headers else [],
            self._body(asked, self._sent, self._sizes[0]) if self._request_body else "",
            self._told(answered) if self._response_headers else [],
            self._body(answered, self._received, self._sizes[1]) if self._response_body else "",
        )

    def _told(self, headers: list[tuple[str, str]]) -> list[str]:
        return [
            f"{name}: {REDACTED if name.lower() in self._headers else value[:_LONGEST_HEADER]}"
            for name, value in headers[:_MOST_HEADERS]
        ]

    def _body(self, headers: list[tuple[str, str]], parts: list[bytes], size: int) -> str:
        raw = b"".join(parts)
        if not raw:
            return ""
        said = {name.lower(): value.lower() for name, value in headers}
        if said.get("content-encoding", "identity") != "identity":
            return "[NOT RECORDED: it is compressed]"
        return redact_body(raw, said.get("content-type", ""), self._fields, whole=size <= self._limit)


def redact_body(raw: bytes, media: str, hidden: frozenset[str], *, whole: bool) -> str:
    """Return a body as it may be recorded.

    Args:
        raw: its octets.
        media: Content-Type, in lower case.
        hidden: names of fields in lower case; what cannot be searched for them is not recorded.
        whole: nothing was cut off.
    """
    kind = media.partition(";")[0].strip()
    names = hidden | USUALLY_HIDDEN
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return json.dumps(_redacted(json.loads(raw), names), ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError):
            return f"[NOT RECORDED: it is {'not JSON' if whole else 'too long to be redacted'}]"
    if kind == "application/x-www-form-urlencoded":
        text = raw.decode("latin-1") if whole else raw.decode("latin-1").rpartition("&")[0]
        return redact_pairs(text, names)
    if hidden:
        return "[NOT RECORDED: it cannot be redacted]"
    return raw.decode("utf-8", "replace")


def redact_pairs(text: str, hidden: frozenset[str]) -> str:
    """Return a query or a form with the values of some names replaced; the names are in lower case."""
    if not hidden:
        return text
    pairs = []
    for each in text.split("&"):
        name, equals, _ = each.partition("=")
        pairs.append(f"{name}={REDACTED}" if equals and unquote_plus(name).lower() in hidden else each)
    return "&".join(pairs)


def _redacted(value: Any, hidden: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: REDACTED if name.lower() in hidden and item is not None else _redacted(item, hidden)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(item, hidden) for item in value]
    return value
