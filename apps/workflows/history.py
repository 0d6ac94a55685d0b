"""What operators see and do: lists, timelines, retry, resume, pruning, figures."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet

from apps.workflows import wakeups
from apps.workflows.definition import CANCELLED, workflow_named
from apps.workflows.intake import start
from apps.workflows.models import (
    ACTIVE,
    ENDED,
    State,
    WorkflowKey,
    WorkflowRun,
    WorkflowStep,
    WorkflowTopic,
)
from apps.workflows.topics import child_topic, notify
from apps.workflows.trail import What, added
from unkey import clock

KEEP_DAYS = 30
BATCH = 500

Referred = Callable[[list[str]], Iterable[str]]
_referred: list[Referred] = []


class Refused(ValueError):
    """A run is not in a state in which the operation makes sense."""


def retry(run_id: str, *, by: str = "") -> WorkflowRun:
    """Start a new run with the input of one that failed or was cancelled.

    Args:
        run_id: the run.
        by: who asks, for the timelines of both.

    Raises:
        Refused: unknown, still going, succeeded, or its workflow is gone.
    """
    with transaction.atomic():
        row, _held = _find(run_id)
        workflow = workflow_named(row.service)
        if row.state not in (State.FAILED, State.CANCELLED):
            raise Refused(f"{row.id} is {row.state}: only a failed or cancelled run can be retried")
        if workflow is None:
            raise Refused(f"the running code has no workflow named {row.service}")
        made = start(workflow, row.input, workspace_id=row.workspace_id, urgent=row.urgent)
        for each, what, other in ((made, What.RETRY_OF, row), (row, What.RETRIED_AS, made)):
            each.trail = added(each.trail, what, clock.now(), text=_by(by), run_id=other.id)
            WorkflowRun.objects.filter(id=each.id).update(trail=each.trail)
    return made


def resume(run_id: str, *, by: str = "") -> WorkflowRun:
    """Let a run that needs attention go on where it stopped, with fresh attempts; or end a wait early.

    Raises:
        Refused: unknown, ended, or in a step.
    """
    with transaction.atomic():
        row, _held = _find(run_id)
        now = clock.now()
        going = WorkflowRun.objects.filter(id=row.id, state__in=(State.WAITING, State.COMPENSATING))
        changes: dict[str, Any] = {"next_at": now}
        if row.state == State.NEEDS_ATTENTION:
            going = WorkflowRun.objects.filter(id=row.id, state=State.NEEDS_ATTENTION)
            state = State.PENDING if row.undo is None else State.COMPENSATING
            changes |= {"state": state, "failures": 0}
            if row.undo is None:
                changes |= {"error_code": "", "error_message": ""}
        changes["trail"] = added(row.trail, What.RESUMED, now, row.current_step, _by(by))
        if not going.update(**changes):
            raise Refused(f"{row.id} is {row.state}: nothing to resume")
        wakeups.after_commit(row.key, row.queue)
    row.refresh_from_db()
    return row


def give_up(run_id: str, *, by: str = "") -> WorkflowRun:
    """End a run that needs attention as failed, without undoing more, and free its key.

    Raises:
        Refused: unknown, or it does not need attention.
    """
    with transaction.atomic():
        row, held = _find(run_id)
        state = State.CANCELLED if row.error_code == CANCELLED else State.FAILED
        now = clock.now()
        trail = added(row.trail, What.GIVEN_UP, now, row.current_step, _by(by))
        if not WorkflowRun.objects.filter(id=row.id, state=State.NEEDS_ATTENTION).update(
            state=state, finished_at=now, next_at=None, trail=trail
        ):
            raise Refused(f"{row.id} is {row.state}: only a run that needs attention can be given up")
        if held is not None and held.holder == row.id:
            held.holder, held.exclusive, held.lease_expires_at = "", False, None
            held.save(update_fields=["holder", "exclusive", "lease_expires_at"])
        if row.parent_id:
            notify(child_topic(row.id))
        wakeups.after_commit(row.key, row.queue)
    row.refresh_from_db()
    return row


def _by(who: str) -> str:
    return f"by {who}" if who else ""


def refers(referred: Referred) -> None:
    """Tell of runs that rows of another app point to, so that pruning keeps them.

    Args:
        referred: is given ids of runs, returns those of them that are pointed to.
    """
    _referred.append(referred)


def prune(older_than: timedelta) -> int:
    """Delete runs that ended longer ago, with their journals, and idle keys and topics; in small transactions.

    A run is kept while its parent is, while a child of its own goes on, and while another app's row
    points to it (see `refers`).

    Returns:
        How many runs were deleted.
    """
    before = clock.now() - older_than
    deleted = 0
    while found := _prune_runs(before):  # once more: children go after their parents, which ended later
        deleted += found
    _prune_keys()
    _prune_topics(before)
    return deleted


def _prune_runs(before: datetime) -> int:
    deleted = 0
    last: tuple[datetime, str] | None = None
    while rows := _old_runs(before, last):
        batch = [run_id for _, run_id in rows]
        last = rows[-1]
        spoken_for = {run_id for referred in _referred for run_id in referred(batch)}
        unwanted = [run_id for run_id in batch if run_id not in spoken_for]
        with transaction.atomic():
            WorkflowStep.objects.filter(run_id__in=unwanted).delete()
            WorkflowRun.objects.filter(id__in=unwanted).delete()
        deleted += len(unwanted)
    return deleted


def _old_runs(before: datetime, last: tuple[datetime, str] | None) -> list[tuple[datetime, str]]:
    parent = WorkflowRun.objects.filter(id=OuterRef("parent_id"))
    going_on = WorkflowRun.objects.filter(parent_id=OuterRef("id")).exclude(state__in=ENDED)
    old = WorkflowRun.objects.filter(
        ~Exists(parent), ~Exists(going_on), state__in=ENDED, finished_at__lt=before
    )
    if last is not None:
        old = old.filter(Q(finished_at__gt=last[0]) | Q(finished_at=last[0], id__gt=last[1]))
    rows = old.order_by("finished_at", "id").values_list("finished_at", "id")[:BATCH]
    return [(ended, run_id) for ended, run_id in rows if ended is not None]


def _prune_keys() -> None:
    """Delete keys that nobody holds and no run will want; one that is made anew meanwhile is left alone."""
    wanted = WorkflowRun.objects.filter(key=OuterRef("key")).exclude(state__in=ENDED)
    idle = WorkflowKey.objects.filter(~Exists(wanted), holder="", lease_expires_at__isnull=True)
    _delete_in_batches(idle, "key")


def _prune_topics(before: datetime) -> None:
    waiting = WorkflowRun.objects.filter(wait_topic=OuterRef("name"))
    _delete_in_batches(WorkflowTopic.objects.filter(~Exists(waiting), notified_at__lt=before), "name")


def _delete_in_batches(rows: QuerySet[Any], name: str) -> None:
    after = ""
    while batch := list(
        rows.filter(**{f"{name}__gt": after}).order_by(name).values_list(name, flat=True)[:BATCH]
    ):
        after = batch[-1]
        with transaction.atomic():
            rows.filter(**{f"{name}__in": batch}).delete()


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
    taken = WorkflowKey.objects.filter(
        Q(lease_expires_at__gt=now) | (Q(exclusive=True) & ~Q(holder="") & ~Q(holder=OuterRef("id"))),
        key=OuterRef("key"),
    )
    due = WorkflowRun.objects.filter(~Exists(taken), next_at__lte=now, state__in=ACTIVE).aggregate(
        count=Count("id"), oldest=Min("next_at")
    )
    lag = (now - due["oldest"]).total_seconds() if due["oldest"] else 0.0
    return {"runs": runs, "due": due["count"], "lag_seconds": round(lag, 3)}


def _find(run_id: str) -> tuple[WorkflowRun, WorkflowKey | None]:
    """Return a run as it is while its key's row is locked, and that row."""
    found = WorkflowRun.objects.filter(id=run_id).values_list("key", flat=True).first()
    if found is None:
        raise Refused(f"there is no run {run_id}")
    held = WorkflowKey.objects.select_for_update().filter(key=found).first()
    return WorkflowRun.objects.get(id=run_id), held
