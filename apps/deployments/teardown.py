"""Suspension, archive and resume of a workspace: everything of it stops, and what was live comes back.

    suspend(workspace, actor=operator)    # nothing runs, nothing may be started
    resume(workspace, actor=operator)     # what was live before is started again

The workflows are keyed by the workspace and hold nothing while they wait. A deploy that is under way is
cancelled, and one whose creation commits in the same moment ends at its first step.
"""

from dataclasses import asdict
from typing import Any

from django.db import transaction
from django.db.models import Q

from apps.audit import services as audit
from apps.deployments import lifecycle
from apps.deployments.models import Deployment, Instance, Suspension
from apps.deployments.workflows import Wake
from apps.projects.models import App
from apps.workflows.engine import Run, State, Wait, Workflow, WorkflowRun, cancel, send, start, step
from apps.workspaces.models import Workspace
from unkey import clock, ids
from unkey.actors import Actor
from unkey.tenancy import workspace_scope

BATCH = 20
POLL_SECONDS = 2.0
DRAIN_SECONDS = 300.0
SUSPEND, ARCHIVE = "suspend", "archive"
_SWITCHES = ("deploy", "rollback", "promote", "wake")
_GOING = (State.PENDING, State.RUNNING, State.WAITING, State.COMPENSATING)
Status = Deployment.Status
Desired = Deployment.DesiredState


def suspend(workspace: Workspace, *, actor: Actor) -> None:
    """Stop everything that a workspace runs, and let nothing be started until `resume`.

    Repeated, it stops what has slipped through.
    """
    _tear_down(workspace, SUSPEND, actor)


def archive(workspace: Workspace, *, actor: Actor) -> None:
    """Stop everything that a workspace runs for good: `resume` lets it deploy again, but starts nothing."""
    _tear_down(workspace, ARCHIVE, actor)


def resume(workspace: Workspace, *, actor: Actor) -> None:
    """Let a suspended workspace deploy again, and start what was live when it was suspended."""
    with transaction.atomic():
        row = Workspace.objects.select_for_update().get(pk=workspace.pk)
        if row.suspended_at is None:
            return
        row.suspended_at = None
        row.updated_at = clock.now()
        row.save(update_fields=["suspended_at", "updated_at"])
        audit.record("workspace.resume", actor=actor, workspace_id=row.id, targets=[row])
        start(
            Resume,
            {"workspace_id": row.id, "actor": _said(actor)},
            idempotency_key=ids.new("resume"),
            workspace_id=row.id,
        )


def _tear_down(workspace: Workspace, mode: str, actor: Actor) -> None:
    with transaction.atomic():
        row = Workspace.objects.select_for_update().get(pk=workspace.pk)
        if row.suspended_at is None:
            row.suspended_at = clock.now()
            row.updated_at = row.suspended_at
            row.save(update_fields=["suspended_at", "updated_at"])
        audit.record(f"workspace.{mode}", actor=actor, workspace_id=row.id, targets=[row])
        start(
            Teardown,
            {"workspace_id": row.id, "mode": mode},
            # For the cause: a workspace is suspended again and again.
            idempotency_key=ids.new(mode),
            workspace_id=row.id,
        )


def _said(actor: Actor) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(actor).items()}


def _is_suspended(workspace_id: str) -> bool:
    return Workspace.objects.filter(pk=workspace_id).exclude(suspended_at=None).exists()


def _running(workspace_id: str) -> Any:
    """Return the deployments that run, or that a deploy still brings up."""
    rows = Deployment.objects.filter(workspace_id=workspace_id)
    return rows.filter(Q(desired_state=Desired.RUNNING) | ~Q(status__in=Deployment.TERMINAL))


# ----- suspend and archive


@step
def note_running(run: Run) -> dict[str, int]:
    """Count what there is to stop; an archive forgets what an earlier suspension would have resumed."""
    if run.input["mode"] == ARCHIVE:
        Suspension.objects.filter(workspace_id=run.input["workspace_id"]).delete()
    return {"running": _running(run.input["workspace_id"]).count()}


@step
def end_switches(run: Run) -> Wait | None:
    """Cancel every deploy, rollback, promote and start that is under way, and wait for their end."""
    workspace_id = run.input["workspace_id"]
    if not _is_suspended(workspace_id):
        return None
    rows = Deployment.objects.filter(workspace_id=workspace_id).exclude(status__in=Deployment.TERMINAL)
    for deployment_id, app_id in rows.order_by("app_id", "id").values_list("id", "app_id")[:BATCH]:
        lifecycle.lock_app(app_id)
        deployment = lifecycle.lock(deployment_id)
        if deployment.finished_at is None:
            lifecycle.give_up(deployment, Status.CANCELLED, lifecycle.SUSPENDED)
        elif deployment.status not in Deployment.TERMINAL:  # it was being started again
            lifecycle.set_status(deployment, Status.READY)
    runs = WorkflowRun.objects.filter(workspace_id=workspace_id, service__in=_SWITCHES, state__in=_GOING)
    going = list(runs.order_by("id").values_list("id", flat=True))
    for run_id in going:
        cancel(run_id)
    if rows.exists():
        return Wait(seconds=0)
    return Wait(seconds=POLL_SECONDS) if going else None


