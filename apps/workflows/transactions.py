"""One place for the engine's transactions: short, and run again when the database says "locked"."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from django.db import DatabaseError, OperationalError, connection, transaction

log = structlog.get_logger("workflows")

_T = TypeVar("_T")

ATTEMPTS = 12
PATIENCE_SECONDS = 15.0
# ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_CHECKREAD (snapshot isolation), ER_XA_RBDEADLOCK
_CONTENTION_CODES = {1213, 1205, 1020, 1614}
_one_writer = threading.Lock()


def is_contention(error: BaseException | None) -> bool:
    """Say whether a database error (or its cause) means that trying the transaction again is right."""
    while error is not None:
        if isinstance(error, DatabaseError):
            if error.args and error.args[0] in _CONTENTION_CODES:
                return True
            text = str(error).lower()
            if isinstance(error, OperationalError) and (
                "database is locked" in text or "table is locked" in text
            ):
                return True
        error = error.__cause__
    return False


def in_transaction(work: Callable[[], _T]) -> _T:
    """Run `work` in a transaction and return what it returns; again, after a pause, upon contention.

    SQLite has one writer: threads of this process queue on a lock, because SQLite's own waiting is
    a sleep of up to 100 ms. Inside a caller's transaction, `work` runs once and its errors pass.
    """
    if connection.in_atomic_block:
        with transaction.atomic():
            return work()
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if connection.vendor == "sqlite":
                with _one_writer, transaction.atomic():
                    return work()
            with transaction.atomic():
                return work()
        except DatabaseError as error:
            late = time.monotonic() - started > PATIENCE_SECONDS
            if not is_contention(error) or attempt == ATTEMPTS or late:
                raise
            log.debug("workflow transaction again", attempt=attempt, error=str(error))
        time.sleep(random.uniform(0.5, 1) * min(0.002 * 2**attempt, 0.5))  # noqa: S311
    raise AssertionError("unreachable")
