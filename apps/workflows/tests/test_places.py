"""W5 and W7 on a worker all of whose places for outside parts are taken."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from apps.workflows import lanes, leases, wakeups
from apps.workflows.due import Room, due_keys
from apps.workflows.engine import State, Workflow, WorkflowRun, cancel, start
from apps.workflows.models import ENDED, WorkflowKey
from apps.workflows.sweeper import Dispatcher
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Until
from unkey import clock


class Full:
    """A worker with one place, and an ordinary outside part that holds it until its gate is opened."""

    def __init__(self, folder: Path, until: Until) -> None:
        self._folder = folder
        self._until = until
        self.worker = Dispatcher(None, threads=1)
        self.worker.start()
        self.held = self.hold("ordinary")

    def hold(
        self, name: str, *, urgent: bool = False, workflow: type[Workflow] = flows.Reaches
    ) -> WorkflowRun:
        """Start a run, and wait until its outside part stands at its gate."""
        (self._folder / name).mkdir()
        script = {"k": name, "room": str(self._folder / name), "gates": ["gate"]}
        run = start(workflow, script, urgent=urgent)
        self._until((self._folder / name / "gate.reached").exists)
        return run

    def start(self, name: str, *, urgent: bool = False) -> WorkflowRun:
        """Start a run whose outside part ends at once; all of these share one record of the world."""
        return start(flows.Reaches, {"k": name, "name": name, "room": str(self._folder)}, urgent=urgent)

    def open(self, name: str) -> None:
        """Let the outside part that was held by this name end."""
        (self._folder / name / "gate.open").touch()

    def in_line(self, run: WorkflowRun) -> bool:
        """Whether the run's key waits for a place."""
        return any(run.key in line for line in self.worker._lanes._lines.values())

    def stop(self) -> None:
        """Open every gate, and stop the worker."""
        for gate in self._folder.glob("*/gate.reached"):
            gate.with_name("gate.open").touch()
        self.worker.stop()


@pytest.fixture
def full(transactional_db: None, tmp_path: Path, until: Until) -> Iterator[Full]:
    """A worker that has no place for one more ordinary outside part."""
    made = Full(tmp_path, until)
    yield made
    made.stop()