@step
def stop_all(run: Run) -> Wait | None:
    """Stop what runs, some at a time, and remember what was live."""
    workspace_id = run.input["workspace_id"]
    if not _is_suspended(workspace_id):
        return None
    rows = _running(workspace_id).order_by("app_id", "id")
    found = list(rows.values_list("id", "app_id")[:BATCH])
    apps = {app_id: lifecycle.lock_app(app_id) for app_id in sorted({app_id for _, app_id in found})}
    deployments = [lifecycle.lock(deployment_id) for deployment_id, _ in found]
    lifecycle.hold_streams([deployment.id for deployment in deployments])
    for deployment in deployments:
        app = apps[deployment.app_id]
        live = app.current_deployment_id == deployment.id
        if live:
            _take_off(app, deployment, remember=run.input["mode"] == SUSPEND)
        lifecycle.cancel_scheduled(deployment)
        ended_well = deployment.status in {Status.READY, Status.STOPPED}
        if run.input["mode"] == SUSPEND and ended_well and not live:
            lifecycle.fall_asleep(deployment)  # a request wakes it, once the workspace is resumed
        else:
            lifecycle.set_desired_state(deployment, Desired.STOPPED)
    return Wait(seconds=0) if found else None


def _take_off(app: App, deployment: Deployment, *, remember: bool) -> None:
    app.current_deployment = None
    app.updated_at = clock.now()
    app.save(update_fields=["current_deployment", "updated_at"])
    if remember:
        Suspension.objects.update_or_create(
            app=app, defaults={"workspace_id": app.workspace_id, "deployment": deployment}
        )


@step
def wait_until_drained(run: Run) -> "dict[str, Any] | Wait":
    """Wait until agents have reported that nothing runs any more, but not for ever."""
    workspace_id = run.input["workspace_id"]
    if not _is_suspended(workspace_id):
        return {"stopped": run.results["note_running"]["running"], "drained": False}
    if _running(workspace_id).exists():  # a creation that committed meanwhile
        raise RuntimeError(f"something was started in the suspended workspace {workspace_id}")
    rows = Instance.objects.filter(deployment__workspace_id=workspace_id)
    drained = not rows.exclude(status=Instance.Status.GONE).exists()
    if not drained and not run.wait_expired:
        return Wait(seconds=POLL_SECONDS, deadline=DRAIN_SECONDS)
    return {"stopped": run.results["note_running"]["running"], "drained": drained}


class Teardown(Workflow):
    """Stop everything that a workspace runs."""

    service = "teardown"
    key = "workspace_id"
    key_space = "workspace"
    steps = (note_running, end_switches, stop_all, wait_until_drained)


# ----- resume


@step
def start_again(run: Run) -> "dict[str, int] | Wait":
    """Make live again what was when the workspace was suspended, and start it, some at a time."""
    workspace_id = run.input["workspace_id"]
    if _is_suspended(workspace_id):  # suspended again meanwhile: it is remembered for the next resume
        return {"left": Suspension.objects.filter(workspace_id=workspace_id).count()}
    rows = Suspension.objects.filter(workspace_id=workspace_id).order_by("app_id")
    found = list(rows[:BATCH])
    apps = {record.app_id: lifecycle.lock_app(record.app_id) for record in found}
    deployments = {record.app_id: lifecycle.lock(record.deployment_id) for record in found}
    lifecycle.hold_streams([deployment.id for deployment in deployments.values()])
    for record in found:
        app, deployment = apps[record.app_id], deployments[record.app_id]
        if app.current_deployment_id is None and not app.deleting_at:
            app.current_deployment = deployment
            app.updated_at = clock.now()
            app.save(update_fields=["current_deployment", "updated_at"])
            lifecycle.cancel_scheduled(deployment)
            lifecycle.wake(deployment)
            send(
                run,
                Wake,
                {"project_id": deployment.project_id, "deployment_id": deployment.id},
                name=deployment.id,
            )
        record.delete()
    return Wait(seconds=0) if rows.exists() else {"left": 0}


class Resume(Workflow):
    """Start what was live when a workspace was suspended."""

    service = "resume"
    key = "workspace_id"
    key_space = "workspace"
    steps = (start_again,)


def remembered(workspace: Workspace) -> dict[str, str]:
    """Return what a resume would make live again: app id to deployment id."""
    with workspace_scope(workspace.id):
        return dict(Suspension.objects.order_by("app_id").values_list("app_id", "deployment_id"))
