"""One transaction that moves many keys: what came back from outside is recorded, what is due goes on.

It locks the rows of all its keys, reads whose turn it is, runs recording parts one after another,
each apart from the others (`isolation`), and writes the rows of all of them together. A key's next
step follows in the same transaction as long as the group's time lasts: either its recording part, or
a lease for its outside part, which begins after the commit. So many steps share one commit, and a
chain of steps costs at most one commit each.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from apps.workflows import leases, memory, rows, topics, turns
from apps.workflows.cancelling import cancel_children
from apps.workflows.definition import CANCELLED, Run, Terminal, Wait, own_key, workflow_named
from apps.workflows.isolation import Isolation
from apps.workflows.leases import Lease
from apps.workflows.memory import Memory
from apps.workflows.models import Kind, State
from apps.workflows.payload import BadPayload, encode
from apps.workflows.rows import Entry, KeyRow, RunRow
from apps.workflows.trail import What
from apps.workflows.turns import Job, LeftProcess, Outcome, Raised, Task, Unfit, WorkerLost
from unkey import clock
from unkey.sharing import OutOfOrder, shared_transaction

log = structlog.get_logger("workflows")

BUDGET_SECONDS = 0.025
SLOW_SECONDS = 0.02


class Pace:
    """How long recording parts took lately, by service and step."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def is_slow(self, service: str, step: str) -> bool:
        """Whether a part would keep others waiting: it has taken long, or was never seen here."""
        return self._seconds.get((service, step), 1.0) > SLOW_SECONDS

    def took(self, service: str, step: str, seconds: float) -> None:
        """Remember how long a part took."""
        before = self._seconds.get((service, step), seconds)
        self._seconds[service, step] = max(seconds, 0.8 * before)


@dataclass
class Crew:
    """What the transactions of one driver or dispatcher share.

    Args:
        queues: drive only runs of these; None: all.
        stopping: whether to end at the next boundary of a step.
        take_place: take a place for one more outside part of a key; False when there is none. Told, as
            the next, whether its run is urgent.
        give_back: give some places back.
        keeps_place: whether a key may go on to its next outside part without standing in line again.
    """

    queues: frozenset[str] | None
    stopping: Callable[[], bool]
    take_place: Callable[[str, bool], bool]
    give_back: Callable[[int], None]
    keeps_place: Callable[[str, bool], bool]
    memory: Memory = field(default_factory=Memory)
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class Done:
    """What one transaction did, to be acted upon when it is committed.

    Attributes:
        covered: the keys that it dealt with.
        moved: how often a run moved forward, by key.
        launches: tasks whose outside parts are to run now; each has a place.
        again: keys that have more to do.
        blocked: keys that need a place for an outside part, and whether it is of an urgent run.
        busy: keys that another transaction has locked.
        alone: keys whose next recording part would keep others waiting.
        later, later_alone: outcomes that are still to be recorded, together or each by itself.
        elsewhere: keys (and their queues) that other workers have to drive.
        places: places for outside parts that are free again.
        due: when a run wants to be woken.
        lost: outcomes that were refused.
        steps, ended, lapses: for the counters.
    """

    covered: list[str] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)
    launches: list[Task] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    blocked: list[tuple[str, bool]] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    later: list[Outcome] = field(default_factory=list)
    later_alone: list[Outcome] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    places: int = 0
    due: list[datetime] = field(default_factory=list)
    lost: list[Task] = field(default_factory=list)
    steps: list[tuple[str, str, str, float]] = field(default_factory=list)
    ended: list[tuple[str, str]] = field(default_factory=list)
    lapses: int = 0
    results: list[tuple[str, int, str, str]] = field(default_factory=list)
    logs: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Hold:
    """A key that this transaction has locked.

    Attributes:
        row: the run whose turn it is.
        ours: the lease is this process's: the outcome of its part is being recorded.
        place: it has a place for an outside part.
    """

    key: KeyRow
    row: RunRow | None = None
    ours: bool = False
    place: bool = False


