"""Two servers under the same load in turn: A B A B, so that what else the machine does weighs on both."""

import statistics
import subprocess
from collections.abc import Callable

import psutil

from benchmarks.load import Result


class Side:
    """A server and what was seen of it.

    Args:
        load: runs the load for some seconds.
    """

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes] | psutil.Process,
        load: Callable[[float], Result],
    ) -> None:
        self.name = name
        self.results: list[Result] = []
        self.costs: list[float] = []  # microseconds of processor time per request
        self._process = psutil.Process(process.pid)
        self._load = load

    def run(self, seconds: float) -> float:
        """Load it once and return its rate."""
        before = self._used()
        result = self._load(seconds)
        self.results.append(result)
        self.costs.append((self._used() - before) / max(1.0, result.rate * max(1, round(seconds))) * 1e6)
        return result.rate

    def _used(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def failures(self) -> int:
        """Answers that were not 2xx, and broken connections."""
        return sum(result.failures for result in self.results)

    def __str__(self) -> str:
        rates = [result.rate for result in self.results]
        p99 = statistics.median(result.p99_ms for result in self.results)
        return (
            f"{self.name:<8} {statistics.median(rates):>9,.0f} requests/s  "
            f"({min(rates):,.0f} to {max(rates):,.0f})  p99 {p99:.2f} ms  failures {self.failures}  "
            f"{statistics.median(self.costs):.1f} us of processor each  [{self.results[0].generator}]"
        )


def compare(ours: Side, theirs: Side, rounds: int, seconds: float) -> float:
    """Load both in turn, print what was seen, and return the median of the rounds' ratios."""
    # A side may answer nothing at all for a round on a machine that does other things: no ratio follows.
    pairs = [(ours.run(seconds), theirs.run(seconds)) for _ in range(rounds)]
    ratios = [mine / other for mine, other in pairs if other] or [0.0]
    print(ours)
    print(theirs)
    return statistics.median(ratios)
