"""What operators see and do: lists, timelines, retry, resume, pruning, figures."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, Min

from apps.workflows import wakeups
from apps.workflows.definition import CANCELLED, workflow_named
from apps.workflows.intake import start
from apps.workflows.models import (
    ACTIVE,
    ENDED,
    State,
    WorkflowKey,
    WorkflowRun,
    WorkflowTopic,
)
from unkey import clock

KEEP_DAYS = 30
BATCH = 500


class Refused(ValueError):
    """A run is not in a state in which the operation makes sense."""


def retry(run_id: str) -> WorkflowRun:
    """Start a new run with the input of one that failed or was cancelled.

    Raises:
        Refused: unknown, still going, succeeded, or its workflow is gone.
    """
    row = _find(run_id)
    workflow = workflow_named(row.service)
    if row.state not in (State.FAILED, State.CANCELLED):
        raise Refused(f"{row.id} is {row.state}: only a failed or cancelled run can be retried")
    if workflow is None:
        raise Refused(f"the running code has no workflow named {row.service}")
    return start(workflow, row.input, workspace_id=row.workspace_id, urgent=row.urgent)


def resume(run_id: str) -> WorkflowRun:
    """Let a run that needs attention go on where it stopped, with fresh attempts; or end a wait early.

    Raises:
        Refused: unknown, ended, or in a step.
    """
    with transaction.atomic():
        row = _find(run_id)
        going = WorkflowRun.objects.filter(id=row.id, state__in=(State.WAITING, State.COMPENSATING))
        changes: dict[str, Any] = {"next_at": clock.now()}
        if row.state == State.NEEDS_ATTENTION:
            going = WorkflowRun.objects.filter(id=row.id, state=State.NEEDS_ATTENTION)
            state = State.PENDING if row.undo is None else State.COMPENSATING
            changes |= {"state": state, "failures": 0}
            if row.undo is None:
                changes |= {"error_code": "", "error_message": ""}
        if not going.update(**changes):
            raise Refused(f"{row.id} is {row.state}: nothing to resume")
        wakeups.after_commit(row.key, row.queue)
    row.refresh_from_db()
    return row


def give_up(run_id: str) -> WorkflowRun:
    """End a run that needs attention as failed, without undoing more, and free its key.

    Raises:
        Refused: unknown, or it does not need attention.
    """
    with transaction.atomic():
        row = _find(run_id)
        held = WorkflowKey.objects.select_for_update().filter(key=row.key).first()
        state = State.CANCELLED if row.error_code == CANCELLED else State.FAILED
        now = clock.now()
        if not WorkflowRun.objects.filter(id=row.id, state=State.NEEDS_ATTENTION).update(
            state=state, finished_at=now, next_at=None
        ):
            raise Refused(f"{row.id} is {row.state}: only a run that needs attention can be given up")
        if held is not None and held.holder == row.id:
            held.holder, held.exclusive, held.lease_expires_at = "", False, None
            held.save(update_fields=["holder", "exclusive", "lease_expires_at"])
        wakeups.after_commit(row.key, row.queue)
    row.refresh_from_db()
    return row


def prune(older_than: timedelta) -> int:
    """Delete runs that ended longer ago, with their journals, in small transactions; and idle keys.

    A run is kept while its parent is not yet ended.

    Returns:
        How many runs were deleted.
    """
    before = clock.now() - older_than
    deleted = 0
    while True:
        old = WorkflowRun.objects.filter(state__in=ENDED, finished_at__lt=before)
        waiting = WorkflowRun.objects.exclude(state__in=ENDED).values("id")
        batch = list(
            old.exclude(parent_id__isnull=False, parent_id__in=waiting)
            .order_by("finished_at")
            .values_list("id", flat=True)[:BATCH]
        )
        if not batch:
            break
        with transaction.atomic():
            WorkflowRun.objects.filter(id__in=batch).delete()
        deleted += len(batch)
    busy = WorkflowRun.objects.exclude(state__in=ENDED).values("key")
    WorkflowKey.objects.filter(holder="", lease_expires_at__isnull=True).exclude(key__in=busy).delete()
    waited_for = WorkflowRun.objects.exclude(wait_topic="").values("wait_topic")
    WorkflowTopic.objects.filter(notified_at__lt=before).exclude(name__in=waited_for).delete()
    return deleted


def stats() -> dict[str, Any]:
    """Return `{"runs": {service: {state: count}}, "due": count, "lag_seconds": age of the oldest due run}`."""
    runs: dict[str, dict[str, int]] = {}
    for service, state, count in (
        WorkflowRun.objects.order_by()
        .values_list("service", "state")
        .annotate(count=Count("id"))
        .order_by("service", "state")
    ):
        runs.setdefault(service, {})[state] = count
    now = clock.now()
    due = WorkflowRun.objects.filter(next_at__lte=now, state__in=ACTIVE).aggregate(
        count=Count("id"), oldest=Min("next_at")
    )
    lag = (now - due["oldest"]).total_seconds() if due["oldest"] else 0.0
    return {"runs": runs, "due": due["count"], "lag_seconds": round(lag, 3)}


def _find(run_id: str) -> WorkflowRun:
    row = WorkflowRun.objects.filter(id=run_id).first()
    if row is None:
        raise Refused(f"there is no run {run_id}")
    return row
