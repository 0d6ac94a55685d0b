"""The rate limiter of a process of web: shared by its threads, and with the other processes of the machine."""

import threading
from collections.abc import Sequence
from functools import cache

from edge.store.counters import open_counters
from edge.verify.limiter import Limit, Limiter, Outcome, Sharing
from unkey.env import env


class ThreadedLimiter(Limiter):
    """A limiter that several threads may ask."""

    def __init__(self, *, sharing: Sharing | None = None) -> None:
        super().__init__(sharing=sharing)
        self._lock = threading.RLock()

    def check(self, limit: Limit, now_ms: int) -> Outcome:
        with self._lock:
            return super().check(limit, now_ms)

    def check_all(self, limits: Sequence[Limit], now_ms: int) -> tuple[bool, list[Outcome]]:
        with self._lock:
            return super().check_all(limits, now_ms)


def process_limiter() -> ThreadedLimiter:
    """Return the limiter of this process; made at its first use, so that forked processes do not share it."""
    with _making:
        return _made()


_making = threading.Lock()


@cache
def _made() -> ThreadedLimiter:
    return ThreadedLimiter(sharing=open_counters(env.limits_folder))
