"""The credit ledger: what this edge has spent of its leases, in a memory-mapped file.

A process that is killed loses nothing that it wrote here. A machine that went down may have, so a
ledger of an earlier boot is not believed: its leases lapse as spent.

Layout, native byte order: a page-free header (magic, boot id), then slots of 128 bytes:
lease id (40), key id (56), epoch, amount, spent, state (8 each): 0 free, 1 held, 2 being given back.
"""

import fcntl
import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"UKLEDG1\n"
_HEADER = 128
_SLOT = 128
_SLOTS = 256
_FORMAT = struct.Struct("=40s56sqqqq")
_AMOUNT = 13  # offsets in words of 8 bytes
_SPENT = 14
_STATE = 15
_HELD, _ENDING = 1, 2


class LedgerInUse(RuntimeError):
    """Another process with the same EDGE_ID holds the ledger."""


@dataclass(slots=True)
class Entry:
    """A lease as the ledger has it; one that is `ending` may have been given back already."""

    slot: int
    lease_id: str
    key_id: str
    epoch: int
    amount: int
    spent: int
    ending: bool = False


class Ledger:
    """Slots of leases in a file that outlives the process.

    Args:
        path: the file; made with mode 0600.
        patience: seconds to wait for an earlier process that is about to end.

    Raises:
        LedgerInUse: another process has it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, patience: float = 5.0) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(path, patience)
            boot = _boot_id()
            size = os.fstat(self._descriptor).st_size
            header = os.pread(self._descriptor, 8 + 36, 0)
            self.trusted = header == _MAGIC + boot and (size - _HEADER) % _SLOT == 0
            if not self.trusted:
                size = _HEADER + _SLOTS * _SLOT
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, size)
                os.pwrite(self._descriptor, _MAGIC + boot, 0)
            self._map(size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.entries = self._read()
        used = {entry.slot for entry in self.entries}
        self._free = [slot for slot in range((size - _HEADER) // _SLOT) if slot not in used]

    def open(self, lease_id: str, key_id: str, epoch: int) -> int:
        """Write down a lease before it is asked for, with nothing in it; return its slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        offset = _HEADER + slot * _SLOT
        _FORMAT.pack_into(self._file, offset, lease_id.encode(), key_id.encode(), epoch, 0, 0, _HELD)
        return slot

    def set_amount(self, slot: int, amount: int) -> None:
        """Write what a lease holds in all."""
        self._words[_HEADER // 8 + slot * (_SLOT // 8) + _AMOUNT] = amount

    def set_spent(self, slot: int, spent: int) -> None:
        """Write what was spent of a lease; one store of 8 bytes, never torn by a kill."""
        self._words[_HEADER // 8 + slot * (_SLOT // 8) + _SPENT] = spent

    def end(self, slot: int) -> None:
        """Write that a lease is about to be given back: nothing may be spent of it any more."""
        self._words[_HEADER // 8 + slot * (_SLOT // 8) + _STATE] = _ENDING

    def close_slot(self, slot: int) -> None:
        """Strike out a lease that was given back, used up or voided."""
        offset = _HEADER + slot * _SLOT
        self._file[offset : offset + _SLOT] = bytes(_SLOT)
        self._free.append(slot)

    def close(self) -> None:
        """Let go of the file."""
        self._words.release()
        self._file.close()
        os.close(self._descriptor)

    def _lock(self, path: Path, patience: float) -> None:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise LedgerInUse(
                        f"another edge process uses {path.parent}: give each its own EDGE_ID"
                    ) from None
                time.sleep(0.05)

    def _map(self, size: int) -> None:
        self._file = mmap.mmap(self._descriptor, size)
        self._words = memoryview(self._file).cast("q")

    def _grow(self) -> None:
        size = len(self._file)
        slots = (size - _HEADER) // _SLOT
        self._words.release()
        self._file.close()
        os.ftruncate(self._descriptor, size + slots * _SLOT)
        self._map(size + slots * _SLOT)
        self._free.extend(range(slots, 2 * slots))

    def _read(self) -> list[Entry]:
        entries = []
        for slot in range((len(self._file) - _HEADER) // _SLOT):
            lease, key, epoch, amount, spent, state = _FORMAT.unpack_from(self._file, _HEADER + slot * _SLOT)
            if state:
                lease_id, key_id = lease.rstrip(b"\0").decode(), key.rstrip(b"\0").decode()
                entries.append(Entry(slot, lease_id, key_id, epoch, amount, spent, state == _ENDING))
        return entries


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36)
