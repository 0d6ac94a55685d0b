"""`manage.py keys import|export`: move keys by their hashes, a million in one go."""

import contextlib
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from django.core.management.base import BaseCommand, CommandError

from apps.keys import bulk, imports
from apps.keys.api.keys import IMPORTED_KEY, imported
from apps.keys.models import Api
from unkey.actors import system
from unkey.errors import Fault
from unkey.rpc.schema import Checker, string
from unkey.tenancy import unscoped, workspace_scope

ACTOR = system("manage.py keys")
_EVERY_SECONDS = 0.5
_BAR = 30
_ENTRY = Checker(
    {**IMPORTED_KEY, "properties": {**IMPORTED_KEY["properties"], "start": string(1, 50)}},
)


class Command(BaseCommand):
    help = "Import or export the keys of an API: hashes and settings, as CSV (.csv) or NDJSON."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        into = actions.add_parser("import", help="make keys of a file; run again, it goes on where it was")
        into.add_argument("file", type=Path, help="see docs/root-keys.md for its columns")
        into.add_argument("--migration", help="name of a key migration; default: SHA-256 of the whole key")
        into.add_argument("--rejects", type=Path, help="where to write what was not imported, as NDJSON")
        out = actions.add_parser("export", help="write every key that was not deleted")
        out.add_argument("file", type=Path)
        for each in (into, out):
            each.add_argument("--api", required=True, help="id of the API")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        with unscoped("an operator names an API of any workspace"):
            api = Api.objects.filter(pk=options["api"], deleted_at=None).select_related("key_space").first()
        if api is None:
            raise CommandError(f"there is no API {options['api']}")
        with workspace_scope(api.workspace_id):
            try:
                if action == "import":
                    self._import(api, options)
                else:
                    self._export(api, options["file"])
            except (Fault, bulk.Unreadable, OSError, UnicodeDecodeError) as fault:
                raise CommandError(str(fault)) from None

    def _import(self, api: Api, options: dict[str, Any]) -> None:
        path: Path = options["file"]
        migration = imports.get_migration(options["migration"]) if options["migration"] else None
        total = sum(1 for _ in bulk.entries(path))
        progress = bulk.begin(api, bulk.fingerprint(path), total)
        if progress.read:
            self.stderr.write(f"goes on after entry {progress.read} of {total}")
        if total <= progress.read:
            self._told(progress)
            return
        with contextlib.ExitStack() as stack:
            rejects: TextIO | None = None
            if options["rejects"]:
                rejects = stack.enter_context(options["rejects"].open("a", encoding="utf-8"))

            def reject(entry: bulk.Entry, why: str) -> None:
                if rejects is not None:
                    rejects.write(json.dumps({"entry": entry.number, "why": why, "key": entry.text}) + "\n")
                    rejects.flush()

            bar = _Bar(self.stderr, total, progress.read)
            for batch in _batches(bulk.entries(path), progress.read):
                read = [(entry, _key_of(entry)) for entry in batch]
                progress = bulk.import_batch(progress, api, migration, read, reject, actor=ACTOR)
                bar.show(progress.read)
            bar.end()
        self._told(progress)

    def _told(self, progress: Any) -> None:
        self.stdout.write(
            f"{progress.imported} of {progress.total} keys imported, "
            f"{progress.rejected} not (duplicates and unreadable entries)"
        )

    def _export(self, api: Api, path: Path) -> None:
        keys = bulk.exported(api)
        is_csv = path.suffix.lower() == ".csv"
        lines = bulk.csv_rows(keys) if is_csv else (json.dumps(key) + "\n" for key in keys)
        with path.open("w", encoding="utf-8", newline="") as file:
            count = sum(1 for line in lines if file.write(line))
        self.stdout.write(f"{count} keys of {api.name} written to {path}")


def _batches(found: Iterator[bulk.Entry], after: int) -> Iterator[list[bulk.Entry]]:
    batch: list[bulk.Entry] = []
    for entry in found:
        if entry.number <= after:
            continue
        batch.append(entry)
        if len(batch) == bulk.BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _key_of(entry: bulk.Entry) -> imports.ImportedKey | str:
    """Return the key of an entry, or why it is none."""
    try:
        body = bulk.decoded(entry)
        faults = _ENTRY.violations(body)
        if faults:
            return faults[0].message
        body = _ENTRY.complete(body)
        return replace(imported(body, "entry"), start=body.get("start", ""))
    except (bulk.Unreadable, Fault) as fault:
        return str(fault)


class _Bar:
    """How far it is, on one line of a terminal; now and then a line where there is none."""

    def __init__(self, out: Any, total: int, done: int) -> None:
        self._out, self._total, self._first = out, total, done
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Tell how many entries are done, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (_EVERY_SECONDS if self._terminal else 20 * _EVERY_SECONDS):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 0.001)
        filled = _BAR * done // self._total
        line = (
            f"[{'#' * filled}{'.' * (_BAR - filled)}] {done:,} of {self._total:,}, {rate:,.0f} a second, "
            f"{(self._total - done) / max(rate, 0.001):,.0f} s to go"
        )
        self._out.write(f"\r{line}" if self._terminal else line, ending="" if self._terminal else "\n")

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            self._out.write("")
