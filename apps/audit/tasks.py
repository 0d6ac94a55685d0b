"""Celery entry points of the audit log."""

from apps.audit import chain
from unkey.celery import app


@app.task(name="audit.seal", ignore_result=True)
def seal() -> None:
    """Chain the rows that have come."""
    chain.seal()


@app.task(name="audit.prune", ignore_result=True)
def prune() -> None:
    """Remove what is older than each workspace keeps."""
    chain.prune()
