"""Refill of keys' credits: a workflow per day, in bounded batches, each key at most once a day."""

from datetime import UTC, date, datetime, time, timedelta

from django.db import transaction
from django.db.models import F, Q, QuerySet

from apps.audit import services as audit
from apps.cluster import versions
from apps.keys.models import Key
from apps.keys.queries import balances
from apps.quota.models import RefillDay
from apps.workflows.engine import Run, Wait, Workflow, start, step
from unkey import clock
from unkey.actors import Actor

BATCH = 100
CATCH_UP = timedelta(days=31)
KEYREFILL = Actor("system", "keyrefill", "Key Refill Service")


def due(day: date) -> "QuerySet[Key]":
    """Return the keys whose refill falls on a day and that may lack credits.

    A key that refills on the 31st does so on the last day of a shorter month. A key without a balance is
    unlimited, and stays so.
    """
    monthly = Q(refill_day=day.day)
    if (day + timedelta(days=1)).month != day.month:
        monthly |= Q(refill_day__gt=day.day)
    # An amount below the balance refills nothing; what edges have leased of it is added later.
    rows = Key.objects.unscoped("a refill looks at every workspace").filter(
        Q(refill_interval=Key.Refill.DAILY) | (Q(refill_interval=Key.Refill.MONTHLY) & monthly),
        deleted_at=None,
        remaining__lt=F("refill_amount"),
    )
    midnight = datetime.combine(day, time(), UTC)
    return rows.filter(Q(last_refill_at=None) | Q(last_refill_at__lt=midnight))


def refill_batch(day: date) -> bool:
    """Fill up the next keys of a day, in the caller's transaction; True while there are more."""
    progress, _ = RefillDay.objects.get_or_create(date=day)
    progress = RefillDay.objects.select_for_update().get(pk=day)
    if progress.finished_at is not None:
        return False
    keys = list(due(day).filter(pk__gt=progress.cursor).select_for_update().order_by("pk")[:BATCH])
    held = balances(keys)
    low = [key for key in keys if key.refill_amount is not None and held[key.pk] < key.refill_amount]
    versions.hold({key.stream for key in low})
    for key in low:
        _fill(key, held[key.pk])
    progress.refilled += len(low)
    if len(keys) < BATCH:
        progress.finished_at = clock.now()
    else:
        progress.cursor = keys[-1].pk
    progress.save()
    return progress.finished_at is None


def _fill(key: Key, before: int) -> None:
    # Up to the amount, not by it. What edges hold is part of the balance, and their leases stay good.
    key.remaining = (key.remaining or 0) + (key.refill_amount or 0) - before
    key.last_refill_at = clock.now()
    key.updated_at = key.last_refill_at
    versions.stamp(key)
    key.save(update_fields=["remaining", "last_refill_at", "updated_at", "version"])
    audit.record(
        "key.update",
        actor=KEYREFILL,
        workspace_id=key.workspace_id,
        targets=[key],
        description=f"Refilled key {key}"[:512],
        meta={
            "refill_amount": key.refill_amount,
            "previous_remaining": before,
            "new_remaining": key.refill_amount,
        },
    )


@step
def refill(run: Run) -> "dict[str, int] | Wait":
    """Fill up the next batch of keys."""
    day = date.fromisoformat(run.input["date"])
    if refill_batch(day):
        return Wait(seconds=0)
    return {"refilled": RefillDay.objects.get(pk=day).refilled}


class KeyRefill(Workflow):
    """Fill up the credits of the keys whose day it is."""

    service = "key_refill"
    key = "date"
    steps = (refill,)


def start_refills() -> int:
    """Start the refill of today, and of earlier days on which nobody did; return how many were started."""
    today = clock.now().date()
    last = RefillDay.objects.filter(date__lte=today).order_by("-date").values_list("date", flat=True).first()
    first = max(last + timedelta(days=1), today - CATCH_UP) if last is not None else today
    days = [first + timedelta(days=number) for number in range((today - first).days + 1)]
    with transaction.atomic():
        for day in days:
            RefillDay.objects.get_or_create(date=day)
            start(KeyRefill, {"date": day.isoformat()}, idempotency_key=f"refill:{day.isoformat()}")
    return len(days)
