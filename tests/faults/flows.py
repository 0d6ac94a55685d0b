"""Workflows that the harness runs: each leaves a trace of everything that it did.

A recording part writes one row of `faults_effect`, in the engine's transaction. An outside part appends
to the ledger, a file that stands for the world: every call with its token, the value that it returned,
and when it began and ended. Between the two lie the points at which a worker can be told to die or to
stand still (`reach`).

A run's input is its script: `ms`, how long an outside part takes; `fail`, how often a step raises before
it succeeds; `refuse`, the step that fails for good; `nap` and `topic`, what is waited for.
"""

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

from django.db import connection, transaction

from apps.workflows.engine import JSON, Retry, Run, Step, Terminal, Wait, Workflow, call, send, step
from unkey import clock

ROOM = Path(os.environ.get("FAULTS_ROOM", "/nonexistent"))
PATIENT = Retry(attempts=12, initial=0.02, cap=0.2)
SHORT = Retry(attempts=2, initial=0.02, cap=0.02)

POINTS_INSIDE = ("record.begin", "record.end", "committed")
POINTS = ("outside.begin", "outside.end", *POINTS_INSIDE)

TABLES = {
    "sqlite": (
        "CREATE TABLE faults_effect (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, "
        "wf_key TEXT NOT NULL, kind TEXT NOT NULL, step TEXT NOT NULL, value TEXT NOT NULL, "
        "seen TEXT NOT NULL, at_ns BIGINT NOT NULL, pid INTEGER NOT NULL, skew INTEGER NOT NULL)",
        "CREATE TABLE faults_signal (name VARCHAR(255) PRIMARY KEY)",
    ),
    "mysql": (
        "CREATE TABLE faults_effect (id BIGINT PRIMARY KEY AUTO_INCREMENT, run_id VARCHAR(48) NOT NULL, "
        "wf_key VARCHAR(255) NOT NULL, kind VARCHAR(16) NOT NULL, step VARCHAR(64) NOT NULL, "
        "value TEXT NOT NULL, seen TEXT NOT NULL, at_ns BIGINT NOT NULL, pid INTEGER NOT NULL, "
        "skew INTEGER NOT NULL)",
        "CREATE TABLE faults_signal (name VARCHAR(255) PRIMARY KEY)",
    ),
}


def skew() -> int:
    """Seconds by which this process's clock was moved."""
    return round(clock.now().timestamp() - time.time())


def write_line(file: str, **fields: Any) -> None:
    """Append one line to a file of the room: whole or not at all."""
    line = json.dumps({**fields, "pid": os.getpid(), "at": time.monotonic_ns()}) + "\n"
    handle = os.open(ROOM / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def reach(point: str) -> None:
    """Die or stand still here, if nobody did at this point before and the harness has armed the next fault."""
    for what, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        plan = ROOM / "plan" / f"{what} {point}"
        if not plan.exists():
            continue
        try:
            os.unlink(ROOM / "armed")
            os.unlink(plan)
        except FileNotFoundError:
            return  # another worker was faster
        write_line("faults", what=what, point=point)
        os.kill(os.getpid(), number)
        return


def effect(run: Run, kind: str, value: JSON, seen: JSON = None) -> None:
    """Write one row of what this part did, in the current transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO faults_effect (run_id, wf_key, kind, step, value, seen, at_ns, pid, skew) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                run.id,
                run.key,
                kind,
                run.step,
                json.dumps(value),
                json.dumps(seen),
                time.monotonic_ns(),
                os.getpid(),
                skew(),
            ],
        )


def signalled(name: str) -> bool:
    """Whether the harness has given a signal."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM faults_signal WHERE name = %s", [name])
        return cursor.fetchone() is not None


def _stumble(run: Run, kind: str) -> None:
    if kind == "step" and run.attempt <= run.input.get("fail", {}).get(run.step, 0):
        raise RuntimeError(f"attempt {run.attempt} of {run.step} fails")


def _place(run: Run, kind: str) -> str:
    return f"{run.service}.{run.step}.{kind}"


def make(name: str, *, outside: bool = False, kind: str = "step", retry: Retry = PATIENT) -> Step:
    """Return a step that leaves its traces; `kind` is `step` or `undo`."""

    def reach_out(run: Run) -> JSON:
        place = _place(run, kind)
        value = uuid.uuid4().hex
        write_line("ledger", what="begin", token=run.token, value=value)
        reach(f"{place}.outside.begin")
        time.sleep(run.input.get("ms", 0) / 1000)
        _stumble(run, kind)
        write_line("ledger", what="end", token=run.token, value=value)
        reach(f"{place}.outside.end")
        return value

    def record(run: Run, *values: JSON) -> JSON:
        place = _place(run, kind)
        reach(f"{place}.record.begin")
        value = values[0] if values else uuid.uuid4().hex
        effect(run, kind, value, run.results if kind == "step" else None)
        if not values:
            _stumble(run, kind)
        if kind == "step" and run.input.get("refuse") == run.step:
            raise Terminal("refused", f"{run.step} was told to refuse.")
        if kind == "undo" and run.input.get("stuck") and not signalled(f"mended {run.id}"):
            raise RuntimeError("cannot be undone yet")
        transaction.on_commit(lambda: reach(f"{place}.committed"))
        reach(f"{place}.record.end")
        return value

    record.__name__ = name
    return step(outside=reach_out if outside else None, retry=retry)(record)


