"""Celery entry points of analytics."""

from apps.analytics import last_used, workflows
from apps.analytics.store import embedded
from unkey import clock
from unkey.celery import app
from unkey.env import env

_LOOK_BACK = 3_600_000


@app.task(name="analytics.take", ignore_result=True)
def take_events() -> None:
    """Move what processes have spooled into the store."""
    if not env.CLICKHOUSE_URL:  # there, whoever writes events sends them
        embedded().take()


@app.task(name="analytics.last_used", ignore_result=True)
def sync_last_used() -> None:
    """Tell keys when they were last used; what a run misses, the next ones look back to."""
    last_used.sync(clock.now_ms() - _LOOK_BACK)


@app.task(name="analytics.usage", ignore_result=True)
def count_usage() -> None:
    """Write the month's usage of every workspace."""
    workflows.start_usage()
