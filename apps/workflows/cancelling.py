"""Asks runs to stop."""

from functools import partial

from django.db import transaction

from apps.workflows import wakeups
from apps.workflows.models import ACTIVE, State, WorkflowRun
from unkey import clock


def request_cancel(row: WorkflowRun) -> bool:
    """Ask a run to stop at its next boundary, or at once if it waits; say whether it was still active."""
    now = clock.now()
    asked = WorkflowRun.objects.filter(id=row.id, state__in=ACTIVE, undo__isnull=True).update(
        cancel_requested_at=now, next_at=now
    )
    if asked:
        # Not before the commit: a step takes its key first and then the rows that callers may hold by now.
        if row.state == State.PENDING and row.started_at is None:
            transaction.on_commit(partial(_end_unbegun, row.id, row.key), robust=True)
        wakeups.after_commit(row.key, row.queue)
    return bool(asked)


def _end_unbegun(run_id: str, key: str) -> None:
    from apps.workflows.driver import end_unbegun

    end_unbegun(run_id, key)


def cancel_children(parent_id: str) -> None:
    """Ask every child of a run to stop that still goes."""
    children = WorkflowRun.objects.filter(
        parent_id=parent_id, state__in=ACTIVE, cancel_requested_at__isnull=True
    )
    for child in children:
        request_cancel(child)
