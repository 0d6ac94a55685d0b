"""Writes of one turn leave together, in order, and before anything that ends the connection."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from edge.http.corked import Corked, Outbox


@contextlib.asynccontextmanager
async def corked() -> AsyncIterator[tuple[Corked, socket.socket]]:
    """Yield a corked transport and the socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    try:
        yield Outbox().cork(transport), theirs
    finally:
        transport.abort()
        theirs.close()
        await asyncio.sleep(0)


def arrived(theirs: socket.socket) -> bytes | None:
    """Return what has come, None if nothing has; empty at the end."""
    try:
        return theirs.recv(1 << 20)
    except BlockingIOError:
        return None


def test_writes_leave_at_the_end_of_the_turn_as_one() -> None:
    async def work() -> None:
        async with corked() as (transport, theirs):
            transport.write(b"one, ")
            transport.write(bytearray(b"two, "))
            transport.write(memoryview(b"three"))
            assert arrived(theirs) is None
            assert transport.get_write_buffer_size() == len(b"one, two, three")
            await asyncio.sleep(0)
            assert arrived(theirs) == b"one, two, three"
            assert transport.get_write_buffer_size() == 0
            transport.write(b"four")
            await asyncio.sleep(0)
            assert arrived(theirs) == b"four"

    asyncio.run(work())


@pytest.mark.parametrize("end", ["write_eof", "close"])
def test_what_was_written_leaves_before_the_end(end: str) -> None:
    async def work() -> None:
        async with corked() as (transport, theirs):
            transport.write(b"last words")
            getattr(transport, end)()
            await asyncio.sleep(0)
            assert arrived(theirs) == b"last words"
            assert arrived(theirs) == b""

    asyncio.run(work())


def test_what_is_aborted_is_not_written() -> None:
    async def work() -> None:
        async with corked() as (transport, theirs):
            transport.write(b"never")
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            await asyncio.sleep(0)
            assert arrived(theirs) == b""

    asyncio.run(work())


def test_much_does_not_wait_so_that_a_full_connection_is_known_at_once() -> None:
    async def work() -> None:
        async with corked() as (transport, theirs):
            for _ in range(1000):
                transport.write(b"x" * 1000)
            # All but what may wait has gone to the transport, which has told its protocol.
            assert len(arrived(theirs) or b"") > 100_000
            assert transport.get_write_buffer_size() <= 1_000_000

    asyncio.run(work())


def test_a_connection_that_has_ended_takes_no_more() -> None:
    async def work() -> None:
        async with corked() as (transport, theirs):
            transport.close()
            await asyncio.sleep(0)
            transport.write(b"too late")
            await asyncio.sleep(0)
            assert transport.is_closing()
            assert arrived(theirs) == b""

    asyncio.run(work())
