"""Drives the runs of one key: chooses whose turn it is, runs its step, records what came of it.

Every transaction here holds the key's row lock, which is what serialises the steps of a key. One
transaction records a step that has no outside part, or takes a lease for one that has; the outcome
of an outside part is recorded under the lease's epoch, in the transaction that may already take the
next lease. So a chain of steps costs one commit each.
"""

import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Any

import structlog
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Case, F, QuerySet, When

from apps.workflows import leases, topics, wakeups
from apps.workflows.definition import CANCELLED, Run, Step, Terminal, Wait, Workflow, workflow_named
from apps.workflows.leases import Lease
from apps.workflows.models import ACTIVE, Kind, State, WorkflowKey, WorkflowRun, WorkflowStep
from apps.workflows.payload import BadPayload, encode
from apps.workflows.transactions import in_transaction, is_contention
from unkey import clock

log = structlog.get_logger("workflows")

SLICE_SECONDS = 5.0
BUSY_TRIES = 4
MESSAGE_LIMIT = 4000
UNDO_SUFFIX = ":compensation"


class StepTimedOut(Exception):
    """An outside part took longer than its step allows."""


class Unfit(Exception):
    """The running code does not know what a run wants to do next."""


class LeaseLost(Exception):
    """Another worker has taken the key since; what this one did is not recorded."""


class Turn(Enum):
    """What one transaction found."""

    BUSY = auto()
    IDLE = auto()
    ADVANCED = auto()
    ELSEWHERE = auto()


@dataclass(frozen=True, slots=True)
class Job:
    """The next thing that a run has to do."""

    kind: Kind
    position: int
    step: Step


@dataclass(frozen=True, slots=True)
class Task:
    """A job of a run, as chosen under the key's lock; `lease` when its outside part is to run."""

    row: WorkflowRun
    job: Job
    view: Run
    seen: int | None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """A part of a task raised."""

    task: Task
    error: Exception


@dataclass(frozen=True, slots=True)
class Returned:
    """The outside part of a task returned."""

    task: Task
    value: Any


class _RecordingFailed(Exception):
    def __init__(self, raised: Raised) -> None:
        super().__init__()
        self.raised = raised


