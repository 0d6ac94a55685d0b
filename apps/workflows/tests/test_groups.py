"""Many keys in one transaction: what fails is taken down alone, and a lost worker counts as an attempt."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.db.models import QuerySet

from apps.workflows.driver import commit
from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.group import Crew, Done
from apps.workflows.models import WorkflowKey
from apps.workflows.sweeper import Dispatcher
from apps.workflows.tests import flows
from apps.workflows.turns import Returned
from unkey import clock

pytestmark = pytest.mark.django_db


def crew() -> Crew:
    return Crew(
        None,
        stopping=lambda: False,
        take_place=lambda key, urgent: True,
        give_back=lambda places: None,
        keeps_place=lambda key, urgent: True,
    )


def moved(with_crew: Crew, runs: list[WorkflowRun]) -> list[Done]:
    """Move the keys of runs once, those that were put aside as slow by themselves, and read the runs again."""
    done = list(commit(with_crew, [run.key for run in runs], []))
    slow = [key for each in done for key in each.alone]
    done += [each for key in slow for each in commit(with_crew, [key], [])]
    for run in runs:
        run.refresh_from_db()
    return done


def test_a_recording_part_that_fails_in_a_group_takes_no_other_with_it() -> None:
    together = crew()
    for name in ("one", "two", "three"):
        together.pace.took("test-three", name, 0.001)
    for name in ("one", "refuse", "note_failure"):
        together.pace.took("test-refuses", name, 0.001)
    runs = [
        start(flows.Three, {"k": "a", "name": "a"}),
        start(flows.Refuses, {"k": "b", "name": "b"}),
        start(flows.Three, {"k": "c", "name": "c"}),
    ]
    for _ in range(20):
        moved(together, runs)
    assert [run.state for run in runs] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert "refuse" not in flows.effects()
    assert {f"{who}.{what}" for who in "ac" for what in ("one", "two", "three")} <= set(flows.effects())


def test_a_step_that_loses_its_worker_every_time_fails_and_says_so() -> None:
    run = start(flows.Overlaps, {"k": "a", "room": "/nonexistent"})
    attempts = 0
    for minutes in range(10):
        with clock.shifted(timedelta(minutes=minutes)):
            for done in moved(crew(), [run]):
                attempts += len(done.launches)
    assert (run.state, run.error_code) == (State.FAILED, "worker_lost")
    assert "5 times in a row while it ran a" in run.error_message
    assert attempts == 5


def test_parts_whose_locks_are_out_of_order_together_run_apart_and_no_attempt_is_counted() -> None:
    together = crew()
    for name in ("one", "two", "three"):
        together.pace.took("test-apart", name, 0.001)
    runs = [start(flows.Apart, {"k": name, "name": name}) for name in "abc"]
    for _ in range(20):
        moved(together, runs)
    assert [run.state for run in runs] == [State.SUCCEEDED] * 3
    assert sorted(flows.effects()) == sorted(
        f"{who}.{what}" for who in "abc" for what in ("one", "two", "three")
    )
    assert [row.attempts for run in runs for row in run.journal.all()] == [1] * 9


def until_ended(with_crew: Crew, runs: list[WorkflowRun]) -> None:
    """Move runs by themselves until they have succeeded: on a slow machine a group's time may be over at once."""
    for _ in range(100):
        for run in runs:
            moved(with_crew, [run])
        if all(run.state == State.SUCCEEDED for run in runs):
            return
    raise AssertionError([run.state for run in runs])


@contextmanager
def locked_elsewhere(rows: QuerySet[Any]) -> Iterator[None]:
    """Let another connection hold rows; SQLite has no locks of rows, there nothing is held."""
    locked, enough = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                list(rows.select_for_update())
                locked.set()
                enough.wait()
        finally:
            connections.close_all()

    if connection.vendor == "sqlite":
        yield
        return
    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    try:
        yield
    finally:
        enough.set()
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_an_outcome_whose_key_is_locked_keeps_no_other_from_being_recorded(tmp_path: Path) -> None:
    together = crew()
    together.pace.took("test-overlaps", "a", 0.001)
    runs = [start(flows.Overlaps, {"k": name, "room": str(tmp_path)}) for name in "ab"]
    tasks = [task for done in moved(together, runs) for task in done.launches]
    assert len(tasks) == 2
    with locked_elsewhere(WorkflowKey.objects.filter(key=runs[0].key)):
        done = list(commit(together, [], [Returned(task, None) for task in tasks]))
        for outcome in [outcome for each in done for outcome in each.later]:  # its time was over at once
            list(commit(together, [], [outcome]))
        runs[1].refresh_from_db()
        assert runs[1].step_index == 1
    aside = [outcome for each in done for outcome in each.later_alone]
    for outcome in aside:
        list(commit(together, [], [outcome]))
    for run in runs:
        run.refresh_from_db()
    assert [(run.step_index, run.journal.count()) for run in runs] == [(1, 1), (1, 1)]


@pytest.mark.django_db(transaction=True)
def test_a_part_that_waits_for_a_lock_in_vain_makes_the_others_of_its_group_wait_once() -> None:
    together = crew()
    together.pace.took("test-locks", "lock_row", 0.001)
    Group.objects.create(name="held")
    names = [("a", "free"), ("b", "held"), ("c", "free")]
    runs = [start(flows.Locks, {"k": name, "name": name, "row": row}) for name, row in names]
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
    with locked_elsewhere(Group.objects.filter(name="held")):
        first = list(commit(together, [run.key for run in runs], []))
        until_ended(together, [runs[0], runs[2]])
    assert len(first) == 1
    until_ended(together, [runs[1]])
    assert sorted(flows.effects()) == ["a.locked", "b.locked", "c.locked", "held"]
    connection.close()


@pytest.mark.django_db(transaction=True)
def test_a_worker_stops_although_a_part_that_ran_out_of_time_never_ends(
    worker: Dispatcher, settled: Callable[[], None], tmp_path: Path
) -> None:
    run = start(flows.Hangs, {"k": "a", "room": str(tmp_path)})
    settled()
    worker.stop()
    (tmp_path / "hang.open").touch()
    run.refresh_from_db()
    assert (run.state, run.error_code) == (State.FAILED, "StepTimedOut")


@pytest.mark.django_db(transaction=True)
def test_an_outside_part_that_leaves_a_transaction_open_fails_and_takes_nothing_with_it(
    worker: Dispatcher, settled: Callable[[], None]
) -> None:
    untidy = start(flows.LeavesOpen, {"k": "a"})
    settled()
    other = start(flows.Three, {"k": "b", "name": "x"})
    settled()
    for run in (untidy, other):
        run.refresh_from_db()
    assert (untidy.state, untidy.error_message) == (
        State.FAILED,
        "the outside part left a transaction open",
    )
    assert other.state == State.SUCCEEDED
    assert flows.effects() == ["x.one", "x.two", "x.three"]


@pytest.mark.parametrize("how", flows.ENDINGS)
@pytest.mark.django_db(transaction=True)
def test_what_would_end_a_thread_or_cannot_be_written_fails_its_step_alone(
    worker: Dispatcher, settled: Callable[[], None], how: str
) -> None:
    ended = [start(flows.Ends, {"k": where, "where": where, "how": how}) for where in ("outside", "inside")]
    settled()
    other = start(flows.Three, {"k": "b", "name": "x"})
    settled()
    for run in (*ended, other):
        run.refresh_from_db()
    assert [run.state for run in ended] == [State.FAILED, State.FAILED]
    if how == "half a character":
        assert {run.error_message for run in ended} == {"caf\\udce9"}
    assert other.state == State.SUCCEEDED