@pytest.fixture
def sweeper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose every wake-up, and forget when timers are due."""
    monkeypatch.setattr(wakeups, "send", lambda key, queue: None)
    monkeypatch.setattr(wakeups, "remember", lambda due: None)


def succeeded(*runs: WorkflowRun) -> bool:
    ids = [run.id for run in runs]
    return WorkflowRun.objects.filter(id__in=ids, state=State.SUCCEEDED).count() == len(ids)


def state(run: WorkflowRun) -> str:
    run.refresh_from_db()
    return run.state


def test_w05_a_full_worker_runs_what_only_records(full: Full, until: Until) -> None:
    waiting = full.start("waits")
    until(lambda: full.in_line(waiting))
    runs = [start(flows.Three, {"k": str(n), "name": str(n)}) for n in range(5)]
    until(lambda: succeeded(*runs))
    assert state(full.held) == State.RUNNING
    assert flows.effects("waits") == []


def test_w07_a_full_worker_finds_runs_and_timers_that_nobody_woke_it_for(
    full: Full, until: Until, sweeper_alone: None
) -> None:
    nap = start(flows.Naps, {"k": "a", "name": "nap", "seconds": 0.1})
    plain = start(flows.Three, {"k": "b", "name": "plain"})
    hasty = full.start("hasty", urgent=True)
    until(lambda: succeeded(nap, plain, hasty))
    assert state(full.held) == State.RUNNING


def test_w05_an_urgent_outside_part_does_not_wait_for_ordinary_ones(full: Full, until: Until) -> None:
    ordinary = full.start("ordinary")
    urgent = full.start("urgent", urgent=True)
    until(lambda: succeeded(urgent))
    assert (state(ordinary), state(full.held)) == (State.PENDING, State.RUNNING)


def test_w05_an_urgent_run_that_comes_to_a_key_in_line_goes_at_once(
    full: Full, until: Until, tmp_path: Path, sweeper_alone: None
) -> None:
    script = {"k": "same", "room": str(tmp_path)}
    ordinary = start(flows.Overlaps, script)
    full.worker.wake(ordinary.key)
    until(lambda: full.in_line(ordinary))
    urgent = start(flows.Overlaps, script, urgent=True)
    until(lambda: succeeded(urgent))
    assert state(ordinary) == State.PENDING


def test_w05_an_exclusive_run_that_an_urgent_one_waits_for_is_as_urgent(
    full: Full, until: Until, sweeper_alone: None
) -> None:
    ordinary = full.start("same")
    full.worker.wake(ordinary.key)
    until(lambda: full.in_line(ordinary))
    urgent = full.start("same", urgent=True)
    until(lambda: succeeded(ordinary, urgent))
    assert flows.effects("same") == ["same.last", "same.last"]


def test_w05_urgent_runs_have_few_places_of_their_own_and_then_go_first_in_line(
    full: Full, until: Until, tmp_path: Path
) -> None:
    for n in range(lanes.URGENT_PLACES):
        full.hold(f"urgent {n}", urgent=True)
    older = full.start("older")
    until(lambda: full.in_line(older))
    late = full.start("late", urgent=True)
    until(lambda: full.in_line(late))
    full.open("urgent 0")
    until(lambda: succeeded(late))
    assert state(older) == State.PENDING
    full.open("ordinary")
    full.open("urgent 1")
    until(lambda: succeeded(older))
    assert (tmp_path / "world").read_text().splitlines() == [
        f"{run.id}/outside_step" for run in (late, older)
    ]


def test_w05_an_ordinary_run_gives_its_place_to_an_urgent_one_between_its_outside_parts(
    full: Full, until: Until, tmp_path: Path
) -> None:
    full.hold("chain", workflow=flows.ReachesTwice, urgent=True)
    WorkflowRun.objects.filter(key="test-reaches-twice:chain").update(urgent=False)
    for n in range(lanes.URGENT_PLACES - 1):
        full.hold(f"urgent {n}", urgent=True)
    late = full.start("late", urgent=True)
    until(lambda: full.in_line(late))
    full.open("chain")
    until(lambda: succeeded(late))
    assert (tmp_path / "chain" / "world").read_text().count("\n") == 1


def test_w05_a_run_that_waits_for_a_place_is_left_to_any_other_worker(full: Full, until: Until) -> None:
    run = full.start("waits")
    until(lambda: full.in_line(run))
    assert not WorkflowKey.objects.filter(key=run.key, lease_expires_at__isnull=False).exists()
    free = Dispatcher(None, threads=1)
    free.start()
    try:
        until(lambda: succeeded(run))
    finally:
        free.stop()
    assert state(full.held) == State.RUNNING


def test_w05_runs_beyond_the_length_of_the_line_are_found_again(
    full: Full, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "LINE", 2)
    runs = [full.start(str(n)) for n in range(6)]
    until(lambda: sum(full.in_line(run) for run in runs) == 2)
    full.open("ordinary")
    until(lambda: succeeded(full.held, *runs))


def test_w05_runs_that_wait_for_a_place_go_in_the_order_in_which_they_came(
    full: Full, until: Until, tmp_path: Path
) -> None:
    runs = []
    for n in range(4):
        runs.append(full.start(str(n)))
        until(lambda: full.in_line(runs[-1]))
    full.worker.wake(runs[0].key)  # who is woken in line stays where it stands
    full.open("ordinary")
    until(lambda: succeeded(*runs))
    assert (tmp_path / "world").read_text().splitlines() == [f"{run.id}/outside_step" for run in runs]


def test_w07_a_process_without_more_threads_loses_no_place(
    full: Full, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Thread.start
    refused: set[str] = set()

    def scarce(thread: threading.Thread) -> None:
        if thread.name in {"workflow-leases", "workflow-time-outs", "workflow-step"} - refused:
            refused.add(thread.name)
            raise RuntimeError("can't start new thread")
        begin(thread)

    full.open("ordinary")
    until(lambda: succeeded(full.held))
    monkeypatch.setattr(leases, "keeper", leases.Keeper())
    monkeypatch.setattr(threading.Thread, "start", scarce)
    impatient = [start(flows.Impatient, {"k": str(n), "sleeps": 0}) for n in range(3)]
    until(lambda: all(state(run) in ENDED for run in impatient))
    assert {"workflow-leases", "workflow-time-outs"} <= refused
    until(lambda: full.worker._lanes.room is Room.ALL)


@pytest.mark.django_db
def test_w05_what_no_place_is_left_for_hides_nothing_that_can_be_done() -> None:
    start(flows.Overlaps, {"k": "both"})
    start(flows.Overlaps, {"k": "hasty"})
    start(flows.ReachesTwice, {"k": "plain"})
    start(flows.Overlaps, {"k": "both"}, urgent=True)
    start(flows.ReachesTwice, {"k": "hasty"}, urgent=True)
    holder = start(flows.ReachesTwice, {"k": "held"})
    WorkflowKey.objects.create(key=holder.key, holder=holder.id, exclusive=True)
    start(flows.Three, {"k": "held"}, urgent=True)
    WorkflowRun.objects.filter(urgent=True, service="test-three").update(key=holder.key)
    cancelled = start(flows.ReachesTwice, {"k": "cancelled"})
    cancel(cancelled.id)
    start(flows.Three, {"k": "records"})
    undone = {"state": State.COMPENSATING, "undo": ["begun"]}
    for index, name in ((0, "undo"), (1, "undone")):
        run = start(flows.UndoneOutside, {"k": name})
        WorkflowRun.objects.filter(id=run.id).update(undo_index=index, **undone)
    start(flows.Three, {"k": "gone"})
    WorkflowRun.objects.filter(key="test-three:gone").update(service="gone")
    WorkflowRun.objects.filter(service=flows.Three.service).update(step_names=["one", "first"], step_index=1)

    def found(room: Room, limit: int = 500) -> list[str]:
        return sorted(due_keys(None, limit, room))

    free = [
        "test-reaches-twice:cancelled",
        "test-three:gone",
        "test-three:records",
        "test-undone-outside:undone",
    ]
    urgent = ["test-overlaps:both", "test-reaches-twice:hasty", "test-reaches-twice:held"]
    assert found(Room.NONE) == free
    assert found(Room.NONE, limit=len(free)) == free
    assert found(Room.URGENT) == sorted(free + urgent)
    assert found(Room.ALL) == sorted(
        [*free, *urgent, "test-overlaps:hasty", "test-reaches-twice:plain", "test-undone-outside:undo"]
    )
    with clock.shifted(timedelta(seconds=-60)):
        assert [found(room) for room in Room] == [[], [], []]


@pytest.mark.django_db
def test_w05_what_only_records_behind_an_outside_part_of_its_key_hides_nothing() -> None:
    class Mixed(Workflow):
        service, key, key_space, exclusive = "test-mixed", "k", flows.Overlaps.key_space, False
        steps = (flows.note("one"),)

    for n in range(3):
        start(flows.Overlaps, {"k": str(n)})
        start(Mixed, {"k": str(n)})
    start(Mixed, {"k": "free"})
    assert due_keys(None, 1, Room.NONE) == ["test-overlaps:free"]
