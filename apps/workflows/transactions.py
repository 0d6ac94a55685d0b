"""One place for the engine's transactions: short, and run again when the database says "locked"."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

log = structlog.get_logger("workflows")

_T = TypeVar("_T")

ATTEMPTS = 12
PATIENCE_SECONDS = 15.0
# ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_CHECKREAD (snapshot isolation), ER_XA_RBDEADLOCK
_CONTENTION_CODES = {1213, 1205, 1020, 1614}
# Server is shutting down or read-only, connection killed, cannot connect, gone away, lost, timed out.
_AWAY_CODES = {1053, 1290, 1927, 2002, 2003, 2005, 2006, 2013, 2055, 4031}
_SQLITE_AWAY = ("unable to open", "disk i/o error", "disk is full", "readonly database", "malformed")
_one_writer = threading.RLock()  # what follows a commit may write in a transaction of its own


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


def waited_in_vain(error: BaseException) -> bool:
    """Say whether MariaDB gave up waiting for a lock (ER_LOCK_WAIT_TIMEOUT, by default after 50 s)."""
    return isinstance(error, OperationalError) and error.args[:1] == (1205,)


def is_away(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be reached at the moment."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if connection.vendor == "sqlite":
        return any(text in str(error).lower() for text in _SQLITE_AWAY)
    return isinstance(error, InterfaceError) or (bool(error.args) and error.args[0] in _AWAY_CODES)


def in_transaction(work: Callable[[], _T], attempts: int = ATTEMPTS) -> _T:
    """Run `work` in a transaction and return what it returns; again, after a pause, upon contention.

    SQLite has one writer: threads of this process queue on a lock, because SQLite's own waiting is
    a sleep of up to 100 ms. Inside a caller's transaction, `work` runs once and its errors pass.
    """
    if connection.in_atomic_block:
        with transaction.atomic():
            return work()
    started = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            if connection.vendor == "sqlite":
                with _one_writer, transaction.atomic():
                    return work()
            with transaction.atomic():
                return work()
        except DatabaseError as error:
            late = time.monotonic() - started > PATIENCE_SECONDS
            if not is_contention(error) or attempt == attempts or late:
                raise
            log.debug("workflow transaction again", attempt=attempt, error=str(error))
        time.sleep(random.uniform(0.5, 1) * min(0.002 * 2**attempt, 0.5))  # noqa: S311
    raise AssertionError("unreachable")
