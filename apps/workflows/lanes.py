"""The threads of a worker process: they run outside parts and commit groups, whichever is to be done.

A key is waiting (`ready`), or in hand: in a group that is being committed, or with an outside part. A
thread that has committed a group goes on with the outside parts that follow from it, one after another,
and then commits what came of them: as long as nothing blocks, one thread does it all and hands nothing
over. Whenever there is more to do, one other thread is awake and looks for it (`seeking`): it comes to
run as soon as the first one blocks, and wakes the next. While a group is committed, what comes back and
what is woken gathers, and is the next group.

SQLite has one writer, so one group is committed at a time; elsewhere a few are, and the last of them
never runs a recording part that is known to be slow nor waits for a locked key, so that such ones cannot
hold up the rest.

Only outside parts need a place. While all places are taken, keys are looked at as ever: what only
records is done, and a key that needs a place stands in line for one without a lease, so that any other
worker may take it up meanwhile. Urgent runs have a line of their own that goes first, and a few places
beyond the others, so that ordinary parts, however long, do not keep them waiting.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import structlog
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    InterfaceError,
    close_old_connections,
    connection,
    connections,
)

from apps.workflows.driver import SLICE_SECONDS, commit
from apps.workflows.due import Room
from apps.workflows.group import SLOW_SECONDS, Crew, Done
from apps.workflows.outside import Parts
from apps.workflows.turns import Outcome, Raised, Task

log = structlog.get_logger("workflows")

GROUP = 64
LANES = 3
URGENT_PLACES = 2
LINE = 500
AWAY_SECONDS = 0.5
CHECK_SECONDS = 5.0
IDLE_SECONDS = 60.0


@dataclass(slots=True)
class Hand:
    """A key in hand.

    Attributes:
        since: `time.monotonic()` when it was taken up.
        again: it was woken meanwhile.
    """

    since: float = field(default_factory=time.monotonic)
    again: bool = False


@dataclass(slots=True)
class Batch:
    """What one group is to do.

    Attributes:
        alone: it is one slow part.
        quick: it must not wait: slow parts and locked keys are put aside.
    """

    keys: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    alone: bool = False
    quick: bool = False


class Lanes:
    """Drives keys.

    Args:
        queues: the queues that this process serves; None: all.
        threads: how many outside parts run at a time; of urgent runs a few more (`URGENT_PLACES`).
        due_at: told when something becomes due.
        drained: told when there is room for keys that were left out before.
    """

    def __init__(
        self,
        queues: Iterable[str] | None,
        threads: int,
        *,
        due_at: Callable[[datetime], None],
        drained: Callable[[], None],
    ) -> None:
        self._due_at = due_at
        self._drained = drained
        self._guard = threading.Lock()
        self._ready: dict[str, None] = {}
        self._lines: dict[bool, dict[str, None]] = {True: {}, False: {}}  # for places; True: of urgent runs
        self._inbox: deque[Outcome] = deque()
        self._alone: deque[str | Outcome] = deque()
        self._tasks: deque[Task] = deque()
        self._hand: dict[str, Hand] = {}
        self._places = threads  # below 0 where urgent runs have taken theirs
        self._left_out = False
        self._more = False
        self._stopping = threading.Event()
        self._lanes = 1 if connection.vendor == "sqlite" else LANES
        self._free = self._lanes
        self._alone_next = False
        self._living = 0
        self._seeking = 0
        self._idle: list[threading.Lock] = []
        self._ended = threading.Event()
        self._parts = Parts(self._expired)
        self._crew = Crew(
            None if queues is None else frozenset(queues),
            stopping=self._stopping.is_set,
            take_place=self._take_place,
            give_back=self._give_back,
            keeps_place=self._keeps_place,
        )

    # -- from outside ------------------------------------------------------------------------------

    @property
    def room(self) -> Room:
        """Which outside parts could begin now."""
        with self._guard:
            return self._room()

    def found(self, keys: Iterable[str], *, more: bool) -> None:
        """Look at keys that the sweeper found, unless they are in hand.

        Args:
            more: there are others, to be swept for when these are done.
        """
        with self._guard:
            for key in keys:
                if key not in self._hand:
                    self._want(key)
            self._more = more
            self._call()

    def offer(self, key: str) -> bool:
        """Look at a key soon; say whether there is room for whatever it wants to do."""
        with self._guard:
            if self._stopping.is_set():
                return False
            room = key in self._hand or self._room() is Room.ALL
            self._want(key)
            self._call()
            return room

    def wind_down(self) -> None:
        """Take up nothing more; what is in hand stops at the end of its step."""
        with self._guard:
            self._stopping.set()
            self._ready.clear()
            for line in self._lines.values():
                line.clear()
            self._dismiss()

    def join(self) -> None:
        """Wait for what is in hand."""
        self._ended.wait()

    def _want(self, key: str) -> None:
        if self._stopping.is_set():
            return
        hand = self._hand.get(key)
        if hand is not None:
            hand.again = True
            return
        self._ready[key] = None

    # -- places for outside parts ------------------------------------------------------------------

    def _room(self) -> Room:
        if self._free_places(False) > len(self._lines[False]):
            return Room.ALL
        return Room.URGENT if self._free_places(True) > len(self._lines[True]) else Room.NONE

    def _take_place(self, key: str, urgent: bool) -> bool:
        with self._guard:
            line, places = self._lines[urgent], self._free_places(urgent)
            if places <= len(line) and key not in islice(line, places):  # nobody goes before those in line
                return False
            self._places -= 1
            return True

    def _free_places(self, urgent: bool) -> int:
        """How many of a line may go now: ordinary runs when no urgent one waits."""
        return max(self._places + URGENT_PLACES if urgent else self._places - len(self._lines[True]), 0)

    def _give_back(self, places: int) -> None:
        if not places:
            return
        with self._guard:
            self._places += places
            self._unblock()
            self._call()

    def _block(self, key: str, urgent: bool) -> None:
        """Let a key in hand stand in line for a place; one that stood in it keeps its position."""
        hand = self._hand.pop(key)
        if self._stopping.is_set():
            return
        if hand.again:  # another run of it may be the next by now
            self._ready[key] = None
        line = self._lines[urgent]
        self._lines[not urgent].pop(key, None)
        if key in line or len(line) < LINE:
            line[key] = None
        else:
            self._left_out = True

    def _unblock(self) -> None:
        """Look again at the first of the lines, as many as there are places."""
        for urgent, line in self._lines.items():
            for key in islice(line, self._free_places(urgent)):
                if key not in self._hand:
                    self._want(key)

    def _leave_line(self, key: str) -> None:
        for line in self._lines.values():
            line.pop(key, None)

    def _keeps_place(self, key: str, urgent: bool) -> bool:
        # Looked at without the lock: whoever comes to stand in line now waits one step more.
        if self._places >= 0 and not self._lines[True] and not self._lines[False]:
            return True
        with self._guard:
            if not urgent and (self._places < 0 or self._lines[True]):
                return False  # it may be one of those that are kept for urgent runs
            hand = self._hand.get(key)
            return hand is None or time.monotonic() - hand.since < SLICE_SECONDS

    # -- threads -----------------------------------------------------------------------------------

    def _call(self) -> None:
        """See to it that a thread looks for what there is to do: the one that slept last."""
        if self._seeking or not self._has_work():
            return
        self._seeking += 1
        if self._idle:
            self._idle.pop().release()
            return
        self._living += 1
        try:
            threading.Thread(target=self._work, name="workflow-step", daemon=True).start()
        except RuntimeError as error:  # no more threads: one that lives will look when it is done
            self._seeking -= 1
            self._living -= 1
            log.error("a thread for workflow steps cannot be started", error=str(error))

    def _has_work(self) -> bool:
        if self._tasks:
            return True
        return bool(self._free and (self._inbox or self._ready or (self._alone and self._slow_may)))

    @property
    def _slow_may(self) -> bool:
        return self._free > 1 or self._lanes == 1

    def _dismiss(self) -> None:
        """Let the threads end when there will be nothing more to do."""
        if not self._stopping.is_set() or self._hand:
            return
        while self._idle:
            self._seeking += 1
            self._idle.pop().release()
        if not self._living:
            self._ended.set()

    def _work(self) -> None:
        seat = threading.Lock()
        seat.acquire()
        database = connections[DEFAULT_DB_ALIAS]
        checked = time.monotonic()
        ours = True
        try:
            while (work := self._next(seat)) is not None:
                if time.monotonic() - checked > CHECK_SECONDS:
                    _close_broken()
                    checked = time.monotonic()
                if isinstance(work, Batch):
                    self._drive(work)
                    continue
                outcome = self._parts.run(work)
                if outcome is None:
                    ours = False  # it was given up
                    return
                if database.in_atomic_block:  # no group may be committed on this connection
                    self._expired(Raised(work, RuntimeError("the outside part left a transaction open")))
                    ours = False
                    return
                if isinstance(outcome, Raised):
                    _close_broken()
                with self._guard:
                    self._inbox.append(outcome)
                    self._seeking += 1
        finally:
            connections.close_all()
            with self._guard:
                self._living -= ours
                self._call()
                self._dismiss()

    def _expired(self, outcome: Outcome) -> None:
        """Take in what came of a part whose thread is not counted on any longer."""
        with self._guard:
            self._living -= 1
            self._inbox.append(outcome)
            self._call()

    def _next(self, seat: threading.Lock) -> Task | Batch | None:
        """Wait for something to do; None: this thread is not needed any longer.

        Args:
            seat: a locked lock: whoever opens it has counted this thread as one that looks.
        """
        while True:
            with self._guard:
                work = self._take()
                self._seeking -= 1
                if work is not None:
                    self._call()
                    return work
                if self._stopping.is_set() and not self._hand:
                    return None
                self._idle.append(seat)
            if not seat.acquire(timeout=IDLE_SECONDS):
                with self._guard:
                    if seat in self._idle:
                        self._idle.remove(seat)
                        return None
                seat.acquire()  # opened at the last moment

    def _take(self) -> Task | Batch | None:
        """Outside parts first: what comes of them is then recorded together."""
        if self._tasks:
            return self._tasks.popleft()
        if not self._free:
            return None
        others = self._inbox or self._ready
        if self._alone and self._slow_may and (self._alone_next or not others):
            self._free -= 1
            self._alone_next = False
            item = self._alone.popleft()
            return Batch([item], alone=True) if isinstance(item, str) else Batch([], [item], alone=True)
        if not others:
            return None
        batch = Batch(quick=not self._slow_may)
        self._free -= 1
        self._alone_next = True
        while self._inbox and len(batch.outcomes) < GROUP:
            batch.outcomes.append(self._inbox.popleft())
        while self._ready and len(batch.keys) + len(batch.outcomes) < GROUP:
            key = next(iter(self._ready))
            del self._ready[key]
            self._hand[key] = Hand()
            batch.keys.append(key)
        return batch

    # -- a group -----------------------------------------------------------------------------------

    def _drive(self, batch: Batch) -> None:
        began = time.monotonic()
        try:
            self._commit(batch)
        except (DatabaseError, InterfaceError) as error:
            log.warning("workflow steps not recorded yet: the database is away", error=str(error))
            self._stopping.wait(AWAY_SECONDS)
            _close_broken()
        except Exception:
            log.exception("a group failed; the sweeper will find its keys again")
            self._let_go(batch)
        with self._guard:
            self._free += 1
            if batch.alone and time.monotonic() - began < SLOW_SECONDS:
                self._after_alone()
            self._seeking += 1

    def _after_alone(self) -> None:
        """A part that was taken for slow was quick: let the next group look at the others."""
        while self._alone:
            item = self._alone.popleft()
            if isinstance(item, str):
                self._requeue(item)
            else:
                self._inbox.append(item)

    def _requeue(self, key: str) -> None:
        """Put a key in hand back into the line, behind the others."""
        del self._hand[key]
        if not self._stopping.is_set():
            self._ready[key] = None

    def _commit(self, batch: Batch) -> None:
        """Commit, act upon each commit, and let go of keys that failed by themselves."""
        keys = dict.fromkeys(batch.keys)
        outcomes = {outcome.task.key: outcome for outcome in batch.outcomes}
        try:
            for done in commit(self._crew, batch.keys, batch.outcomes, quick=batch.quick):
                for key in done.covered:
                    keys.pop(key, None)
                    outcomes.pop(key, None)
                self._act(done)
                if keys or outcomes:  # this thread is not through: another may begin with what is to do
                    with self._guard:
                        self._call()
        except (DatabaseError, InterfaceError):
            with self._guard:
                for key in keys:
                    self._requeue(key)
                self._inbox.extend(outcomes.values())
            raise
        if keys or outcomes:
            self._let_go(Batch(list(keys), list(outcomes.values())))

    def _act(self, done: Done) -> None:
        """Do what follows from what was committed."""
        for task in done.launches:
            self._parts.begin(task)
        with self._guard:
            self._tasks.extend(done.launches)
            self._inbox.extend(done.later)
            self._alone.extend(done.alone)
            self._alone.extend(done.later_alone)
            kept = {task.key for task in done.launches}
            kept.update(outcome.task.key for outcome in (*done.later, *done.later_alone))
            kept.update(done.alone)
            for key in done.again:
                kept.add(key)
                self._requeue(key)
            for key, urgent in done.blocked:
                kept.add(key)
                self._block(key, urgent)
            if self._lines[True] or self._lines[False]:
                blocked = {key for key, _ in done.blocked}
                for key in done.covered:
                    if key not in blocked:
                        self._leave_line(key)
            for key in done.covered:
                if key not in kept:
                    self._done(key)
            self._places += done.places
            self._unblock()
            if (self._left_out and self._room() is Room.ALL) or (self._more and len(self._ready) < GROUP):
                self._left_out = self._more = False
                self._drained()
        if done.due:
            self._due_at(min(done.due))

    def _let_go(self, batch: Batch) -> None:
        """Let go of keys that could not be driven, and of the places of their outside parts."""
        with self._guard:
            for outcome in batch.outcomes:
                if outcome.task.key in self._hand and outcome.task.lease is not None:
                    self._places += 1
            for key in (*batch.keys, *(outcome.task.key for outcome in batch.outcomes)):
                self._leave_line(key)
                if key in self._hand:
                    self._done(key)
            self._unblock()

    def _done(self, key: str) -> None:
        if self._hand.pop(key).again:
            self._want(key)


def _close_broken() -> None:
    """Close this thread's connections that have failed; one that fails at that as well ends no thread."""
    with suppress(DatabaseError, InterfaceError):
        close_old_connections()
