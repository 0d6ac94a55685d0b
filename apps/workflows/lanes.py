"""The threads of a worker process that commit groups, and what waits for them.

A key is waiting (`ready`), or in hand: in a lane's transaction, or with an outside part that runs.
While a lane commits, what comes back and what is woken gathers, and is the next group. SQLite has one
writer and so one lane; elsewhere there are a few, one of which never runs a recording part that is
known to be slow, so that slow ones cannot hold up the rest.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.db import DatabaseError, InterfaceError, close_old_connections, connection, connections

from apps.workflows.driver import SLICE_SECONDS, commit
from apps.workflows.group import SLOW_SECONDS, Crew, Done
from apps.workflows.outside import Pool
from apps.workflows.turns import Outcome

log = structlog.get_logger("workflows")

GROUP = 64
LANES = 3
AWAY_SECONDS = 0.5
CHECK_SECONDS = 5.0


@dataclass(slots=True)
class Hand:
    """A key in hand.

    Attributes:
        since: `time.monotonic()` when it was taken up.
        moved: how often a run of it moved.
        again: it was woken meanwhile.
        waiting: who wants to know when it is done.
    """

    since: float = field(default_factory=time.monotonic)
    moved: int = 0
    again: bool = False
    waiting: list["Future[int]"] = field(default_factory=list)


class Lanes:
    """Drives keys.

    Args:
        queues: the queues that this process serves; None: all.
        threads: how many outside parts run at a time.
        due_at: told when something becomes due.
        drained: told when there is room for more after keys were refused.
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
        self._changed = threading.Condition()
        self._ready: dict[str, None] = {}
        self._blocked: dict[str, None] = {}
        self._inbox: deque[Outcome] = deque()
        self._alone: deque[str | Outcome] = deque()
        self._hand: dict[str, Hand] = {}
        self._waiting: dict[str, list[Future[int]]] = {}
        self._places = threads
        self._refused = False
        self._stopping = threading.Event()
        self._lanes: list[threading.Thread] = []
        self._pool = Pool(self._deliver)
        self._crew = Crew(
            None if queues is None else frozenset(queues),
            stopping=self._stopping.is_set,
            take_place=self._take_place,
            give_back=self._give_back,
            keeps_place=self._keeps_place,
        )

    # -- from outside ------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more outside parts could run."""
        with self._changed:
            return max(self._places - len(self._blocked), 0)

    def found(self, keys: Iterable[str], *, more: bool) -> None:
        """Look at keys that the sweeper found, unless they are in hand or in line.

        Args:
            more: there are others, to be swept for when these are done.
        """
        with self._changed:
            for key in keys:
                if key not in self._hand and key not in self._ready and key not in self._blocked:
                    self._want(key)
            self._refused = self._refused or more

    def offer(self, key: str) -> bool:
        """Look at a key soon, if there is room or it is in hand anyway; say whether."""
        with self._changed:
            if self._stopping.is_set():
                return False
            if self._places <= len(self._blocked) and key not in self._hand:
                self._refused = True
                return False
            self._want(key)
            return True

    def drive(self, key: str) -> int:
        """Drive a key and wait until it is done; at once 0 if it is in hand already.

        Returns:
            How many times a run of it moved.
        """
        with self._changed:
            if self._stopping.is_set():
                return 0
            if key in self._hand:
                self._hand[key].again = True
                return 0
            future: Future[int] = Future()
            self._waiting.setdefault(key, []).append(future)
            self._want(key)
        return future.result()

    def wind_down(self) -> None:
        """Take up nothing more; what is in hand stops at the end of its step."""
        with self._changed:
            self._stopping.set()
            self._ready.clear()
            self._blocked.clear()
            for futures in self._waiting.values():
                for future in futures:
                    future.set_result(0)
            self._waiting.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for what is in hand."""
        for lane in self._lanes:
            lane.join()
        self._pool.stop()

    def _want(self, key: str) -> None:
        if self._stopping.is_set():
            return
        hand = self._hand.get(key)
        if hand is not None:
            hand.again = True
            return
        self._blocked.pop(key, None)
        self._ready[key] = None
        if not self._lanes:
            self._begin()
        self._changed.notify()

    def _begin(self) -> None:
        count = 1 if connection.vendor == "sqlite" else LANES
        for number in range(count):
            spare = count > 1 and number == 0
            lane = threading.Thread(
                target=self._lane, args=(spare,), name=f"workflow-lane-{number}", daemon=True
            )
            self._lanes.append(lane)
            lane.start()

    def _deliver(self, outcome: Outcome) -> None:
        with self._changed:
            self._inbox.append(outcome)
            self._changed.notify()

    # -- places for outside parts ------------------------------------------------------------------

    def _take_place(self) -> bool:
        with self._changed:
            if self._places <= 0:
                return False
            self._places -= 1
            return True

    def _give_back(self, places: int) -> None:
        if not places:
            return
        with self._changed:
            self._places += places
            self._unblock()

    def _unblock(self) -> None:
        for key in list(self._blocked)[: max(self._places, 0)]:
            self._want(key)

    def _keeps_place(self, key: str) -> bool:
        if not self._blocked:  # looked at without the lock: whoever is blocked now waits one step more
            return True
        with self._changed:
            hand = self._hand.get(key)
            return hand is None or time.monotonic() - hand.since < SLICE_SECONDS

    # -- a lane ------------------------------------------------------------------------------------

    def _lane(self, spare: bool) -> None:
        checked = time.monotonic()
        alone_next = False
        try:
            while True:
                work = self._next(spare, alone_next)
                if work is None:
                    return
                keys, outcomes, alone = work
                alone_next = not alone
                if time.monotonic() - checked > CHECK_SECONDS:
                    close_old_connections()
                    checked = time.monotonic()
                began = time.monotonic()
                try:
                    self._commit(keys, outcomes)
                except (DatabaseError, InterfaceError) as error:
                    log.warning("workflow steps not recorded yet: the database is away", error=str(error))
                    self._stopping.wait(AWAY_SECONDS)
                    close_old_connections()
                except Exception:
                    log.exception("a lane failed; the sweeper will find its keys again")
                    self._let_go([*keys, *(outcome.task.key for outcome in outcomes)])
                if alone and time.monotonic() - began < SLOW_SECONDS:
                    self._after_alone()
        finally:
            connections.close_all()

    def _next(self, spare: bool, alone_next: bool) -> tuple[list[str], list[Outcome], bool] | None:
        """Wait for work; None at the end. The last of the three says that it is one slow part."""
        with self._changed:
            while True:
                if self._alone and not spare and (alone_next or not (self._inbox or self._ready)):
                    item = self._alone.popleft()
                    return ([item], [], True) if isinstance(item, str) else ([], [item], True)
                if self._inbox or self._ready:
                    break
                if self._stopping.is_set() and not self._hand:
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            outcomes: list[Outcome] = []
            while self._inbox and len(outcomes) < GROUP:
                outcomes.append(self._inbox.popleft())
            keys: list[str] = []
            while self._ready and len(keys) + len(outcomes) < GROUP:
                key = next(iter(self._ready))
                del self._ready[key]
                self._hand[key] = Hand(waiting=self._waiting.pop(key, []))
                keys.append(key)
            return keys, outcomes, False

    def _after_alone(self) -> None:
        """A part that was taken for slow was quick: let the next group look at the others."""
        with self._changed:
            while self._alone:
                item = self._alone.popleft()
                if isinstance(item, str):
                    self._requeue(item)
                else:
                    self._inbox.append(item)
            self._changed.notify_all()

    def _requeue(self, key: str) -> None:
        """Put a key in hand back into the line, behind the others."""
        hand = self._hand.pop(key)
        if self._stopping.is_set():
            self._finish(hand)
            return
        self._waiting.setdefault(key, []).extend(hand.waiting)
        self._ready[key] = None

    def _commit(self, keys: list[str], outcomes: list[Outcome]) -> None:
        """Commit, act upon each commit, and let go of keys that failed by themselves."""
        open_keys = dict.fromkeys(keys)
        open_outcomes = {outcome.task.key: outcome for outcome in outcomes}
        try:
            for done in commit(self._crew, keys, outcomes):
                for key in done.covered:
                    open_keys.pop(key, None)
                    open_outcomes.pop(key, None)
                self._act(done)
        except (DatabaseError, InterfaceError):
            with self._changed:
                for key in open_keys:
                    self._requeue(key)
                self._inbox.extend(open_outcomes.values())
            raise
        with self._changed:
            for key in (*open_keys, *open_outcomes):
                self._done(key)
            if open_outcomes:
                self._give_back(len(open_outcomes))

    def _act(self, done: Done) -> None:
        """Do what follows from what was committed."""
        finished = dict.fromkeys(done.covered)
        with self._changed:
            for key, moved in done.moved.items():
                self._hand[key].moved += moved
            self._inbox.extend(done.later)
            self._alone.extend(done.alone)
            self._alone.extend(done.later_alone)
            for task in done.launches:
                del finished[task.key]
            for outcome in (*done.later, *done.later_alone):
                del finished[outcome.task.key]
            for key in done.alone:
                del finished[key]
            for key in (*done.again, *done.blocked):
                del finished[key]
                self._requeue(key)
            for key in done.blocked:
                if self._ready.pop(key, self) is None:
                    self._blocked[key] = None
            for key in finished:
                self._done(key)
            self._places += done.places
            self._unblock()
            if self._refused and self._places > len(self._blocked):
                self._refused = False
                self._drained()
            self._changed.notify_all()
        for task in done.launches:
            self._pool.submit(task)
        if done.due:
            self._due_at(min(done.due))

    def _let_go(self, keys: Iterable[str]) -> None:
        with self._changed:
            for key in keys:
                if key in self._hand:
                    self._finish(self._hand.pop(key))
            self._changed.notify_all()

    def _done(self, key: str) -> None:
        hand = self._hand.pop(key)
        self._finish(hand)
        if hand.again:
            self._want(key)
        if self._stopping.is_set():
            self._changed.notify_all()

    def _finish(self, hand: Hand) -> None:
        for future in hand.waiting:
            future.set_result(hand.moved)
