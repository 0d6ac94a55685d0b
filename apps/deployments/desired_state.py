"""Standby: a deployment that is not needed stops, now or later, until somebody needs it again.

What a newer deployment has replaced goes on standby after a while, and so does a preview that nobody
uses. A pending change is a row with a nonce and a run that carries it out; of several the last one
asked for counts: a run whose nonce is no longer the row's does nothing, however late it wakes.
"""

from datetime import timedelta
from typing import Any

from apps.audit import services as audit
from apps.cluster.queries import edges_applied
from apps.deployments import gates, idleness, lifecycle
from apps.deployments.models import Deployment, ScheduledChange
from apps.workflows.engine import JSON, Run, Wait, Workflow, notify, start, step
from unkey import clock, ids
from unkey.actors import system
from unkey.env import env

State = Deployment.DesiredState
Status = Deployment.Status

REPLACED = "replaced"
IDLE = "idle"
WOKEN = "woken by a request"


def schedule_standby(
    deployment: Deployment,
    delay: timedelta,
    *,
    cause: str,
    overwrite: bool = True,
    routes_version: int = 0,
) -> ScheduledChange | None:
    """Put a deployment on standby after a delay; its next request wakes it then.

    The caller's transaction holds the deployment's row.

    Args:
        cause: why, for the audit log: `REPLACED`, `IDLE` or `WOKEN`.
        overwrite: replace a change that is pending; otherwise that one is kept and None returned.
        routes_version: it is not stopped before every live edge has applied this version.
    """
    if not overwrite and ScheduledChange.objects.filter(deployment=deployment).exists():
        return None
    change, _ = ScheduledChange.objects.update_or_create(
        deployment=deployment,
        defaults={
            "nonce": ids.new("nonce"),
            "desired_state": State.STOPPED,
            "due_at": clock.now() + delay,
        },
    )
    notify(lifecycle.scheduled_topic(deployment.id))  # the run of the change that this one replaces
    start(
        DesiredState,
        {
            "deployment_id": deployment.id,
            "nonce": change.nonce,
            "routes_version": routes_version,
            "cause": cause,
        },
        # The nonce and not the deployment: it may be replaced, promoted back and replaced again.
        idempotency_key=change.nonce,
        workspace_id=deployment.workspace_id,
    )
    return change


def retire(deployment_id: str, routes_version: int) -> None:
    """Let a deployment that a newer one has replaced go on standby: a live one later than a preview.

    Args:
        routes_version: at which nobody is routed to it any more.
    """
    deployment = lifecycle.lock(deployment_id)
    if deployment.desired_state != State.RUNNING:
        return
    production = gates.is_production(deployment)
    seconds = env.STANDBY_AFTER_SECONDS if production else env.PREVIEW_STANDBY_AFTER_SECONDS
    schedule_standby(deployment, timedelta(seconds=seconds), cause=REPLACED, routes_version=routes_version)


@step
def wait_until_due(run: Run) -> "JSON | Wait":
    """Sleep until the change is due, or until another change has taken its place."""
    change = _change(run)
    if change is None or clock.now() >= change.due_at:
        return {"due": change is not None}
    topic = lifecycle.scheduled_topic(run.input["deployment_id"])
    return Wait(event=topic, deadline=change.due_at)


@step
def wait_for_confirmation(run: Run) -> "JSON | Wait":
    """Never stop what an edge may still send requests to."""
    if _change(run) is not None and not edges_applied("routes", run.input["routes_version"]):
        return Wait(seconds=1)
    return None


@step
def change_state(run: Run) -> JSON:
    """Carry the change out, unless another took its place or there is no reason for it any more.

    Refused or not, the change is no longer pending then.
    """
    deployment = _deployment(run)
    if deployment is None:
        return {"changed": False, "why": "The deployment was deleted."}
    app = lifecycle.lock_app(deployment.app_id)
    deployment = lifecycle.lock(deployment.id)
    change = _change(run)
    if change is None:
        return {"changed": False, "why": "Another change took its place."}
    change.delete()
    if app.current_deployment_id == deployment.id:
        return {"changed": False, "why": "It is the current deployment."}
    if deployment.status != Status.READY or deployment.desired_state != State.RUNNING:
        return {"changed": False, "why": "It does not run."}
    cause = run.input.get("cause", REPLACED)
    if cause == IDLE and not idleness.is_idle(deployment):
        return {"changed": False, "why": "It is used again."}
    lifecycle.fall_asleep(deployment)
    audit.record(
        "deployment.standby",
        actor=system("desired state"),
        workspace_id=deployment.workspace_id,
        targets=[deployment],
        meta={"cause": cause},
    )
    return {"changed": True}


class DesiredState(Workflow):
    """Put a deployment on standby later; of several changes the last one asked for counts."""

    service = "desired_state"
    key = "deployment_id"
    exclusive = False
    steps = (wait_until_due, wait_for_confirmation, change_state)


def _deployment(run: Run) -> Deployment | None:
    rows: Any = Deployment.objects.unscoped("a workflow names it by its id")
    found: Deployment | None = rows.filter(pk=run.input["deployment_id"]).first()
    return found


def _change(run: Run) -> ScheduledChange | None:
    return ScheduledChange.objects.filter(
        deployment_id=run.input["deployment_id"], nonce=run.input["nonce"]
    ).first()
