"""Credits on the edge: spent from leases in memory, topped up ahead of need, never oversold.

Where few are left, only what callers wait for is leased, and what this edge holds besides goes back as soon
as another is refused (docs/credits.md). `spend` is synchronous while a lease holds enough. Everything that asks the database goes through
`Bank`, one call at a time in the database's thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf
from typing import Protocol

import structlog
from msgspec import Struct

from edge.store.database import DatabaseGone
from edge.store.ledger import Ledger
from edge.store.records import KeyRecord
from edge.store.state import Lru
from unkey import ids

log = structlog.get_logger("edge.store")

FIRST_BATCH = 100
LARGEST_BATCH = 1_000_000
IDLE_SECONDS = 60.0
ASK_AGAIN_SECONDS = 1.0
# How long a verification waits for credits that another edge holds and is asked to give back, and how
# long none waits again if that was in vain: the other edge may be gone.
CALL_BACK_SECONDS = 2.0
IN_VAIN_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.1
# How long a batch should last: a thousand busy keys must not keep the database asking for their credits.
_BATCH_SECONDS = 20.0
# How much larger one may be than the one before: a moment of haste is no rate.
_GROWTH = 4
# Leases that the database is told of, or that are looked at, in one go: each second, so that neither a
# transaction nor the event loop is held up by how many there are.
_TOLD_AT_ONCE = 2_000
_LOOKED_AT_AT_ONCE = 5_000
_GIVEN_BACK_AT_ONCE = 500
# Balances of keys that are asked for at the same time are remembered however few keys stay in memory.
_REMEMBERED_LEAST = 10_000


class Granted(Protocol):
    """What the database answers to a request for credits."""

    @property
    def granted(self) -> int:
        """Credits added to the lease."""

    @property
    def remaining(self) -> int | None:
        """What no edge holds; None: the key is unlimited by now."""

    @property
    def epoch(self) -> int:
        """The key's epoch."""

    @property
    def few(self) -> bool:
        """Nothing is leased ahead of need."""

    @property
    def elsewhere(self) -> bool:
        """What is missing is held by other edges."""


class Wish(Struct, frozen=True):
    """Asks to move credits from a key to a lease.

    Args:
        epoch: the epoch that is known here; nothing is granted in another.
        least: nothing is granted if fewer are left.
        most: how many would be good to have, ahead of need.
        wanted: what callers wait for now.
        call_back: where there are too few left, other edges are to give back theirs.
    """

    lease_id: str
    key_id: str
    epoch: int
    least: int
    most: int
    wanted: int
    call_back: bool


class Bank(Protocol):
    """The database's side of leasing; each call may raise `DatabaseGone`."""

    async def lease(self, wish: Wish) -> Granted:
        """Move credits from a key to a lease, together with what others wish for at the time."""

    async def report(self, spent: Mapping[str, int]) -> set[str]:
        """Record what was spent; return the leases that are gone."""

    async def give_back(self, spent: Mapping[str, int]) -> Mapping[str, tuple[int, int | None]]:
        """End leases and return what is left of them; per key its epoch and what no edge holds."""


@dataclass(slots=True)
class Lease:
    """A lease in memory: `spent` of `amount`; the ledger's `slot` has the same."""

    id: str
    key_id: str
    epoch: int
    slot: int
    amount: int
    spent: int
    batch: int = FIRST_BATCH
    topped_up_at: float = 0.0
    spent_before: int = 0  # it was topped up
    used_at: float = 0.0
    few: bool = False
    called: bool = False  # back, by a change of its key
    version: float = inf  # of the key's row, when this was leased of it; unknown of an earlier process's


