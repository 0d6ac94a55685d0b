"""Many keys in one transaction: what fails is taken down alone, and a lost worker counts as an attempt."""

from datetime import timedelta

import pytest

from apps.workflows.driver import commit
from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.group import Crew, Done
from apps.workflows.tests import flows
from unkey import clock

pytestmark = pytest.mark.django_db


def crew() -> Crew:
    return Crew(
        None,
        stopping=lambda: False,
        take_place=lambda: True,
        give_back=lambda places: None,
        keeps_place=lambda key: True,
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
