"""Sends wake-ups: to this process's own dispatcher, and through Celery unless that has room.

A wake-up that is lost costs at most the sweeper's interval, so nothing here may fail its caller.
"""

import time
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog
from django.db import transaction

log = structlog.get_logger("workflows")

TASK = "workflows.drive"
QUIET_SECONDS = 10.0


class Local(Protocol):
    """A dispatcher in this process."""

    def accept(self, key: str, queue: str) -> bool:
        """Take the key if this process serves the queue; say whether there is room for whatever it wants to do."""

    def due_at(self, moment: datetime) -> None:
        """Remember that something becomes due."""


_local: Local | None = None
_quiet_until = 0.0


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
    """Wake a key now. Never raises: a broker that is down is logged, and the sweeper makes up for it.

    After a failure the broker is left alone for a while, so that its time-out is not paid by every caller.
    """
    global _quiet_until
    if _local is not None and _local.accept(key, queue):
        return
    if time.monotonic() < _quiet_until:
        return
    from unkey.celery import app

    try:
        app.send_task(TASK, args=[key], queue=queue, ignore_result=True, retry=False)
    except Exception as error:
        _quiet_until = time.monotonic() + QUIET_SECONDS
        log.warning("wake-up not sent; the sweeper will find the run", key=key, queue=queue, error=str(error))
