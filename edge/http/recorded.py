"""Exchanges whose octets somebody records while they pass; all others know nothing of it."""

from typing import Any, Protocol

from edge.http.proxy import Exchange
from edge.http.upstream import ResponseHead


class Tap(Protocol):
    """Takes what passes."""

    def sent(self, piece: bytes) -> None:
        """Take a piece of the request's body."""

    def answered(self, lines: bytes) -> None:
        """Take the headers of the answer, each with CRLF."""

    def received(self, piece: bytes) -> None:
        """Take a piece of the answer's body."""


_made: dict[str, type[Exchange]] = {}


def recorded(kind: type[Exchange]) -> type[Exchange]:
    """Return an exchange of the same kind, that tells `tap` what passes; it is set once it is made."""
    known = _made.get(kind.__qualname__)
    if known is not None:
        return known

    class Recorded(kind):  # type: ignore[valid-type,misc]
        __slots__ = ("_by_length", "_start", "tap")

        tap: Tap

        def start(self, head: bytes) -> None:
            self._by_length = False
            self._start = 0
            for piece in self.request.pieces:
                self.tap.sent(piece)
            super().start(head)

        def body_received(self, piece: bytes, ended: bool) -> None:
            self.tap.sent(piece)
            super().body_received(piece, ended)

        def response_head(self, head: ResponseHead, *, bodiless: bool = False) -> bytes:
            text: bytes = super().response_head(head, bodiless=bodiless)
            self.tap.answered(head.lines)
            self._by_length = head.length >= 0
            self._start = len(text)
            return text

        def framed(self, piece: bytes) -> bytes:
            if not self._by_length:
                self.tap.received(piece)
            text: bytes = super().framed(piece)
            return text

        def write(self, data: bytes) -> None:
            if self._by_length:
                # A body of a known length is written as it is, the first piece of it behind the head.
                self.tap.received(data[self._start :])
                self._start = 0
            super().write(data)

    made: Any = Recorded
    _made[kind.__qualname__] = made
    kept: type[Exchange] = made
    return kept
