"""The engine's rows in memory and the SQL that reads and writes many of them at once.

Written by hand because this is where a step's time goes: through the ORM one step costs milliseconds
of processor, as statements over many rows tens of microseconds. Names stand in backticks, which
SQLite takes as MariaDB does (`key` and `undo` are words of its language).
"""
# ruff: noqa: S608 - what is put into statements are names of tables and placeholders, never values

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection, connections

from apps.workflows.models import ACTIVE, State, WorkflowKey, WorkflowRun, WorkflowStep, next_arrival

Tuple = tuple[Any, ...]
Position = tuple[int, bool, int, int]

_RUN = f"`{WorkflowRun._meta.db_table}`"
_STEP = f"`{WorkflowStep._meta.db_table}`"
_KEY = f"`{WorkflowKey._meta.db_table}`"
_LOADED = (
    "id, service, `key`, queue, workspace_id, parent_id, input, step_names, exclusive, urgent, state, step_index, "
    "`undo`, undo_index, failures, journaled, outside_started, step_started_at, next_at, wait_topic, wait_deadline, "
    "cancel_requested_at, error_code, error_message, created_at, started_at, trail"
)


def to_moment(value: Any) -> datetime | None:
    """Return a time as the driver gave it (text from SQLite, naive from MariaDB) as an aware one."""
    if value is None:
        return None
    if isinstance(value, str):
        return datetime.fromisoformat(value + "+00:00")
    return value.replace(tzinfo=UTC)  # type: ignore[no-any-return]


def from_moment(moment: datetime | None) -> str | None:
    """Return an aware time as both databases keep it: text, in UTC."""
    if moment is None:
        return None
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(" ")[:-6]


@lru_cache(maxsize=512)
def _names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@dataclass(slots=True, eq=False)
class RunRow:
    """One run, as read under its key's lock; who changes a field calls `changed`.

    Attributes:
        input, trail: JSON text.
        step_names, undo: names in order; `undo` is None until the run turns round.
        progressed: what only moves along the list of steps has to be written.
        altered: everything has to be written.
        finished_at: set when the run ends.
    """

    id: str
    service: str
    key: str
    queue: str
    workspace_id: str | None
    parent_id: str | None
    input: str
    step_names: tuple[str, ...]
    exclusive: bool
    urgent: bool
    state: str
    step_index: int
    undo: tuple[str, ...] | None
    undo_index: int
    failures: int
    journaled: bool
    outside_started: bool
    step_started_at: datetime | None
    next_at: datetime | None
    wait_topic: str
    wait_deadline: datetime | None
    cancel_requested_at: datetime | None
    error_code: str
    error_message: str
    created_at: datetime
    started_at: datetime | None
    trail: str | None
    finished_at: datetime | None = None
    progressed: bool = False
    altered: bool = False

    @property
    def position(self) -> Position:
        """Where the run stands: an outcome belongs to the position that its part began at."""
        return self.step_index, self.undo is None, self.undo_index, self.failures

    @property
    def current_step(self) -> str:
        """Name of the step, or of the step being compensated, that comes next; empty at the end."""
        if self.undo is not None:
            return self.undo[self.undo_index] if self.undo_index < len(self.undo) else ""
        return self.step_names[self.step_index] if self.step_index < len(self.step_names) else ""

    @property
    def active(self) -> bool:
        """Whether it has neither ended nor stopped for attention."""
        return self.state in ACTIVE

    @property
    def unbegun(self) -> bool:
        """Whether none of its steps was ever tried."""
        return self.state == State.PENDING and self.undo is None and self.started_at is None

    def ready(self, now: datetime) -> bool:
        """Whether it wants to be driven now."""
        return self.next_at is not None and self.next_at <= now


def _run(row: Tuple) -> RunRow:
    values = list(row)
    values[7] = _names(row[7])
    values[12] = None if row[12] is None or row[12] == "null" else _names(row[12])
    for place in (8, 9, 15, 16):
        values[place] = bool(row[place])
    for place in (17, 18, 20, 21, 24, 25):
        values[place] = to_moment(row[place])
    return RunRow(*values)


@dataclass(slots=True, eq=False)
class KeyRow:
    """Who may step on a key.

    Attributes:
        stored: whether the table has a row of it.
        changed: it has to be written.
        gone: it has to be deleted.
    """

    key: str
    epoch: int = field(default_factory=next_arrival)
    holder: str = ""
    exclusive: bool = False
    lease_expires_at: datetime | None = None
    stored: bool = False
    changed: bool = False
    gone: bool = False


