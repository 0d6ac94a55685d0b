"""Asks runs to stop."""

from apps.workflows import wakeups
from apps.workflows.models import ACTIVE, WorkflowRun
from unkey import clock


def request_cancel(row: WorkflowRun) -> bool:
    """Ask a run to stop at its next boundary, or at once if it waits; say whether it was still active."""
    now = clock.now()
    asked = WorkflowRun.objects.filter(id=row.id, state__in=ACTIVE, undo__isnull=True).update(
        cancel_requested_at=now, next_at=now
    )
    if asked:
        wakeups.after_commit(row.key, row.queue)
    return bool(asked)


def cancel_children(parent_id: str) -> None:
    """Ask every child of a run to stop that still goes."""
    children = WorkflowRun.objects.filter(
        parent_id=parent_id, state__in=ACTIVE, cancel_requested_at__isnull=True
    )
    for child in children:
        request_cancel(child)