class Driver:
    """Runs steps in the calling thread.

    Args:
        queues: drive only runs of these; None: all.
        stop: when set, end at the next boundary of a step.
        inline: call outside parts in this thread whatever their time-out, and renew no lease: for
            tests that live in one transaction.
    """

    def __init__(
        self,
        queues: frozenset[str] | None = None,
        *,
        stop: threading.Event | None = None,
        inline: bool = False,
    ) -> None:
        self._queues = queues
        self._stop = stop or threading.Event()
        self._inline = inline
        self._results: dict[str, dict[str, Any]] = {}
        self._recording: Task | None = None

    def drive(self, key: str) -> int:
        """Drive the runs of a key until none is ready, another worker has it, or the time slice ends.

        Returns:
            How many transactions moved a run forward.
        """
        started = time.monotonic()
        moved = 0
        busy = 0
        outcome: Returned | None = None
        while True:
            try:
                turn = in_transaction(partial(self._turn, key, outcome))
            except _RecordingFailed as failed:
                turn = self._failed(failed.raised)
            except LeaseLost as lost:
                log.warning("step not recorded: its lease was taken over", reason=str(lost))
                turn = Turn.IDLE
            except IntegrityError as error:
                if self._recording is None:
                    raise
                turn = self._failed(Raised(self._recording, error))  # a deferred constraint, at COMMIT
            outcome = None
            if isinstance(turn, Task):
                moved += 1
                came = self._outside(turn)
                if isinstance(came, Raised):
                    self._failed(came)
                else:
                    outcome = came
                continue
            if turn is Turn.ADVANCED:
                moved += 1
                busy = 0
                if self._stop.is_set():
                    return moved
                if time.monotonic() - started > SLICE_SECONDS:
                    self._hand_over(key)
                    return moved
                continue
            if turn is Turn.BUSY and not connection.in_atomic_block and busy < BUSY_TRIES:
                busy += 1
                time.sleep(0.004 * 2**busy)
                continue
            return moved

    def _hand_over(self, key: str) -> None:
        queue = WorkflowRun.objects.filter(key=key, next_at__lte=clock.now()).values_list("queue", flat=True)
        for name in queue[:1]:
            wakeups.send(key, name)

    # -- one transaction ---------------------------------------------------------------------------

    def _turn(self, key: str, outcome: Returned | None) -> "Turn | Task":
        self._recording = None
        held = _lock(key, wait=outcome is not None)
        if held is None:
            return Turn.BUSY
        now = clock.now()
        if outcome is not None:
            self._check_lease(held, outcome.task)
            self._record(held, outcome.task, (outcome.value,), now)
            if self._stop.is_set():
                _drop_lease(held)
                return Turn.ADVANCED
        elif held.lease_expires_at is not None:
            if held.lease_expires_at > now:
                return Turn.IDLE
            log.warning("workflow lease lapsed", run_id=held.holder, key=key, epoch=held.epoch)
            held.epoch += 1  # whoever held it can commit no more
            held.save(update_fields=["epoch"])
            _drop_lease(held)
        row = _choose(held, now)
        if row is None:
            _drop_lease(held)
            return Turn.IDLE if outcome is None else Turn.ADVANCED
        if self._queues is not None and row.queue not in self._queues:
            wakeups.after_commit(key, row.queue)
            if outcome is not None:
                _drop_lease(held)
            return Turn.ELSEWHERE
        try:
            job = _next_job(row)
        except Unfit as unfit:
            _stop_for_attention(row, str(unfit))
            _drop_lease(held)
            return Turn.ADVANCED
        if job is None:
            _drop_lease(held)
            self._enter_undo_or_end(held, row, now)
            return Turn.ADVANCED
        task = self._task(row, job, now)
        if job.step.outside is not None:
            return self._lease(held, task, now)
        if outcome is not None:
            _drop_lease(held)
            return Turn.ADVANCED
        self._take(held, row)
        self._record(held, task, (), now)
        return Turn.ADVANCED

    def _task(self, row: WorkflowRun, job: Job, now: datetime) -> Task:
        seen = topics.sequence(row.wait_topic) if row.wait_topic else None
        suffix = UNDO_SUFFIX if job.kind == Kind.COMPENSATION else ""
        run_id = row.id
        view = Run(
            id=row.id,
            service=row.service,
            key=row.key,
            workspace_id=row.workspace_id,
            input=row.input,
            step=job.step.name,
            token=f"{row.id}/{job.step.name}{suffix}",
            attempt=row.failures + 1,
            wait_expired=row.wait_deadline is not None and row.wait_deadline <= now,
            created_at=row.created_at,
            started_at=row.started_at or now,
            step_started_at=row.step_started_at or now,
            _load=lambda: self._load_results(run_id),
        )
        return Task(row, job, view, seen)

    def _load_results(self, run_id: str) -> dict[str, Any]:
        if run_id not in self._results:
            if len(self._results) > 64:
                self._results.clear()
            done = WorkflowStep.objects.filter(run_id=run_id, kind=Kind.STEP, ended_at__isnull=False)
            self._results[run_id] = dict(done.order_by("position").values_list("name", "result"))
        return dict(self._results[run_id])

    def _take(self, held: WorkflowKey, row: WorkflowRun) -> None:
        """Make an exclusive run the key's holder."""
        holder = row.id if row.exclusive else ""
        if held.holder != holder or held.exclusive != row.exclusive:
            held.holder, held.exclusive = holder, row.exclusive
            held.save(update_fields=["holder", "exclusive"])

    def _lease(self, held: WorkflowKey, task: Task, now: datetime) -> Task:
        row = task.row
        held.epoch += 1
        held.holder, held.exclusive = row.id, row.exclusive
        held.lease_expires_at = now + leases.lease_time()
        held.save(update_fields=["epoch", "holder", "exclusive", "lease_expires_at"])
        changes: dict[str, Any] = {"state": State.RUNNING if row.undo is None else State.COMPENSATING}
        if row.started_at is None:
            changes["started_at"] = now
        if row.step_started_at is None:
            changes["step_started_at"] = now
        if not row.outside_started and task.job.kind == Kind.STEP:
            changes["outside_started"] = True
        _change(row, **changes)
        lease = Lease(held.key, held.epoch, row.id, task.job.step.name)
        return replace(task, lease=lease)

    def _check_lease(self, held: WorkflowKey, task: Task) -> None:
        assert task.lease is not None
        if held.epoch != task.lease.epoch or held.lease_expires_at is None:
            raise LeaseLost(
                f"run {task.lease.run_id} step {task.lease.step}: epoch {task.lease.epoch}, now {held.epoch}"
            )

    def _record(self, held: WorkflowKey, task: Task, values: tuple[Any, ...], now: datetime) -> None:
        """Run the recording part and write what it returned, all in the current transaction."""
        self._recording = task
        try:
            with task.view.scope():
                result = _call(task.job, task.row, task.view, values)
            if not isinstance(result, Wait):
                encode(result, f"result of step {task.job.step.name}")
        except Exception as error:
            if is_contention(error):
                raise
            raise _RecordingFailed(Raised(task, error)) from error
        if isinstance(result, Wait):
            self._park(held, task, result, now)
        else:
            self._advance(held, task, result, now)

    def _advance(self, held: WorkflowKey, task: Task, result: Any, now: datetime) -> None:
        row, job = task.row, task.job
        _journal(task, result=result, ended_at=clock.now())
        self._results.pop(row.id, None)
        changes: dict[str, Any] = _fresh_step(row)
        if row.started_at is None:
            changes["started_at"] = now
        if job.kind == Kind.STEP:
            changes["step_index"] = row.step_index + 1
            ended = row.step_index + 1 == len(row.step_names)
            changes["state"] = State.PENDING
        else:
            changes["undo_index"] = row.undo_index + 1
            ended = False
            changes["state"] = State.COMPENSATING
        changes["next_at"] = now
        _change(row, **changes)
        fields = {"run_id": row.id, "service": row.service, "step": job.step.name, "kind": job.kind.value}
        transaction.on_commit(partial(log.info, "workflow step done", **fields))
        if ended and row.cancel_requested_at is None:
            _end(held, row, State.SUCCEEDED, now)

    def _park(self, held: WorkflowKey, task: Task, wait: Wait, now: datetime) -> None:
        row = task.row
        due = wait.until
        if wait.seconds is not None:
            due = now + timedelta(seconds=max(wait.seconds, 0))
        deadline = due if wait.deadline is None else row.wait_deadline
        if wait.deadline is not None and (deadline is None or task.view.wait_expired):
            if isinstance(wait.deadline, datetime):
                deadline = wait.deadline
            else:
                deadline = now + timedelta(seconds=wait.deadline)
        moments = [moment for moment in (due, deadline) if moment is not None]
        next_at = min(moments) if moments else None
        topic = wait.event or ""
        if topic:
            sequence = topics.lock(topic)
            if topic != row.wait_topic or sequence != task.seen:
                next_at = now  # armed after the step looked: it looks once more
        changes: dict[str, Any] = {
            "state": State.WAITING if row.undo is None else State.COMPENSATING,
            "wait_topic": topic,
            "wait_deadline": deadline,
            "failures": 0,
            # A cancel that came while the step ran must not be slept over.
            "next_at": Case(When(cancel_requested_at__isnull=False, then=now), default=next_at),
        }
        if row.started_at is None:
            changes["started_at"] = now
        if row.step_started_at is None:
            changes["step_started_at"] = now
        _change(row, **changes)
        if next_at is not None and next_at > now:
            wakeups.after_commit(row.key, row.queue, due=next_at)

    def _enter_undo_or_end(self, held: WorkflowKey, row: WorkflowRun, now: datetime) -> None:
        if row.undo is None:
            _begin_undo(row, CANCELLED, "The run was cancelled.", now)
            log.info("workflow cancelled", run_id=row.id, service=row.service)
        else:
            _end(held, row, State.CANCELLED if row.error_code == CANCELLED else State.FAILED, now)

    # -- outside parts -----------------------------------------------------------------------------

    def _outside(self, task: Task) -> "Returned | Raised":
        assert task.lease is not None
        assert task.job.step.outside is not None
        outside, timeout = task.job.step.outside, task.job.step.timeout

        def call() -> Any:
            with task.view.scope():
                return outside(task.view)

        try:
            if self._inline:
                return Returned(task, call())
            with leases.keeper.keep(task.lease):
                return Returned(task, call() if timeout is None else _call_within(call, timeout))
        except Exception as error:
            return Raised(task, error)

    # -- failures ----------------------------------------------------------------------------------

    def _failed(self, raised: Raised) -> Turn:
        """Write a failed attempt in a transaction of its own, if the run still stands where it stood."""
        try:
            return in_transaction(lambda: self._record_failure(raised))
        except LeaseLost as lost:
            log.warning("failure not recorded: its lease was taken over", reason=str(lost))
            return Turn.IDLE

    def _record_failure(self, raised: Raised) -> Turn:
        task = raised.task
        held = _lock(task.row.key, wait=True)
        if held is None:
            return Turn.BUSY
        now = clock.now()
        row = WorkflowRun.objects.filter(id=task.row.id).first()
        if task.lease is not None:
            self._check_lease(held, task)
            _drop_lease(held)
        elif held.lease_expires_at is not None and held.lease_expires_at > now:
            return Turn.IDLE
        if row is None or _position(row) != _position(task.row):
            return Turn.IDLE
        code, message = _describe(raised.error)
        final = isinstance(raised.error, Terminal | BadPayload)
        failures = row.failures + 1
        _journal(replace(task, row=row), error=f"{code}: {message}")
        fields = {
            "run_id": row.id,
            "service": row.service,
            "step": task.job.step.name,
            "kind": task.job.kind,
            "attempt": failures,
            "error": f"{code}: {message}",
        }
        if not final and failures < task.job.step.retry.attempts:
            delay = task.job.step.retry.delay(failures)
            next_at = now + timedelta(seconds=delay)
            _change(
                row,
                state=State.WAITING if row.undo is None else State.COMPENSATING,
                failures=failures,
                journaled=True,
                started_at=row.started_at or now,
                step_started_at=row.step_started_at or now,
                next_at=Case(When(cancel_requested_at__isnull=False, then=now), default=next_at)
                if row.undo is None
                else next_at,
            )
            self._take(held, row)
            wakeups.after_commit(row.key, row.queue, due=next_at)
            log.warning("workflow step failed; it will be tried again", delay=round(delay, 3), **fields)
        elif row.undo is None:
            row.failures, row.journaled = failures, True
            row.started_at = row.started_at or now
            self._take(held, row)
            _begin_undo(row, code, message, now)
            log.warning("workflow step failed for good", exc_info=None if final else raised.error, **fields)
        else:
            row.failures, row.journaled = failures, True
            what = "compensating" if task.job.kind == Kind.COMPENSATION else "the failure hook"
            _stop_for_attention(row, f"{what} {task.job.step.name} keeps failing: {code}: {message}")
        return Turn.ADVANCED