def _key(row: Tuple) -> KeyRow:
    return KeyRow(row[0], row[1], row[2], bool(row[3]), to_moment(row[4]), stored=True)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))


# What the engine does on its own account goes to the driver directly: a statement through Django's cursor
# costs as much processor again, and `Isolation` takes it for one of user code.


@lru_cache(maxsize=512)
def _for_sqlite(sql: str) -> str:
    """Return a statement with SQLite's placeholders."""
    return sql.replace("%s", "?")


@lru_cache
def _plain(columns: str, vendor: str) -> str:
    """Return columns to be read as they are: with a `+` SQLite's driver does not know their type to convert."""
    return ", ".join(f"+{name}" for name in columns.split(", ")) if vendor == "sqlite" else columns


def _fetch(sql: str, values: Sequence[Any]) -> list[Tuple]:
    database = connections[DEFAULT_DB_ALIAS]
    with database.wrap_database_errors:
        if database.vendor == "sqlite":
            return database.connection.execute(_for_sqlite(sql), values).fetchall()  # type: ignore[no-any-return]
        cursor = database.connection.cursor()
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def _many(sql: str, rows: list[Tuple]) -> None:
    database = connections[DEFAULT_DB_ALIAS]
    with database.wrap_database_errors:
        if database.vendor == "sqlite":
            database.connection.executemany(_for_sqlite(sql), rows)
        elif len(rows) == 1:
            database.connection.cursor().execute(sql, rows[0])
        else:
            database.connection.cursor().executemany(sql, rows)


# -- reading ---------------------------------------------------------------------------------------


def lock_keys(keys: Sequence[str], *, wait: bool) -> dict[str, KeyRow]:
    """Lock the rows of some keys until the transaction ends, made if need be.

    SQLite locks the whole database when the transaction begins; there a row that is missing is made
    only when it is written.

    Args:
        keys: unlike one another; locked in their order in the index.
        wait: for other transactions; otherwise keys that are locked are left out.
    """
    if not keys:
        return {}
    if connection.vendor == "sqlite":
        found = _read_keys(keys)
        return {key: found.get(key) or KeyRow(key) for key in keys}
    skip = not wait and connection.features.has_select_for_update_skip_locked
    found = _read_keys(keys, "FOR UPDATE SKIP LOCKED" if skip else "FOR UPDATE")
    missing = [key for key in keys if key not in found]
    if missing:
        locked = _read_keys(missing) if skip else {}
        new = [key for key in missing if key not in locked]
        if new:
            _many(
                f"INSERT IGNORE INTO {_KEY} (`key`, epoch, holder, exclusive) VALUES (%s, %s, '', 0)",
                [(key, next_arrival()) for key in new],
            )
            found |= _read_keys(new, "FOR UPDATE")
    return found


def _read_keys(keys: Sequence[str], lock: str = "") -> dict[str, KeyRow]:
    order = f" ORDER BY `key` {lock}" if lock else ""
    columns = _plain("`key`, epoch, holder, exclusive, lease_expires_at", connection.vendor)
    sql = f"SELECT {columns} FROM {_KEY} WHERE `key` IN ({_marks(keys)})"
    return {row[0]: _key(row) for row in _fetch(sql + order, keys)}


def runs_by_id(ids: Sequence[str]) -> dict[str, RunRow]:
    """Read some runs."""
    if not ids:
        return {}
    loaded = _plain(_LOADED, connection.vendor)
    return {
        row[0]: _run(row) for row in _fetch(f"SELECT {loaded} FROM {_RUN} WHERE id IN ({_marks(ids)})", ids)
    }


def next_runs(keys: Sequence[str], now: datetime) -> dict[str, RunRow]:
    """Read whose turn it is, by key: of the runs that are due urgent ones first, then the oldest."""
    if not keys:
        return {}
    loaded = _plain(_LOADED, connection.vendor)
    due = f"FROM {_RUN} WHERE `key` IN ({_marks(keys)}) AND next_at <= %s"
    values = [*keys, from_moment(now)]
    if len(keys) == 1:
        sql = f"SELECT {loaded} {due} ORDER BY urgent DESC, arrival, id LIMIT 1"
    else:
        order = "ROW_NUMBER() OVER (PARTITION BY `key` ORDER BY urgent DESC, arrival, id) AS turn"
        first = f"SELECT id FROM (SELECT id, {order} {due}) AS ordered WHERE turn = 1"
        sql = f"SELECT {loaded} FROM {_RUN} WHERE id IN ({first})"
    return {row[2]: _run(row) for row in _fetch(sql, values)}


