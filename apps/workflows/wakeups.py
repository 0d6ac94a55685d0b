"""Sends wake-ups: to this process's own dispatcher, and through Celery unless that has room.

A wake-up that is lost costs at most the sweeper's interval, so nothing here may fail its caller, nor hold
it up: messages go out from a thread of their own, whatever the broker does.
"""

import atexit
import threading
import time
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog
from django.db import transaction

log = structlog.get_logger("workflows")

TASK = "workflows.drive"
QUIET_SECONDS = 10.0
MOST_WAITING = 1000
PARTING_SECONDS = 2.0


class Local(Protocol):
    """A dispatcher in this process."""

    def accept(self, key: str, queue: str) -> bool:
        """Take the key if this process serves the queue; say whether there is room for whatever it wants to do."""

    def due_at(self, moment: datetime) -> None:
        """Remember that something becomes due."""


_local: Local | None = None


def attach(local: Local | None) -> None:
    """Make a dispatcher this process's own (None: none)."""
    global _local
    _local = local


def after_commit(key: str, queue: str, due: datetime | None = None) -> None:
    """Wake a key once the current transaction is committed; `due`, if in the future, is only noted."""
    if due is None:
        transaction.on_commit(partial(send, key, queue), robust=True)
    else:
        transaction.on_commit(partial(remember, due), robust=True)


def remember(due: datetime) -> None:
    """Tell this process's dispatcher, if there is one, when something becomes due."""
    if _local is not None:
        _local.due_at(due)


def send(key: str, queue: str) -> None:
    """Wake a key now. Never raises and never waits: the sweeper makes up for a broker that is down or hangs."""
    if _local is None or not _local.accept(key, queue):
        _sender.send(key, queue)


class Sender:
    """Sends messages one after another in a thread of its own.

    After a failure the broker is left alone for a while. What waits behind a broker that hangs is kept
    once for each key, up to a number; the rest is left to the sweepers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, str], None] = {}
        self._sending = False
        self._quiet_until = 0.0
        self._thread: threading.Thread | None = None

    def send(self, key: str, queue: str) -> None:
        """Send a message soon."""
        with self._changed:
            if len(self._waiting) >= MOST_WAITING or time.monotonic() < self._quiet_until:
                return
            self._waiting[key, queue] = None
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="workflow-wake-ups", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads, or the process is ending
                    self._waiting.clear()
                    log.warning("wake-ups cannot be sent; the sweeper will find the runs", error=str(error))
                    return
                self._thread = thread
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until everything is sent, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._sending, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                key, queue = next(iter(self._waiting))
                del self._waiting[key, queue]
                self._sending = True
            self._send(key, queue)

    def _send(self, key: str, queue: str) -> None:
        from unkey.celery import app

        try:
            app.send_task(TASK, args=[key], queue=queue, ignore_result=True, retry=False)
        except Exception as error:
            with self._changed:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                self._waiting.clear()
            log.warning(
                "wake-up not sent; the sweeper will find the run", key=key, queue=queue, error=str(error)
            )


_sender = Sender()
# A command that starts a run and ends gives its message a moment; the run does not depend on it.
atexit.register(_sender.finish, PARTING_SECONDS)