# -- the key's row ---------------------------------------------------------------------------------


def _lock(key: str, *, wait: bool) -> WorkflowKey | None:
    """Lock the key's row, made if need be; None when another transaction has it and we do not wait."""
    skip = not wait and connection.features.has_select_for_update_skip_locked
    rows: QuerySet[WorkflowKey] = WorkflowKey.objects.select_for_update(skip_locked=skip)
    held = rows.filter(key=key).first()
    if held is None and not WorkflowKey.objects.filter(key=key).exists():
        WorkflowKey.objects.bulk_create([WorkflowKey(key=key)], ignore_conflicts=True)
        held = rows.filter(key=key).first()
    return held


def _drop_lease(held: WorkflowKey) -> None:
    """End the lease; an exclusive holder stays."""
    if held.lease_expires_at is None:
        return
    held.lease_expires_at = None
    if not held.exclusive:
        held.holder = ""
    held.save(update_fields=["lease_expires_at", "holder"])


def _choose(held: WorkflowKey, now: datetime) -> WorkflowRun | None:
    """Return the run whose turn it is: the exclusive holder, or urgent ones, then in order of arrival."""
    ready = WorkflowRun.objects.filter(key=held.key, next_at__lte=now)
    if held.exclusive and held.holder:
        ready = ready.filter(id=held.holder)
    return ready.order_by("-urgent", "arrival", "id").first()


