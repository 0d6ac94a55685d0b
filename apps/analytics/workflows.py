"""Usage of a month, written to where quotas are checked: again and again, always the whole month's totals."""

import re

from django.db import transaction

from apps.analytics.store import store
from apps.quota.services import write_usage
from apps.workflows.engine import JSON, Run, Workflow, start, step
from unkey import clock

_LATE_DAYS = 3


def _write(run: Run) -> JSON:
    """Bring the rows of a month up to what was counted; safe to do again, since totals are written."""
    period = run.input["period"]
    return {"workspaces": write_usage(period, store().usage(period))}


@step(outside=_write, timeout=300)
def keep_count(run: Run, written: JSON) -> JSON:
    """Keep how many workspaces' usage was written."""
    return written


class MonthlyUsage(Workflow):
    """Write a month's usage of every workspace."""

    service = "monthly_usage"
    key = "period"
    steps = (keep_count,)


def is_period(text: str) -> bool:
    """Say whether a text names a month as usage is counted by: `2026-11`."""
    return re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text) is not None


def start_usage() -> None:
    """Start the count of this month, and in its first days of the one before, whose last events may be late."""
    now = clock.now()
    periods = {
        now.strftime("%Y-%m"),
        clock.from_ms(clock.to_ms(now) - _LATE_DAYS * 86_400_000).strftime("%Y-%m"),
    }
    minute = now.strftime("%Y-%m-%dT%H:%M")
    with transaction.atomic():
        for period in sorted(periods):
            start(MonthlyUsage, {"period": period}, idempotency_key=f"usage:{period}:{minute}")
