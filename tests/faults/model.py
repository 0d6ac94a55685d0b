"""The model: what may be found in journal, effects and ledger after a storm, and what may not.

The whole history is checked, run by run and key by key; each complaint is one sentence that names the
guarantee (W1 to W14 of `docs/workflows.md`) and the run.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import connection

from apps.workflows.definition import workflow_named
from apps.workflows.engine import State, WorkflowRun
from apps.workflows.models import ENDED, Kind, WorkflowKey, WorkflowStep
from tests.faults import flows
from tests.faults.storm import Account, Started


@dataclass(frozen=True, slots=True)
class Effect:
    """A row that a recording part wrote."""

    id: int
    run_id: str
    key: str
    kind: str
    step: str
    value: Any
    seen: Any
    at_ns: int
    pid: int
    skew: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an outside part: a pair of lines of the ledger, or the first alone."""

    token: str
    value: str
    began_ns: int
    ended_ns: int | None
    pid: int


@dataclass(slots=True)
class History:
    """Everything that is left after a storm."""

    runs: dict[str, WorkflowRun]
    journal: dict[str, list[WorkflowStep]]
    effects: dict[str, list[Effect]]
    calls: dict[str, list[Call]]
    keys: list[WorkflowKey]

    def counts(self) -> dict[str, int]:
        """Return how much was checked."""
        calls = [call for each in self.calls.values() for call in each]
        recorded = sum(each.kind == "step" for rows in self.effects.values() for each in rows)
        return {
            "runs": len(self.runs),
            "journal rows": sum(map(len, self.journal.values())),
            "effects": sum(map(len, self.effects.values())),
            "steps": recorded,
            "outside calls": len(calls),
            "outside calls repeated": len(calls) - len(self.calls),
            "runs given up as worker_lost": sum(
                run.error_code == "worker_lost" for run in self.runs.values()
            ),
            **{
                f"runs {state}": sum(run.state == state for run in self.runs.values())
                for state in State
                if any(run.state == state for run in self.runs.values())
            },
        }


def read_history(room: Path) -> History:
    """Read the tables and the ledger."""
    runs = {
        row.id: row for row in WorkflowRun.objects.filter(service__startswith="faults-").order_by("arrival")
    }
    journal: dict[str, list[WorkflowStep]] = defaultdict(list)
    for row in WorkflowStep.objects.order_by("id"):
        journal[row.run_id].append(row)
    effects: dict[str, list[Effect]] = defaultdict(list)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, run_id, wf_key, kind, step, value, seen, at_ns, pid, skew FROM faults_effect ORDER BY id"
        )
        for values in cursor.fetchall():
            number, run_id, key, kind, step, value, seen, at_ns, pid, skew = values
            effects[run_id].append(
                Effect(number, run_id, key, kind, step, json.loads(value), json.loads(seen), at_ns, pid, skew)
            )
    return History(runs, journal, effects, _read_ledger(room / "ledger"), list(WorkflowKey.objects.all()))


def _read_ledger(file: Path) -> dict[str, list[Call]]:
    begun: dict[str, dict[str, Any]] = {}
    ended: dict[str, int] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        entry = json.loads(line)
        if entry["what"] == "begin":
            begun[entry["value"]] = entry
        else:
            ended[entry["value"]] = entry["at"]
    calls: dict[str, list[Call]] = defaultdict(list)
    for value, entry in begun.items():
        calls[entry["token"]].append(Call(entry["token"], value, entry["at"], ended.get(value), entry["pid"]))
    return calls


def violations(history: History, account: Account) -> list[str]:
    """Return one sentence for each thing that must not be; none when all guarantees held."""
    found = [
        *_starts(history, account),
        *_rest(history),
        *_ledger(history),
        *_exclusion(history),
        *_exclusive_order(history, account),
    ]
    scripts = {started.run_id: started for started in account.started if started.run_id}
    for run in history.runs.values():
        found += [f"{complaint} ({run})" for complaint in _one_run(history, run, scripts.get(run.id))]
    return found


def _starts(history: History, account: Account) -> Iterator[str]:
    """W1 and W10: what was committed exists, once, and nothing else does."""
    named: dict[str, list[WorkflowRun]] = defaultdict(list)
    for run in history.runs.values():
        named[run.input["name"]].append(run)
    for started in account.started:
        rows = named.get(started.name, [])
        if started.run_id is None and rows:
            yield f"W1: {started.name} was rolled back and yet there is a run"
        if started.run_id is not None and [row.id for row in rows] != [started.run_id]:
            yield f"W1 W10: {started.name} was started as {started.run_id}, there are {[row.id for row in rows]}"
    for name, rows in named.items():
        if len(rows) > 1:
            yield f"W3: {name} exists {len(rows)} times"


