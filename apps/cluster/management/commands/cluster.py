"""`manage.py cluster …`: who is how far behind, tokens of agents and edges, compaction."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.cluster import compaction, status, tokens
from apps.cluster.models import Region, Token
from unkey import clock
from unkey.errors import Fault

KINDS = Token.Kind.values
MAX_GRACE_HOURS = 24.0 * 366


class Command(BaseCommand):
    help = "Show agents and edges, make and end their tokens, remove what all of them have passed."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        show = actions.add_parser(
            "status",
            help="who is how far behind; exit status 1 when one is silent, too far behind, or had problems",
        )
        show.add_argument("--max-behind", type=int, default=1000, metavar="VERSIONS", help="default: 1000")
        token = actions.add_parser("token", help="tokens of agents and edges")
        of_token = token.add_subparsers(dest="verb", required=True, metavar="VERB")
        create = of_token.add_parser("create", help="make a token; its text is shown once")
        create.add_argument("--region", required=True, help="the only region it may speak for")
        create.add_argument(
            "--new-region", action="store_true", help="the region is new: its first satellite gets this token"
        )
        rotate = of_token.add_parser(
            "rotate", help="make a successor; the present one lapses after the grace"
        )
        rotate.add_argument("--grace-hours", type=float, default=24, metavar="HOURS", help="default: 24")
        for parser_of_name in (create, rotate):
            parser_of_name.add_argument("kind", choices=KINDS)
            parser_of_name.add_argument("name", help="its AGENT_ID or EDGE_ID")
        revoke = of_token.add_parser("revoke", help="end a token at once")
        revoke.add_argument("token_id")
        listed = of_token.add_parser("list", help="all tokens, without their texts")
        forget = actions.add_parser("forget", help="forget an agent or edge that will not return")
        forget.add_argument("kind", choices=KINDS)
        forget.add_argument("name", help="its AGENT_ID or EDGE_ID")
        compact = actions.add_parser("compact", help="remove rows whose end every edge has passed, now")
        for each in (show, create, rotate, listed, compact):
            each.add_argument("--json", action="store_true", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        action = options["action"] + (f"_{options['verb']}" if options["action"] == "token" else "")
        try:
            getattr(self, f"_{action}")(options)
        except Fault as fault:
            raise CommandError(fault.detail) from None

    def _status(self, options: dict[str, Any]) -> None:
        rows = status.satellites()
        if options["json"]:
            shown = [
                asdict(row)
                | {"last_seen_at": row.last_seen_at.isoformat(), "versions_behind": row.versions_behind}
                for row in rows
            ]
            self.stdout.write(json.dumps(shown, indent=2))
        else:
            self._table(
                ("kind", "name", "region", "state", "last seen", "behind", "problems", "release", "url"),
                [
                    (
                        row.kind,
                        row.id,
                        row.region,
                        row.state,
                        f"{max(0.0, (clock.now() - row.last_seen_at).total_seconds()):.0f} s ago",
                        _behind(row),
                        str(row.problems or "-"),
                        row.software or "-",
                        row.url or "-",
                    )
                    for row in rows
                ],
            )
        if any(_is_unwell(row, options["max_behind"]) for row in rows):
            sys.exit(1)

    def _token_create(self, options: dict[str, Any]) -> None:
        region = options["region"]
        known = sorted(Region.objects.values_list("name", flat=True))
        if region not in known and not options["new_region"]:
            there_are = f"there are {', '.join(known)}" if known else "there is none yet"
            raise CommandError(f"there is no region {region}: {there_are}; --new-region makes it")
        self._made(*tokens.create(options["kind"], options["name"], region), options)

    def _token_rotate(self, options: dict[str, Any]) -> None:
        hours = options["grace_hours"]
        if not 0 <= hours <= MAX_GRACE_HOURS:  # also what is no number
            raise CommandError(f"--grace-hours is from 0 to {MAX_GRACE_HOURS:g}, not {hours:g}")
        grace = timedelta(hours=hours)
        self._made(*tokens.rotate(options["kind"], options["name"], grace), options)

    def _made(self, row: Token, text: str, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({"id": row.id, "token": text}))
        else:
            self.stdout.write(text)
            self.stderr.write(
                f"{row.id}: give it to {row.kind} {row.name} as AGENT_TOKEN. It is not shown again."
            )

    def _token_revoke(self, options: dict[str, Any]) -> None:
        row = tokens.revoke(options["token_id"])
        self.stdout.write(f"revoked {row}")

    def _token_list(self, options: dict[str, Any]) -> None:
        now = clock.now()
        rows = [
            {
                "id": row.id,
                "kind": row.kind,
                "name": row.name,
                "region": row.region.name,
                "created_at": row.created_at.isoformat(timespec="seconds"),
                "expires_at": row.expires_at.isoformat(timespec="seconds") if row.expires_at else None,
                "valid": row.expires_at is None or row.expires_at > now,
                "last_used_at": row.last_used_at.isoformat(timespec="seconds") if row.last_used_at else None,
            }
            for row in Token.objects.select_related("region").order_by("kind", "name", "created_at")
        ]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
            return
        columns = ("id", "kind", "name", "region", "valid", "created_at", "expires_at", "last_used_at")
        self._table(columns, [tuple(_cell(row[column]) for column in columns) for row in rows])

    def _forget(self, options: dict[str, Any]) -> None:
        if not status.forget(options["kind"], options["name"]):
            raise CommandError(f"there is no {options['kind']} {options['name']}: `cluster status` shows all")
        self.stdout.write(f"forgot {options['kind']} {options['name']}")

    def _compact(self, options: dict[str, Any]) -> None:
        removed = compaction.compact()
        if options["json"]:
            self.stdout.write(json.dumps(removed))
        else:
            self.stdout.write(
                "removed " + ", ".join(f"{count} {stream}" for stream, count in removed.items())
            )

    def _table(self, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            self.stdout.write(
                "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            )


def _behind(row: status.Satellite) -> str:
    if not row.behind:
        return "-"
    stream, count = max(row.behind.items(), key=lambda pair: pair[1])
    return f"{count} of {stream}" + (" (needs the whole state)" if row.whole else "")


def _is_unwell(row: status.Satellite, max_behind: int) -> bool:
    return row.state == "silent" or (
        row.state == "live" and (row.versions_behind > max_behind or row.problems > 0)
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
