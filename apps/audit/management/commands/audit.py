"""`manage.py audit verify|export|seal|prune`: prove, hand out and trim the audit log."""

import json
import sys
from argparse import ArgumentParser
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.models import Q
from django.utils.dateparse import parse_date, parse_datetime

from apps.audit import chain, guard, queries
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.tenancy import workspace_scope


class Command(BaseCommand):
    help = "Prove that no row of the audit log was changed or removed; export it; chain and trim it now."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        verify = actions.add_parser("verify", help="walk along every chain; exit 1 if something does not fit")
        verify.add_argument("--workspace", help="only this one, by slug or id")
        verify.add_argument(
            "--head",
            metavar="SEQUENCE:HASH",
            help="what an earlier verify or export said of --workspace: the chain must still hold it",
        )
        verify.add_argument("--json", action="store_true", help="print a JSON object for each workspace")
        export = actions.add_parser("export", help="write a workspace's rows as NDJSON, the oldest first")
        export.add_argument("--workspace", required=True, help="slug or id")
        export.add_argument("--since", metavar="TIME", help="ISO 8601; UTC unless it says otherwise")
        export.add_argument("--until", metavar="TIME", help="ISO 8601, excluded")
        export.add_argument("--event", action="append", metavar="EVENT", help="may be repeated; key.* works")
        export.add_argument("--out", type=Path, help="a file; default: standard output")
        actions.add_parser("seal", help="chain the rows that have come, now")
        actions.add_parser("prune", help="remove what is older than each workspace keeps, now")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        match action:
            case "verify":
                self._verify(options)
            case "export":
                self._export(options)
            case "seal":
                self.stdout.write(f"sealed {chain.seal()} rows")
            case _:
                self.stdout.write(f"removed {chain.prune()} rows")

    def _verify(self, options: dict[str, Any]) -> None:
        if options["head"] and not options["workspace"]:
            raise CommandError("--head is of one workspace: give --workspace too")
        guarded = guard.installed(connection)
        chosen = (
            [_workspace(options["workspace"])]
            if options["workspace"]
            else Workspace.objects.order_by("slug").iterator()
        )
        broken = 0
        for workspace in chosen:
            proof = chain.verify(workspace.id)
            if options["head"]:
                proof.faults.extend(_unlike(workspace, options["head"]))
            broken += bool(proof.faults)
            if options["json"]:
                shown = {
                    "workspace_id": workspace.id,
                    "slug": workspace.slug,
                    "rows": proof.rows,
                    "head": f"{proof.sequence}:{proof.hash}",
                    "pending": proof.pending,
                    "faults": proof.faults,
                }
                self.stdout.write(json.dumps(shown))
                continue
            state = "BROKEN" if proof.faults else "whole"
            self.stdout.write(
                f"{workspace.slug}: {state}, {proof.rows} rows, {proof.pending} not sealed yet, "
                f"head {proof.sequence}:{proof.hash}"
            )
            for fault in proof.faults:
                self.stdout.write(f"  {fault}")
        if not guarded:
            self.stderr.write(
                "The database has no triggers that refuse changes of the audit log: its user may not make "
                "them. Changes are still found here."
            )
        if broken:
            raise CommandError(
                f"the audit log of {broken} workspace{'s' * (broken > 1)} does not fit its chain"
            )

    def _export(self, options: dict[str, Any]) -> None:
        workspace = _workspace(options["workspace"])
        wanted = {
            "since": _moment(options["since"]),
            "until": _moment(options["until"]),
            "events": options["event"],
        }
        with ExitStack() as stack:
            stack.enter_context(workspace_scope(workspace.id))
            out: Any = stack.enter_context(options["out"].open("wb")) if options["out"] else sys.stdout.buffer
            count = 0
            for line in queries.ndjson(queries.matching(wanted)):
                out.write(line)
                count += 1
            out.flush()
        self.stderr.write(f"{count} rows of {workspace.slug}")


def _workspace(name: str) -> Workspace:
    found = Workspace.objects.filter(Q(pk=name) | Q(slug=name)).first()
    if found is None:
        raise CommandError(f"there is no workspace {name}; give its slug or its id")
    return found


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = parse_datetime(text)
        if found is None:
            day = parse_date(text)
            found = None if day is None else datetime(day.year, day.month, day.day)  # noqa: DTZ001
    except ValueError:
        found = None
    if found is None:
        raise CommandError(f"{text} is no time; write 2026-11-21 or 2026-11-21T12:00:00Z")
    return found if found.tzinfo else found.replace(tzinfo=clock.EPOCH.tzinfo)


def _unlike(workspace: Workspace, head: str) -> list[str]:
    """Return what does not fit what was said of the chain earlier."""
    sequence, _, noted = head.partition(":")
    if not (sequence.isascii() and sequence.isdigit()) or not noted:
        raise CommandError("--head must read SEQUENCE:HASH, as verify prints it")
    place = int(sequence)
    for row in chain.sealed_rows(workspace.id, place - 1, place):
        return [] if row.hash == noted else [f"row {place} had the hash {noted}: the chain was written anew"]
    held = chain.ends(workspace.id)
    if held is not None and held.pruned > place:
        return []  # it went by retention since
    if held is not None and held.pruned == place and held.anchor == noted:
        return []
    return [f"row {place} was in the chain and is not: it was cut"]
