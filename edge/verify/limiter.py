"""Sliding windows aligned to the epoch, counted in memory (reference, api.md 3.1 and 3.3).

A check at time t in windows of d milliseconds counts the current window and what is left of the
previous one: `current + previous * (d - t mod d) // d + cost <= limit`. Denied checks count nothing.

What others count of the same windows is added: by processes of this machine (`Sharing`, read at every
check) and by other machines (`due` and `learn`, called from time to time). See docs/ratelimits.md.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

MIN_DURATION_MS = 1000
# Counters kept besides where processes share them: any other is found there again.
_KEPT_OF_SHARED = 50_000
# How many counters are looked at for each that is new, and at a sweep.
_LOOKED_AT = 2
_SET_BACK_MS = 2000  # a clock that is held back by less is being adjusted
_SWEPT = 400

Counter = tuple[str, str, str, int]
"""Who is counted: (workspace, namespace, identifier, duration in ms)."""


class Limit(Struct, frozen=True, gc=False):
    """One question to the limiter.

    Args:
        counter: who is counted.
        limit: most cost in a window; 0 denies everything that costs.
        cost: 0 looks without counting.
    """

    counter: Counter
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


Place = tuple[memoryview, int]
"""Where somebody counts a counter: four words, `until` and count of one window, then of another."""


class Sharing(Protocol):
    """Counts that processes of one machine see of each other, without waiting.

    A window is known by `until`, the moment from which it weighs nothing: a duration after its end.
    """

    def mark(self, counter: Counter) -> int:
        """Return the number that a counter is known by."""

    def place(self, mark: int, now_ms: int) -> int:
        """Return where this process writes a counter, -1: nowhere, so that nobody else sees it."""

    #: Counts as this process writes them: one window's is at the number that `begin` returned.
    cells: memoryview
    #: One number, which changes whenever somebody may have begun to count what they did not.
    changes: memoryview

    def own(self, place: int, until: int) -> int:
        """Return what this process, or the one whose place it took, counted of a window."""

    def begin(self, place: int, sequence: int, until: int, count: int) -> int:
        """Write a window that begins, with what is known to be counted of it; return where its count is."""

    def elsewhere(self, mark: int) -> tuple[Place, ...]:
        """Return where others count a counter, as long as `changes` stays what it was before the call."""


class Due(NamedTuple):
    """What another machine is to be told of a counter, and asked about it.

    Args:
        current, previous: own counts of the window `sequence` and of the one before.
    """

    counter: Counter
    sequence: int
    current: int
    previous: int


class Window:
    """What is counted of one counter, here and, as far as is known here, elsewhere.

    Attributes:
        ends: end of the window that `current` is of, Unix milliseconds; 0: the limiter has forgotten it.
        far, far_previous: counted on other machines.
        mark, cell: of the counts that processes share; a cell of -1: nobody else sees this one.
        elsewhere: where other processes of the machine count, as of `seen`.
    """

    __slots__ = (
        *("cell", "current", "elsewhere", "ends", "far", "far_previous", "mark", "previous"),
        "seen",
    )

    def __init__(self, ends: int, mark: int) -> None:
        self.ends = ends
        self.current = 0
        self.previous = 0
        self.far = 0
        self.far_previous = 0
        self.mark = mark
        self.cell = -1
        self.elsewhere: tuple[Place, ...] = ()
        self.seen = 0


class Limiter:
    """Counters of this process.

    Args:
        capacity: most counters kept; when it is reached those that are not new are forgotten.
        sharing: counts of this machine's other processes.
        far: whether there are other machines to exchange counts with, by `due` and `learn`.
    """

    def __init__(
        self, capacity: int = 1_000_000, *, sharing: Sharing | None = None, far: bool = False
    ) -> None:
        self.capacity = capacity
        self.forgotten = 0
        self._sharing: Sharing | None = None
        # Two generations. Each new counter has some of the older one looked at: they are forgotten, or young
        # again. So nobody ever waits until all of them were looked at.
        self._windows: dict[Counter, Window] = {}
        self._older: dict[Counter, Window] = {}
        self._swept_at = 0
        self._new = 0  # counters since some were looked at
        self._cells = memoryview(b"")
        # Counters that were asked since they were last exchanged, oldest first.
        self._touched: dict[Counter, None] | None = {} if far else None

        self.sharing = sharing

    def __len__(self) -> int:
        return len(self._windows) + len(self._older)

    @property
    def sharing(self) -> Sharing | None:
        """Counts of this machine's other processes; windows take part in it from when they begin."""
        return self._sharing

    @sharing.setter
    def sharing(self, sharing: Sharing | None) -> None:
        self._sharing = sharing
        self._cells = memoryview(b"") if sharing is None else sharing.cells
        self._changes: Sequence[int] = (0,) if sharing is None else sharing.changes
        for counter, window in (*self._windows.items(), *self._older.items()):
            window.cell = -1
            window.mark = 0 if sharing is None else sharing.mark(counter)
            window.elsewhere, window.seen = (), 0

    def check(self, limit: Limit, now_ms: int) -> Outcome:
        """Ask one limit and count its cost if it passes.

        Raises:
            ValueError: negative cost or limit, or a window shorter than a second.
        """
        remaining, reset = self.count(limit.counter, limit.limit, limit.cost, now_ms)
        return Outcome(remaining >= 0, limit.limit, max(0, remaining), reset)

    def count(self, counter: Counter, limit: int, cost: int, now_ms: int) -> tuple[int, int]:
        """Do as `check`; return what remains, -1 on denial, and the reset."""
        duration = counter[3]
        if cost < 0 or limit < 0 or duration < MIN_DURATION_MS:
            raise ValueError(f"cost {cost}, limit {limit}, duration {duration} ms")
        if self._new:
            self._look_over(_LOOKED_AT * self._new, now_ms)
        window = self._windows.get(counter)
        if window is None or now_ms >= window.ends:
            window = self._window(counter, now_ms)
        if self._touched is not None:
            self._touched[counter] = None
        effective = self._counted(window, duration, now_ms) + cost
        if effective > limit:
            return -1, window.ends
        if cost:
            window.current += cost
            if window.cell >= 0:
                self._cells[window.cell] = window.current
        return limit - effective, window.ends

    def check_all(self, limits: Sequence[Limit], now_ms: int) -> tuple[bool, list[Outcome]]:
        """Ask several limits; their costs are counted only if every one passes.

        Limits of the same counter add up. In a refusal, those that would have passed say what
        remains without this request.

        Raises:
            ValueError: as `check`; nothing was counted.
        """
        if len(limits) == 1:
            outcome = self.check(limits[0], now_ms)
            return outcome.passed, [outcome]
        if self._new:
            self._look_over(_LOOKED_AT * self._new, now_ms)
        asked: dict[Counter, int] = {}
        for limit in limits:
            if limit.cost < 0 or limit.limit < 0 or limit.counter[3] < MIN_DURATION_MS:
                raise ValueError(f"cost {limit.cost}, limit {limit.limit}, duration {limit.counter[3]} ms")
            asked[limit.counter] = asked.get(limit.counter, 0) + limit.cost
        windows = {counter: self._window(counter, now_ms) for counter in asked}
        if self._touched is not None:
            self._touched.update(dict.fromkeys(asked))
        counted = {
            counter: self._counted(window, counter[3], now_ms) + asked[counter]
            for counter, window in windows.items()
        }
        passed = all(counted[limit.counter] <= limit.limit for limit in limits)
        outcomes = []
        for limit in limits:
            count = counted[limit.counter]
            fits = count <= limit.limit
            remaining = limit.limit - count if fits else 0
            if fits and not passed:
                remaining += limit.cost
            outcomes.append(Outcome(fits, limit.limit, remaining, windows[limit.counter].ends))
        if passed:
            for counter, cost in asked.items():
                window = windows[counter]
                window.current += cost
                if window.cell >= 0:
                    self._cells[window.cell] = window.current
        return passed, outcomes

    def take(self, limits: Sequence[Limit], windows: list[Window], now_ms: int) -> list[int] | None:
        """Ask valid limits of different counters, for who cannot go on if one is exceeded.

        Args:
            windows: what the last call for these limits left there, at first nothing: saves looking for them.

        Returns:
            for each what remains and when its window ends; None: nothing was counted, `check_all` tells why.
        """
        if self._new:
            self._look_over(_LOOKED_AT * self._new, now_ms)
        if len(windows) != len(limits):
            windows[:] = [self._window(limit.counter, now_ms) for limit in limits]
        changes, far = self._changes[0], self._touched is not None
        taken: list[int] = []
        for place, limit in enumerate(limits):
            window = windows[place]
            if now_ms >= window.ends:
                window = windows[place] = self._window(limit.counter, now_ms)
            if far or window.elsewhere or window.seen != changes:
                count = self._counted(window, limit.counter[3], now_ms)
            elif window.previous:
                count = window.current + _left(window.previous, window.ends, limit.counter[3], now_ms)
            else:
                count = window.current
            remaining = limit.limit - limit.cost - count
            if remaining < 0:
                return None
            taken += (remaining, window.ends)
        cells = self._cells
        for place, limit in enumerate(limits):
            window = windows[place]
            if self._touched is not None:
                self._touched[limit.counter] = None
            if limit.cost:
                window.current += limit.cost
                if window.cell >= 0:
                    cells[window.cell] = window.current
        return taken

    def sweep(self, now_ms: int) -> int:
        """Forget counters that no longer weigh on any check, of the next few hundred; return how many.

        To be called every half minute or so: this is where a clock is noticed that was set back.
        """
        if now_ms < self._swept_at - _SET_BACK_MS:
            self._set_back(now_ms)
        self._swept_at = now_ms
        return self._look_over(_SWEPT, now_ms)

    def _set_back(self, now_ms: int) -> None:
        """Let windows that have yet to begin be those of now.

        What was counted in them counts on, lest it be given twice; were they left alone, a limit that was reached
        would stay closed until the clock has caught up.
        """
        for counter, window in (*self._windows.items(), *self._older.items()):
            duration = counter[3]
            ends = (now_ms // duration + 1) * duration
            if window.ends > ends:
                window.previous = window.far_previous = 0
                window.ends = ends
                self._share(window, duration, now_ms)

    # Other machines

    def due(self, most: int) -> list[Due]:
        """Take the counters that were asked since they were last taken, those that wait longest first.

        Args:
            most: how many at most.
        """
        if not self._touched:
            return []
        found = []
        for counter in _first(self._touched, most):
            del self._touched[counter]
            window = self._find(counter)
            if window is not None:
                sequence = window.ends // counter[3] - 1
                found.append(Due(counter, sequence, window.current, window.previous))
        return found

    def learn(self, counter: Counter, sequence: int, current: int, previous: int) -> None:
        """Take in what other machines counted.

        Args:
            sequence: the window that `current` is of, as `Due` has it; `previous` is the one before.
        """
        window = self._find(counter)
        if window is None:
            return
        # Windows only grow: what is less than what is known was overtaken on the way.
        known = window.ends // counter[3] - 1
        if known == sequence:
            window.far = max(window.far, current)
            window.far_previous = max(window.far_previous, previous)
        elif known == sequence + 1:
            window.far_previous = max(window.far_previous, current)

    def postpone(self, due: Sequence[Due]) -> None:
        """Take counters back that could not be exchanged: they are due again."""
        if self._touched is not None:
            self._touched.update(dict.fromkeys(each.counter for each in due))

    # Windows

    def _window(self, counter: Counter, now_ms: int) -> Window:
        duration = counter[3]
        ends = (now_ms // duration + 1) * duration
        window = self._windows.get(counter)
        if window is None and (window := self._older.pop(counter, None)):
            self._windows[counter] = window
        if window is None:
            mark = 0 if self._sharing is None else self._sharing.mark(counter)
            window = self._windows[counter] = Window(ends, mark)
            self._new += 1
            self._share(window, duration, now_ms)
        elif ends > window.ends:
            follows = ends == window.ends + duration
            window.previous = window.current if follows else 0
            window.far_previous = window.far if follows else 0
            window.current = window.far = 0
            window.ends = ends
            self._share(window, duration, now_ms)
        return window

    def _find(self, counter: Counter) -> Window | None:
        return self._windows.get(counter) or self._older.get(counter)

    def _look_over(self, most: int, now_ms: int) -> int:
        """Forget what weighs nothing, or is written elsewhere, or is too much; return how many were.

        Not while windows are in use: one that is forgotten is another's to count.
        """
        if not self._older:
            self._older, self._windows = self._windows, self._older
        windows, older = self._windows, self._older
        before = len(self)
        self._new = 0
        for _ in range(min(most, len(older))):
            kept = len(windows) + len(older)
            counter, window = older.popitem()
            if now_ms < window.ends + counter[3]:
                written = window.cell >= 0 and self._touched is None
                if not (kept >= _KEPT_OF_SHARED if written else kept >= self.capacity):
                    windows[counter] = window
                    continue
                self.forgotten += not written
            # Who still holds the window looks for another.
            window.ends = 0
        return before - len(self)

    def _share(self, window: Window, duration: int, now_ms: int) -> None:
        """Find where a window that begins is written; go on with what is written there already."""
        sharing = self._sharing
        if sharing is None:
            return
        place = sharing.place(window.mark, now_ms)
        window.cell = -1
        if place >= 0:
            until = window.ends + duration
            window.current = max(window.current, sharing.own(place, until))
            window.previous = max(window.previous, sharing.own(place, window.ends))
            window.cell = sharing.begin(place, window.ends // duration, until, window.current)

    def _counted(self, window: Window, duration: int, now_ms: int) -> int:
        """Return what weighs on a check at a moment: of the window, and what is left of the one before."""
        current = window.current + window.far
        previous = window.previous + window.far_previous
        changes = self._changes[0]
        if window.seen != changes and self._sharing is not None:
            window.elsewhere = self._sharing.elsewhere(window.mark)
            window.seen = changes
        for cells, at in window.elsewhere:
            until = window.ends + duration
            even, count, odd, more = cells[at : at + 4].tolist()
            if even == until:
                current += count
            elif even == window.ends:
                previous += count
            if odd == until:
                current += more
            elif odd == window.ends:
                previous += more
        return current + _left(previous, window.ends, duration, now_ms) if previous else current


def _left(previous: int, ends: int, duration: int, now_ms: int) -> int:
    """Return what is left of the count of a window, in the next one, which ends at `ends`."""
    # A clock that was set back must not weigh it by more than all of it.
    return previous * min(duration, ends - now_ms) // duration


def _first(counters: dict[Counter, None], most: int) -> list[Counter]:
    taking: Iterator[Counter] = iter(counters)
    return [counter for counter, _ in zip(taking, range(most), strict=False)]
