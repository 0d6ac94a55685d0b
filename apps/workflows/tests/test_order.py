"""Who steps when: per key one at a time, exclusive or interleaving, urgent first, keys side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import Group

from apps.workflows.due import due_keys
from apps.workflows.engine import Run, State, Workflow, WorkflowRun, notify, start, step
from apps.workflows.sweeper import Dispatcher, drain
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Process, Until


@pytest.mark.django_db
def test_w05_exclusive_runs_of_a_key_go_wholly_in_order_of_arrival() -> None:
    start(flows.Three, {"k": "a", "name": "x"})
    start(flows.Three, {"k": "a", "name": "y"})
    drain()
    assert flows.effects() == [f"{run}.{name}" for run in "xy" for name in ("one", "two", "three")]


@pytest.mark.django_db
def test_w05_an_exclusive_run_keeps_its_key_while_it_waits() -> None:
    start(flows.Listens, {"k": "a", "name": "x", "topic": "t"})
    start(flows.Listens, {"k": "a", "name": "y", "topic": "other", "deadline": 0})
    drain()
    assert due_keys() == []
    assert flows.effects() == []
    Group.objects.create(name="ready t")
    notify("t")
    drain()
    assert flows.effects("x") + flows.effects("y") == ["x.after", "y.after"]


@pytest.mark.django_db
def test_w05_an_interleaving_run_lets_others_pass_while_it_waits() -> None:
    start(flows.ListensShared, {"k": "a", "name": "x", "topic": "t"})
    start(flows.Shared, {"k": "a", "name": "y"})
    drain()
    assert flows.effects() == ["y.one", "y.two"]
    Group.objects.create(name="ready t")
    notify("t")
    drain()
    assert flows.effects("x") == ["x.after"]


@pytest.mark.django_db
def test_w05_urgent_runs_go_before_others_that_are_ready() -> None:
    start(flows.Shared, {"k": "a", "name": "x"})
    start(flows.Shared, {"k": "a", "name": "u"}, urgent=True)
    drain()
    assert flows.effects() == ["u.one", "u.two", "x.one", "x.two"]


@pytest.mark.django_db
def test_w05_an_urgent_run_goes_between_the_steps_of_another() -> None:
    class Starts(Workflow):
        service, key, key_space, exclusive = "test-starts", "k", "test-shared", False
        steps = (step(_start_urgent), flows.note("second"))

    start(Starts, {"k": "a", "name": "x"})
    drain()
    assert flows.effects() == ["u.one", "u.two", "x.second"]


def _start_urgent(run: Run) -> None:
    start(flows.Shared, {"k": run.input["k"], "name": "u"}, urgent=True)


@pytest.mark.django_db
def test_w05_the_child_that_an_urgent_run_waits_for_is_urgent_and_what_it_sends_is_not() -> None:
    for urgent in (True, False):
        start(flows.Parent, {"child": "test-three", "child_input": {"k": "a", "name": "c"}}, urgent=urgent)
    drain()
    called = WorkflowRun.objects.filter(parent_id__isnull=False).order_by("arrival")
    assert [run.urgent for run in called] == [True, False]
    assert not WorkflowRun.objects.filter(service="test-three", parent_id=None, urgent=True).exists()


@pytest.mark.django_db
def test_w05_an_exclusive_run_that_has_begun_is_not_overtaken_by_an_urgent_one() -> None:
    start(flows.Listens, {"k": "a", "name": "x", "topic": "t"})
    drain()
    start(flows.Listens, {"k": "a", "name": "u", "topic": "t", "deadline": 0}, urgent=True)
    drain()
    assert flows.effects() == []


def test_w05_many_workers_never_overlap_on_a_key_and_keys_run_side_by_side(
    process: Callable[..., Process], settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    workers = [process(threads=4, wait=False) for _ in range(3)]
    until(lambda: all(worker.ready for worker in workers))
    runs = [start(flows.Overlaps, {"k": str(n % 3), "room": str(tmp_path)}) for n in range(30)]
    settled()
    assert {row.state for row in WorkflowRun.objects.all()} == {State.SUCCEEDED}
    assert sorted(flows.effects()) == sorted(f"{run.id}.{name}" for run in runs for name in "abc")
    inside: dict[str, str] = {}
    for line in (tmp_path / "world").read_text().splitlines():
        what, key, run_id = line.split()
        if what == "begin":
            assert key not in inside
            inside[key] = run_id
        else:
            assert inside.pop(key) == run_id
    assert inside == {}


def test_w05_a_slow_key_delays_no_other(worker: Dispatcher, tmp_path: Path, until: Until) -> None:
    slow = start(flows.Reaches, {"k": "slow", "room": str(tmp_path), "gates": ["gate"]})
    until((tmp_path / "gate.reached").exists)
    behind = start(flows.Reaches, {"k": "slow", "room": str(tmp_path)})
    fast = [start(flows.Three, {"k": f"fast{n}", "name": "f"}) for n in range(20)]
    ids = [run.id for run in fast]
    until(lambda: WorkflowRun.objects.filter(id__in=ids, state=State.SUCCEEDED).count() == 20)
    behind.refresh_from_db()
    assert behind.state == State.PENDING
    (tmp_path / "gate.open").touch()
    until(lambda: WorkflowRun.objects.filter(id__in=[slow.id, behind.id], state=State.SUCCEEDED).count() == 2)
