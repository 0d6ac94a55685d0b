"""Reads of keys that were never seen: coalesced, in batches, bounded, and away from the change feed.

However many unknown keys are asked for, one query is under way at a time, for some hundred of them, on
a connection of its own; who finds too many others waiting is told so at once. A refusal is honest: it
says that the key could not be looked up, never that there is none.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from edge.store.database import DatabaseGone
from unkey.errors import ServiceUnavailable

BATCH = 200
MOST_WAITING = 2000

Wanted = tuple[str, str]
"""`key` or `root_key`, and the hash of its text."""


class Reader:
    """Looks wanted hashes up.

    Args:
        read: reads a batch and takes in what there is; may raise `DatabaseGone`.
        counters: events by name, for metrics.
        most: how many hashes may wait.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Wanted]], Awaitable[None]],
        counters: Counter[str],
        most: int = MOST_WAITING,
    ) -> None:
        self._read = read
        self._counters = counters
        self._most = most
        self._waiting: dict[Wanted, asyncio.Future[None]] = {}
        self._reading: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def read(self, wanted: Wanted) -> None:
        """Wait until the database was asked; concurrent callers for the same share one look.

        Raises:
            ServiceUnavailable: the database does not answer, or too many others wait.
        """
        future = self._waiting.get(wanted)
        if future is None:
            if len(self._waiting) >= self._most:
                self._counters["fetches_refused"] += 1
                raise ServiceUnavailable(
                    "This key is not known here yet and too many others are being looked up; try again."
                )
            self._counters["fetches"] += 1
            loop = asyncio.get_running_loop()
            future = self._waiting[wanted] = loop.create_future()
            if self._reading is None:
                self._reading = loop.create_task(self._work())
        try:
            await asyncio.shield(future)
        except DatabaseGone as error:
            self._counters["fetches_failed"] += 1
            raise ServiceUnavailable(
                "This key is not known here yet and the database does not answer; try again."
            ) from error

    async def stop(self) -> None:
        """End; who waits is told that there is no answer."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._fail(list(self._waiting), DatabaseGone("the edge is stopping"))

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = list(self._waiting)[:BATCH]
                try:
                    await self._read(batch)
                except DatabaseGone as error:
                    # Nobody else would fare better: they are not made to wait for the same.
                    self._fail(list(self._waiting), error)
                except Exception as error:
                    self._fail(batch, error)
                else:
                    for wanted in batch:
                        future = self._waiting.pop(wanted)
                        if not future.done():
                            future.set_result(None)
        finally:
            self._reading = None

    def _fail(self, batch: list[Wanted], error: Exception) -> None:
        for wanted in batch:
            future = self._waiting.pop(wanted)
            if not future.done():
                future.set_exception(error)
                # Whoever asked may be gone: nobody need look at the outcome.
                future.exception()