def _rest(history: History) -> Iterator[str]:
    """Nothing is left to do, and no key is held."""
    for run in history.runs.values():
        if run.state not in ENDED:
            yield f"W1 W8: {run} has not ended; next at {run.next_at}, waits for {run.wait_topic!r}"
        elif run.next_at is not None:
            yield f"{run} has ended and is still due"
        elif run.finished_at is None:
            yield f"{run} has ended, nobody knows when"
    for key in history.keys:
        if key.holder or key.lease_expires_at is not None:
            yield f"W5: {key} after everything has ended"


def _ledger(history: History) -> Iterator[str]:
    """W4: the same token on every repetition, known to the journal."""
    for token in history.calls:
        run_id, _, step = token.partition("/")
        run = history.runs.get(run_id)
        name = step.removesuffix(":compensation")
        if run is None:
            yield f"W1 W4: a call with token {token} of no run"
            continue
        workflow = workflow_named(run.service)
        assert workflow is not None
        table = workflow.undo_by_name if step.endswith(":compensation") else workflow.by_name
        if name not in table or table[name].outside is None:
            yield f"W4: a call with token {token}, which is no outside part of {run.service}"


def _one_run(history: History, run: WorkflowRun, started: Started | None) -> Iterator[str]:
    workflow = workflow_named(run.service)
    assert workflow is not None
    journal = history.journal[run.id]
    effects = history.effects[run.id]
    done = [row for row in journal if row.kind == Kind.STEP and row.ended_at is not None]
    undone = [row for row in journal if row.kind == Kind.COMPENSATION and row.ended_at is not None]
    hooks = [row for row in journal if row.kind == Kind.ON_FAILURE and row.ended_at is not None]
    for kind, rows in (("step", done), ("undo", undone), ("on_failure", hooks)):
        wrote = [(each.step, each.value) for each in effects if each.kind == kind]
        recorded = [(row.name, row.result) for row in rows]
        if wrote != recorded:
            yield f"W2 W3: effects of kind {kind} are {wrote}, the journal has {recorded}"
    names = run.step_names
    if [row.name for row in done] != names[: len(done)]:
        yield f"W3: steps are journaled as {[row.name for row in done]}"
    if [row.position for row in done] != list(range(len(done))):
        yield f"W3: positions are {[row.position for row in done]}"
    for row, each in zip(done, [one for one in effects if one.kind == "step"], strict=False):
        before = {other.name: other.result for other in done if other.position < row.position}
        if each.seen != before:
            yield f"W4: step {row.name} saw {each.seen}, recorded before it was {before}"
        if row.name in workflow.by_name and workflow.by_name[row.name].outside is not None:
            yield from _winner(history, f"{run.id}/{row.name}", row, each)
    for row in undone:
        undo = workflow.undo_by_name[row.name]
        if undo.outside is not None:
            for each in (one for one in effects if one.kind == "undo" and one.step == row.name):
                yield from _winner(history, f"{run.id}/{row.name}:compensation", row, each)
    yield from _outcome(history, run, started, done, undone, hooks)
    yield from _attempts(run, journal)
    yield from _timers(effects)


def _winner(history: History, token: str, row: WorkflowStep, each: Effect) -> Iterator[str]:
    """W4: what is recorded is what one call returned before."""
    call = next((one for one in history.calls.get(token, []) if one.value == row.result), None)
    if call is None:
        yield f"W4: {row.name} recorded {row.result}, which no call with {token} returned"
    elif call.ended_ns is None or call.ended_ns > each.at_ns:
        yield f"W4: {row.name} recorded {row.result} before the call had ended"


def _outcome(
    history: History,
    run: WorkflowRun,
    started: Started | None,
    done: list[WorkflowStep],
    undone: list[WorkflowStep],
    hooks: list[WorkflowStep],
) -> Iterator[str]:
    """W9 and W11: how a run ends follows from its script and from who cancelled it."""
    workflow = workflow_named(run.service)
    assert workflow is not None
    names = run.step_names
    if run.state not in ENDED:
        return
    if run.state == State.SUCCEEDED:
        if len(done) != len(names):
            yield f"W3: it succeeded with steps {[row.name for row in done]}"
        if undone or hooks:
            yield "W9: it succeeded and was undone"
        if run.input.get("refuse") in names:
            yield "W9: it succeeded though a step was told to refuse"
        if started is not None and started.cancelled:
            yield "W11: it succeeded though its cancel was accepted"
        return
    owed = [row.name for row in reversed(done) if row.name in workflow.undo_by_name]
    undone_names = [row.name for row in undone]
    next_step = names[len(done)] if len(done) < len(names) else ""
    if next_step in workflow.undo_by_name:
        began = bool(history.calls.get(f"{run.id}/{next_step}"))
        if undone_names[:1] == [next_step] and workflow.by_name[next_step].outside is not None:
            owed = [next_step, *owed]
        elif began:
            yield f"W9: {next_step} had begun outside and was not undone"
    if undone_names != owed:
        yield f"W9: undone were {undone_names}, to be undone were {owed}"
    if workflow.failure_step is not None and len(hooks) != 1:
        yield f"W9: the failure hook ran {len(hooks)} times"
    if run.state == State.CANCELLED:
        asked = run.cancel_requested_at is not None
        if run.error_code != "cancelled" or (not asked and started is not None and not started.cancel_asked):
            yield f"W11: it is cancelled with {run.error_code}, asked: {asked}"
        return
    if run.error_code == "worker_lost":
        return  # so many workers died in one step that the engine gave it up, as it says it does
    expected = "refused"
    if run.service == flows.Parent.service:
        if run.input["child"].get("refuse") is None:
            yield f"W9: it failed with {run.error_code}: {run.error_message}"
    elif run.input.get("refuse") != next_step:
        yield f"W9: it failed at {next_step} with {run.error_code}: {run.error_message}"
    if run.error_code != expected:
        yield f"W9: the first error is kept as {run.error_code}: {run.error_message}"
    if run.service == flows.Parent.service:
        yield from _children(history, run)


