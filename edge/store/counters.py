"""Counts of rate limits that the processes of one machine share: a folder of memory-mapped files.

Every process has a seat: a file that it alone writes and everybody reads. What it has counted is there
as soon as it is counted, so a check misses only what other processes are counting in that very moment.
A file outlives its process; who takes the seat next goes on with its counts.

`table`: magic, a secret key for marks, the machine's name for others, and how often a seat was taken.
`seat-<n>`: marks of counters, in buckets of 8; then for each mark two windows, even and odd, each as
(until, count). `until` is the moment in Unix milliseconds from which the window weighs nothing, which
tells the windows of a counter apart. All are words of 8 bytes, each written by one store: no reader sees
half of one. docs/ratelimits.md says what that is good for and what its limits are.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
from pathlib import Path

import structlog

from edge.verify.limiter import Counter, Place

log = structlog.get_logger("edge.store")

SEATS = 64
BUCKETS = 65_536
_WAYS = 8
_MAGIC = b"UKCNTS1\n"
_HEAD_BYTES = 4096
_JOINED = 8  # offset in words of the number of times that a seat was taken
_CHANGES = 9  # of a number that changes whenever somebody begins to count, or begins to count something


class NoSeat(Exception):
    """Counts cannot be shared; the text says why."""


class Counters:
    """This process's seat among the counters of a machine; see `edge.verify.limiter.Sharing`.

    Args:
        folder: shared by the processes; made if it is not there.
        buckets: eight counters each; the same for all processes.

    Attributes:
        cells: what this process writes: the limiter counts on at the place that `begin` returned.
        changes: a number that changes whenever a process joins, or begins to count what it did not.
        machine: name of the machine for others, the same for all of its processes.
        seat: number of the seat.
        crowded: how often a counter found no place because its bucket was full.

    Raises:
        NoSeat: all seats are taken, or the folder is of another format.
        OSError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, buckets: int = BUCKETS) -> None:
        self.crowded = 0
        self._folder = folder
        self._buckets = buckets
        self._size = buckets * _WAYS * 5 * 8
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = os.open(folder / "table", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(head, fcntl.LOCK_EX)  # held for a moment, by those who start
            self._open_table(head)
            self.seat = self._sit()
            self._head[_JOINED] += 1
            self.changes[0] += 1
        finally:
            # Mapping has duplicated the descriptor, which keeps the lock.
            fcntl.flock(head, fcntl.LOCK_UN)
            os.close(head)
        self._known = 0
        self._peers: list[tuple[memoryview, memoryview]] = []
        self._seen: dict[int, tuple[memoryview, memoryview]] = {}
        self._marks, self.cells = self._map(self._descriptor, writing=True)
        self._meet()

    def mark(self, counter: Counter) -> int:
        """Return the number that a counter is known by: a keyed hash, so that nobody can aim at another's."""
        name = "\0".join((*counter[:3], str(counter[3]))).encode("utf-8", "surrogatepass")
        # Never 0, which is the mark of a free place.
        return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=self._key).digest()) or 1

    def place(self, mark: int, now_ms: int) -> int:
        """Return where this process writes a counter; -1: its bucket is full of counters that still weigh."""
        first = mark % self._buckets * _WAYS
        row = self._marks[first : first + _WAYS].tolist()
        if mark in row:
            return (first + row.index(mark)) * 4
        cells = self.cells
        for way, other in enumerate(row):
            at = (first + way) * 4
            if not other or (cells[at] <= now_ms and cells[at + 2] <= now_ms):
                for cell in range(at, at + 4):
                    cells[cell] = 0
                self._marks[first + way] = mark
                # Two at once may both write the same number: it is another one than before either of them.
                self.changes[0] += 1
                return at
        self.crowded += 1
        return -1

    def own(self, place: int, until: int) -> int:
        """Return what is written at a place for a window."""
        even, first, odd, second = self.cells[place : place + 4].tolist()
        return int(first if even == until else second if odd == until else 0)

    def begin(self, place: int, sequence: int, until: int, count: int) -> int:
        """Write a window that begins, with what is known to be counted of it; return where its count is."""
        cell = place + (sequence & 1) * 2
        # The count comes first: under the window before last it is read by nobody.
        self.cells[cell + 1] = count
        self.cells[cell] = until
        return cell + 1

    def elsewhere(self, mark: int) -> tuple[Place, ...]:
        """Return where other processes count a counter, until `changes` says that there may be more."""
        if self._head[_JOINED] != self._known:
            self._meet()
        first = mark % self._buckets * _WAYS
        found = []
        for marks, cells in self._peers:
            row = marks[first : first + _WAYS].tolist()
            if mark in row:
                at = (first + row.index(mark)) * 4
                found.append((cells, at))
        return tuple(found)

    def close(self) -> None:
        """Leave the seat; what was counted stays."""
        for marks, cells in (*self._seen.values(), (self._marks, self.cells)):
            marks.release()
            cells.release()
        self._seen.clear()
        self._peers.clear()
        self.changes.release()
        self._head.release()
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def _open_table(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size != _HEAD_BYTES:
            os.posix_fallocate(descriptor, 0, _HEAD_BYTES)
            buckets = self._buckets.to_bytes(8, "little")
            os.pwrite(descriptor, _MAGIC + buckets + secrets.token_bytes(16) + secrets.token_bytes(8), 0)
        magic, buckets = os.pread(descriptor, 8, 0), os.pread(descriptor, 8, 8)
        if magic != _MAGIC or int.from_bytes(buckets, "little") != self._buckets:
            raise NoSeat(f"{self._folder} is of another version; remove it while nothing runs")
        self._key = os.pread(descriptor, 16, 16)
        self.machine = os.pread(descriptor, 8, 32).hex()
        self._head = memoryview(mmap.mmap(descriptor, _HEAD_BYTES)).cast("Q")
        self.changes = self._head[_CHANGES : _CHANGES + 1]

    def _sit(self) -> int:
        for seat in range(SEATS):
            descriptor = os.open(self._path(seat), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A hole in a mapped file would kill the process that writes there once the disk is full.
                os.posix_fallocate(descriptor, 0, self._size)
            except BlockingIOError:
                os.close(descriptor)
                continue
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
            return seat
        raise NoSeat(f"all {SEATS} seats of {self._folder} are taken")

    def _path(self, seat: int) -> Path:
        return self._folder / f"seat-{seat}"

    def _map(self, descriptor: int, *, writing: bool) -> tuple[memoryview, memoryview]:
        access = mmap.ACCESS_WRITE if writing else mmap.ACCESS_READ
        content = memoryview(mmap.mmap(descriptor, self._size, access=access))
        split = self._buckets * _WAYS * 8
        return content[:split].cast("Q"), content[split:].cast("q")

    def _meet(self) -> None:
        """Look who else has, or had, a seat."""
        self._known = self._head[_JOINED]
        for seat in range(SEATS):
            if seat == self.seat or seat in self._seen:
                continue
            try:
                descriptor = os.open(self._path(seat), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                break  # seats are taken in order
            except OSError as error:
                log.error("counters.seat_not_read", seat=seat, error=str(error))
                continue
            try:
                if os.fstat(descriptor).st_size >= self._size:
                    self._seen[seat] = self._map(descriptor, writing=False)
            finally:
                os.close(descriptor)
        self._peers = list(self._seen.values())


def open_counters(folder: Path) -> Counters | None:
    """Take a seat; None, and a line in the log, where that cannot be: the process then counts alone.

    Args:
        folder: see `Counters`.
    """
    try:
        return Counters(folder)
    except (NoSeat, OSError) as error:
        log.error("counters.not_shared", reason=str(error))
        return None