# -- the run's row ---------------------------------------------------------------------------------


def _change(row: WorkflowRun, **changes: Any) -> None:
    WorkflowRun.objects.filter(id=row.id).update(**changes)
    for name, value in changes.items():
        if not isinstance(value, Case):
            setattr(row, name, value)


def _fresh_step(row: WorkflowRun) -> dict[str, Any]:
    """Return what changes when another step becomes the current one; only what differs."""
    changes: dict[str, Any] = {}
    if row.failures:
        changes["failures"] = 0
    if row.journaled:
        changes["journaled"] = False
    if row.outside_started:
        changes["outside_started"] = False
    if row.step_started_at is not None:
        changes["step_started_at"] = None
    if row.wait_topic:
        changes["wait_topic"] = ""
    if row.wait_deadline is not None:
        changes["wait_deadline"] = None
    return changes


def _position(row: WorkflowRun) -> tuple[Any, ...]:
    return row.step_index, row.undo is None, row.undo_index, row.failures, row.state in ACTIVE


def _known(row: WorkflowRun) -> type[Workflow]:
    workflow = workflow_named(row.service)
    if workflow is None:
        raise Unfit(f"the running code has no workflow named {row.service}")
    return workflow


def _next_job(row: WorkflowRun) -> Job | None:
    """Return what the run does next; None when it is to be undone (cancel) or has nothing left.

    Raises:
        Unfit: the running code lacks the step.
    """
    workflow = _known(row)
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


