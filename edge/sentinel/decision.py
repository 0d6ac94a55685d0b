"""What a sentinel decides, what it looks at, and what one policy hands to the next."""

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any, Protocol

from msgspec import Struct

from unkey.errors import Fault


class Call(Protocol):
    """The request as policies see it."""

    @property
    def method(self) -> bytes:
        """Upper case."""

    @property
    def length(self) -> int:
        """Octets of the body, 0 for none, -1 where they are not told beforehand."""

    @property
    def path(self) -> bytes:
        """The path as sent, without query."""

    @property
    def query(self) -> bytes:
        """The query as sent, without `?`."""

    @property
    def peer(self) -> bytes:
        """The client's address."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header (lower-case name)."""

    def headers(self, name: bytes) -> list[bytes]:
        """Return every value of a header (lower-case name)."""


class Allow(Struct, frozen=True):
    """The request may pass.

    Args:
        request_lines: headers for the app, each line with CRLF.
        response_lines: headers for the client.
        found: what the policies have found; None: none was asked.
    """

    request_lines: bytes = b""
    response_lines: bytes = b""
    found: "State | None" = None


class Refuse(Struct, frozen=True):
    """The request ends here; `response_lines` go with the error's answer, `found` as for `Allow`."""

    fault: Fault
    response_lines: bytes = b""
    found: "State | None" = None


class Read(Struct, frozen=True):
    """The request's body is needed before anything can be decided.

    Args:
        limit: most bytes that it may have.
        go_on: decides with the whole body.
    """

    limit: int
    go_on: "Callable[[bytes], Decision | Awaitable[Decision]]"


Decision = Allow | Refuse | Read


class Rate:
    """The most restrictive of the rate limits that were asked: denied before allowed, then least left.

    Args:
        reset: end of the window, Unix milliseconds.
    """

    __slots__ = ("denied", "limit", "remaining", "reset")

    def __init__(self, denied: bool, limit: int, remaining: int, reset: int) -> None:
        self.denied = denied
        self.limit = limit
        self.remaining = remaining
        self.reset = reset

    def tighter_than(self, other: "Rate | None") -> bool:
        """Say whether this one is what the client should know of, rather than the other."""
        if other is None or self.denied != other.denied:
            return other is None or self.denied
        if self.denied and self.reset != other.reset:
            return self.reset > other.reset
        return self.remaining < other.remaining

    def lines(self, now_ms: int) -> bytes:
        """Return the `X-RateLimit-*` headers, and `Retry-After` if denied."""
        text = b"X-RateLimit-Limit: %d\r\nX-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: %d\r\n" % (
            self.limit,
            self.remaining,
            self.reset // 1000,
        )
        if self.denied:
            text += b"Retry-After: %d\r\n" % max(1, -(-(self.reset - now_ms) // 1000))
        return text


class State:
    """What the policies of one request have found so far.

    Args:
        timed: note how long each policy takes.

    Attributes:
        principal: who calls, once a policy has established it; `request_lines` tell it to the app.
        rate: the most restrictive rate limit.
        trace: a text for each policy, in order: its id, its kind, and what came of it.
        times: when each of them was through, nanoseconds, the start first; None: nobody asked.
        recorder: records what logging policies ask for, see `edge.sentinel.recording`.
        secret: names of fields that the app's document marks as not to be logged, in lower case.
        hidden: names of query parameters that hold credentials, in lower case.
    """

    __slots__ = (
        "hidden", "principal", "rate", "recorder", "request_lines", "secret", "times", "trace",
    )  # fmt: skip

    def __init__(self, timed: bool = False, hidden: frozenset[str] = frozenset()) -> None:
        self.principal: dict[str, Any] | None = None
        self.request_lines = b""
        self.rate: Rate | None = None
        self.trace: list[str] = []
        self.times: list[int] | None = [perf_counter_ns()] if timed else None
        self.recorder: Any = None
        self.secret: frozenset[str] = frozenset()
        self.hidden = hidden

    def rated(self, rate: Rate) -> None:
        """Remember a rate limit's outcome if it is the most restrictive one."""
        if rate.tighter_than(self.rate):
            self.rate = rate

    def note(self, text: str) -> None:
        """Note what came of the next policy."""
        self.trace.append(text)
        if self.times is not None:
            self.times.append(perf_counter_ns())


class Body(Struct, frozen=True):
    """A policy has to see the request's body.

    Args:
        limit: most bytes that it may have.
        judge: returns why the request is refused, None to go on.
    """

    limit: int
    judge: Callable[[bytes], Fault | None]


Outcome = Fault | Body | None


class Rule(Protocol):
    """One compiled policy."""

    def apply(self, call: Call, state: State) -> Outcome | Awaitable[Outcome]:
        """Return why the request is refused, None to go on, or that the body must be seen."""


class Unsupported(ValueError):
    """A policy that cannot be evaluated; the text says which and why."""