class Wallet:
    """This edge's leases.

    Args:
        ledger: where spending is written down before it is answered.
        bank: the database.
        count: told the name of each event that metrics show.
        clock: seconds, monotonic.
        capacity: most keys whose balance outside a lease is remembered.
    """

    def __init__(
        self,
        ledger: Ledger,
        bank: Bank,
        count: Callable[[str], None],
        clock: Callable[[], float],
        capacity: int,
    ) -> None:
        capacity = max(capacity, _REMEMBERED_LEAST)
        self._ledger = ledger
        self._bank = bank
        self._count = count
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._elsewhere: Lru[str, tuple[int, int]] = Lru(capacity)
        self._asked_at: Lru[str, float] = Lru(capacity)
        # Keys of which the database had too few when it was last asked: their epoch, and how many.
        self._refused: Lru[str, tuple[int, int]] = Lru(capacity)
        self._loose: dict[str, tuple[int, int]] = {}
        self._gone_at = -ASK_AGAIN_SECONDS
        self._asking: dict[str, asyncio.Task[None]] = {}
        # What callers wait for, by key.
        self._wanted: Counter[str] = Counter()
        # Leases that were spent from since the database was told, by their ids.
        self._spent_from: dict[str, Lease] = {}
        self._looked_at: list[Lease] = []
        # Until when credits that were called back may come, and when to hope for any again.
        self._hopes: Lru[str, tuple[float, float]] = Lru(capacity)
        self._returning: set[asyncio.Task[None]] = set()

    def resume(self) -> None:
        """Go on with the leases of an earlier process, until the database can be asked."""
        for entry in self._ledger.entries:
            if entry.key_id in self._leases or not entry.amount or entry.ending:
                self._loose[entry.lease_id] = (entry.slot, entry.spent)
                continue
            self._leases[entry.key_id] = Lease(
                entry.lease_id, entry.key_id, entry.epoch, entry.slot, entry.amount, entry.spent
            )
        self._ledger.entries = []

    async def start_over(self) -> None:
        """Give back what an earlier process of this edge held; what is needed is leased again.

        Raises:
            DatabaseGone: what is not known to be given back will be, later.
        """
        await self._settle()
        await self._give_back(list(self._leases.values()))

    def note(self, key: KeyRecord) -> None:
        """Take a changed key in: a new epoch voids its lease; the balance is what the row says."""
        lease = self._leases.get(key.id)
        if lease is not None and lease.epoch > key.credits_epoch:
            # A snapshot that is older than the ledger.
            return
        if lease is not None and (lease.epoch < key.credits_epoch or key.deleted or key.remaining is None):
            self._drop(lease)
            lease = None
        if lease is not None and key.version > lease.version:
            lease.called = True
            self._call_home(lease)
        if self._refused.pop(key.id) is not None and key.remaining is not None:
            self._refused.put(key.id, (key.credits_epoch, key.remaining))
        if key.remaining is None or key.deleted:
            self._elsewhere.pop(key.id)
        elif lease is not None or self._elsewhere.peek(key.id) is not None:
            self._elsewhere.put(key.id, (key.credits_epoch, key.remaining))

    def _call_home(self, lease: Lease) -> None:
        """Give a lease back now: its key changed, perhaps because another edge was refused."""
        if lease.key_id in self._asking or lease.spent == lease.amount:
            return
        task = asyncio.get_running_loop().create_task(self._return(lease))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, lease: Lease) -> None:
        try:
            await self._give_back([lease])
        except DatabaseGone as error:
            log.warning("edge.credits_not_given_back", key_id=lease.key_id, error=str(error))
        else:
            self._count("credits_called_back")

    def balance(self, key: KeyRecord) -> int | None:
        """Return what a key has left, as far as is known here; None: unlimited."""
        if key.remaining is None:
            return None
        return self._left(key) + self._known(key)

    def spend(self, key: KeyRecord, cost: int) -> int | None:
        """Spend from the lease in memory; None: it does not hold enough.

        Returns:
            the balance afterwards.
        """
        lease = self.holding(key, cost)
        return None if lease is None else self.spend_from(lease, key, cost)

    def holding(self, key: KeyRecord, cost: int) -> Lease | None:
        """Return the lease that `cost` can be spent from now, if there is one."""
        lease = self._leases.get(key.id)
        if lease is None or lease.epoch != key.credits_epoch or lease.amount - lease.spent < cost:
            return None
        return lease

    def spend_from(self, lease: Lease, key: KeyRecord, cost: int) -> int:
        """Spend from a lease that `holding` has returned; return the balance afterwards."""
        left = lease.amount - lease.spent
        lease.spent += cost
        self._ledger.set_spent(lease.slot, lease.spent)
        lease.used_at = self._clock()
        self._spent_from[lease.id] = lease
        left -= cost
        elsewhere = self._known(key)
        if elsewhere and left < lease.batch // 2 and not lease.few and key.id not in self._asking:
            self._ask(key, 1)
        return left + elsewhere

    def refuses(self, key: KeyRecord, cost: int) -> bool:
        """Say whether the cost is known to exceed what there is, without asking the database.

        Other edges may have given credits back since: then the database is asked once a second,
        in the background.
        """
        refused = self._refused.peek(key.id)
        if refused is None or refused[0] != key.credits_epoch:
            return False
        if self._left(key) + refused[1] >= cost or self._hopes_for(key.id):
            return False
        if self._clock() - (self._asked_at.get(key.id) or 0.0) >= ASK_AGAIN_SECONDS:
            self._ask(key, cost - self._left(key))
        return True

    async def draw(self, key: KeyRecord, cost: int) -> int | None:
        """Spend, asking the database for what is missing; None: there is not enough.

        Without the database there is no more than was leased: the answer is no, and counted.
        """
        self._wanted[key.id] += cost
        try:
            while True:
                balance = self.spend(key, cost)
                if balance is not None:
                    return balance
                if self.refuses(key, cost):
                    return None
                if self._clock() - self._gone_at >= ASK_AGAIN_SECONDS:
                    await asyncio.shield(self._ask(key, cost - self._left(key)))
                else:
                    self._elsewhere.pop(key.id)
                known = self._elsewhere.peek(key.id)
                if known is None:
                    self._count("credits_refused_without_database")
                    return None
                if known[0] != key.credits_epoch:
                    return self.spend(key, cost)
                if self._hopes_for(key.id) and self.holding(key, cost) is None:
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        finally:
            self._wanted[key.id] -= cost
            if not self._wanted[key.id]:
                del self._wanted[key.id]

    def _hopes_for(self, key_id: str) -> bool:
        """Say whether credits of a key may still come that were called back from other edges."""
        hope = self._hopes.peek(key_id)
        return hope is not None and self._clock() < hope[0]

    def _hope(self, key_id: str, elsewhere: bool) -> None:
        hope, now = self._hopes.peek(key_id), self._clock()
        if not elsewhere:
            self._hopes.pop(key_id)
        elif hope is None or now >= hope[1]:
            self._hopes.put(key_id, (now + CALL_BACK_SECONDS, now + IN_VAIN_SECONDS))

    async def report(self) -> None:
        """Tell the database what was spent; end leases that are used up, void or idle.

        Raises:
            DatabaseGone: it will be told later.
        """
        now = self._clock()
        await self._renew()
        await self._settle()
        self._looked_at = self._looked_at or list(self._leases.values())
        looking = self._looked_at[-_LOOKED_AT_AT_ONCE:]
        del self._looked_at[-_LOOKED_AT_AT_ONCE:]
        await self._give_back(
            [
                lease
                for lease in looking
                if now - lease.used_at > IDLE_SECONDS or lease.spent == lease.amount or lease.called
            ]
        )

    async def _renew(self) -> None:
        """Tell what was spent of the leases that were spent from, those first that wait longest."""
        leases = list(islice(self._spent_from.values(), _TOLD_AT_ONCE))
        if not leases:
            return
        told = {lease.id: lease.spent for lease in leases}
        for lease in leases:
            # What is spent from here on will be told the next time.
            del self._spent_from[lease.id]
        try:
            gone = await self._bank.report(told)
        except BaseException:
            self._spent_from.update((lease.id, lease) for lease in leases if self._holds(lease))
            raise
        for lease in leases:
            if lease.id in gone and self._holds(lease):
                self._drop(lease)

    def _holds(self, lease: Lease) -> bool:
        return self._leases.get(lease.key_id) is lease

    async def close(self) -> None:
        """Give every lease back.

        Raises:
            DatabaseGone: the ledger keeps them for the next start.
        """
        if self._asking or self._returning:
            await asyncio.wait([*self._asking.values(), *self._returning])
        await self._settle()
        await self._give_back(list(self._leases.values()))

    async def _settle(self) -> None:
        while self._loose:
            loose = dict(islice(self._loose.items(), _GIVEN_BACK_AT_ONCE))
            await self._bank.give_back({lease_id: spent for lease_id, (_, spent) in loose.items()})
            for lease_id, (slot, _) in loose.items():
                del self._loose[lease_id]
                self._ledger.close_slot(slot)

    async def _give_back(self, leases: Sequence[Lease]) -> None:
        for start in range(0, len(leases), _GIVEN_BACK_AT_ONCE):
            # One that is being topped up is in use: what it is topped up by would be spent and given back too.
            part = leases[start : start + _GIVEN_BACK_AT_ONCE]
            part = [lease for lease in part if lease.key_id not in self._asking and self._holds(lease)]
            if part:
                await self._give_back_some(part)

    async def _give_back_some(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._forget(lease)
            self._ledger.end(lease.slot)
        try:
            known = await self._bank.give_back({lease.id: lease.spent for lease in leases})
        except BaseException:
            # It may have happened, and only its answer be lost: none of it may be spent again.
            self._loose.update({lease.id: (lease.slot, lease.spent) for lease in leases})
            raise
        for key_id, (epoch, remaining) in known.items():
            self._remember(key_id, epoch, remaining)
        for lease in leases:
            self._ledger.close_slot(lease.slot)

    def _left(self, key: KeyRecord) -> int:
        lease = self._leases.get(key.id)
        return 0 if lease is None or lease.epoch != key.credits_epoch else lease.amount - lease.spent

    def _known(self, key: KeyRecord) -> int:
        known = self._elsewhere.peek(key.id)
        if known is None or known[0] != key.credits_epoch:
            return key.remaining or 0
        return known[1]

    def _forget(self, lease: Lease) -> None:
        del self._leases[lease.key_id]
        self._spent_from.pop(lease.id, None)

    def _drop(self, lease: Lease) -> None:
        self._forget(lease)
        self._ledger.close_slot(lease.slot)

    def _ask(self, key: KeyRecord, least: int) -> "Awaitable[None]":
        task = self._asking.get(key.id)
        if task is None:
            self._asked_at.put(key.id, self._clock())
            task = asyncio.get_running_loop().create_task(self._top_up(key, least))
            self._asking[key.id] = task
            task.add_done_callback(partial(self._asked, key.id))
        return task

    def _asked(self, key_id: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(key_id, None)
        lease = self._leases.get(key_id)
        if lease is not None and lease.called and not self._wanted[key_id]:
            self._call_home(lease)
        # Nobody may wait for this task any more.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("edge.credits_not_leased", key_id=key_id, exc_info=error)

    async def _top_up(self, key: KeyRecord, least: int) -> None:
        now = self._clock()
        hope = self._hopes.peek(key.id)
        # What is asked for ahead of need neither calls anything back nor decides on a refusal.
        needed = bool(self._wanted[key.id]) or self._refused.peek(key.id) is not None
        lease = self._leases.get(key.id)
        fresh = lease is None or lease.epoch != key.credits_epoch
        if lease is None or fresh:
            lease_id = ids.new("lease")
            lease = Lease(lease_id, key.id, key.credits_epoch, -1, 0, 0, used_at=now)
            lease.slot = self._ledger.open(lease_id, key.id, key.credits_epoch)
        elif lease.topped_up_at:
            lasted = max(now - lease.topped_up_at, 0.001)
            rate = (lease.spent - lease.spent_before) / lasted
            batch = min(int(rate * _BATCH_SECONDS), lease.batch * _GROWTH, LARGEST_BATCH)
            lease.batch = max(batch, FIRST_BATCH)
        try:
            grant = await self._bank.lease(
                Wish(
                    lease_id=lease.id,
                    key_id=key.id,
                    epoch=lease.epoch,
                    least=max(least, 1),
                    most=max(least, lease.batch),
                    wanted=max(0, self._wanted[key.id] - lease.amount + lease.spent),
                    call_back=needed and (hope is None or now >= hope[1]),
                )
            )
        except DatabaseGone as error:
            self._count("credits_database_gone")
            self._gone_at = self._clock()
            self._elsewhere.pop(key.id)
            self._refused.pop(key.id)
            log.warning("edge.credits_not_leased", key_id=key.id, error=str(error))
            if fresh:
                # The commit may have happened and only its answer be lost: give that lease back later.
                self._loose[lease.id] = (lease.slot, 0)
            return
        except Exception:
            if fresh:
                self._loose[lease.id] = (lease.slot, 0)
            raise
        self._remember(key.id, grant.epoch, grant.remaining)
        if needed:
            self._hope(key.id, grant.elsewhere)
        if grant.granted or grant.remaining is None:
            self._refused.pop(key.id)
        elif needed:
            self._refused.put(key.id, (grant.epoch, grant.remaining))
        lease.few = grant.few
        lease.version = max(key.version, 0 if lease.version == inf else lease.version)
        if not grant.granted:
            if fresh:
                self._ledger.close_slot(lease.slot)
            return
        lease.amount += grant.granted
        lease.topped_up_at = now
        lease.spent_before = lease.spent
        self._ledger.set_amount(lease.slot, lease.amount)
        current = self._leases.get(key.id)
        if fresh and current is not None:
            self._drop(current)
        self._leases[key.id] = lease

    def _remember(self, key_id: str, epoch: int, remaining: int | None) -> None:
        if remaining is None:
            self._elsewhere.pop(key_id)
        else:
            self._elsewhere.put(key_id, (epoch, remaining))
