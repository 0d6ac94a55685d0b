"""Contention for real: deadlocks of MariaDB, "locked" of SQLite, and that the transaction is run again."""

import sqlite3
import threading

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections

from apps.workflows.tests import flows
from apps.workflows.transactions import in_transaction, is_contention


def in_thread(work: object, errors: list[BaseException]) -> threading.Thread:
    def body() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def _deadlock() -> int:
    """Let two transactions lock two rows in opposite order; return how often their work was begun."""
    for name in ("left", "right"):
        Group.objects.create(name=name)
    both_hold_one = threading.Barrier(2, timeout=60)
    begun: list[str] = []
    errors: list[BaseException] = []

    def cross(first: str, second: str) -> None:
        met = False

        def work() -> None:
            nonlocal met
            begun.append(first)
            Group.objects.select_for_update().get(name=first)
            if not met:
                met = True
                both_hold_one.wait()
            Group.objects.select_for_update().get(name=second)
            flows.effect(f"crossed from {first}")

        in_transaction(work)

    threads = [
        in_thread(lambda: cross("left", "right"), errors),
        in_thread(lambda: cross("right", "left"), errors),
    ]
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(flows.effects("crossed")) == ["crossed from left", "crossed from right"]
    return len(begun)


def _locked() -> int:
    """Let a stranger hold the write lock until the engine has met it once; return how often it tried."""
    tried = 0
    errors: list[BaseException] = []
    stranger = sqlite3.connect(
        connection.settings_dict["NAME"], isolation_level=None, check_same_thread=False
    )
    stranger.execute("BEGIN IMMEDIATE")

    def write() -> None:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout=1")
        begin = connection._start_transaction_under_autocommit  # type: ignore[attr-defined]

        def counted() -> None:
            nonlocal tried
            tried += 1
            if tried == 2:
                stranger.execute("ROLLBACK")
            begin()

        connection._start_transaction_under_autocommit = counted  # type: ignore[attr-defined]
        try:
            in_transaction(lambda: flows.effect("written"))
        finally:
            del connection._start_transaction_under_autocommit  # type: ignore[attr-defined]

    in_thread(write, errors).join()
    stranger.close()
    assert errors == []
    assert flows.effects("written") == ["written"]
    return tried


def test_a_transaction_that_meets_contention_is_run_again_and_counts_once(transactional_db: None) -> None:
    if connection.vendor == "sqlite":
        assert _locked() == 2
    else:
        assert _deadlock() == 3  # one of the two was chosen to give way, once


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperationalError(1213, "Deadlock found when trying to get lock"), True),
        (OperationalError(1205, "Lock wait timeout exceeded"), True),
        (OperationalError("database is locked"), True),
        (OperationalError(2006, "Server has gone away"), False),
        (IntegrityError(1062, "Duplicate entry"), False),
        (DatabaseError("syntax error"), False),
        (ValueError("database is locked"), False),
    ],
)
def test_only_contention_is_tried_again(error: BaseException, expected: bool) -> None:
    assert is_contention(error) is expected
