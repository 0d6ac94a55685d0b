"""Celery entry points of deployments."""

from apps.deployments import standby
from unkey.celery import app


@app.task(name="deployments.sleep_idle", ignore_result=True)
def sleep_idle() -> None:
    """Put previews that nobody uses on standby."""
    standby.sleep_idle()
