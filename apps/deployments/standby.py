"""What falls asleep and wakes by itself: previews that nobody uses, and what the next request is for."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from django.db import transaction

from apps.audit import services as audit
from apps.deployments import desired_state, idleness, lifecycle, workflows
from apps.deployments.models import Deployment
from apps.projects.models import App
from apps.routing.models import Sentinel
from apps.workflows.engine import start
from unkey import clock
from unkey.actors import system

BATCH = 100
WAKE_PAUSE = timedelta(minutes=1)  # between two wakes of a deployment by requests

State = Deployment.DesiredState


class Answer(StrEnum):
    """What becomes of a request for a sleeping deployment."""

    WAKING = "waking"  # it starts, or has started; the edge will hear of its instances
    STOPPED = (
        "stopped"  # requests do not wake it: its owner stopped it, or the workspace is disabled or suspended
    )
    RESTING = "resting"  # it was woken less than a minute ago and sleeps again: it does not start
    STALE = "stale"  # the edge speaks of an earlier sleep than the present one
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Wake:
    """Answer to an edge that has a request for a sleeping deployment.

    Args:
        answer: what becomes of it.
        retry_after: seconds after which asking again makes sense; 0 where it does not matter.
    """

    answer: Answer
    retry_after: float = 0.0


def sleep_idle() -> int:
    """Put the previews that nobody uses on standby; returns of how many this was decided.

    Each is decided for itself and stopped by a run of its own, which looks once more: a beat that is
    lost or doubled, or ends in the middle, changes nothing.
    """
    since = idleness.idle_since()
    if since is None:
        return 0
    count, last = 0, ""
    while page := list(
        idleness.idle_previews(since).filter(pk__gt=last).values_list("pk", flat=True)[:BATCH]
    ):
        for identifier in page:
            with suppress(Deployment.DoesNotExist), transaction.atomic():  # deleted since it was listed
                scheduled = desired_state.schedule_standby(
                    lifecycle.lock(identifier), timedelta(0), cause=desired_state.IDLE, overwrite=False
                )
                count += scheduled is not None
        last = page[-1]
    return count


def wake_on_request(deployment_id: str, sleep: int, *, edge: str) -> Wake:
    """Start a deployment on standby, since an edge has a request for it.

    Asking twice, from one edge or from many, wakes it once: the first to ask ends the sleep that the
    others speak of.

    Args:
        deployment_id: which.
        sleep: version of the sentinel row by which the edge knows that it sleeps.
        edge: who asks, for the audit log.
    """
    rows = Deployment.objects.unscoped("an edge has a request for it")
    with transaction.atomic():
        found = rows.filter(pk=deployment_id).first()
        if found is None:
            return Wake(Answer.UNKNOWN)
        try:
            app = lifecycle.lock_app(found.app_id)
            deployment = lifecycle.lock(deployment_id)
        except (App.DoesNotExist, Deployment.DoesNotExist):  # deleted at this moment
            return Wake(Answer.UNKNOWN)
        if deployment.desired_state == State.RUNNING:
            return Wake(Answer.WAKING)
        workspace = deployment.workspace
        closed = not workspace.enabled or workspace.suspended_at or app.deleting_at or app.project.deleting_at
        closed = closed or deployment.environment.deleting_at
        if deployment.asleep_since is None or closed:
            return Wake(Answer.STOPPED)
        if not Sentinel.objects.filter(deployment=deployment, version=sleep).exists():
            return Wake(Answer.STALE)
        now = clock.now()
        if deployment.woken_at is not None and now < deployment.woken_at + WAKE_PAUSE:
            return Wake(Answer.RESTING, (deployment.woken_at + WAKE_PAUSE - now).total_seconds())
        lifecycle.cancel_scheduled(deployment)
        lifecycle.wake(deployment)
        deployment.woken_at = now
        deployment.save(update_fields=["woken_at"])
        audit.record(
            "deployment.wake",
            actor=system(f"edge {edge}"),
            workspace_id=deployment.workspace_id,
            targets=[deployment],
            meta={"cause": "request"},
        )
        start(
            workflows.Wake,
            {"project_id": deployment.project_id, "deployment_id": deployment.id, "asleep": True},
            idempotency_key=f"{deployment.id}/{sleep}",
            workspace_id=deployment.workspace_id,
        )
    return Wake(Answer.WAKING)
