"""The guarantees W1 to W14 of `docs/workflows.md`: rollbacks, lost wake-ups, killed and paused workers, races.

Tests are named by their guarantee; those of one run alone are in `test_steps`, those of order (W5) in
`test_order`, those with a broker in `test_celery`: `pytest apps/workflows -k w05`.
"""

import os
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from apps.workflows import wakeups
from apps.workflows.due import due_keys, next_due
from apps.workflows.engine import (
    IdempotencyConflict,
    Run,
    State,
    Wait,
    Workflow,
    WorkflowRun,
    cancel,
    notify,
    start,
    step,
)
from apps.workflows.models import ACTIVE, WorkflowKey
from apps.workflows.sweeper import Dispatcher, drain
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Process, Until
from unkey import clock


def test_w01_a_run_of_a_transaction_that_rolls_back_never_runs(worker: Dispatcher) -> None:
    with transaction.atomic():
        start(flows.Three, {"k": "a", "name": "r"})
        transaction.set_rollback(True)
    worker.stop()
    assert flows.effects() == []
    assert not WorkflowRun.objects.exists()


def test_w01_a_broker_that_is_down_fails_no_caller_and_the_sweeper_finds_the_run(
    worker: Dispatcher, settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unkey.celery import app

    def down(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(app, "send_task", down)
    monkeypatch.setattr(wakeups, "_local", None)
    run = start(flows.Three, {"k": "a", "name": "r"})
    settled()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


@pytest.mark.parametrize("point", ["inside", "gate", "record"])
def test_w02_w03_w04_a_worker_killed_in_a_step_leaves_each_effect_exactly_once(
    point: str, process: Callable[..., Process], settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": [point]})
    doomed = process()
    until((tmp_path / f"{point}.reached").exists)
    doomed.kill()
    (tmp_path / f"{point}.open").touch()
    with clock.shifted(timedelta(seconds=60)):
        until(lambda: drain() >= 0 and not WorkflowRun.objects.filter(state__in=ACTIVE).exists())
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    assert flows.effects() == [f"{run.id}.inside", f"{run.id}.outside", "r.last"]
    calls = (tmp_path / "world").read_text().splitlines()
    assert calls == [f"{run.id}/outside_step"] * (1 if point == "inside" else 2)
    assert run.journal.count() == 3


def test_w06_a_worker_paused_past_its_lease_cannot_commit(
    process: Callable[..., Process], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    zombie = process()
    until((tmp_path / "gate.reached").exists)
    zombie.pause()
    (tmp_path / "gate.open").touch()
    with clock.shifted(timedelta(seconds=60)):
        drain()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    zombie.go_on()
    until(lambda: "its lease was taken over" in zombie.log.read_text())
    assert flows.effects() == [f"{run.id}.inside", f"{run.id}.outside", "r.last"]
    assert run.journal.get(name="outside_step").result == f"by {os.getpid()}"


def test_w06_a_paused_worker_cannot_commit_to_a_run_that_was_cancelled_meanwhile(
    process: Callable[..., Process], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    zombie = process()
    until((tmp_path / "gate.reached").exists)
    zombie.pause()
    cancel(run.id)
    (tmp_path / "gate.open").touch()
    with clock.shifted(timedelta(seconds=60)):
        drain()
    zombie.go_on()
    until(lambda: "its lease was taken over" in zombie.log.read_text())
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    assert flows.effects() == [f"{run.id}.inside", "undo.outside"]


def test_w06_a_long_step_keeps_its_lease(
    process: Callable[..., Process], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    process(lease=1)
    until((tmp_path / "gate.reached").exists)
    first = WorkflowKey.objects.get(key=run.key).lease_expires_at
    until(lambda: WorkflowKey.objects.filter(key=run.key, lease_expires_at__gt=first).exists())
    (tmp_path / "gate.open").touch()
    until(lambda: WorkflowRun.objects.get(id=run.id).state == State.SUCCEEDED)
    assert (tmp_path / "world").read_text().splitlines() == [f"{run.id}/outside_step"]


def test_w03_killing_workers_at_random_moments_loses_and_doubles_nothing(
    process: Callable[..., Process], until: Until, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    runs = [start(flows.Overlaps, {"k": str(n % 8), "room": str(tmp_path)}) for n in range(40)]
    for _ in range(4):
        doomed = process(threads=4, lease=1)
        started = WorkflowRun.objects.filter(state=State.SUCCEEDED).count()
        wanted = started + dice.randrange(1, 10)
        until(partial(_succeeded, min(wanted, 40)))
        doomed.kill()
    with clock.shifted(timedelta(seconds=5)):
        until(lambda: drain() >= 0 and not WorkflowRun.objects.filter(state__in=ACTIVE).exists())
    assert sorted(flows.effects()) == sorted(f"{run.id}.{name}" for run in runs for name in "abc"), f"{seed=}"
    assert {row.state for row in WorkflowRun.objects.all()} == {State.SUCCEEDED}, f"{seed=}"


def _succeeded(count: int) -> bool:
    return WorkflowRun.objects.filter(state=State.SUCCEEDED).count() >= count


def test_w07_timers_fire_with_the_sweeper_alone(worker: Dispatcher, settled: Callable[[], None]) -> None:
    run = start(flows.Naps, {"k": "a", "name": "r", "seconds": 0.1})
    settled()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    assert flows.effects() == ["r.after"]


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_w08_a_notification_that_races_with_the_wait_is_never_lost(
    worker: Dispatcher, settled: Callable[[], None]
) -> None:
    runs = 24

    def tell(number: int) -> None:
        for n in range(number, runs, 4):
            with transaction.atomic():
                Group.objects.create(name=f"ready topic {n}")
                notify(f"topic {n}")

    def begin(number: int) -> None:
        if number < 4:
            tell(number)
        else:
            for n in range(number - 4, runs, 4):
                start(flows.Listens, {"k": str(n), "name": str(n), "topic": f"topic {n}"})

    _in_threads(8, begin)
    settled()
    assert WorkflowRun.objects.filter(state=State.SUCCEEDED).count() == runs


@pytest.mark.django_db
def test_w08_a_notification_before_between_and_after_arming_wakes() -> None:
    before = start(flows.Listens, {"k": "1", "topic": "one"})
    Group.objects.create(name="ready one")
    notify("one")
    drain()
    before.refresh_from_db()
    assert before.state == State.SUCCEEDED
    after = start(flows.Listens, {"k": "2", "topic": "two"})
    drain()
    Group.objects.create(name="ready two")
    notify("two")
    drain()
    after.refresh_from_db()
    assert after.state == State.SUCCEEDED


def test_w08_a_notification_while_the_outside_part_looks_wakes(transactional_db: None) -> None:
    looks: list[bool] = []

    def look(run: Run) -> bool:
        ready = Group.objects.filter(name="ready x").exists()
        looks.append(ready)
        if len(looks) == 2:  # armed once, and now it has looked in vain: the world changes
            with transaction.atomic():
                Group.objects.create(name="ready x")
                notify("x")
        return ready

    @step(outside=look)
    def wait_for_x(run: Run, ready: bool) -> object:
        return "seen" if ready else Wait(event="x")

    class Looks(Workflow):
        service = "test-looks"
        steps = (wait_for_x,)

    run = start(Looks, {})
    drain()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    assert looks == [False, False, True]


def test_w11_a_cancel_that_was_accepted_while_the_last_step_ran_is_carried_out(
    worker: Dispatcher, settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Stands, {"k": "a", "room": str(tmp_path)})
    until((tmp_path / "gate.reached").exists)
    accepted: list[bool] = []

    def ask() -> None:
        try:
            accepted.append(cancel(run.id))
        finally:
            connections.close_all()

    asking = threading.Thread(target=ask)
    asking.start()
    if connection.vendor == "mysql":  # on SQLite it waits for the one writer
        asking.join()
    (tmp_path / "gate.open").touch()
    asking.join()
    settled()
    run.refresh_from_db()
    assert run.state == (State.CANCELLED if accepted == [True] else State.SUCCEEDED)


@pytest.mark.parametrize("blocked_by", ["a wait", "needs attention"])
def test_w11_a_run_that_never_began_is_cancelled_whoever_holds_its_key(
    blocked_by: str, transactional_db: None
) -> None:
    service = flows.Listens if blocked_by == "a wait" else flows.UndoesBadly
    holder = start(service, {"k": "a", "topic": "never", "name": "a"})
    for seconds in (0, 1, 2, 3):  # the compensation is tried again
        with clock.shifted(timedelta(seconds=seconds)):
            drain()
    holder.refresh_from_db()
    held = holder.state
    assert held == (State.WAITING if blocked_by == "a wait" else State.NEEDS_ATTENTION)
    behind = start(service, {"k": "a", "topic": "never", "name": "b"}, idempotency_key="b")
    after = start(service, {"k": "a", "topic": "never", "name": "c"})
    assert cancel(behind.id)
    for run in (behind, after, holder):
        run.refresh_from_db()
    assert (behind.state, behind.error_code, behind.next_at) == (State.CANCELLED, "cancelled", None)
    assert behind.finished_at is not None
    assert (holder.state, after.state) == (held, State.PENDING)
    assert WorkflowKey.objects.get(key=holder.key).holder == holder.id
    assert not cancel(behind.id)
    assert start(service, {"k": "a", "topic": "never", "name": "b"}, idempotency_key="b").id == behind.id


def test_w11_a_sweep_cancels_a_run_that_never_began_if_the_caller_died_after_its_commit(
    worker: Dispatcher, until: Until
) -> None:
    holder = start(flows.Listens, {"k": "a", "topic": "never"})
    until(lambda: WorkflowRun.objects.get(id=holder.id).state == State.WAITING)
    behind = start(flows.Listens, {"k": "a", "topic": "never"})
    now = clock.now()
    WorkflowRun.objects.filter(id=behind.id).update(cancel_requested_at=now, next_at=now)
    until(lambda: WorkflowRun.objects.get(id=behind.id).state == State.CANCELLED)
    assert WorkflowRun.objects.get(id=holder.id).state == State.WAITING


def test_w11_the_hook_of_a_run_that_never_began_is_told_and_its_turn_does_not_come(
    worker: Dispatcher, settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    holder = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    until((tmp_path / "gate.reached").exists)
    behind = start(
        flows.Stumbles, {"k": "b", "name": "s", "succeeds_at": 1}, at=clock.now() + timedelta(hours=1)
    )
    WorkflowRun.objects.filter(id=behind.id).update(key=holder.key)
    assert cancel(behind.id)
    until(lambda: WorkflowRun.objects.get(id=behind.id).state == State.CANCELLED)
    assert flows.effects() == [f"{holder.id}.inside", "failed.cancelled"]
    assert list(behind.journal.values_list("kind", flat=True)) == ["on_failure"]
    (tmp_path / "gate.open").touch()
    settled()
    holder.refresh_from_db()
    assert holder.state == State.SUCCEEDED


def test_w11_a_child_that_never_began_ends_with_its_parent(
    worker: Dispatcher, until: Until, transactional_db: None
) -> None:
    holder = start(flows.Listens, {"k": "c", "topic": "never"})
    until(lambda: WorkflowRun.objects.get(id=holder.id).state == State.WAITING)
    parent = start(flows.Parent, {"child": "test-listens", "child_input": {"k": "c", "topic": "never"}})
    until(lambda: WorkflowRun.objects.get(id=parent.id).state == State.WAITING)
    cancel(parent.id)
    until(lambda: WorkflowRun.objects.get(id=parent.id).state == State.CANCELLED)
    until(lambda: WorkflowRun.objects.get(parent_id=parent.id).state == State.CANCELLED)
    holder.refresh_from_db()
    assert holder.state == State.WAITING


def test_w11_a_parent_is_told_of_a_child_that_was_cancelled_before_it_began(
    worker: Dispatcher, until: Until
) -> None:
    holder = start(flows.Listens, {"k": "c", "topic": "never"})
    until(lambda: WorkflowRun.objects.get(id=holder.id).state == State.WAITING)
    parent = start(flows.Parent, {"child": "test-listens", "child_input": {"k": "c", "topic": "never"}})
    until(lambda: WorkflowRun.objects.get(id=parent.id).state == State.WAITING)
    cancel(WorkflowRun.objects.get(parent_id=parent.id).id)
    until(lambda: WorkflowRun.objects.get(id=parent.id).state == State.FAILED or flows.effects("failed"))
    until(lambda: WorkflowRun.objects.get(id=parent.id).finished_at)
    parent.refresh_from_db()
    assert parent.error_code == "cancelled"


def test_w10_callers_that_race_with_one_idempotency_key_get_one_run(transactional_db: None) -> None:
    got: list[str] = []

    def begin(number: int) -> None:
        with transaction.atomic():
            got.append(start(flows.Three, {"k": "a"}, idempotency_key="cause").id)

    _in_threads(8, begin)
    assert len(got) == 8
    assert len(set(got)) == 1
    assert WorkflowRun.objects.count() == 1


@pytest.mark.django_db
def test_w10_an_idempotency_key_returns_the_first_run_and_refuses_another_input() -> None:
    first = start(flows.Three, {"k": "a", "n": [1, {"x": 1.5}]}, idempotency_key="cause")
    drain()
    assert start(flows.Three, {"n": [1, {"x": 1.5}], "k": "a"}, idempotency_key="cause").id == first.id
    with pytest.raises(IdempotencyConflict, match="another input"):
        start(flows.Three, {"k": "b"}, idempotency_key="cause")
    assert start(flows.Shared, {"k": "b"}, idempotency_key="cause").id != first.id
    assert start(flows.Three, {"k": "a"}).id != start(flows.Three, {"k": "a"}).id


# -- W7: 100,000 parked runs ---------------------------------------------------------------------------

PARKED = 100_000


@pytest.fixture
def many_parked(transactional_db: None) -> None:
    """100,000 runs that wait: half for a far time, half for events; made by the database itself."""
    first = start(flows.Naps, {"k": "parked", "seconds": 86_400})
    drain()
    names = [str(field.column) for field in WorkflowRun._meta.fields]
    quoted = {name: connections["default"].ops.quote_name(name) for name in names}
    number = " + ".join(f"d{n}.n * {10**n}" for n in range(5))
    text = f"CAST({number} AS CHAR(8))" if connection.vendor == "mysql" else f"CAST({number} AS TEXT)"

    def joined(prefix: str) -> str:
        return f"CONCAT('{prefix}', {text})" if connection.vendor == "mysql" else f"'{prefix}' || {text}"

    changed = {
        "id": joined("run_"),
        "key": joined("test-naps:"),
        "arrival": f"r.arrival + 1 + {number}",
        "next_at": "CASE WHEN d0.n < 5 THEN r.next_at ELSE NULL END",
        "wait_topic": f"CASE WHEN d0.n < 5 THEN '' ELSE {joined('topic ')} END",
    }
    chosen = ", ".join(changed.get(name, f"r.{quoted[name]}") for name in names)
    digits = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(10))
    table = WorkflowRun._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(quoted.values())}) SELECT {chosen} FROM {table} r, "
            + ", ".join(f"({digits}) d{n}" for n in range(5))
            + " WHERE r.id = %s",
            [first.id],
        )
        cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{table}")
        cursor.fetchall()
    assert WorkflowRun.objects.filter(state=State.WAITING).count() == PARKED + 1


def test_w07_100_000_parked_runs_cost_rows_and_nothing_else(
    many_parked: None, process: Callable[..., Process], until: Until
) -> None:
    with CaptureQueriesContext(connection) as sweep:
        assert due_keys() == []
        assert next_due() is not None
    assert len(sweep) <= 3  # whatever the number of runs
    for query in sweep:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{query['sql']}")
            names = [column[0] for column in cursor.description]
            plan = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        if connection.vendor == "sqlite":
            assert not [
                row
                for row in plan
                if "SCAN workflows_workflowrun" in row["detail"] and "INDEX" not in row["detail"]
            ]
        else:
            assert not [
                row for row in plan if row["table"] == "workflows_workflowrun" and row["type"] == "ALL"
            ]
    busy = process(threads=2)
    idle_memory, idle_threads = busy.memory, busy.threads
    ended = [start(flows.Three, {"k": str(n), "name": f"r{n}"}) for n in range(20)]
    until(
        lambda: (
            WorkflowRun.objects.filter(id__in=[run.id for run in ended], state=State.SUCCEEDED).count() == 20
        )
    )
    with transaction.atomic():
        Group.objects.create(name="ready topic 7")
        notify("topic 7")
    assert busy.threads <= idle_threads + 3  # its two, and one that renews leases
    assert busy.memory < idle_memory + 64 * 2**20  # a list of the parked would be more