def _children(history: History, run: WorkflowRun) -> Iterator[str]:
    called = [row for row in history.runs.values() if row.input["name"] == f"{run.input['name']}/called"]
    if [row.state for row in called] != [State.FAILED]:
        yield f"W9: its child is {[str(row) for row in called]}"


def _attempts(run: WorkflowRun, journal: list[WorkflowStep]) -> Iterator[str]:
    """W9: what was told to fail so often failed so often, and then succeeded."""
    for name, times in run.input.get("fail", {}).items():
        for row in journal:
            if (
                row.kind == Kind.STEP
                and row.name == name
                and row.ended_at is not None
                and row.attempts <= times
            ):
                yield f"W9: {name} was to fail {times} times, and ended in attempt {row.attempts}"


def _timers(effects: list[Effect]) -> Iterator[str]:
    """W7: no timer fires early, by clocks that are right."""
    armed = [each for each in effects if each.kind == "arm"]
    woke = [each for each in effects if each.kind == "step" and each.step == "nap"]
    if len(armed) == 1 and woke and not armed[0].skew and not woke[0].skew:
        slept = (woke[0].at_ns - armed[0].at_ns) / 1e9
        if slept < armed[0].value - 0.005:
            yield f"W7: it woke after {slept:.3f} s, {1000 * armed[0].value:.0f} ms were to be waited"


def _exclusion(history: History) -> Iterator[str]:
    """W5: while the winning call of a step goes on, nothing else of its key is recorded."""
    by_key: dict[str, list[Effect]] = defaultdict(list)
    for rows in history.effects.values():
        for each in rows:
            by_key[each.key].append(each)
    for key, rows in by_key.items():
        rows.sort(key=lambda each: each.id)
        for index, each in enumerate(rows):
            suffix = ":compensation" if each.kind == "undo" else ""
            calls = history.calls.get(f"{each.run_id}/{each.step}{suffix}", [])
            call = next((one for one in calls if one.value == each.value), None)
            if call is None or index == 0:
                continue
            before = rows[index - 1]
            if before.at_ns > call.began_ns:
                yield (
                    f"W5: key {key}: {before.run_id} recorded {before.step} while the outside part of "
                    f"{each.run_id} {each.step} that was recorded afterwards went on"
                )


def _exclusive_order(history: History, account: Account) -> Iterator[str]:
    """W5: exclusive runs of a key wholly one after the other, in order of arrival, urgent ones first."""
    scripts = {started.run_id: started for started in account.started if started.run_id}
    by_key: dict[str, list[Effect]] = defaultdict(list)
    for rows in history.effects.values():
        for each in rows:
            if history.runs[each.run_id].exclusive:
                by_key[each.key].append(each)
    for key, rows in by_key.items():
        rows.sort(key=lambda each: each.id)
        order: list[str] = []
        for each in rows:
            if not order or order[-1] != each.run_id:
                order.append(each.run_id)
        if len(set(order)) != len(order):
            yield f"W5: runs of the exclusive key {key} are mixed: {order}"
            continue
        runs = [history.runs[run_id] for run_id in order]
        plain = [run for run in runs if not run.urgent and run.id in scripts]
        arrivals = [run.arrival for run in plain]
        if arrivals != sorted(arrivals):
            yield f"W5: key {key}: order of arrival is not kept: {[str(run) for run in plain]}"
        first = {run_id: next(each.at_ns for each in rows if each.run_id == run_id) for run_id in order}
        for index, run in enumerate(runs):
            if not run.urgent or run.id not in scripts:
                continue
            overtook = [
                other
                for other in runs[:index]
                if not other.urgent and first[other.id] > scripts[run.id].at_ns
            ]
            if len(overtook) > 1:
                yield f"W5: {len(overtook)} runs of key {key} went before the urgent {run.id}"
