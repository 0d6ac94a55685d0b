"""The embedded store: segment files by day, and counts of their events, in one folder without a server.

    store = Embedded(folder)
    store.take()                          # moves what processes have spooled into the store
    store.usage("2026-11")                # {workspace: (verifications, rate limits)}
    store.files("ratelimits_raw_v2")      # segments with every event that is kept, each event once

An event is counted once, however often its segment comes: the numbers of every writer's events that were
taken are kept, in the same SQLite transaction as the counts and the list of segments. Where that
transaction ends before the files are in their places, the next `take` puts them there.
"""

import fcntl
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge.telemetry.spool import Spool
from edge.telemetry.tables import RATELIMITS, TABLES, VERIFICATIONS, Table
from unkey import clock, ids

log = structlog.get_logger(__name__)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
BUCKETS = {"minute": MINUTE, "hour": HOUR, "day": DAY}
# How long counts of a bucket are kept. Days outlive the events that they were counted from.
KEPT = {"minute": 2 * DAY, "hour": 45 * DAY, "day": 400 * DAY}
WRITERS_KEPT = 90 * DAY
_ROUND_BYTES = 64 * 1024**2
_UNLINKED_AFTER = 600_000  # queries that began before a merge may still read what it replaced
_MERGED = 16
_LARGEST_MERGED = 256 * 1024**2

_SCHEMA = """
create table if not exists seen (
    writer text, tbl text, ranges text not null, at integer not null, primary key (writer, tbl)
) without rowid;
create table if not exists segments (
    name text primary key, tbl text not null, day integer not null, bytes integer not null,
    last integer not null, replaced_at integer
) without rowid;
create table if not exists verifications (
    workspace_id text, bucket text, time integer, key_space_id text, key_id text, identity_id text,
    external_id text, source text, outcome text, count integer not null, spent integer not null,
    primary key (workspace_id, bucket, time, key_space_id, key_id, identity_id, external_id, source, outcome)
) without rowid;
create table if not exists ratelimits (
    workspace_id text, bucket text, time integer, namespace_id text, identifier text,
    passed integer not null, total integer not null, tokens integer not null,
    primary key (workspace_id, bucket, time, namespace_id, identifier)
) without rowid;
create table if not exists months (
    period text, workspace_id text, verifications integer not null, ratelimits integer not null,
    primary key (period, workspace_id)
) without rowid;
create table if not exists chores (name text primary key, at integer not null) without rowid;
create table if not exists last_used (
    key_id text primary key, workspace_id text not null, time integer not null
) without rowid;
create index if not exists last_used_time on last_used (time);
"""
_ADD_VERIFICATIONS = """
insert into verifications values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict do update set count = count + excluded.count, spent = spent + excluded.spent
"""
_ADD_RATELIMITS = """
insert into ratelimits values (?, ?, ?, ?, ?, ?, ?, ?)
on conflict do update set passed = passed + excluded.passed, total = total + excluded.total,
    tokens = tokens + excluded.tokens
"""
_ADD_MONTHS = """
insert into months values (?, ?, ?, ?)
on conflict do update set verifications = verifications + excluded.verifications,
    ratelimits = ratelimits + excluded.ratelimits
"""
_USED = """
insert into last_used values (?, ?, ?) on conflict do update set time = max(time, excluded.time)
"""


class Ranges:
    """Numbers that were seen, as sorted, disjoint, inclusive ranges.

    Args:
        spans: such ranges.
    """

    def __init__(self, spans: Iterable[Sequence[int]] = ()) -> None:
        self.spans: list[list[int]] = [list(span) for span in spans]

    def add(self, number: int) -> bool:
        """Add a number; False: it was seen before."""
        spans = self.spans
        if spans and number == spans[-1][1] + 1:  # the usual case
            spans[-1][1] = number
            return True
        place = len(spans)
        while place and spans[place - 1][0] > number:
            place -= 1
        if place and number <= spans[place - 1][1]:
            return False
        spans.insert(place, [number, number])
        if place + 1 < len(spans) and spans[place + 1][0] == number + 1:
            spans[place][1] = spans.pop(place + 1)[1]
        if place and spans[place - 1][1] + 1 == number:
            spans[place - 1][1] = spans.pop(place)[1]
        return True