def _finish(run: Run, value: JSON) -> JSON:
    place = _place(run, "step")
    effect(run, "step", value, run.results)
    transaction.on_commit(lambda: reach(f"{place}.committed"))
    reach(f"{place}.record.end")
    return value


@step(retry=PATIENT)
def nap(run: Run) -> JSON | Wait:
    reach(f"{_place(run, 'step')}.record.begin")
    if not run.wait_expired:
        effect(run, "arm", run.input["nap"])
        return Wait(seconds=run.input["nap"])
    return _finish(run, "woke")


@step(retry=PATIENT)
def listen(run: Run) -> JSON | Wait:
    reach(f"{_place(run, 'step')}.record.begin")
    if not signalled(run.input["topic"]):
        return Wait(event=run.input["topic"])
    return _finish(run, "heard")


@step(retry=PATIENT)
def send_child(run: Run) -> JSON:
    reach(f"{_place(run, 'step')}.record.begin")
    return _finish(run, send(run, Sent, {"name": f"{run.input['name']}/sent"}).id)


@step(retry=PATIENT)
def call_child(run: Run) -> JSON | Wait:
    reach(f"{_place(run, 'step')}.record.begin")
    child = call(run, Exclusive, {**run.input["child"], "name": f"{run.input['name']}/called"})
    return child if isinstance(child, Wait) else _finish(run, {"id": child.id, "result": child.result})


@step(retry=PATIENT)
def note_failure(run: Run, code: str, message: str) -> JSON:
    effect(run, "on_failure", code)
    return code


class Sent(Workflow):
    """Steps of our database only; each run is its own key."""

    service = "faults-sent"
    steps = (make("one"), make("two"))


_a, _b, _c = make("a", outside=True), make("b"), make("c", outside=True)


class Exclusive(Workflow):
    """Keeps its key to its end; undone by parts inside and outside."""

    service, key = "faults-exclusive", "k"
    steps = (_a, _b, _c)
    compensations = {
        _a: make("undo_a", outside=True, kind="undo"),
        _b: make("undo_b", kind="undo"),
        _c: make("undo_c", kind="undo"),
    }
    on_failure = note_failure


class Hurried(Exclusive):
    """Shares the keys of `Exclusive`, and goes first."""

    service, key, key_space, urgent = "faults-hurried", "k", "faults-exclusive", True


_d, _e, _f = make("d", outside=True), make("e"), make("f")


class Shared(Workflow):
    """Lets others in between its steps and while it waits."""

    service, key, key_space, exclusive = "faults-shared", "k", "faults-interleaving", False
    steps = (_d, nap, _e, listen, _f)
    compensations = {_d: make("undo_d", kind="undo"), _e: make("undo_e", kind="undo")}
    on_failure = note_failure


class Promote(Workflow):
    """Urgent among the interleaving."""

    service, key, key_space, exclusive = "faults-promote", "k", "faults-interleaving", False
    urgent = True
    steps = (make("g", outside=True), make("h"))


class Naps(Workflow):
    """Waits for a time, with its key held."""

    service, key = "faults-naps", "k"
    steps = (make("before"), nap, make("after", outside=True))


class Listens(Workflow):
    """Waits for an event, with its key held."""

    service, key = "faults-listens", "k"
    steps = (listen, make("after"))


class Parent(Workflow):
    """Sends a child and calls another."""

    service = "faults-parent"
    steps = (send_child, call_child, make("last"))
    on_failure = note_failure


_s, _t = make("s", outside=True), make("t")


class Stuck(Workflow):
    """Fails, and cannot be undone until somebody has mended the world."""

    service, key = "faults-stuck", "k"
    steps = (_s, _t)
    compensations = {_s: make("undo_s", kind="undo", retry=SHORT)}
    on_failure = note_failure


ALL: tuple[type[Workflow], ...] = (
    Sent,
    Exclusive,
    Hurried,
    Shared,
    Promote,
    Naps,
    Listens,
    Parent,
    Stuck,
)


def places() -> list[str]:
    """Return every point of every workflow at which a worker can be told to die or to stand still."""
    found = []
    for workflow in ALL:
        for each in workflow.steps:
            for point in POINTS if each.outside else POINTS_INSIDE:
                found.append(f"{workflow.service}.{each.name}.step.{point}")
        for name, undo in workflow.undo_by_name.items():
            for point in POINTS if undo.outside else POINTS_INSIDE:
                found.append(f"{workflow.service}.{name}.undo.{point}")
    return found
