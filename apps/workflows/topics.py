"""Topics: what event waits are woken by, with a sequence number so that no wake-up is lost.

A waiter reads the sequence, looks at its condition, and then parks under the topic's row lock only
if the sequence has not moved. A notifier moves it under the same lock, and then wakes whoever is
parked. So either the waiter sees that it moved, or the notifier sees the waiter.
"""

from django.db import IntegrityError, transaction
from django.db.models import F, Q

from apps.workflows import wakeups
from apps.workflows.models import State, WorkflowRun, WorkflowTopic
from unkey import clock

WAKE_NOW = 50


def child_topic(run_id: str) -> str:
    """Topic that is notified when a child run ends."""
    return f"run:{run_id}"


def sequence(name: str) -> int | None:
    """Return the topic's sequence number, or None if it was never used."""
    return WorkflowTopic.objects.filter(name=name).values_list("sequence", flat=True).first()


def lock(name: str) -> int:
    """Lock the topic's row until the transaction ends, made if need be, and return its sequence."""
    rows = WorkflowTopic.objects.select_for_update().filter(name=name)
    found = rows.values_list("sequence", flat=True).first()
    if found is None:
        WorkflowTopic.objects.bulk_create([WorkflowTopic(name=name)], ignore_conflicts=True)
        found = rows.values_list("sequence", flat=True).get()
    return found


def notify(name: str) -> None:
    """Wake every run that waits for a topic, when the caller's transaction commits.

    Works before, during and after a wait is armed. Costs one row lock until the transaction ends.

    Args:
        name: 1 to 255 characters, such as `instances:d_123`.
    """
    if not 0 < len(name) <= 255:
        raise ValueError("a topic has 1 to 255 characters")
    with transaction.atomic():
        _move(name)
        now = clock.now()
        parked = WorkflowRun.objects.filter(
            Q(next_at__isnull=True) | Q(next_at__gt=now),
            wait_topic=name,
            state__in=(State.WAITING, State.COMPENSATING),
        )
        keys = list(parked.values_list("key", "queue").distinct()[:WAKE_NOW])
        if parked.update(next_at=now):
            for key, queue in keys:
                wakeups.after_commit(key, queue)


def _move(name: str) -> None:
    rows = WorkflowTopic.objects.filter(name=name)
    change = {"sequence": F("sequence") + 1, "notified_at": clock.now()}
    if rows.update(**change):
        return
    try:
        with transaction.atomic():
            WorkflowTopic.objects.create(name=name)
    except IntegrityError:
        rows.update(**change)
