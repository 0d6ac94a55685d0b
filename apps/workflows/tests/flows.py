"""Workflows that the tests drive, in this process and in workers that are killed and paused.

Effects in our database are rows of `auth.Group`, each with a name of its own, so that an effect that
happened twice is seen. Effects outside are lines appended to a file. A gate stops a step at a point
until the test opens it.
"""

import asyncio
import os
import time
import uuid
from pathlib import Path
from typing import Any

from django.contrib.auth.models import Group
from django.db import transaction

from apps.workflows.engine import JSON, Retry, Run, Step, Terminal, Wait, Workflow, call, send, step
from unkey.sharing import OutOfOrder, is_shared

FAST = Retry(attempts=3, initial=0.01, cap=0.01)
ROOM = Path(os.environ.get("FLOWS_ROOM", "/nonexistent"))


def effect(text: str) -> None:
    """Write one row in the current transaction."""
    Group.objects.create(name=f"{text}#{uuid.uuid4().hex[:12]}")


def effects(prefix: str = "") -> list[str]:
    """Return the effects that were committed, in order."""
    rows = Group.objects.filter(name__startswith=prefix).order_by("id").values_list("name", flat=True)
    return [name.partition("#")[0] for name in rows]


def room(run: Run) -> Path:
    """The folder of gates and outside effects of a run."""
    return Path(run.input["room"])


def gate(folder: Path, name: str) -> None:
    """Say that this point is reached, and wait until it is opened."""
    (folder / f"{name}.reached").touch()
    while not (folder / f"{name}.open").exists():
        time.sleep(0.005)


def stand(run: Run) -> JSON:
    gate(room(run), "gate")
    return None


class Stands(Workflow):
    """Its only step asks the database nothing, and stands at a gate."""

    service, key = "test-stands", "k"
    steps = (step(stand),)
    on_failure = step(lambda run, code, message: None)


def outside_effect(folder: Path, text: str) -> None:
    """Append one line to the folder's record of what reached the world."""
    with open(folder / "world", "a") as file:
        file.write(f"{text}\n")


def note(name: str) -> Step:
    """Return a step that writes one effect named after the run and itself."""

    def record(run: Run) -> JSON:
        effect(f"{run.input.get('name', run.id)}.{name}")
        return name

    record.__name__ = name
    return step(retry=FAST)(record)


class Three(Workflow):
    """Exclusive: three effects."""

    service, key = "test-three", "k"
    steps = (note("one"), note("two"), note("three"))


def apart(name: str) -> Step:
    """Return a step whose locks are out of order wherever others took some before it."""

    def record(run: Run) -> JSON:
        effect(f"{run.input['name']}.{name}")
        if is_shared():
            raise OutOfOrder("another part took its locks first")
        return name

    record.__name__ = name
    return step(retry=Retry(attempts=1))(record)


class Apart(Workflow):
    """Each of its steps wants a transaction of its own."""

    service, key = "test-apart", "k"
    steps = (apart("one"), apart("two"), apart("three"))


class Builds(Workflow):
    """For the workers of another queue."""

    service, queue = "test-builds", "builds"
    steps = (note("one"),)


class Shared(Workflow):
    """Interleaving: two effects."""

    service, key, exclusive = "test-shared", "k", False
    steps = (note("one"), note("two"))


@step(retry=FAST)
def wait_for_topic(run: Run) -> JSON | Wait:
    if Group.objects.filter(name=f"ready {run.input['topic']}").exists():
        return "seen"
    if run.wait_expired:
        return "expired"
    return Wait(event=run.input["topic"], deadline=run.input.get("deadline"))


class Listens(Workflow):
    """Waits for a topic, exclusively."""

    service, key = "test-listens", "k"
    steps = (wait_for_topic, note("after"))


class ListensShared(Workflow):
    """Waits for a topic and lets others pass."""

    service, key, exclusive = "test-listens-shared", "k", False
    key_space = "test-shared"
    steps = (wait_for_topic, note("after"))


@step
def nap(run: Run) -> JSON | Wait:
    return "woke" if run.wait_expired else Wait(seconds=run.input["seconds"])


class Naps(Workflow):
    """Waits for a time."""

    service, key = "test-naps", "k"
    steps = (nap, note("after"))


ATTEMPTS: list[tuple[str, int]] = []


@step(retry=FAST)
def stumble(run: Run) -> JSON:
    ATTEMPTS.append((run.token, run.attempt))
    effect(f"{run.id}.stumble")
    if run.attempt < run.input["succeeds_at"]:
        raise RuntimeError(f"attempt {run.attempt} fails")
    return run.attempt


def undo(name: str) -> Step:
    """Return a compensation that writes one effect."""

    def record(run: Run) -> JSON:
        effect(f"undo.{name}")
        return f"undone {name}"

    record.__name__ = f"undo_{name}"
    return step(retry=FAST)(record)


def note_failure(run: Run, code: str, message: str) -> JSON:
    effect(f"failed.{code}")
    return message


one, two = note("one"), note("two")


class Stumbles(Workflow):
    """Fails as often as it is told, after two steps that are compensated."""

    service, key = "test-stumbles", "k"
    steps = (one, two, stumble)
    compensations = {one: undo("one"), two: undo("two")}
    on_failure = note_failure


@step
def refuse(run: Run) -> JSON:
    effect("refuse")
    raise Terminal("no_way", "It cannot be done.")


@step(retry=FAST)
def undo_badly(run: Run) -> JSON:
    raise RuntimeError("the undoing fails")