def lock_cancel(run_id: str) -> datetime | None:
    """Read when a run's cancel was asked for, so that until the transaction ends nobody is told that it will be."""
    columns = _plain("cancel_requested_at", connection.vendor)
    lock = "" if connection.vendor == "sqlite" else " FOR UPDATE"
    found = _fetch(f"SELECT {columns} FROM {_RUN} WHERE id = %s{lock}", [run_id])
    return to_moment(found[0][0]) if found else None


def urgent_waits(key: str, now: datetime) -> bool:
    """Say whether an urgent run of a key is due."""
    sql = f"SELECT 1 FROM {_RUN} WHERE `key` = %s AND next_at <= %s AND urgent LIMIT 1"
    return bool(_fetch(sql, [key, from_moment(now)]))


def results(run_id: str) -> dict[str, str]:
    """Read the results of a run's finished steps as JSON text, in order; asked by user code."""
    sql = f"SELECT name, result FROM {_STEP} WHERE run_id = %s AND kind = 'step' AND ended_at IS NOT NULL ORDER BY position"
    with connection.cursor() as cursor:
        cursor.execute(sql, [run_id])
        return {name: "null" if text is None else text for name, text in cursor.fetchall()}


def topic_sequence(name: str) -> int | None:
    """Read a topic's sequence number, None if it was never used."""
    found = _fetch("SELECT sequence FROM `workflows_workflowtopic` WHERE name = %s", [name])
    return found[0][0] if found else None


# -- writing ---------------------------------------------------------------------------------------

_NEW = (
    "id, arrival, service, `key`, queue, workspace_id, parent_id, idempotency_key, input, step_names, exclusive, "
    "urgent, state, step_index, undo_index, failures, journaled, outside_started, next_at, wait_topic, error_code, "
    "error_message, created_at"
)


def insert_run(run: WorkflowRun, input: str) -> None:
    """Write a new run, on behalf of user code.

    Args:
        input: as JSON text.
    """
    values = (
        run.id,
        run.arrival,
        run.service,
        run.key,
        run.queue,
        run.workspace_id,
        run.parent_id,
        run.idempotency_key,
        input,
        json.dumps(run.step_names),
        run.exclusive,
        run.urgent,
        run.state,
        run.step_index,
        run.undo_index,
        run.failures,
        run.journaled,
        run.outside_started,
        from_moment(run.next_at),
        run.wait_topic,
        run.error_code,
        run.error_message,
        from_moment(run.created_at),
    )
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {_RUN} ({_NEW}) VALUES ({_marks(values)})", values)
    run._state.adding, run._state.db = False, connection.alias


def write_keys(rows: Iterable[KeyRow]) -> None:
    """Write the keys that changed, and delete those that are gone."""
    changed: list[Tuple] = []
    gone: list[str] = []
    for row in rows:
        if row.gone:
            if row.stored:
                gone.append(row.key)
            row.stored = row.gone = row.changed = False
        elif row.changed:
            changed.append((row.key, row.epoch, row.holder, row.exclusive, from_moment(row.lease_expires_at)))
            row.stored, row.changed = True, False
    if changed:
        columns = ("epoch", "holder", "exclusive", "lease_expires_at")
        if connection.vendor == "sqlite":
            conflict = "ON CONFLICT (`key`) DO UPDATE SET " + ", ".join(
                f"{name} = excluded.{name}" for name in columns
            )
        else:
            conflict = "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in columns)
        _many(
            f"INSERT INTO {_KEY} (`key`, {', '.join(columns)}) VALUES (%s, %s, %s, %s, %s) {conflict}",
            changed,
        )
    if gone:
        _many(f"DELETE FROM {_KEY} WHERE `key` IN ({_marks(gone)})", [tuple(gone)])


_PROGRESS = ("step_index", "outside_started", "step_started_at")
_ALTERED = (
    "state = %s, step_index = %s, `undo` = %s, undo_index = %s, failures = %s, journaled = %s, outside_started = %s, "
    "step_started_at = %s, wait_topic = %s, wait_deadline = %s, error_code = %s, error_message = %s, started_at = %s, "
    "finished_at = %s, trail = %s, "
    # A cancel that came while the step ran must not be slept over.
    "next_at = CASE WHEN %s AND cancel_requested_at IS NOT NULL THEN %s ELSE %s END"
)


