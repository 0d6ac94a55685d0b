"""Celery entry points of analytics."""

from apps.analytics import workflows
from apps.analytics.store import embedded
from unkey.celery import app
from unkey.env import env


@app.task(name="analytics.take", ignore_result=True)
def take_events() -> None:
    """Move what processes have spooled into the store."""
    if not env.CLICKHOUSE_URL:  # there, whoever writes events sends them
        embedded().take()


@app.task(name="analytics.usage", ignore_result=True)
def count_usage() -> None:
    """Write the month's usage of every workspace."""
    workflows.start_usage()
