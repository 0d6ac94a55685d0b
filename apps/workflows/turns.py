"""What a run does next, and how its row changes by what came of it: no database, no user code.

A `Task` is one part of one step that is about to run, or has run; an outcome is what it returned or
raised.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from apps.workflows import trail
from apps.workflows.definition import CANCELLED, Run, Step, Terminal, Wait, Workflow, workflow_named
from apps.workflows.leases import Lease
from apps.workflows.models import Kind, State
from apps.workflows.payload import BadPayload
from apps.workflows.rows import Position, RunRow
from apps.workflows.trail import What

MESSAGE_LIMIT = 4000
UNDO_SUFFIX = ":compensation"
LOST = "worker_lost"
LOST_ATTEMPTS = 3


class Unfit(Exception):
    """The running code does not know what a run wants to do next."""


class WorkerLost(Exception):
    """The worker of an outside part died, or was stopped for longer than its lease."""


class LeftProcess(Exception):
    """A part of a step raised what ends a process or a task (`sys.exit()`), which is not its to decide."""


@dataclass(frozen=True, slots=True)
class Job:
    """The next thing that a run has to do."""

    kind: Kind
    position: int
    step: Step


@dataclass(slots=True, eq=False)
class Task:
    """A job of a run, chosen under the key's lock.

    Args:
        at: where the run stood.
        view: what user code sees.
        seen: sequence of the topic that the run was woken by, before the step looks.
        began: `time.monotonic()` when it was chosen.
        lease: when its outside part is to run.
    """

    run_id: str
    key: str
    queue: str
    job: Job
    at: Position
    view: Run
    seen: int | None
    began: float
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The outside part of a task returned."""

    task: Task
    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """A part of a task raised."""

    task: Task
    error: Exception


Outcome = Returned | Raised


def next_job(row: RunRow) -> Job | None:
    """Return what the run does next; None when it is to be undone (cancel) or has nothing left.

    Raises:
        Unfit: the running code lacks the step.
    """
    workflow = known(row)
    if row.undo is None:
        if row.cancel_requested_at is not None:
            return None
        name = row.step_names[row.step_index]
        found = workflow.by_name.get(name)
        if found is None:
            raise Unfit(f"the running code of {row.service} has no step {name}, which comes next")
        return Job(Kind.STEP, row.step_index, found)
    if row.undo_index < len(row.undo):
        name = row.undo[row.undo_index]
        undo = workflow.undo_by_name.get(name)
        if undo is None:
            raise Unfit(f"the running code of {row.service} has no compensation for step {name}")
        return Job(Kind.COMPENSATION, row.undo_index, replace(undo, name=name))
    if row.undo_index == len(row.undo) and workflow.failure_step is not None:
        return Job(Kind.ON_FAILURE, row.undo_index, workflow.failure_step)
    return None


def known(row: RunRow) -> type[Workflow]:
    """Return the run's workflow.

    Raises:
        Unfit: the running code has none of that name.
    """
    workflow = workflow_named(row.service)
    if workflow is None:
        raise Unfit(f"the running code has no workflow named {row.service}")
    return workflow


def token(row: RunRow, job: Job) -> str:
    """Return what the outside world is idempotent by: the same in every attempt."""
    return f"{row.id}/{job.step.name}{UNDO_SUFFIX if job.kind is Kind.COMPENSATION else ''}"


def begin(row: RunRow, now: datetime) -> None:
    """Note the times of a run's and a step's start."""
    if row.started_at is None:
        row.started_at, row.altered = now, True
    if row.step_started_at is None:
        row.step_started_at, row.progressed = now, True


def begin_outside(row: RunRow, job: Job, now: datetime) -> None:
    """Note that an outside part begins: a step whose outside part began is compensated too."""
    begin(row, now)
    state = State.RUNNING if row.undo is None else State.COMPENSATING
    if row.state != state:
        row.state, row.altered = state, True
    if job.kind is Kind.STEP and not row.outside_started:
        row.outside_started, row.progressed = True, True


def advance(row: RunRow, kind: Kind, now: datetime) -> bool:
    """Move on to the next step or compensation; return whether that was the last step."""
    if row.started_at is None:
        row.started_at, row.altered = now, True
    if kind is Kind.STEP:
        row.step_index += 1
        row.progressed = True
    else:
        row.undo_index += 1
        row.altered = True
    if row.state == State.WAITING or (row.state == State.RUNNING and not row.exclusive):
        row.state, row.altered = State.PENDING, True
    _fresh_step(row)
    if row.next_at is None or row.next_at > now:
        row.next_at, row.altered = now, True
    return kind is Kind.STEP and row.step_index == len(row.step_names)