class Refuses(Workflow):
    """Fails at once."""

    service, key = "test-refuses", "k"
    steps = (one, refuse)
    compensations = {one: undo("one")}
    on_failure = note_failure


class UndoesBadly(Workflow):
    """Fails, and its compensation fails too."""

    service, key = "test-undoes-badly", "k"
    steps = (one, refuse)
    compensations = {one: undo_badly}


def reach_out(run: Run) -> Any:
    outside_effect(room(run), run.token)
    if "gate" in run.input.get("gates", []):
        gate(room(run), "gate")
    return f"by {os.getpid()}"


@step(outside=reach_out, retry=FAST)
def outside_step(run: Run, value: JSON) -> JSON:
    effect(f"{run.id}.outside")
    if "record" in run.input.get("gates", []):
        gate(room(run), "record")
    return value


@step
def inside_step(run: Run) -> JSON:
    effect(f"{run.id}.inside")
    if "inside" in run.input.get("gates", []):
        gate(room(run), "inside")
    return os.getpid()


class Reaches(Workflow):
    """An outside step and one inside, with gates to be killed at."""

    service, key = "test-reaches", "k"
    steps = (inside_step, outside_step, note("last"))
    compensations = {outside_step: undo("outside")}


def reaching(name: str) -> Step:
    """Return a step with an outside part and nothing to write."""

    def record(run: Run, _value: JSON) -> JSON:
        return None

    record.__name__ = name
    return step(outside=reach_out, retry=FAST)(record)


class ReachesTwice(Workflow):
    """Two outside parts, one after the other."""

    service, key = "test-reaches-twice", "k"
    steps = (reaching("first"), reaching("second"))


_begun = note("begun")


class UndoneOutside(Workflow):
    """Records, and is undone by an outside part."""

    service, key = "test-undone-outside", "k"
    steps = (_begun, note("more"))
    compensations = {_begun: reaching("undo_begun")}


def overlap(run: Run) -> Any:
    outside_effect(room(run), f"begin {run.input['k']} {run.id}")
    time.sleep(0.002)
    outside_effect(room(run), f"end {run.input['k']} {run.id}")
    return None


def overlapping(name: str) -> Step:
    def record(run: Run, _value: JSON) -> JSON:
        effect(f"{run.id}.{name}")
        return None

    record.__name__ = name
    return step(outside=overlap)(record)


class Overlaps(Workflow):
    """Interleaving, with outside parts that say when they begin and end."""

    service, key, exclusive = "test-overlaps", "k", False
    steps = (overlapping("a"), overlapping("b"), overlapping("c"))


def sleepy(run: Run) -> Any:
    time.sleep(run.input["sleeps"])
    return None


@step(outside=sleepy, timeout=0.05, retry=Retry(attempts=2, initial=0.01))
def impatient(run: Run, _value: JSON) -> JSON:
    return None


class Impatient(Workflow):
    """Its outside part has a time-out."""

    service, key = "test-impatient", "k"
    steps = (impatient,)


def hang(run: Run) -> Any:
    gate(room(run), "hang")


@step(outside=hang, timeout=0.05, retry=Retry(attempts=1))
def hanging(run: Run, _value: JSON) -> JSON:
    return None


class Hangs(Workflow):
    """Its outside part has a time-out, and goes on until its gate is opened."""

    service, key = "test-hangs", "k"
    steps = (hanging,)


@step(retry=Retry(attempts=1))
def lock_row(run: Run) -> JSON:
    Group.objects.select_for_update().filter(name=run.input["row"]).first()
    effect(f"{run.input['name']}.locked")
    return None


class Locks(Workflow):
    """Its step locks a row that others may hold."""

    service, key = "test-locks", "k"
    steps = (lock_row,)


def leave_open(run: Run) -> Any:
    transaction.atomic().__enter__()
    Group.objects.create(name="never committed")


@step(outside=leave_open, retry=Retry(attempts=1))
def untidy(run: Run, _value: JSON) -> JSON:
    return None


class LeavesOpen(Workflow):
    """Its outside part begins a transaction and does not end it."""

    service, key = "test-leaves-open", "k"
    steps = (untidy,)


ENDINGS: dict[str, BaseException] = {
    "cancelled": asyncio.CancelledError(),
    "exit": SystemExit(3),
    "half a character": FileNotFoundError("caf\udce9"),
}


def end_outside(run: Run) -> None:
    if run.input["where"] == "outside":
        raise ENDINGS[run.input["how"]]


@step(outside=end_outside, retry=Retry(attempts=1))
def end_inside(run: Run, _value: JSON) -> JSON:
    raise ENDINGS[run.input["how"]]


class Ends(Workflow):
    """Raises what would end its thread, or what no database can keep."""

    service, key = "test-ends", "k"
    steps = (end_inside,)


@step
def answer_anything(run: Run) -> Any:
    return {"set": {1, 2}}


class BadAnswer(Workflow):
    """Returns what JSON cannot hold."""

    service, key = "test-bad-answer", "k"
    steps = (answer_anything,)


@step
def ask_child(run: Run) -> JSON | Wait:
    child = call(run, WORKFLOWS[run.input["child"]], run.input["child_input"])
    return child if isinstance(child, Wait) else {"child": child.result}


@step
def send_child(run: Run) -> JSON:
    return send(run, Three, {"k": "sent", "name": "sent"}).id


class Parent(Workflow):
    """Calls a child and sends another."""

    service = "test-parent"
    steps = (send_child, ask_child)
    on_failure = note_failure


WORKFLOWS = {each.service: each for each in (Three, Refuses, Listens, UndoesBadly)}
