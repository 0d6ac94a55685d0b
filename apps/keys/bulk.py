"""Keys in bulk, by their hashes: files of a million are imported in batches and exported in pages.

A batch is one transaction with its audit row, one version of the workspace's stream (edges learn of all its
keys by reading a page or two), and the place in the file: an import that was killed goes on where it was,
and no key of it is made twice.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from apps.keys import queries
from apps.keys.imports import ImportedKey, import_keys
from apps.keys.models import Api, Key, KeyImport, KeyMigration
from unkey import clock
from unkey.actors import Actor

BATCH = 1000
COLUMNS = (
    "hash",
    "start",
    "name",
    "externalId",
    "meta",
    "roles",
    "permissions",
    "expires",
    "enabled",
    "remaining",
    "refillInterval",
    "refillAmount",
    "refillDay",
    "ratelimits",
)
_SEPARATOR = ";"
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Unreadable(ValueError):
    """An entry of a file that is no key; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a file.

    Args:
        number: its place among the entries, from 1.
        text: the line, or the cells of a row by their column.
    """

    number: int
    text: str | dict[str, str]


def entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, undecoded: rows of a `.csv`, lines of anything else.

    Raises:
        Unreadable: a CSV has no column `hash`, or one that is not known.
    """
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix.lower() != ".csv":
            number = 0
            for line in file:
                if line.strip():
                    number += 1
                    yield Entry(number, line)
            return
        reader = csv.DictReader(file, restkey="", restval="")
        given = reader.fieldnames or []
        unknown = [name for name in given if name not in COLUMNS]
        if unknown or "hash" not in given:
            raise Unreadable(
                f"a CSV needs a column hash, and may have {', '.join(COLUMNS[1:])}; it has {given}"
            )
        for number, row in enumerate(reader, 1):
            yield Entry(number, row)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decoded(entry: Entry) -> dict[str, Any]:
    """Return an entry in the form of `keys.migrateKeys`, with `start`.

    Raises:
        Unreadable
    """
    try:
        if isinstance(entry.text, str):
            found = json.loads(entry.text)
            if not isinstance(found, dict):
                raise Unreadable("it is no JSON object")
            return found
        return _of_row(entry.text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Unreadable(f"it is no JSON: {error}") from error
    except (ValueError, TypeError) as error:
        raise Unreadable(str(error)) from error


def _of_row(row: dict[str, str]) -> dict[str, Any]:
    cells = {name: text.strip() for name, text in row.items() if isinstance(text, str) and text.strip()}
    if "" in row:
        raise Unreadable("it has more cells than there are columns")
    found: dict[str, Any] = {
        name: cells[name] for name in ("hash", "start", "name", "externalId") if name in cells
    }
    found |= {name: json.loads(cells[name]) for name in ("meta", "ratelimits") if name in cells}
    for name in ("roles", "permissions"):
        if name in cells:
            text = cells[name]
            found[name] = json.loads(text) if text.startswith("[") else text.split(_SEPARATOR)
    if "expires" in cells:
        found["expires"] = int(cells["expires"])
    if "enabled" in cells:
        if cells["enabled"].lower() not in _TRUTH:
            raise Unreadable(f"enabled must be true or false, not {cells['enabled']}")
        found["enabled"] = _TRUTH[cells["enabled"].lower()]
    if "remaining" in cells:
        found["credits"] = {"remaining": int(cells["remaining"])}
        if "refillInterval" in cells:
            refill: dict[str, Any] = {"interval": cells["refillInterval"]}
            refill |= {
                field: int(cells[column])
                for column, field in (("refillAmount", "amount"), ("refillDay", "refillDay"))
                if column in cells
            }
            found["credits"]["refill"] = refill
    return found


def begin(api: Api, source: str, total: int) -> KeyImport:
    """Return the import of a file into an API: a new one, or the one that was interrupted.

    Args:
        source: the file's fingerprint.
        total: entries of the file.
    """
    found, _ = KeyImport.objects.get_or_create(
        api=api, source=source, defaults={"workspace_id": api.workspace_id, "total": total}
    )
    return found


def import_batch(
    progress: KeyImport,
    api: Api,
    migration: KeyMigration | None,
    batch: list[tuple[Entry, ImportedKey | str]],
    reject: Callable[[Entry, str], None],
    *,
    actor: Actor,
) -> KeyImport:
    """Import the next entries of a file, and take note of how far it is, in one transaction.

    Args:
        progress: of the file.
        api: where to.
        migration: how hashes were made; None: SHA-256 of the whole key.
        batch: entries in order; a key, or why it is none.
        reject: told of each entry that was not imported, before the transaction ends: after a kill it may
            be told of the same again.
        actor: who does it.
    """
    with transaction.atomic():
        progress = KeyImport.objects.select_for_update().get(pk=progress.pk)
        keys = [key for entry, key in batch if entry.number > progress.read and not isinstance(key, str)]
        made: dict[str, str] = {}
        if keys:
            plain = KeyMigration(name="import", algorithm=KeyMigration.Algorithm.SHA256)
            made = dict(import_keys(api, migration or plain, keys, actor=actor)[0])
        for entry, key in batch:
            if entry.number <= progress.read:
                continue
            if not isinstance(key, str) and made.pop(key.hash, ""):
                progress.imported += 1
                continue
            progress.rejected += 1
            reject(
                entry, key if isinstance(key, str) else "the hash is no hash of this kind, or exists already"
            )
        progress.read = max(progress.read, batch[-1][0].number)
        progress.updated_at = clock.now()
        if progress.read >= progress.total:
            progress.finished_at = progress.updated_at
        progress.save()
    return progress


def exported(api: Api) -> Iterator[dict[str, Any]]:
    """Yield the keys of an API that were not deleted, in the form that an import takes, ordered by id.

    Those that wait for their first use after a migration are left out: their hash is of another kind.
    """
    after = ""
    while True:
        rows = list(
            queries.shown(
                queries.live_keys().filter(key_space=api.key_space_id, pending_migration=None, pk__gt=after)
            ).order_by("pk")[:BATCH]
        )
        balances = queries.balances(rows)
        for row in rows:
            yield _export(row, balances)
        if len(rows) < BATCH:
            return
        after = rows[-1].pk


def _export(key: Key, balances: dict[str, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {"hash": key.hash, "enabled": key.enabled}
    shown |= {
        name: value for name, value in (("start", key.start), ("name", key.name), ("meta", key.meta)) if value
    }
    if key.identity is not None and key.identity.deleted_at is None:
        shown["externalId"] = key.identity.external_id
    if roles := sorted(role.name for role in key.roles.all()):
        shown["roles"] = roles
    if permissions := sorted(permission.slug for permission in key.permissions.all()):
        shown["permissions"] = permissions
    if key.expires_at is not None:
        shown["expires"] = clock.to_ms(key.expires_at)
    if key.remaining is not None:
        shown["credits"] = {"remaining": balances.get(key.pk, key.remaining)}
        if key.refill_interval:
            refill = {"interval": key.refill_interval, "amount": key.refill_amount}
            shown["credits"]["refill"] = refill | ({"refillDay": key.refill_day} if key.refill_day else {})
    if ratelimits := [
        {"name": row.name, "limit": row.limit, "duration": row.duration_ms, "autoApply": row.auto_apply}
        for row in key.ratelimits.all()
    ]:
        shown["ratelimits"] = ratelimits
    return shown


def csv_rows(keys: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield exported keys as lines of CSV, after the line of its columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for key in keys:
        row: dict[str, Any] = {
            name: key[name] for name in ("hash", "start", "name", "externalId", "expires") if name in key
        }
        row |= {name: json.dumps(key[name]) for name in ("meta", "ratelimits") if name in key}
        for name in ("roles", "permissions"):
            if name in key:
                plain = not any(_SEPARATOR in one or one.startswith("[") for one in key[name])
                row[name] = _SEPARATOR.join(key[name]) if plain else json.dumps(key[name])
        row["enabled"] = "true" if key["enabled"] else "false"
        if "credits" in key:
            row["remaining"] = key["credits"]["remaining"]
            refill = key["credits"].get("refill", {})
            row |= {
                column: refill[field]
                for field, column in (
                    ("interval", "refillInterval"),
                    ("amount", "refillAmount"),
                    ("refillDay", "refillDay"),
                )
                if field in refill
            }
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    if buffer.tell():
        yield buffer.getvalue()