def _fresh_step(row: RunRow) -> None:
    row.step_started_at = None
    row.outside_started = False
    if row.failures or row.journaled or row.wait_topic or row.wait_deadline is not None:
        row.failures, row.journaled, row.wait_topic, row.wait_deadline = 0, False, "", None
        row.altered = True


def park(row: RunRow, wait: Wait, step: str, *, expired: bool, now: datetime, look_again: bool) -> None:
    """Let a run wait.

    Args:
        step: that waits.
        expired: the time of its last wait was over when it ran.
        look_again: something may have happened while it looked: it runs once more at once.
    """
    due = wait.until
    if wait.seconds is not None:
        due = now + timedelta(seconds=max(wait.seconds, 0))
    deadline = due if wait.deadline is None else row.wait_deadline
    if wait.deadline is not None and (deadline is None or expired):
        deadline = (
            wait.deadline if isinstance(wait.deadline, datetime) else now + timedelta(seconds=wait.deadline)
        )
    moments = [moment for moment in (due, deadline) if moment is not None]
    begin(row, now)
    row.state = State.WAITING if row.undo is None else State.COMPENSATING
    row.wait_topic = wait.event or ""
    row.wait_deadline = deadline
    row.failures = 0
    row.next_at = min(moments) if moments else None
    if look_again:
        row.next_at = now
    else:
        note(row, What.WAIT, now, step, row.wait_topic, until=row.next_at)
    row.altered = True


def try_again(row: RunRow, step: str, problem: str, delay: float, now: datetime) -> None:
    """Count a failed attempt, and wait before the next."""
    begin(row, now)
    row.failures += 1
    row.journaled = True
    row.state = State.WAITING if row.undo is None else State.COMPENSATING
    row.next_at = now + timedelta(seconds=delay)
    note(row, What.FAILED, now, step, problem, until=row.next_at)
    row.altered = True


def begin_undo(row: RunRow, code: str, message: str, now: datetime) -> None:
    """Turn the run round: what was done is undone, last first; the first error is the one that is kept."""
    workflow = known(row)
    done = row.step_names[: row.step_index + (1 if row.outside_started else 0)]
    row.undo = tuple(name for name in reversed(done) if name in workflow.undo_by_name)
    row.undo_index = 0
    row.state = State.COMPENSATING
    row.error_code, row.error_message = code[:64], message[:MESSAGE_LIMIT]
    row.next_at = now
    note(row, What.UNDO, now, text=f"{code}: {message}")
    _fresh_step(row)
    row.altered = True


def stop_for_attention(row: RunRow, why: str, now: datetime) -> None:
    """Stop a run until an operator looks at it. The first error code is kept; the reason is added."""
    row.error_message = f"{row.error_message}\n{why}".strip()[:MESSAGE_LIMIT]
    row.error_code = row.error_code or "needs_attention"
    row.state, row.next_at = State.NEEDS_ATTENTION, None
    note(row, What.ATTENTION, now, row.current_step, why)
    row.altered = True


def end(row: RunRow, state: State, now: datetime) -> None:
    """End a run."""
    row.state, row.next_at, row.finished_at, row.wait_topic = state, None, now, ""
    row.started_at = row.started_at or now
    row.altered = True


def end_state(row: RunRow) -> State:
    """Return how a run ends that was undone."""
    return State.CANCELLED if row.error_code == CANCELLED else State.FAILED


def note(
    row: RunRow, what: What, now: datetime, step: str = "", text: str = "", until: datetime | None = None
) -> None:
    """Add to the run's trail."""
    known_trail = None if row.trail is None else json.loads(row.trail)
    row.trail = json.dumps(trail.added(known_trail, what, now, step, text, until))
    row.altered = True


def describe(error: Exception) -> tuple[str, str]:
    """Return the code and the message that a run keeps of an error."""
    if isinstance(error, Terminal):
        return error.code, _writable(error.message)
    if isinstance(error, BadPayload):
        return "bad_payload", _text(error)
    if isinstance(error, WorkerLost):
        return LOST, _text(error)
    return type(error).__name__, _text(error)


def _text(error: Exception) -> str:
    try:
        return _writable(str(error))
    except Exception:
        return "it cannot be written as text"


def _writable(text: str) -> str:
    """Return a text that every database takes: names of files may hold halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_final(error: Exception, failures: int, step: Step) -> bool:
    """Say whether a step that has now failed so many times is not tried again."""
    if isinstance(error, Terminal | BadPayload):
        return True
    attempts = step.retry.attempts
    if isinstance(error, WorkerLost):
        attempts = max(attempts, LOST_ATTEMPTS)
    return failures >= attempts