@dataclass
class _Counted:
    """What one round adds."""

    verifications: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)
    ratelimits: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)
    months: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    used: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, table: Table, row: list[Any]) -> None:
        """Count one event."""
        if table is VERIFICATIONS:
            _, _, time, workspace, space, identity, external, key, _, source, _, outcome, _, spent, _ = row
            self._verification(
                (workspace, time - time % MINUTE, space, key, identity, external, source, outcome), spent
            )
            if key and time > self.used.get((key, workspace), 0):
                self.used[key, workspace] = time
            if outcome == "VALID" and source != "gateway":
                self._month(time, workspace)[0] += 1
        elif table is RATELIMITS:
            _, _, time, workspace, namespace, identifier, passed, _, _, _, _, _, tokens = row
            found = self.ratelimits.setdefault(
                (workspace, time - time % MINUTE, namespace, identifier), [0, 0, 0]
            )
            found[0] += passed
            found[1] += 1
            found[2] += tokens
            if passed:
                self._month(time, workspace)[1] += 1

    def _verification(self, key: tuple[Any, ...], spent: int) -> None:
        found = self.verifications.get(key)
        if found is None:
            found = self.verifications[key] = [0, 0]
        found[0] += 1
        found[1] += spent

    def _month(self, time: int, workspace: str) -> list[int]:
        key = _period(time // DAY), workspace
        found = self.months.get(key)
        if found is None:
            found = self.months[key] = [0, 0]
        return found


@lru_cache(maxsize=512)
def _period(day: int) -> str:
    """Return the month that a day since 1970 is in, as usage is counted by."""
    return clock.from_ms(day * DAY).strftime("%Y-%m")


class Embedded:
    """Events and counts in a folder.

    Args:
        folder: `spool/` holds what processes have written, `segments/` what was taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")

    # Taking

    def take(self) -> int:
        """Move spooled segments into the store; return how many events were new.

        One process does so at a time; where another does already, nothing is done.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            with self._connected() as database:
                self._recover(database)
                taken = 0
                for table in TABLES:
                    while (new := self._round(database, table)) is not None:
                        taken += new
                    self._merge(database, table)
                self._forget(database)
            return taken

    def _round(self, database: sqlite3.Connection, table: Table) -> int | None:
        """Take the next segments of a table; None: there are none."""
        paths, size = [], 0
        for path in self.spool.segments(table.name):
            paths.append(path)
            size += path.stat().st_size
            if size >= _ROUND_BYTES:
                break
        if not paths:
            return None
        counted = _Counted()
        seen: dict[str, Ranges] = {}
        lines: defaultdict[int, list[bytes]] = defaultdict(list)
        last: dict[int, int] = {}
        new = 0
        broken: list[Path] = []
        for path in paths:
            try:
                rows = list(_rows(path, table))
            except (msgspec.MsgspecError, ValueError) as error:
                log.error("analytics.segment_unreadable", segment=path.name, reason=str(error))
                broken.append(path)
                continue
            for row, line in rows:
                writer, _, number = row[0].rpartition("-")
                if writer not in seen:
                    seen[writer] = self._seen(database, writer, table)
                if not seen[writer].add(int(number)):
                    continue
                new += 1
                counted.add(table, row)
                day = row[2] // DAY
                lines[day].append(line)
                last[day] = max(last.get(day, 0), row[2])
        made = [self._write(table, day, of_day) for day, of_day in lines.items()]
        with database:
            database.executemany(
                "insert into segments values (?, ?, ?, ?, ?, null)",
                [(name, table.name, day, size, last[day]) for name, day, size in made],
            )
            now = clock.now_ms()
            database.executemany(
                "insert or replace into seen values (?, ?, ?, ?)",
                [(writer, table.name, json.dumps(each.spans), now) for writer, each in seen.items()],
            )
            _add(database, counted)
        for name, _, _ in made:
            self._publish(name)
        for path in broken:
            path.rename(path.with_suffix(".broken"))
        for path in paths:
            path.unlink(missing_ok=True)
        return new

    @staticmethod
    def _seen(database: sqlite3.Connection, writer: str, table: Table) -> Ranges:
        row = database.execute(
            "select ranges from seen where writer = ? and tbl = ?", (writer, table.name)
        ).fetchone()
        return Ranges(json.loads(row[0]) if row else ())

    def _write(self, table: Table, day: int, lines: list[bytes]) -> tuple[str, int, int]:
        """Write a segment of one day under a name that is not looked at yet; return name, day and bytes."""
        name = f"{table.name}/{day}/{ids.new('seg')}.ndjson"
        part = self.folder / "segments" / f"{name}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(_header(table))
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        return name, day, size

    def _publish(self, name: str) -> None:
        path = self.folder / "segments" / name
        path.with_name(f"{path.name}.part").rename(path)

    def _recover(self, database: sqlite3.Connection) -> None:
        """Put in place what a round has recorded and not placed; remove what it has not recorded."""
        for part in (self.folder / "segments").glob("*/*/*.part"):
            name = str(part.relative_to(self.folder / "segments")).removesuffix(".part")
            if database.execute("select 1 from segments where name = ?", (name,)).fetchone():
                self._publish(name)
            else:
                part.unlink()

    def _merge(self, database: sqlite3.Connection, table: Table) -> None:
        """Make one segment of each sixteen of about the same size and day: few files, however small the rounds."""
        tiers: defaultdict[tuple[int, int], list[tuple[str, int, int]]] = defaultdict(list)
        for name, day, size, last in database.execute(
            "select name, day, bytes, last from segments where tbl = ? and replaced_at is null", (table.name,)
        ).fetchall():
            if size < _LARGEST_MERGED:
                tiers[day, size.bit_length() // 4].append((name, size, last))
        for (day, _), found in tiers.items():
            for start in range(0, len(found) - _MERGED + 1, _MERGED):
                chosen = found[start : start + _MERGED]
                name, _, size = self._write(
                    table, day, list(self._lines(table, (each for each, _, _ in chosen)))
                )
                # In its place before it is asked for: until then the old ones are.
                self._publish(name)
                with database:
                    database.execute(
                        "insert into segments values (?, ?, ?, ?, ?, null)",
                        (name, table.name, day, size, max(last for _, _, last in chosen)),
                    )
                    database.executemany(
                        "update segments set replaced_at = ? where name = ?",
                        [(clock.now_ms(), each) for each, _, _ in chosen],
                    )

    def _lines(self, table: Table, names: Iterable[str]) -> Iterator[bytes]:
        for name in names:
            path = self.folder / "segments" / name
            with path.open("rb") as file:
                if next(file) == _header(table):
                    yield from file
                else:
                    yield from (line for _, line in _rows(path, table))

    def _forget(self, database: sqlite3.Connection) -> None:
        """Once an hour remove what is too old, and files that nothing speaks of."""
        now = clock.now_ms()
        row = database.execute("select at from chores where name = 'forget'").fetchone()
        if row and row[0] <= now < row[0] + HOUR:
            return
        gone = database.execute(
            "select name from segments where replaced_at < ?", (now - _UNLINKED_AFTER,)
        ).fetchall()
        for table in TABLES:
            gone += database.execute(
                "select name from segments where tbl = ? and last < ?", (table.name, now - table.days * DAY)
            ).fetchall()
        with database:
            database.executemany("delete from segments where name = ?", gone)
            database.execute("delete from seen where at < ?", (now - WRITERS_KEPT,))
            for bucket, kept in KEPT.items():
                for counts in ("verifications", "ratelimits"):
                    database.execute(
                        f"delete from {counts} where bucket = ? and time < ?",  # noqa: S608
                        (bucket, now - kept),
                    )
            database.execute("insert or replace into chores values ('forget', ?)", (now,))
        listed = {name for (name,) in database.execute("select name from segments")}
        for path in (self.folder / "segments").glob("*/*/*.ndjson"):
            if str(path.relative_to(self.folder / "segments")) not in listed:
                path.unlink()

    # Asking

    def files(self, table: str) -> list[Path]:
        """Return the segments of a table: together they hold every event that is kept, each once."""
        with self._connected() as database:
            found = database.execute(
                "select name from segments where tbl = ? and replaced_at is null order by day, name", (table,)
            ).fetchall()
        paths = (self.folder / "segments" / name for (name,) in found)
        return [path for path in paths if path.exists()]

    def usage(self, period: str) -> dict[str, tuple[int, int]]:
        """Return what each workspace has used in a month that is billed: verifications, rate limits."""
        with self._connected() as database:
            found = database.execute(
                "select workspace_id, verifications, ratelimits from months where period = ?", (period,)
            ).fetchall()
        return {workspace: (verifications, ratelimits) for workspace, verifications, ratelimits in found}

    def verifications(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[int, str, int, int]]:
        """Return (time, outcome, count, credits spent) per bucket, the earliest first.

        Args:
            workspace_id: whose.
            bucket: `minute`, `hour` or `day`.
            start, end: Unix milliseconds; the end is not included.
            only: column (`key_id`, `key_space_id`, `identity_id`, `external_id`) to the values that count.
        """
        where, values = _only(only)
        return self._rows(
            "select time, outcome, sum(count), sum(spent) from verifications "  # noqa: S608
            f"where workspace_id = ? and bucket = ? and time >= ? and time < ?{where} "
            "group by time, outcome order by time, outcome",
            (workspace_id, bucket, start, end, *values),
        )

    def usage_by_key(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str, int, int]]:
        """Return (key, outcome, count, credits spent); arguments as of `verifications`."""
        where, values = _only(only)
        return self._rows(
            "select key_id, outcome, sum(count), sum(spent) from verifications "  # noqa: S608
            f"where workspace_id = ? and bucket = ? and time >= ? and time < ? and key_id != ''{where} "
            "group by key_id, outcome order by key_id, outcome",
            (workspace_id, bucket, start, end, *values),
        )

    def last_used(self, workspace_id: str, key_ids: Sequence[str]) -> dict[str, int]:
        """Return when keys were last verified, in Unix milliseconds; those that never were are left out."""
        where, values = _only({"key_id": key_ids})
        rows = self._rows(
            f"select key_id, time from last_used where workspace_id = ?{where}",  # noqa: S608
            (workspace_id, *values),
        )
        return dict(rows)

    def used_since(self, since: int) -> dict[str, int]:
        """Return when keys of all workspaces were last verified, of those that were since a moment (ms)."""
        return dict(self._rows("select key_id, time from last_used where time >= ?", (since,)))

    def _rows(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self._connected() as database:
            return database.execute(sql, values).fetchall()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self.folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.folder / "store.sqlite3", timeout=30)
        try:
            database.execute("pragma journal_mode = wal")
            # Spooled segments are removed once the transaction is said to be done: it has to be.
            database.execute("pragma synchronous = full")
            database.executescript(_SCHEMA)
            yield database
        finally:
            database.close()


_decode = msgspec.json.Decoder(list[Any]).decode


def _header(table: Table) -> bytes:
    return msgspec.json.encode(list(table.columns)) + b"\n"


def _rows(path: Path, table: Table) -> Iterator[tuple[list[Any], bytes]]:
    """Yield the events of a segment, and the lines that they were read from."""
    with path.open("rb") as file:
        names, columns = _decode(next(file, b"[]")), list(table.columns)
        width = len(names)
        if not names or names != columns[:width]:
            raise ValueError("its columns are not the table's")
        # Columns are added at the end: a segment of an earlier version lacks the last ones.
        added = [[] if table.columns[name].startswith("Array") else "" for name in columns[width:]]
        for line in file:
            row = _decode(line)
            if len(row) != width:
                raise ValueError("a row is not the table's")
            if added:
                row += added
                line = msgspec.json.encode(row) + b"\n"
            yield row, line


def _add(database: sqlite3.Connection, counted: _Counted) -> None:
    for bucket, size in BUCKETS.items():
        verifications: dict[tuple[Any, ...], list[int]] = {}
        for (workspace, time, *rest), (count, spent) in counted.verifications.items():
            found = verifications.setdefault((workspace, bucket, time - time % size, *rest), [0, 0])
            found[0] += count
            found[1] += spent
        database.executemany(_ADD_VERIFICATIONS, [(*key, *sums) for key, sums in verifications.items()])
        ratelimits: dict[tuple[Any, ...], list[int]] = {}
        for (workspace, time, *rest), (passed, total, tokens) in counted.ratelimits.items():
            found = ratelimits.setdefault((workspace, bucket, time - time % size, *rest), [0, 0, 0])
            found[0] += passed
            found[1] += total
            found[2] += tokens
        database.executemany(_ADD_RATELIMITS, [(*key, *sums) for key, sums in ratelimits.items()])
    database.executemany(_ADD_MONTHS, [(*key, *sums) for key, sums in counted.months.items()])
    database.executemany(_USED, [(*key, time) for key, time in counted.used.items()])


def _only(only: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    where = ""
    values: list[str] = []
    for column, allowed in only.items():
        if column not in {"key_id", "key_space_id", "identity_id", "external_id"}:
            raise ValueError(column)
        where += f" and {column} in ({', '.join('?' * len(allowed))})"
        values += allowed
    return where, values
