"""Commits groups, and drives single keys in the calling thread."""

import threading
import time
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

import structlog
from django.db import IntegrityError, connections

from apps.workflows import outside, wakeups
from apps.workflows.counters import counters
from apps.workflows.group import Crew, Done, Group
from apps.workflows.models import WorkflowRun
from apps.workflows.transactions import ATTEMPTS, in_transaction, is_away, is_contention, waited_in_vain
from apps.workflows.turns import Outcome, Raised, Task
from unkey import clock
from unkey.sharing import OutOfOrder

log = structlog.get_logger("workflows")

SLICE_SECONDS = 5.0
BUSY_TRIES = 4


def commit(
    crew: Crew, keys: Sequence[str], outcomes: Sequence[Outcome], *, quick: bool = False
) -> Iterator[Done]:
    """Move keys in one transaction; in several smaller ones when that one fails.

    A deadlock, a constraint that is checked at COMMIT, parts that lock in different orders, an error of
    one key: whatever fails a group is found by halving it, so that it hurts its own key alone.

    Args:
        keys: to look at, each once.
        outcomes: to record, of other keys.
        quick: put aside what is known to be slow, and wait for no locked key, even if it is the only one.

    Yields:
        What each transaction did, right after its commit. A key that failed by itself is in none of
        them; it is logged.

    Raises:
        OperationalError, InterfaceError: the database is away; what was not yielded was not done.
    """
    if len(keys) + len(outcomes) > 1:
        try:
            done = _once(crew, keys, outcomes, quick=quick)
        except Exception as error:
            if is_away(error):
                raise
            if waited_in_vain(error):  # each by itself: halved, they would all wait again and again
                everything = [*keys, *(outcome.task.key for outcome in outcomes)]
                yield Done(covered=everything, alone=list(keys), later_alone=list(outcomes))
                return
            log.debug("workflow group divided", keys=len(keys), outcomes=len(outcomes), error=repr(error))
        else:
            yield done
            return
        counters.change(splits=1)
        half_keys, half_outcomes = (len(keys) + 1) // 2, len(outcomes) // 2
        yield from commit(crew, keys[:half_keys], outcomes[:half_outcomes], quick=quick)
        yield from commit(crew, keys[half_keys:], outcomes[half_outcomes:], quick=quick)
        return
    if not keys and not outcomes:
        return
    try:
        done = _single(crew, keys, outcomes, quick)
    except Exception as error:
        if is_away(error):
            raise
        names = [*keys, *(outcome.task.key for outcome in outcomes)]
        log.exception("driving failed; the sweeper will try again", key=names[0])
    else:
        yield done


def _single(crew: Crew, keys: Sequence[str], outcomes: Sequence[Outcome], quick: bool) -> Done:
    try:
        return _once(crew, keys, outcomes, attempts=ATTEMPTS, quick=quick)
    except (IntegrityError, OutOfOrder):
        pass  # a deferred constraint, at COMMIT: whose, is known when one part is in the transaction
    recorded: list[Group] = []
    try:
        return _once(crew, keys, outcomes, attempts=ATTEMPTS, together=False, quick=quick, seen=recorded)
    except IntegrityError as error:
        parts = recorded[-1].recorded if recorded else []
        if not parts:
            raise
        return _once(crew, [], [Raised(parts[-1], error)], attempts=ATTEMPTS)


def _once(
    crew: Crew,
    keys: Sequence[str],
    outcomes: Sequence[Outcome],
    *,
    attempts: int = 1,
    together: bool = True,
    quick: bool = False,
    seen: list[Group] | None = None,
) -> Done:
    tried = [] if seen is None else seen

    def work() -> Done:
        tried.append(Group(crew, keys, outcomes, together=together, quick=quick))
        return tried[-1].run()

    failed = tried
    try:
        done = in_transaction(work, attempts)
        failed = tried[:-1]
    finally:
        crew.give_back(sum(group.taken for group in failed))
    _publish(crew, done)
    return done


def _publish(crew: Crew, done: Done) -> None:
    """Count, remember and log what was committed."""
    for result in done.results:
        crew.memory.add(*result)
    for task in done.lost:
        log.warning(
            "step not recorded: its lease was taken over",
            run_id=task.run_id,
            step=task.job.step.name,
            epoch=None if task.lease is None else task.lease.epoch,
        )
    for write in done.logs:
        write()
    for key, queue in done.elsewhere:
        wakeups.send(key, queue)
    counters.group(len(done.moved), done.steps, done.ended, done.lapses, len(done.lost))


def end_unbegun(run_id: str, key: str) -> None:
    """End a run that is to be cancelled and never began, without waiting for its turn on its key.

    Where another transaction is in the way nothing is done: the sweeper will try again.

    Args:
        run_id: the run; left alone if it has begun or holds its key.
        key: its key.

    Raises:
        OperationalError, InterfaceError: the database is away.
    """
    crew = Crew(
        None,
        stopping=lambda: False,
        take_place=lambda name, urgent: False,
        give_back=lambda places: None,
        keeps_place=lambda name, urgent: False,
    )
    try:
        done = in_transaction(lambda: Group(crew, [], []).end_unbegun(run_id, key), attempts=1)
    except Exception as error:
        if is_away(error):
            raise
        write = log.debug if is_contention(error) else log.warning
        write("workflow not cancelled yet", run_id=run_id, error=str(error))
        return
    _publish(crew, done)


class Driver:
    """Runs steps in the calling thread, and outside parts with a time-out in another.

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
        self._inline = inline
        self._stop = stop or threading.Event()
        self._crew = Crew(
            queues,
            stopping=self._stop.is_set,
            take_place=lambda key, urgent: True,
            give_back=lambda places: None,
            keeps_place=lambda key, urgent: True,
        )

    def drive(self, key: str) -> int:
        """Drive the runs of a key until none is ready, another worker has it, or the time slice ends.

        Returns:
            How many times a run moved forward.
        """
        started = time.monotonic()
        moved = busy = 0
        keys: list[str] = [key]
        outcomes: list[Outcome] = []
        while keys or outcomes:
            done = Done()
            for done in commit(self._crew, keys, outcomes):
                moved += sum(done.moved.values())
            keys, outcomes = done.again + done.alone, done.later + done.later_alone
            outcomes += [outside.call(task) if self._inline else _outcome(task) for task in done.launches]
            if done.busy and busy < BUSY_TRIES:
                busy += 1
                time.sleep(0.004 * 2**busy)
                keys = done.busy
            if keys and self._stop.is_set():
                break
            if keys and not done.busy and time.monotonic() - started > SLICE_SECONDS:
                self._hand_over(key)
                break
        return moved

    def _hand_over(self, key: str) -> None:
        queue = WorkflowRun.objects.filter(key=key, next_at__lte=clock.now()).values_list("queue", flat=True)
        for name in queue[:1]:
            wakeups.send(key, name)


def _outcome(task: Task) -> Outcome:
    """Run an outside part in a thread of its own, under its lease, for as long as its time lasts."""
    came: SimpleQueue[Outcome] = SimpleQueue()
    parts = outside.Parts(came.put)
    parts.begin(task)

    def work() -> None:
        try:
            outcome = parts.run(task)
        finally:
            connections.close_all()
        if outcome is not None:
            came.put(outcome)

    threading.Thread(target=work, name="workflow-outside", daemon=True).start()
    return came.get()
