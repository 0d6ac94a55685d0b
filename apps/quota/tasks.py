"""Celery entry points of limits: what happens by the calendar."""

from apps.quota import check, refill
from unkey.celery import app


@app.task(name="quota.refill_keys", ignore_result=True)
def refill_keys() -> None:
    """Fill up the credits of the keys whose day it is."""
    refill.start_refills()


@app.task(name="quota.check", ignore_result=True)
def check_quotas() -> None:
    """Tell who has used more than the limit."""
    check.start_check()