def write_runs(rows: Iterable[RunRow], now: datetime) -> None:
    """Write the runs that changed: indexed columns only where one of them did."""
    altered: list[Tuple] = []
    progressed: list[Tuple] = []
    for row in rows:
        if row.altered:
            waits = row.undo is None and row.state == State.WAITING
            altered.append(
                (
                    row.state,
                    row.step_index,
                    None if row.undo is None else json.dumps(row.undo),
                    row.undo_index,
                    row.failures,
                    row.journaled,
                    row.outside_started,
                    from_moment(row.step_started_at),
                    row.wait_topic,
                    from_moment(row.wait_deadline),
                    row.error_code,
                    row.error_message,
                    from_moment(row.started_at),
                    from_moment(row.finished_at),
                    row.trail,
                    waits,
                    from_moment(now),
                    from_moment(row.next_at),
                    row.id,
                )
            )
        elif row.progressed:
            progressed.append((row.step_index, row.outside_started, from_moment(row.step_started_at), row.id))
        row.altered = row.progressed = False
    if altered:
        _many(f"UPDATE {_RUN} SET {_ALTERED} WHERE id = %s", altered)
    if progressed:
        _write_progress(progressed)


def _write_progress(rows: list[Tuple]) -> None:
    if connection.vendor == "sqlite" or len(rows) == 1:
        changes = ", ".join(f"{name} = %s" for name in _PROGRESS)
        _many(f"UPDATE {_RUN} SET {changes} WHERE id = %s", rows)
        return
    # One round trip for many rows; MariaDB's driver would make one of each.
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        ids = [row[-1] for row in part]
        whens = " ".join(["WHEN %s THEN %s"] * len(part))
        changes = ", ".join(f"{name} = CASE id {whens} END" for name in _PROGRESS)
        values = [
            value for column in range(len(_PROGRESS)) for row in part for value in (row[-1], row[column])
        ]
        _many(f"UPDATE {_RUN} SET {changes} WHERE id IN ({_marks(ids)})", [(*values, *ids)])


@dataclass(slots=True)
class Entry:
    """A row of the journal that is to be written.

    Args:
        again: there is a row of failed attempts, which this one goes over.
        result: JSON text; None: none yet.
    """

    run_id: str
    kind: str
    name: str
    position: int
    started_at: datetime
    again: bool
    ended_at: datetime | None = None
    result: str | None = None
    error: str = ""


def write_journal(entries: Sequence[Entry]) -> None:
    """Write rows of attempts, in order: new ones, or over the rows of the failed attempts before."""
    new: list[Tuple] = []
    for entry in entries:
        if not entry.again:
            new.append(
                (
                    entry.run_id,
                    entry.kind,
                    entry.name,
                    entry.position,
                    entry.result,
                    entry.error,
                    from_moment(entry.started_at),
                    from_moment(entry.ended_at),
                )
            )
            continue
        _insert_entries(new)
        new = []
        _many(
            f"UPDATE {_STEP} SET attempts = attempts + 1, ended_at = %s, result = %s, "
            "error = CASE WHEN %s = '' THEN error ELSE %s END WHERE run_id = %s AND kind = %s AND name = %s",
            [
                (
                    from_moment(entry.ended_at),
                    entry.result,
                    entry.error,
                    entry.error,
                    entry.run_id,
                    entry.kind,
                    entry.name,
                )
            ],
        )
    _insert_entries(new)


def _insert_entries(rows: list[Tuple]) -> None:
    if rows:
        _many(
            f"INSERT INTO {_STEP} (run_id, kind, name, position, attempts, result, error, started_at, ended_at) "
            "VALUES (%s, %s, %s, %s, 1, %s, %s, %s, %s)",
            rows,
        )


def renew_leases(leases: Sequence[tuple[str, int]], until: datetime) -> set[tuple[str, int]]:
    """Move the end of leases that still hold, each `(key, epoch)`; return those that no longer do."""
    sql = f"UPDATE {_KEY} SET lease_expires_at = %s WHERE `key` = %s AND epoch = %s AND lease_expires_at IS NOT NULL"
    lost: set[tuple[str, int]] = set()
    with connection.cursor() as cursor:
        for key, epoch in sorted(leases):
            cursor.execute(sql, (from_moment(until), key, epoch))
            if cursor.rowcount == 0:
                lost.add((key, epoch))
    return lost
