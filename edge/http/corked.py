"""Writes of one turn of the event loop, made together at its end.

A write wakes whoever reads at the other end. Made between the reads of a turn, each write wakes a reader
that has gone to sleep since the one before, which costs more than a small request does; made one after
another, all but the first find it awake. What is written to one connection in a turn also leaves in one piece.

    outbox = Outbox()
    transport = outbox.cork(transport)      # takes the transport's place; what is written keeps its order
"""

import asyncio
from typing import Any

_MOST = 64 * 1024  # that wait to be written to one connection


class Outbox:
    """The connections that have something to write in the present turn; one per event loop or part of it."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Corked] = []

    def cork(self, transport: asyncio.Transport) -> "Corked":
        """Return what stands in for a transport from now on."""
        return Corked(transport, self)

    def add(self, corked: "Corked") -> None:
        """Note that a connection has something to write."""
        waiting = self._waiting
        if not waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        waiting.append(corked)

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        for corked in waiting:
            corked.flush()


class Corked(asyncio.Transport):
    """A transport whose writes wait for the end of the turn.

    Args:
        transport: what is written to.
        outbox: is told that something waits.
    """

    __slots__ = ("_outbox", "_pieces", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write at the end of the turn; at once where much waits, so that who is full says so in time."""
        pieces = self._pieces
        if not pieces:
            self._outbox.add(self)
        pieces.append(bytes(data))
        self._size += len(data)
        if self._size > _MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits now."""
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._size = 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def write_eof(self) -> None:
        """Write what waits, and no more after it."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Write what waits, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close without writing."""
        self._pieces.clear()
        self._size = 0
        self._transport.abort()

    def is_closing(self) -> bool:
        """Say whether the connection has ended or is about to."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Hear no more of the other end for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Hear of the other end again."""
        self._transport.resume_reading()

    def can_write_eof(self) -> bool:
        """Say whether one side can end alone: not over TLS."""
        return self._transport.can_write_eof()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that have not left yet."""
        return self._transport.get_write_buffer_size() + self._size

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of itself."""
        return self._transport.get_extra_info(name, default)
