"""Celery entry points of the dashboard."""

from apps.console import logins
from apps.console.rest import once
from unkey.celery import app


@app.task(name="console.prune", ignore_result=True)
def prune() -> None:
    """Forget kept answers and failed logins that count no longer."""
    once.prune()
    logins.prune()
