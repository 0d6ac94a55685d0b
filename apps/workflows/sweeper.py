"""Finds what is due and drives it in this process: timers, lapsed leases, runs nobody woke.

One dispatcher per worker process holds the threads that run steps. Wake-ups from Celery and the
sweeper's own findings both go through it, so that a process never drives one key twice at a time.
"""

import gc
import threading
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connection, connections

from apps.workflows import wakeups
from apps.workflows.driver import Driver, end_unbegun
from apps.workflows.due import BATCH, due_keys, next_due, unbegun_cancels
from apps.workflows.lanes import Lanes
from unkey import clock
from unkey.health import outage

log = structlog.get_logger("workflows")

INTERVAL = 0.5
YOUNG_OBJECTS = 10_000
ANSWER_SECONDS = 120  # MariaDB gives up waiting for a lock after 50 s, by default


def drain(limit: int = 10_000) -> int:
    """Drive everything that is due in this thread until nothing is; for tests of workflows.

    Works inside a test's transaction. Timers are not waited for: move `unkey.clock` and drain again.

    Args:
        limit: most rounds, so that a run that never settles ends the test.

    Returns:
        How many transactions moved a run forward.

    Raises:
        RuntimeError: the limit was reached.
    """
    moved = 0
    for _ in range(limit):
        keys = due_keys()
        if not keys:
            return moved
        for key in keys:
            moved += Driver(inline=True).drive(key)
    raise RuntimeError(f"workflows are still due after {limit} rounds")


class Dispatcher:
    """Drives keys in this process, and the sweeper that finds them.

    Args:
        queues: the queues that this process serves; None: all.
        threads: how many outside parts run at a time.
    """

    def __init__(self, queues: Iterable[str] | None, threads: int) -> None:
        self.queues = None if queues is None else frozenset(queues)
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._soonest: datetime | None = None
        self._stopping = threading.Event()
        self._sweeper: threading.Thread | None = None
        self._lanes = Lanes(self.queues, threads, due_at=self.due_at, drained=self._wanted.set)

    def start(self) -> None:
        """Begin to sweep, and take this process's wake-ups."""
        wakeups.attach(self)
        self._sweeper = threading.Thread(target=self._sweep, name="workflow-sweeper", daemon=True)
        self._sweeper.start()

    def wind_down(self) -> None:
        """Take nothing more; let every run stop at the end of the step that it is in."""
        wakeups.attach(None)
        self._stopping.set()
        self._wanted.set()
        self._lanes.wind_down()

    def stop(self) -> None:
        """Wind down, and wait for the steps in hand."""
        self.wind_down()
        if self._sweeper is not None:
            self._sweeper.join()
        self._lanes.join()

    def accept(self, key: str, queue: str) -> bool:
        """Take a wake-up of this process if the queue is served here; say whether others need not know of it."""
        if self.queues is not None and queue not in self.queues:
            return False
        return self._lanes.offer(key)

    def wake(self, key: str) -> None:
        """Take a wake-up from the broker and return at once."""
        self._lanes.offer(key)

    def due_at(self, moment: datetime) -> None:
        """Sweep at this time, if that is sooner than planned."""
        with self._guard:
            if self._soonest is not None and self._soonest <= moment:
                return
            self._soonest = moment
        self._wanted.set()

    def _sweep(self) -> None:
        away = False
        while not self._stopping.is_set():
            pause = INTERVAL
            try:
                close_old_connections()
                pause = self._sweep_once()
                if away:
                    log.info("the database is back")
                away = False
            except Exception as error:
                told = outage(error)
                if told is None:
                    log.exception("sweep failed")
                elif not away:
                    away = True
                    log.warning("nothing is driven for now", reason=told, error=str(error))
            self._wanted.wait(pause)
            self._wanted.clear()
        connections.close_all()

    def _sweep_once(self) -> float:
        keys = due_keys(self.queues, BATCH, self._lanes.room)
        self._lanes.found(keys, more=len(keys) == BATCH)
        for run_id, key in unbegun_cancels(self.queues):
            end_unbegun(run_id, key)
        soonest = next_due(self.queues)
        with self._guard:
            self._soonest = soonest
        if soonest is None:
            return INTERVAL
        return min(INTERVAL, max((soonest - clock.now()) / timedelta(seconds=1), 0.001))


def serve(queues: Iterable[str] | None, threads: int) -> Dispatcher:
    """Start the dispatcher of a process that does nothing else for the rest of its life.

    What is loaded by now stays: Python need not look through it for garbage again and again while steps
    run, which takes a quarter of the processor that they need. A database that stops answering is given
    up after a while, and connected to anew.
    """
    _bound_answers()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    dispatcher = Dispatcher(queues, threads)
    dispatcher.start()
    return dispatcher


def _bound_answers() -> None:
    """Let no thread wait for ever for a MariaDB whose machine or network is gone; `DATABASE_URL` may say how long."""
    if connection.vendor == "mysql":
        options = connections.settings[DEFAULT_DB_ALIAS]["OPTIONS"]
        for name in ("read_timeout", "write_timeout"):
            options.setdefault(name, ANSWER_SECONDS)
        connection.close()