def _begin_undo(row: WorkflowRun, code: str, message: str, now: datetime) -> None:
    """Turn the run round: what was done is undone, last first; the first error is the one that is kept."""
    workflow = _known(row)
    done = row.step_names[: row.step_index + (1 if row.outside_started else 0)]
    changes: dict[str, Any] = {
        "undo": [name for name in reversed(done) if name in workflow.undo_by_name],
        "undo_index": 0,
        "state": State.COMPENSATING,
        "error_code": code[:64],
        "error_message": message[:MESSAGE_LIMIT],
        "started_at": row.started_at,
        "next_at": now,
        **_fresh_step(row),
    }
    _change(row, **changes)
    children = WorkflowRun.objects.filter(
        parent_id=row.id, state__in=ACTIVE, cancel_requested_at__isnull=True
    )
    for child in children:
        request_cancel(child)


def request_cancel(row: WorkflowRun) -> bool:
    """Ask a run to stop at its next boundary, or at once if it waits; say whether it was still active."""
    now = clock.now()
    asked = WorkflowRun.objects.filter(id=row.id, state__in=ACTIVE, undo__isnull=True).update(
        cancel_requested_at=now, next_at=now
    )
    if asked:
        wakeups.after_commit(row.key, row.queue)
    return bool(asked)


def _end(held: WorkflowKey, row: WorkflowRun, state: State, now: datetime) -> None:
    _change(row, state=state, next_at=None, finished_at=now, wait_topic="", started_at=row.started_at or now)
    if held.key == own_key(row.service, row.id):
        held.lease_expires_at = None
        held.delete()
    elif held.holder == row.id:
        held.holder, held.exclusive, held.lease_expires_at = "", False, None
        held.save(update_fields=["holder", "exclusive", "lease_expires_at"])
    if row.parent_id:
        topics.notify(child_topic(row.id))
    fields = {"run_id": row.id, "service": row.service, "state": state.value, "error": row.error_code}
    transaction.on_commit(partial(log.info, "workflow ended", **fields))


def _stop_for_attention(row: WorkflowRun, why: str) -> None:
    """Stop a run until an operator looks at it. The first error code is kept; the reason is added."""
    message = f"{row.error_message}\n{why}".strip()[:MESSAGE_LIMIT]
    _change(
        row,
        state=State.NEEDS_ATTENTION,
        next_at=None,
        failures=row.failures,
        journaled=row.journaled,
        error_code=row.error_code or "needs_attention",
        error_message=message,
    )
    log.error(
        "workflow needs attention", run_id=row.id, service=row.service, step=row.current_step, reason=why
    )


def own_key(service: str, run_id: str) -> str:
    """Key of a run whose workflow serialises on nothing else."""
    return f"{service}:{run_id}"


def child_topic(run_id: str) -> str:
    """Topic that is notified when a child run ends."""
    return f"run:{run_id}"


# -- the journal -----------------------------------------------------------------------------------


def _journal(task: Task, *, result: Any = None, error: str = "", ended_at: datetime | None = None) -> None:
    """Write the row of an attempt: a new one, or over the row of the failed attempts before."""
    row, job = task.row, task.job
    known: QuerySet[WorkflowStep] = WorkflowStep.objects.filter(
        run_id=row.id, kind=job.kind, name=job.step.name
    )
    if row.journaled:
        changes: dict[str, Any] = {"attempts": F("attempts") + 1, "ended_at": ended_at, "result": result}
        if error:
            changes["error"] = error[:MESSAGE_LIMIT]
        known.update(**changes)
        return
    WorkflowStep.objects.create(
        run_id=row.id,
        kind=job.kind,
        name=job.step.name,
        position=job.position,
        result=result,
        error=error[:MESSAGE_LIMIT],
        started_at=task.view.step_started_at,
        ended_at=ended_at,
    )


# -- calling user code -----------------------------------------------------------------------------


def _call(job: Job, row: WorkflowRun, view: Run, values: tuple[Any, ...]) -> Any:
    if job.kind == Kind.ON_FAILURE:
        return job.step.record(view, row.error_code, row.error_message)
    return job.step.record(view, *values)


def _call_within(call: Callable[[], Any], seconds: float) -> Any:
    """Call in a thread of its own and give up waiting for it after some seconds.

    Raises:
        StepTimedOut: it has not returned; its thread is left to end by itself.
    """
    context = contextvars.copy_context()
    box: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            box.append(context.run(call))
        except Exception as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work, name="workflow-outside", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StepTimedOut(f"no result after {seconds:g} s")
    if errors:
        raise errors[0]
    return box[0]


def _describe(error: Exception) -> tuple[str, str]:
    if isinstance(error, Terminal):
        return error.code, error.message
    if isinstance(error, BadPayload):
        return "bad_payload", str(error)
    return type(error).__name__, str(error)
