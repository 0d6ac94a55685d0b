"""`manage.py analytics …`: ClickHouse's tables, taking events by hand, usage of workspaces and of keys."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.analytics import clickhouse, queries, workflows
from apps.analytics.store import embedded, store
from apps.keys.models import Key
from apps.quota.services import write_usage
from apps.workspaces.models import Workspace
from edge.telemetry.clickhouse import Refused, Server, Unreachable
from unkey import clock
from unkey.env import env
from unkey.tenancy import workspace_scope

_HOUR = 3_600_000
_BAR = 30
_NAME = 24


class Command(BaseCommand):
    help = "Make ClickHouse's tables, take events into the store, show usage."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        actions.add_parser("migrate", help="make the tables and views in ClickHouse that are not there yet")
        actions.add_parser("take", help="take what processes have noted into the store, now")
        usage = actions.add_parser("usage", help="what workspaces have used of a month; writes it as well")
        usage.add_argument("--period", metavar="YYYY-MM", help="default: this month")
        keys = actions.add_parser("keys", help="a chart of how often a workspace's keys were used")
        keys.add_argument("workspace", help="id or slug")
        keys.add_argument("--hours", type=int, default=24, help="default: 24")
        for each in (usage, keys):
            each.add_argument("--json", action="store_true", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action']}")(options)
        except (Refused, Unreachable) as error:
            raise CommandError(f"ClickHouse (CLICKHOUSE_URL): {error}") from None

    def _migrate(self, options: dict[str, Any]) -> None:
        if not env.CLICKHOUSE_URL:
            raise CommandError("CLICKHOUSE_URL is not set: the embedded store needs no migrations.")
        made = clickhouse.migrate(Server(env.CLICKHOUSE_URL))
        for name in made:
            self.stdout.write(f"made {name}")
        self.stdout.write("" if made else "nothing to make", ending="" if made else None)

    def _take(self, options: dict[str, Any]) -> None:
        if env.CLICKHOUSE_URL:
            raise CommandError("CLICKHOUSE_URL is set: each process sends its own events there.")
        self.stdout.write(f"{embedded().take()} events taken")

    def _usage(self, options: dict[str, Any]) -> None:
        period = options["period"] or clock.now().strftime("%Y-%m")
        if not workflows.is_period(period):
            raise CommandError(f"{period!r} is no month: write it as 2026-11.")
        totals = store().usage(period)
        write_usage(period, totals)
        if options["json"]:
            shown = {key: {"verifications": one, "ratelimits": two} for key, (one, two) in totals.items()}
            self.stdout.write(json.dumps(shown))
            return
        for workspace, (verifications, ratelimits) in sorted(totals.items()):
            self.stdout.write(f"{workspace}  verifications {verifications:,}  rate limits {ratelimits:,}")

    def _keys(self, options: dict[str, Any]) -> None:
        name = options["workspace"]
        workspace = Workspace.objects.filter(pk=name).first() or Workspace.objects.filter(slug=name).first()
        if workspace is None:
            raise CommandError(f"There is no workspace {name!r}.")
        if not env.CLICKHOUSE_URL:
            embedded().take()
        now = clock.now_ms()
        found = queries.usage_by_key(workspace.pk, now - options["hours"] * _HOUR, now + 1)
        if options["json"]:
            shown = [
                {"keyId": key, "total": uses.total, "spentCredits": uses.spent, "outcomes": uses.outcomes}
                for key, uses in found.items()
            ]
            self.stdout.write(json.dumps(shown))
            return
        with workspace_scope(workspace.pk):
            names = {key.pk: key.name or key.start for key in Key.objects.filter(pk__in=found)}
        self.stdout.write(chart(found, names), ending="")


def chart(found: dict[str, queries.Uses], names: dict[str, str]) -> str:
    """Return a bar for each key, as long as its share of the most used one's.

    Args:
        found: key id to its uses, the most used first.
        names: key id to what people know the key by; a deleted one goes by its id.
    """
    if not found:
        return "No key was used.\n"
    most = max(uses.total for uses in found.values())
    shown = {key: (names.get(key) or key)[:_NAME] for key in found}
    width = max(map(len, shown.values()))
    lines = []
    for key, uses in found.items():
        bar = "█" * max(1, round(_BAR * uses.total / most))
        outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(uses.outcomes.items()))
        lines.append(f"{shown[key]:<{width}}  {bar:<{_BAR}}  {uses.total:>7,}  {outcomes}\n")
    return "".join(lines)
