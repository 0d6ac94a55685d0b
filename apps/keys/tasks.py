"""Celery entry points of keys."""

from apps.keys import credits
from unkey.celery import app


@app.task(name="keys.lapse_leases", ignore_result=True)
def lapse_leases() -> None:
    """End the credit leases of edges that are gone."""
    credits.lapse_expired()