class Group:
    """One attempt at a transaction; thrown away if it fails.

    Args:
        keys: to look at, each once.
        outcomes: to record, of other keys.
        together: whether there may be several recording parts in the transaction.
        quick: put aside what is known to be slow, and wait for no locked key, even if it is the only one.

    Attributes:
        recorded: tasks whose recording parts it ran.
        taken: how many places it took.
    """

    def __init__(
        self,
        crew: Crew,
        keys: Sequence[str],
        outcomes: Sequence[Outcome],
        *,
        together: bool = True,
        quick: bool = False,
    ) -> None:
        self._crew = crew
        self._keys = keys
        self._outcomes = outcomes
        self._together = together
        self._quick = quick or len(keys) + len(outcomes) > 1
        self._began = time.monotonic()
        self._now = clock.now()
        self._lease_time = leases.lease_time()
        self._holds: dict[str, Hold] = {}
        self._rows: dict[str, RunRow] = {}
        self._entries: list[Entry] = []
        self._fresh: dict[str, dict[str, str]] = {}
        self._look: list[Hold] = []
        self._isolation = Isolation(self._write)
        self.recorded: list[Task] = []
        self.taken = 0
        self.done = Done(covered=[*keys, *(outcome.task.key for outcome in outcomes)])

    def run(self) -> Done:
        """Do it, in the current transaction.

        Raises:
            DatabaseError: the transaction as a whole failed; nothing of it may be committed.
            OutOfOrder: parts that lock in different orders met in it; nothing of it may be committed.
        """
        with self._isolation:
            with self._isolation.own():
                self._load()
            for outcome in self._outcomes:
                self._settle(outcome)
            while self._look:
                self._refresh()
                look, self._look = self._look, []
                for hold in look:
                    self._turn(hold)
            with self._isolation.own():
                self._write()
        return self.done

    def end_unbegun(self, run_id: str, key: str) -> Done:
        """Cancel a run that never began, whoever holds its key, in the current transaction.

        Its failure hook is tried once; should that fail or wait, the run goes on when its turn comes. While
        another transaction has the key locked nothing is done.
        """
        with self._isolation:
            with self._isolation.own():
                held = rows.lock_keys([key], wait=False).get(key)
                row = rows.runs_by_id([run_id]).get(run_id)
            self._now = clock.now()
            if (
                held is not None
                and row is not None
                and held.holder != run_id
                and key != own_key(row.service, run_id)
            ):
                self._cancel_unbegun(row)
            with self._isolation.own():
                self._write()
        return self.done

    def _cancel_unbegun(self, row: RunRow) -> None:
        workflow = workflow_named(row.service)
        if workflow is None or row.cancel_requested_at is None or not row.unbegun:
            return
        aside = Hold(KeyRow(row.key))  # never written: the key stays with whom it is
        self._rows[row.id] = row
        self._begin_undo(row, CANCELLED, "The run was cancelled.")
        self.done.logs.append(partial(log.info, "workflow cancelled", run_id=row.id, service=row.service))
        job = turns.next_job(row)
        if job is not None:
            self._record(aside, row, self._task(row, job), ())
            if not row.active or row.undo_index == job.position:
                return
        self._end(aside, row, turns.end_state(row))

    # -- reading and writing -----------------------------------------------------------------------

    def _load(self) -> None:
        wanted = [outcome.task.key for outcome in self._outcomes]
        found = rows.lock_keys(wanted, wait=not self._quick)
        found |= rows.lock_keys(self._keys, wait=False)
        for name, key in found.items():
            self._holds[name] = Hold(key)
        ids = [outcome.task.run_id for outcome in self._outcomes if outcome.task.key in found]
        self._rows = rows.runs_by_id(ids)
        for name in self._keys:
            hold = self._holds.get(name)
            if hold is None:
                self.done.busy.append(name)
            else:
                self._open(hold)

    def _open(self, hold: Hold) -> None:
        """Look at a key that is due: somebody's lease is respected, or taken over once it has lapsed."""
        key = hold.key
        if key.lease_expires_at is not None:
            if key.lease_expires_at > self._now:
                return
            log.warning("workflow lease lapsed", run_id=key.holder, key=key.key, epoch=key.epoch)
            self.done.lapses += 1
            key.epoch += 1  # whoever held it can commit no more
            key.changed = True
            self._take_over(hold)
            self._drop_lease(hold)
        self._look.append(hold)

    def _write(self) -> None:
        """Write what was recorded and is not yet written."""
        if self._holds:
            rows.write_keys(hold.key for hold in self._holds.values())
        rows.write_runs(self._rows.values(), self._now)
        if self._entries:
            entries, self._entries = self._entries, []
            rows.write_journal(entries)

    def _refresh(self) -> None:
        """Read the runs whose turn it is, where they are not known already."""
        if self._isolation.touched:
            for hold in self._look:
                hold.row = None
            self._isolation.touched = False
        unknown = [hold for hold in self._look if hold.row is None]
        if not unknown:
            return
        self._now = clock.now()
        with self._isolation.own():
            self._write()
            held = {
                hold.key.key: hold.key.holder for hold in unknown if hold.key.exclusive and hold.key.holder
            }
            by_id = rows.runs_by_id(list(held.values()))
            by_key = rows.next_runs([hold.key.key for hold in unknown if hold.key.key not in held], self._now)
        for hold in unknown:
            key = hold.key.key
            hold.row = by_id.get(held[key]) if key in held else by_key.get(key)
            if hold.row is not None:
                self._rows[hold.row.id] = hold.row

    # -- one key -----------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> None:
        """Record what came of an outside part, if its lease still holds."""
        task = outcome.task
        hold, row = self._holds.get(task.key), self._rows.get(task.run_id)
        if hold is None:  # locked: by itself it waits, and keeps no other from being recorded
            self.done.later_alone.append(outcome)
            return
        lease = task.lease
        if lease is None:
            self._settle_failure(hold, row, outcome)
            return
        if row is None or hold.key.epoch != lease.epoch or hold.key.lease_expires_at is None:
            self.done.lost.append(task)
            self.done.places += 1
            return
        slow = self._quick and self._crew.pace.is_slow(row.service, task.job.step.name)
        if slow or self._is_late():
            (self.done.later_alone if slow else self.done.later).append(outcome)
            return
        hold.ours = hold.place = True
        hold.row = row
        if row.position == task.at and row.active:
            if isinstance(outcome, Raised):
                self._fail(hold, row, task, outcome.error)
            else:
                self._record(hold, row, task, (outcome.value,))
        # else: recorded already, by a commit whose success this process could not see
        self._follow(hold, row)

    def _settle_failure(self, hold: Hold, row: RunRow | None, outcome: Outcome) -> None:
        """Record the failure of a part that had no lease, if the run still stands where it stood."""
        if row is None or not isinstance(outcome, Raised):
            return
        leased = hold.key.lease_expires_at is not None and hold.key.lease_expires_at > self._now
        if leased or row.position != outcome.task.at or not row.active:
            return
        self._fail(hold, row, outcome.task, outcome.error)
        self._follow(hold, row)

    def _is_late(self) -> bool:
        return time.monotonic() - self._began > BUDGET_SECONDS

    def _follow(self, hold: Hold, row: RunRow) -> None:
        """Go on with a key after one of its runs was moved."""
        if self._crew.stopping():
            self._put_down(hold)
        elif self._is_late() and not hold.ours:
            self._put_down(hold)
            self.done.again.append(hold.key.key)
        else:
            keeps = hold.key.exclusive and hold.key.holder == row.id and row.ready(self._now)
            hold.row = row if keeps else None
            self._look.append(hold)

    def _put_down(self, hold: Hold) -> None:
        """Give back the lease and the place, if the key has them."""
        row = hold.row
        if hold.place:
            hold.place = False
            self.done.places += 1
        if hold.ours:
            hold.ours = False
            self._drop_lease(hold)
            if row is not None and row.state == State.RUNNING:
                row.state, row.altered = State.PENDING, True

    def _turn(self, hold: Hold) -> None:
        """Let the run whose turn it is do its next thing."""
        while True:
            row = hold.row
            if row is None or not row.ready(self._now):
                hold.row = None
                self._put_down(hold)
                return
            if self._crew.queues is not None and row.queue not in self._crew.queues:
                self._put_down(hold)
                self.done.elsewhere.append((hold.key.key, row.queue))
                return
            try:
                job = turns.next_job(row)
            except Unfit as unfit:
                self._attention(row, str(unfit))
                self._moved(hold)
                self._put_down(hold)
                self.done.again.append(hold.key.key)
                return
            if job is None:
                self._moved(hold)
                if row.undo is None:
                    self._begin_undo(row, CANCELLED, "The run was cancelled.")
                    self.done.logs.append(
                        partial(log.info, "workflow cancelled", run_id=row.id, service=row.service)
                    )
                else:
                    self._end(hold, row, turns.end_state(row))
                self._follow(hold, row)
                return
            if job.step.outside is not None:
                self._lease(hold, row, job)
                return
            slow = self._quick and self._crew.pace.is_slow(row.service, job.step.name)
            if slow or self._is_late() or (self.recorded and not self._together):
                self._put_down(hold)
                (self.done.alone if slow else self.done.again).append(hold.key.key)
                return
            task = self._task(row, job)
            self._take(hold, row)
            self._record(hold, row, task, ())
            keeps = hold.key.exclusive and hold.key.holder == row.id and row.ready(self._now)
            if not keeps or self._isolation.touched or self._crew.stopping():
                self._follow(hold, row)
                return

    def _task(self, row: RunRow, job: Job) -> Task:
        seen = None
        if row.wait_topic:
            with self._isolation.own():
                seen = rows.topic_sequence(row.wait_topic)
        now = self._now
        view = Run(
            id=row.id,
            service=row.service,
            key=row.key,
            workspace_id=row.workspace_id,
            urgent=row.urgent,
            input=json.loads(row.input),
            step=job.step.name,
            token=turns.token(row, job),
            attempt=row.failures + 1,
            wait_expired=row.wait_deadline is not None and row.wait_deadline <= now,
            created_at=row.created_at,
            started_at=row.started_at or now,
            step_started_at=row.step_started_at or now,
            _load=partial(self._results, row.id, row.step_index),
        )
        return Task(row.id, row.key, row.queue, job, row.position, view, seen, time.monotonic())

    def _results(self, run_id: str, finished: int) -> dict[str, Any]:
        """Results of a run's finished steps, from memory where they are known."""
        known = self._crew.memory.find(run_id, finished)
        if known is None:
            fresh = self._fresh.get(run_id, {})
            before = self._crew.memory.find(run_id, finished - len(fresh))
            known = None if before is None else {**before, **fresh}
        return memory.read(run_id) if known is None else memory.decoded(known)

    def _take(self, hold: Hold, row: RunRow) -> None:
        """Make an exclusive run the key's holder."""
        holder = row.id if row.exclusive else ""
        key = hold.key
        if not hold.ours and (key.holder != holder or key.exclusive != row.exclusive):
            key.holder, key.exclusive, key.changed = holder, row.exclusive, True

    def _lease(self, hold: Hold, row: RunRow, job: Job) -> None:
        """Take a lease, or go on under the one that is ours, for an outside part."""
        key, now = hold.key, self._now
        if hold.place and not self._crew.keeps_place(key.key, row.urgent):
            self._put_down(hold)
        if not hold.place and not self._find_place(hold, row):
            return
        lease_time = self._lease_time
        if not hold.ours or key.holder != row.id:
            key.epoch += 1
            key.holder, key.exclusive = row.id, row.exclusive
            key.lease_expires_at, key.changed = now + lease_time, True
        elif key.lease_expires_at is None or key.lease_expires_at - now < lease_time * 2 / 3:
            key.lease_expires_at, key.changed = now + lease_time, True
        task = self._task(row, job)
        turns.begin_outside(row, job, now)
        task.lease = Lease(key.key, key.epoch, row.id, job.step.name)
        self.done.launches.append(task)
        self._moved(hold)

    def _find_place(self, hold: Hold, row: RunRow) -> bool:
        """Take a place, or stand in line for one; a run that an urgent one of its key waits for is as urgent."""
        name, urgent = hold.key.key, row.urgent
        hold.place = self._crew.take_place(name, urgent)
        if not hold.place and not urgent:
            with self._isolation.own():
                urgent = rows.urgent_waits(name, self._now)
            hold.place = urgent and self._crew.take_place(name, True)
        if hold.place:
            self.taken += 1
        else:
            self._put_down(hold)
            self.done.blocked.append((name, urgent))
        return hold.place

    def _drop_lease(self, hold: Hold) -> None:
        """End the lease; an exclusive holder stays."""
        key = hold.key
        if key.lease_expires_at is None:
            return
        key.lease_expires_at, key.changed = None, True
        if not key.exclusive:
            key.holder = ""

    def _moved(self, hold: Hold) -> None:
        moved = self.done.moved
        moved[hold.key.key] = moved.get(hold.key.key, 0) + 1

    # -- what came of a part -----------------------------------------------------------------------

    def _record(self, hold: Hold, row: RunRow, task: Task, values: tuple[Any, ...]) -> None:
        """Run the recording part and take down what it returned."""
        shared = bool(self.recorded)
        self.recorded.append(task)
        began = time.monotonic()
        try:
            with self._isolation.part(), task.view.scope(), shared_transaction(shared):
                result = _call(task.job, row, task.view, values)
                text = (
                    "" if isinstance(result, Wait) else encode(result, f"result of step {task.job.step.name}")
                )
        except Exception as error:
            self._isolation.check()
            if shared and isinstance(error, OutOfOrder):
                raise  # together with the parts before it; by itself it is in order
            self._fail(hold, row, task, error)
            return
        finally:
            self._crew.pace.took(row.service, task.job.step.name, time.monotonic() - began)
        self._moved(hold)
        if isinstance(result, Wait):
            self._park(row, task, result)
        else:
            self._advance(hold, row, task, text)

    def _advance(self, hold: Hold, row: RunRow, task: Task, result: str) -> None:
        kind, name = task.job.kind, task.job.step.name
        self._entries.append(
            Entry(
                row.id,
                kind.value,
                name,
                task.job.position,
                task.view.step_started_at,
                row.journaled,
                ended_at=clock.now(),
                result=result,
            )
        )
        if kind is Kind.STEP:
            self._fresh.setdefault(row.id, {})[name] = result
            self.done.results.append((row.id, row.step_index, name, result))
        ended = turns.advance(row, kind, self._now)
        self._count(row, task, "done")
        if not ended:
            return
        if row.cancel_requested_at is None:
            with self._isolation.own():
                row.cancel_requested_at = rows.lock_cancel(row.id)
        if row.cancel_requested_at is None:
            self._end(hold, row, State.SUCCEEDED)

    def _park(self, row: RunRow, task: Task, wait: Wait) -> None:
        look_again = False
        if wait.event:
            with self._isolation.own():
                sequence = topics.lock(wait.event)
            look_again = wait.event != row.wait_topic or sequence != task.seen
        turns.park(
            row,
            wait,
            task.job.step.name,
            expired=task.view.wait_expired,
            now=self._now,
            look_again=look_again,
        )
        self._count(row, task, "waiting")
        if row.next_at is not None and row.next_at > self._now:
            self.done.due.append(row.next_at)

    def _fail(self, hold: Hold, row: RunRow, task: Task, error: Exception) -> None:
        """Take down a failed attempt: it is tried again, or the run turns round, or stops for attention."""
        self._moved(hold)
        if hold.ours:
            hold.ours = False
            self._drop_lease(hold)
        self._take(hold, row)
        self._attempt_failed(row, task.job, task.view.step_started_at, error)
        again = row.state == State.WAITING or (row.undo is not None and row.failures)
        self._count(row, task, "retried" if again else "failed")

    def _attempt_failed(self, row: RunRow, job: Job, started_at: datetime, error: Exception) -> None:
        code, message = turns.describe(error)
        problem = f"{code}: {message}"
        self._entries.append(
            Entry(
                row.id,
                job.kind.value,
                job.step.name,
                job.position,
                started_at,
                row.journaled,
                error=problem[: turns.MESSAGE_LIMIT],
            )
        )
        failures = row.failures + 1
        said = {
            "run_id": row.id,
            "service": row.service,
            "step": job.step.name,
            "kind": job.kind.value,
            "attempt": failures,
            "error": problem,
        }
        if not turns.is_final(error, failures, job.step):
            delay = 0.0 if isinstance(error, WorkerLost) else job.step.retry.delay(failures)
            turns.try_again(row, job.step.name, problem, delay, self._now)
            assert row.next_at is not None
            self.done.due.append(row.next_at)
            again = partial(
                log.warning, "workflow step failed; it will be tried again", delay=round(delay, 3), **said
            )
            self.done.logs.append(again)
            return
        row.failures, row.journaled, row.altered = failures, True, True
        row.started_at = row.started_at or self._now
        if row.undo is None:
            unexpected = not isinstance(error, Terminal | BadPayload | WorkerLost)
            failed = partial(
                log.warning, "workflow step failed for good", exc_info=error if unexpected else None, **said
            )
            self.done.logs.append(failed)
            turns.note(row, What.FAILED, self._now, job.step.name, problem)
            self._begin_undo(row, code, message)
        else:
            what = "compensating" if job.kind is Kind.COMPENSATION else "the failure hook"
            self._attention(row, f"{what} {job.step.name} keeps failing: {problem}")

    def _take_over(self, hold: Hold) -> None:
        """Count the attempt of a worker that was lost, so that a step that kills its worker ends."""
        with self._isolation.own():
            row = rows.runs_by_id([hold.key.holder]).get(hold.key.holder)
        if row is None or not row.active:
            return
        self._rows[row.id] = row
        try:
            job = turns.next_job(row)
        except Unfit:
            return  # its turn will come, and stop it for attention
        if job is None or job.step.outside is None:
            return  # cancelled meanwhile
        turns.note(row, What.LAPSED, self._now, job.step.name)
        lost = WorkerLost(
            f"The worker died, or stood still for longer than its lease, {row.failures + 1} times in a row "
            f"while it ran {job.step.name}."
            if row.failures
            else f"The worker died, or stood still for longer than its lease, while it ran {job.step.name}."
        )
        self._attempt_failed(row, job, row.step_started_at or self._now, lost)
        self.done.steps.append((row.service, job.step.name, "lost", 0.0))

    def _begin_undo(self, row: RunRow, code: str, message: str) -> None:
        try:
            turns.begin_undo(row, code, message, self._now)
        except Unfit as unfit:
            self._attention(row, str(unfit))
            return
        with self._isolation.own():
            self._write()
            cancel_children(row.id)

    def _attention(self, row: RunRow, why: str) -> None:
        step = row.current_step
        turns.stop_for_attention(row, why, self._now)
        said = {"run_id": row.id, "service": row.service, "step": step, "reason": why}
        self.done.logs.append(partial(log.error, "workflow needs attention", **said))
        self.done.ended.append((row.service, State.NEEDS_ATTENTION.value))

    def _end(self, hold: Hold, row: RunRow, state: State) -> None:
        turns.end(row, state, self._now)
        key = hold.key
        if key.key == own_key(row.service, row.id):
            key.lease_expires_at, key.gone = None, True
            hold.ours = False
        elif key.holder == row.id:
            key.holder, key.exclusive, key.lease_expires_at, key.changed = "", False, None, True
            hold.ours = False
        if row.parent_id:
            with self._isolation.own():
                self._write()
                topics.notify(topics.child_topic(row.id))
        said = {"run_id": row.id, "service": row.service, "state": state.value, "error": row.error_code}
        self.done.logs.append(partial(log.info, "workflow ended", **said))
        self.done.ended.append((row.service, state.value))

    def _count(self, row: RunRow, task: Task, outcome: str) -> None:
        self.done.steps.append((row.service, task.job.step.name, outcome, time.monotonic() - task.began))


def _call(job: Job, row: RunRow, view: Run, values: tuple[Any, ...]) -> Any:
    try:
        if job.kind is Kind.ON_FAILURE:
            return job.step.record(view, row.error_code, row.error_message)
        return job.step.record(view, *values)
    except Exception:
        raise
    except BaseException as left:  # sys.exit(), a cancelled task of asyncio: not the end of this thread
        raise LeftProcess(f"the recording part asked its process to end: {left!r}") from left
