"""Records that come and go: which of them stay in memory when there are more than fit.

The rule is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a
newcomer stands in a short queue and moves to the long one only if it was used again before its turn
to leave. A flood of records that are asked for once therefore passes through the short queue and
moves nothing out of the long one. A use costs one store to memory, no queue is touched.
"""

from collections import OrderedDict, deque
from typing import Any, Generic, TypeVar

from msgspec import Struct

_R = TypeVar("_R")

_YOUNG_SHARE = 10
_GHOST_SHARE = 4
_SECOND_CHANCES = 256
_SLACK = 1024


class Held(Struct, Generic[_R], gc=False):
    """A record in memory, and what its readers made of it.

    Args:
        record: the row as it was last known.
        used: it was used since it last had to show that it was.
        joined: what a reader made of the record and those that it refers to; goes when it is replaced.
        plan: what a reader made of the request that used it last; goes with it.
    """

    record: _R
    used: bool = False
    joined: Any = None
    plan: Any = None


class Table(Generic[_R]):
    """Records by name, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: dict[str, Held[_R]] = {}
        self._young: deque[str] = deque()
        self._settled: deque[str] = deque()
        # Names that left the short queue of late, by their hash: who comes back was let go too early.
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        #: Return what is held under a name, None if nothing is. It does not count as a use.
        self.get = self._held.get

    def __len__(self) -> int:
        return len(self._held)

    def peek(self, name: str) -> _R | None:
        """Return the record of a name, None if it is not here."""
        held = self._held.get(name)
        return None if held is None else held.record

    def put(self, name: str, record: _R) -> list[_R]:
        """Set the record of a name; return those that had to leave for it."""
        held = self._held.get(name)
        if held is not None:
            held.record = record
            held.joined = held.plan = None
            return []
        left = []
        while len(self._held) >= max(1, self.capacity):
            left.append(self._evict())
        self._held[name] = Held(record)
        if hash(name) in self._ghosts:
            del self._ghosts[hash(name)]
            self._settled.append(name)
        else:
            self._young.append(name)
        return left

    def pop(self, name: str) -> _R | None:
        """Remove a name; return its record."""
        held = self._held.pop(name, None)
        if len(self._young) + len(self._settled) > 2 * len(self._held) + _SLACK:
            self._young = deque(each for each in dict.fromkeys(self._young) if each in self._held)
            self._settled = deque(each for each in dict.fromkeys(self._settled) if each in self._held)
        return None if held is None else held.record

    def values(self) -> list[_R]:
        """Every record; a million in some hundredths of a second, since nothing else goes on meanwhile."""
        return [held.record for held in self._held.values()]

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
                held.used = False
                self._settled.append(name)
                continue
            del self._held[name]
            if young:
                self._remember(name)
            return held.record

    def _remember(self, name: str) -> None:
        self._ghosts[hash(name)] = None
        if len(self._ghosts) > self.capacity // _GHOST_SHARE:
            self._ghosts.popitem(last=False)
