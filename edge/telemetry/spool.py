"""Segments on disk between the process that recorded their events and the store that takes them.

A segment is a file of JSON lines: first the names of the columns, then one array per event. It appears
under its name at once and whole, and never changes: `<table>/<writer>-<first>-<last>.ndjson`.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.telemetry.tables import BY_NAME

MOST_BYTES = 2 * 1024**3
_MEASURED_SECONDS = 10.0
_NAME = re.compile(r"([1-9A-HJ-NP-Za-km-z]+)-([0-9]+)-([0-9]+)\.ndjson\Z")


@dataclass(frozen=True, slots=True)
class Segment:
    """Events of one table, by one writer, of consecutive numbers.

    Args:
        table: name of the table.
        writer: which run of which process wrote them.
        first, last: their numbers.
        lines: JSON arrays, each ended by a line feed.
    """

    table: str
    writer: str
    first: int
    last: int
    lines: bytes

    @property
    def rows(self) -> int:
        """How many events it holds."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """Name of its file: of equal names, one is a copy of the other."""
        return f"{self.writer}-{self.first:012}-{self.last:012}.ndjson"


class Spool:
    """A folder of segments.

    Args:
        folder: has a folder for each table.
        most: bytes that may lie here; while nobody takes segments away, later ones are refused.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self.folder = folder
        self._most = most
        self._bytes = 0
        self._measured_at = -_MEASURED_SECONDS

    def write(self, segment: Segment) -> bool:
        """Keep a segment, on the disk when this returns; False: there is no room for it.

        Raises:
            OSError: the disk refuses; writing it again is safe.
        """
        if self._full(len(segment.lines)):
            return False
        folder = self.folder / segment.table
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{segment.name}.part"
        header = msgspec.json.encode(list(BY_NAME[segment.table].columns)) + b"\n"
        with part.open("wb") as file:
            file.write(header)
            file.write(segment.lines)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / segment.name)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _full(self, more: int) -> bool:
        now = time.monotonic()
        if now - self._measured_at > _MEASURED_SECONDS:
            self._bytes = sum(_size(path) for path in self.folder.glob("*/*.ndjson"))
            self._measured_at = now
        self._bytes += more
        return self._bytes > self._most

    def segments(self, table: str) -> Iterator[Path]:
        """Yield the files of a table, a writer's in their order."""
        yield from sorted(path for path in (self.folder / table).glob("*.ndjson") if _NAME.match(path.name))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # taken meanwhile
        return 0
