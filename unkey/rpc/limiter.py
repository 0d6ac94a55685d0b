"""The rate limiter of a process of web: shared by its threads, with the machine's other processes, and with
other machines where there is a Redis.
"""

import asyncio
import threading
from collections.abc import Sequence
from functools import cache

from edge.store.counters import open_counters
from edge.store.exchange import Exchange
from edge.verify.limiter import Counter, Due, Limit, Limiter, Outcome, Sharing
from unkey.env import env


class ThreadedLimiter(Limiter):
    """A limiter that several threads may ask."""

    def __init__(self, *, sharing: Sharing | None = None, far: bool = False) -> None:
        super().__init__(sharing=sharing, far=far)
        self._lock = threading.RLock()

    def count(self, counter: Counter, limit: int, cost: int, now_ms: int) -> tuple[int, int]:
        with self._lock:
            return super().count(counter, limit, cost, now_ms)

    def check_all(self, limits: Sequence[Limit], now_ms: int) -> tuple[bool, list[Outcome]]:
        with self._lock:
            return super().check_all(limits, now_ms)

    def due(self, most: int) -> list[Due]:
        with self._lock:
            return super().due(most)

    def learn(self, counter: Counter, sequence: int, current: int, previous: int) -> None:
        with self._lock:
            super().learn(counter, sequence, current, previous)

    def postpone(self, due: Sequence[Due]) -> None:
        with self._lock:
            super().postpone(due)


def process_limiter() -> ThreadedLimiter:
    """Return the limiter of this process; made at its first use, so that forked processes do not share it."""
    with _making:
        return _made()


_making = threading.Lock()


@cache
def _made() -> ThreadedLimiter:
    seat = open_counters(env.limits_folder)
    if not env.REDIS_URL:
        return ThreadedLimiter(sharing=seat)
    limiter = ThreadedLimiter(sharing=seat, far=True)

    async def exchange() -> None:
        await Exchange(env.REDIS_URL, limiter, seat).run()

    threading.Thread(target=lambda: asyncio.run(exchange()), name="limits-exchange", daemon=True).start()
    return limiter
