"""What this process's engine has done, as plain numbers: the hot path adds, a scrape reads.

    for (service, step, outcome), count in counters.steps.items(): ...

Outcomes of steps: `done`, `waiting`, `retried` (failed, to be tried again), `failed` (for good),
`lost` (its worker was). Compensations and failure hooks are counted under their own names.
"""

import threading
from bisect import bisect_left
from collections import Counter

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Observations by bucket.

    Attributes:
        counts: per bucket, not yet added up; one more than its bounds.
        total: sum of what was observed.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Counters of one process; they only grow, except `outside_running` and `outside_abandoned`.

    Attributes:
        steps: turns of steps by (service, step, outcome).
        seconds: by (service, step), from the beginning of an attempt's first part to its commit.
        runs_ended: by (service, state).
        lease_lapses: leases of others that were found lapsed and taken over.
        lease_losses: outcomes of this process that were refused, because their lease was taken over.
        commits: transactions of the engine that committed.
        group_sizes: how many keys each of them moved.
        splits: groups that were divided after contention or a failure.
        outside_running: outside parts that run now.
        outside_abandoned: outside parts that ran out of time and whose threads still run.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.steps: Counter[tuple[str, str, str]] = Counter()
        self.seconds: dict[tuple[str, str], Histogram] = {}
        self.runs_ended: Counter[tuple[str, str]] = Counter()
        self.lease_lapses = 0
        self.lease_losses = 0
        self.commits = 0
        self.group_sizes = Histogram((1, 2, 4, 8, 16, 32, 64, 128))
        self.splits = 0
        self.outside_running = 0
        self.outside_abandoned = 0

    def group(
        self,
        moved: int,
        steps: list[tuple[str, str, str, float]],
        ended: list[tuple[str, str]],
        lapses: int,
        losses: int,
    ) -> None:
        """Add what one committed transaction did.

        Args:
            moved: keys that it moved.
            steps: (service, step, outcome, seconds) of each turn.
            ended: (service, state) of each run that ended.
            lapses: leases that were taken over.
            losses: outcomes that were refused.
        """
        with self._guard:
            self.commits += 1
            if moved:
                self.group_sizes.observe(moved)
            for service, step, outcome, seconds in steps:
                self.steps[service, step, outcome] += 1
                histogram = self.seconds.get((service, step))
                if histogram is None:
                    histogram = self.seconds[service, step] = Histogram(BOUNDS)
                histogram.observe(seconds)
            for each in ended:
                self.runs_ended[each] += 1
            self.lease_lapses += lapses
            self.lease_losses += losses

    def change(self, *, running: int = 0, abandoned: int = 0, splits: int = 0) -> None:
        """Add to the numbers that are not those of a transaction."""
        with self._guard:
            self.outside_running += running
            self.outside_abandoned += abandoned
            self.splits += splits


counters = Counters()
