"""Celery entry points of the cluster."""

from apps.cluster import compaction
from unkey.celery import app


@app.task(name="cluster.compact", ignore_result=True)
def compact() -> None:
    """Remove the rows whose end every satellite has passed."""
    compaction.compact()
