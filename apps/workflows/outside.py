"""Outside parts that run, their leases and time-outs; each has exactly one outcome.

A part that runs out of time is given up: its outcome is a `StepTimedOut`, its lease is no longer
renewed, and its thread is left to end by itself.
"""

import heapq
import threading
import time
from collections.abc import Callable

import structlog

from apps.workflows import leases
from apps.workflows.counters import counters
from apps.workflows.turns import LeftProcess, Outcome, Raised, Returned, Task

log = structlog.get_logger("workflows")


class StepTimedOut(Exception):
    """An outside part took longer than its step allows."""


def call(task: Task) -> Outcome:
    """Run a task's outside part in this thread."""
    outside = task.job.step.outside
    assert outside is not None
    try:
        with task.view.scope():
            return Returned(task, outside(task.view))
    except Exception as error:
        return Raised(task, error)
    except BaseException as left:  # sys.exit(), a cancelled task of asyncio: not the end of this thread
        return Raised(task, LeftProcess(f"the outside part asked its process to end: {left!r}"))


class Parts:
    """Outside parts of this process.

    Args:
        expired: called, from a thread of its own, with the outcome of a part that ran out of time.
    """

    def __init__(self, expired: Callable[[Outcome], None]) -> None:
        self._expired = expired
        self._running: set[Task] = set()
        self._guard = threading.Lock()
        self._clock: threading.Thread | None = None
        self._due: list[tuple[float, int, Task]] = []
        self._earlier = threading.Condition()

    def begin(self, task: Task) -> None:
        """Keep the lease of a task whose outside part is to run, and let its time begin."""
        assert task.lease is not None
        leases.keeper.keep(task.lease)
        with self._guard:
            self._running.add(task)
        if task.job.step.timeout is not None:
            self._watch(task, task.job.step.timeout)

    def run(self, task: Task) -> Outcome | None:
        """Run it in this thread; None if it was given up meanwhile: its outcome was another."""
        counters.change(running=1)
        outcome = call(task)
        counters.change(running=-1)
        if self._claim(task):
            return outcome
        counters.change(abandoned=-1)
        return None

    def _claim(self, task: Task) -> bool:
        with self._guard:
            if task not in self._running:
                return False
            self._running.remove(task)
        assert task.lease is not None
        leases.keeper.release(task.lease)
        return True

    # -- time-outs ---------------------------------------------------------------------------------

    def _watch(self, task: Task, seconds: float) -> None:
        with self._earlier:
            if len(self._due) > 2 * len(self._running) + 64:  # mostly of tasks that have ended in time
                self._due = [each for each in self._due if each[2] in self._running]
                heapq.heapify(self._due)
            heapq.heappush(self._due, (time.monotonic() + seconds, id(task), task))
            if self._clock is None:
                clock = threading.Thread(target=self._time, name="workflow-time-outs", daemon=True)
                try:
                    clock.start()
                except RuntimeError as error:  # no more threads: the next part with a time-out tries again
                    log.error("a thread for time-outs cannot be started", error=str(error))
                else:
                    self._clock = clock
            elif self._due[0][2] is task:
                self._earlier.notify()

    def _time(self) -> None:
        while True:
            with self._earlier:
                while self._due and self._due[0][2] not in self._running:
                    heapq.heappop(self._due)
                if not self._due:
                    self._clock = None
                    return
                pause = self._due[0][0] - time.monotonic()
                if pause > 0:
                    self._earlier.wait(pause)
                    continue
                _, _, task = heapq.heappop(self._due)
            self._give_up(task)

    def _give_up(self, task: Task) -> None:
        if not self._claim(task):
            return
        counters.change(abandoned=1)
        seconds = task.job.step.timeout
        log.warning(
            "workflow step ran out of time; its thread is left to end by itself",
            run_id=task.run_id,
            step=task.job.step.name,
            abandoned=counters.outside_abandoned,
        )
        self._expired(Raised(task, StepTimedOut(f"no result after {seconds:g} s")))
