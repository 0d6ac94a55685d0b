"""Threads for outside parts, with their time-outs; each outcome is delivered exactly once.

A part that runs out of time is given up: its outcome is a `StepTimedOut`, its lease is no longer
renewed, and its thread is replaced by another until it comes back by itself.
"""

import heapq
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import structlog
from django.db import close_old_connections, connections

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
    except SystemExit as left:
        return Raised(task, LeftProcess(f"the outside part asked its process to end: {left!r}"))


class Pool:
    """Threads that run outside parts, made as they are needed.

    Args:
        deliver: called with each outcome, from any thread.
    """

    def __init__(self, deliver: Callable[[Outcome], None]) -> None:
        self._deliver = deliver
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._running: dict[Task, None] = {}
        self._free = 0
        self._stopped = False
        self._clock: threading.Thread | None = None
        self._due: list[tuple[float, int, Task]] = []
        self._earlier = threading.Condition()

    def submit(self, task: Task) -> None:
        """Run a task's outside part as soon as may be."""
        assert task.lease is not None
        leases.keeper.keep(task.lease)
        with self._guard:
            self._running[task] = None
            self._free -= 1
            if self._free < 0:
                self._free += 1
                threading.Thread(target=self._work, name="workflow-outside", daemon=True).start()
        if task.job.step.timeout is not None:
            self._watch(task, task.job.step.timeout)
        self._tasks.put(task)

    def stop(self) -> None:
        """End the threads once they have nothing to do."""
        with self._guard:
            self._stopped = True
            free = self._free
        for _ in range(free):
            self._tasks.put(None)
        with self._earlier:
            self._earlier.notify()

    def _claim(self, task: Task) -> bool:
        with self._guard:
            if task not in self._running:
                return False
            del self._running[task]
            return True

    def _work(self) -> None:
        try:
            while True:
                task = self._tasks.get()
                if task is None:
                    return
                counters.change(running=1)
                try:
                    close_old_connections()
                    outcome = call(task)
                except Exception as error:  # of the connections
                    outcome = Raised(task, error)
                finally:
                    counters.change(running=-1)
                if not self._claim(task):  # it ran out of time, and another thread took this one's place
                    counters.change(abandoned=-1)
                    return
                assert task.lease is not None
                leases.keeper.release(task.lease)
                with self._guard:
                    self._free += 1
                    last = self._stopped
                self._deliver(outcome)
                if last:
                    return
        finally:
            connections.close_all()

    # -- time-outs ---------------------------------------------------------------------------------

    def _watch(self, task: Task, seconds: float) -> None:
        with self._earlier:
            if len(self._due) > 2 * len(self._running) + 64:  # mostly of tasks that have ended in time
                self._due = [each for each in self._due if each[2] in self._running]
                heapq.heapify(self._due)
            heapq.heappush(self._due, (time.monotonic() + seconds, id(task), task))
            if self._clock is None:
                self._clock = threading.Thread(target=self._time, name="workflow-time-outs", daemon=True)
                self._clock.start()
            elif self._due[0][2] is task:
                self._earlier.notify()

    def _time(self) -> None:
        while True:
            with self._earlier:
                if self._stopped and not self._running:
                    return
                while self._due and self._due[0][2] not in self._running:
                    heapq.heappop(self._due)
                pause = self._due[0][0] - time.monotonic() if self._due else None
                if pause is None or pause > 0:
                    self._earlier.wait(pause)
                    continue
                _, _, task = heapq.heappop(self._due)
            self._give_up(task)

    def _give_up(self, task: Task) -> None:
        if not self._claim(task):
            return
        assert task.lease is not None
        leases.keeper.release(task.lease)
        counters.change(abandoned=1)
        seconds = task.job.step.timeout
        log.warning(
            "workflow step ran out of time; its thread is left to end by itself",
            run_id=task.run_id,
            step=task.job.step.name,
            abandoned=counters.outside_abandoned,
        )
        self._deliver(Raised(task, StepTimedOut(f"no result after {seconds:g} s")))
