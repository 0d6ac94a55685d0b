"""Records that come and go: which of them stay in memory when there are more than fit, and in what form.

The rule is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a
newcomer stands in a short queue and moves to the long one only if it was used again before its turn
to leave. A flood of records that are asked for once therefore passes through the short queue and
moves nothing out of the long one. A use costs one store to memory, no queue is touched.

Every record is kept packed; those in use are unpacked besides, with what their readers made of them, which
takes several times the memory: a part of all at most. Which ones a clock says (CLOCK, Corbató 1968).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from time import sleep
from typing import Any, Generic, Protocol, TypeVar, overload

from msgspec import Struct

_R = TypeVar("_R")

_YOUNG_SHARE = 10
_GHOST_SHARE = 4
_SECOND_CHANCES = 256
_SLACK = 1024
# One record of so many is unpacked; a few are in any case.
_UNPACKED_SHARE = 6
_UNPACKED_LEAST = 1000
# It was used, but not since the clock of the unpacked came by.
_EARLIER = 2
_UNPACKED_AT_ONCE = 50
_ABSENT: Any = None


class Packing(Protocol[_R]):
    """How records are kept in little memory."""

    def pack(self, record: _R) -> tuple[Any, bytes]:
        """Return what a record has in common with others, one object for all of them, and the rest."""

    def unpack(self, name: str, common: Any, rest: bytes) -> _R:
        """Return the record of a name that was packed so."""


class Held(Struct, Generic[_R], gc=False):
    """A record in memory, and what its readers made of it.

    Args:
        common, rest: the record as it is packed.
        record: the row as it was last known; only the table sees one that is not unpacked.
        used: it was used since it last had to show that it was; readers set it to 1.
        joined: what a reader made of the record and those that it refers to; goes when it is replaced.
        plan: what a reader made of the request that used it last; goes with it.
    """

    common: Any
    rest: bytes
    record: _R = _ABSENT
    used: int = 0
    joined: Any = None
    plan: Any = None


class Table(Generic[_R]):
    """Records by name, at most `capacity` of them."""

    def __init__(self, capacity: int, packing: Packing[_R]) -> None:
        self.capacity = capacity
        self._packing = packing
        self._held: dict[str, Held[_R]] = {}
        self._young: deque[str] = deque()
        self._settled: deque[str] = deque()
        # Names that left the short queue of late, by their hash: who comes back was let go too early.
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._unpacked: deque[Held[_R]] = deque()
        self._latest: Held[_R] | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def unpacked(self) -> int:
        """How many records are unpacked, at most."""
        return len(self._unpacked)

    def get(self, name: str) -> Held[_R] | None:
        """Return what is held under a name, unpacked, None if nothing is. It does not count as a use."""
        held = self._held.get(name)
        if held is not None and held.record is None:
            self._unpack(name, held)
        return held

    def peek(self, name: str) -> _R | None:
        """Return the record of a name, None if it is not here; it stays packed if it was."""
        held = self._held.get(name)
        if held is None:
            return None
        if held.record is not None:
            return held.record
        return self._packing.unpack(name, held.common, held.rest)

    def put(self, name: str, record: _R) -> list[_R]:
        """Set the record of a name; return those that had to leave for it."""
        common, rest = self._packing.pack(record)
        held = self._held.get(name)
        if held is not None:
            # Without its rest a record is between two states: see `Records`.
            held.rest = b""
            held.common = common
            held.rest = rest
            if held.record is not None:
                held.record = self._packing.unpack(name, common, rest)
            held.joined = held.plan = None
            return []
        left = []
        while len(self._held) >= max(1, self.capacity):
            left.append(self._evict())
        self._held[name] = Held(common, rest)
        if hash(name) in self._ghosts:
            del self._ghosts[hash(name)]
            self._settled.append(name)
        else:
            self._young.append(name)
        return left

    def pop(self, name: str) -> _R | None:
        """Remove a name; return its record."""
        record = self.peek(name)
        held = self._held.pop(name, None)
        if held is not None:
            _pack_up(held)
        if len(self._young) + len(self._settled) > 2 * len(self._held) + _SLACK:
            self._young = deque(each for each in dict.fromkeys(self._young) if each in self._held)
            self._settled = deque(each for each in dict.fromkeys(self._settled) if each in self._held)
        return record

    def values(self) -> "Records[_R]":
        """Every record; a million in some hundredths of a second, since nothing else goes on meanwhile."""
        return Records(list(self._held), list(self._held.values()), self._packing)

    def _unpack(self, name: str, held: Held[_R]) -> None:
        most = max(_UNPACKED_LEAST, self.capacity // _UNPACKED_SHARE)
        if len(self._unpacked) >= most:
            self._pack_one()
        # Whoever is unpacked is used at once: only another use says that there may be more.
        if self._latest is not None and self._latest.used:
            self._latest.used = _EARLIER
        self._latest = held
        held.record = self._packing.unpack(name, held.common, held.rest)
        self._unpacked.append(held)

    def _pack_one(self) -> None:
        for _ in range(_SECOND_CHANCES):
            held = self._unpacked.popleft()
            if held.used != 1:
                break
            held.used = _EARLIER
            self._unpacked.append(held)
        else:
            held = self._unpacked.popleft()
        _pack_up(held)

    def _evict(self) -> _R:
        chances = _SECOND_CHANCES
        while True:
            young = len(self._young) * _YOUNG_SHARE > self.capacity or not self._settled
            name = self._young.popleft() if young else self._settled.popleft()
            held = self._held.get(name)
            if held is None:
                continue
            # The search is bounded: where everything is in use, whoever is oldest has to go.
            if held.used and chances:
                chances -= 1
                held.used = 0
                self._settled.append(name)
                continue
            record = self._packing.unpack(name, held.common, held.rest)
            del self._held[name]
            _pack_up(held)
            if young:
                self._remember(name)
            return record

    def _remember(self, name: str) -> None:
        self._ghosts[hash(name)] = None
        if len(self._ghosts) > self.capacity // _GHOST_SHARE:
            self._ghosts.popitem(last=False)


class Records(Sequence[_R]):
    """What a table holds, each record unpacked when it is looked at, in whatever thread."""

    def __init__(self, names: list[str], held: list[Held[_R]], packing: Packing[_R]) -> None:
        self._names = names
        self._held = held
        self._packing = packing

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> _R: ...

    @overload
    def __getitem__(self, place: slice) -> list[_R]: ...

    def __getitem__(self, place: int | slice) -> _R | list[_R]:
        if isinstance(place, int):
            return self._one(self._names[place], self._held[place])
        return [
            self._one(name, held) for name, held in zip(self._names[place], self._held[place], strict=True)
        ]

    def __iter__(self) -> Iterator[_R]:
        pairs = zip(self._names, self._held, strict=True)
        while part := list(islice(pairs, _UNPACKED_AT_ONCE)):
            for name, held in part:
                yield self._one(name, held)

    def _one(self, name: str, held: Held[_R]) -> _R:
        while True:
            rest = held.rest
            common = held.common
            # The thread that replaces it may be half-way.
            if rest and held.rest is rest:
                return self._packing.unpack(name, common, rest)
            sleep(0)


def _pack_up(held: Held[Any]) -> None:
    held.record = held.joined = held.plan = None
