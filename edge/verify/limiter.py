"""Sliding windows aligned to the epoch, counted in memory (reference, api.md 3.1 and 3.3).

A check at time t in windows of d milliseconds counts the current window and what is left of the
previous one: `current + previous * (d - t mod d) // d + cost <= limit`. Denied checks count nothing.
"""

from collections.abc import Sequence

from msgspec import Struct

MIN_DURATION_MS = 1000


class Limit(Struct, frozen=True, gc=False):
    """One question to the limiter.

    Args:
        counter: who is counted: (workspace, namespace, identifier, duration in ms).
        limit: most cost in a window; 0 denies everything that costs.
        cost: 0 looks without counting.
    """

    counter: tuple[str, str, str, int]
    limit: int
    cost: int = 1


class Outcome(Struct, frozen=True, gc=False):
    """The limiter's answer.

    Args:
        passed: whether this limit alone allows the request.
        remaining: what is left in the window; 0 on denial.
        reset: end of the current window, Unix milliseconds.
    """

    passed: bool
    limit: int
    remaining: int
    reset: int


class _Window:
    __slots__ = ("current", "previous", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.current = 0
        self.previous = 0


class Limiter:
    """Counters of this process.

    Args:
        capacity: most counters kept; when it is reached the oldest are forgotten.
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.forgotten = 0
        self._windows: dict[tuple[str, str, str, int], _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def check(self, limit: Limit, now_ms: int) -> Outcome:
        """Ask one limit and count its cost if it passes.

        Raises:
            ValueError: negative cost or limit, or a window shorter than a second.
        """
        duration = limit.counter[3]
        if limit.cost < 0 or limit.limit < 0 or duration < MIN_DURATION_MS:
            raise ValueError(f"cost {limit.cost}, limit {limit.limit}, duration {duration} ms")
        window = self._windows.get(limit.counter)
        if window is None or window.sequence != now_ms // duration:
            window = self._window(limit.counter, now_ms)
        effective = window.current + limit.cost
        if window.previous:
            effective += _carried(window, duration, now_ms)
        reset = (window.sequence + 1) * duration
        if effective > limit.limit:
            return Outcome(False, limit.limit, 0, reset)
        window.current += limit.cost
        return Outcome(True, limit.limit, limit.limit - effective, reset)

    def check_all(self, limits: Sequence[Limit], now_ms: int) -> tuple[bool, list[Outcome]]:
        """Ask several limits; their costs are counted only if every one passes.

        Limits of the same counter add up. In a refusal, those that would have passed say what
        remains without this request.
        """
        if len(limits) == 1:
            outcome = self.check(limits[0], now_ms)
            return outcome.passed, [outcome]
        for limit in limits:
            if limit.cost < 0 or limit.limit < 0 or limit.counter[3] < MIN_DURATION_MS:
                raise ValueError(f"cost {limit.cost}, limit {limit.limit}, duration {limit.counter[3]} ms")
        windows = [self._window(limit.counter, now_ms) for limit in limits]
        for window, limit in zip(windows, limits, strict=True):
            window.current += limit.cost
        counted = [
            window.current + _carried(window, limit.counter[3], now_ms)
            for window, limit in zip(windows, limits, strict=True)
        ]
        passed = all(count <= limit.limit for count, limit in zip(counted, limits, strict=True))
        outcomes = []
        for window, limit, count in zip(windows, limits, counted, strict=True):
            remaining = max(0, limit.limit - count)
            if not passed:
                window.current -= limit.cost
                remaining = remaining + limit.cost if count <= limit.limit else 0
            reset = (window.sequence + 1) * limit.counter[3]
            outcomes.append(Outcome(count <= limit.limit, limit.limit, remaining, reset))
        return passed, outcomes

    def sweep(self, now_ms: int) -> int:
        """Forget counters that no longer weigh on any check; return how many."""
        stale = [
            counter for counter, window in self._windows.items() if now_ms // counter[3] > window.sequence + 1
        ]
        for counter in stale:
            del self._windows[counter]
        return len(stale)

    def _window(self, counter: tuple[str, str, str, int], now_ms: int) -> _Window:
        sequence = now_ms // counter[3]
        window = self._windows.get(counter)
        if window is None:
            if len(self._windows) >= self.capacity and not self.sweep(now_ms):
                for oldest in list(self._windows)[: max(1, self.capacity // 10)]:
                    del self._windows[oldest]
                    self.forgotten += 1
            window = self._windows[counter] = _Window(sequence)
        elif sequence > window.sequence:
            window.previous = window.current if sequence == window.sequence + 1 else 0
            window.current = 0
            window.sequence = sequence
        return window


def _carried(window: _Window, duration: int, now_ms: int) -> int:
    # A clock that was set back must not weigh the previous window by more than all of it.
    elapsed = max(0, now_ms - window.sequence * duration)
    return window.previous * (duration - elapsed) // duration
