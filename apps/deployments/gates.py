"""What may be done to a deployment and when; each refusal has a code and a sentence.

Pure: the API asks before it accepts a request, the workflow asks again under the app's lock, and
`available_actions` asks for the console.
"""

from collections.abc import Callable

from apps.deployments.models import Deployment
from apps.projects.models import App
from apps.workspaces.models import Workspace
from unkey import errors

Status = Deployment.Status
State = Deployment.DesiredState


def is_production(deployment: Deployment) -> bool:
    """Say whether a deployment belongs to its app's production environment."""
    return bool(deployment.environment.kind == "production")


def on_standby(deployment: Deployment) -> bool:
    """Say whether a replaced live deployment has been stopped; rollback and promote start it again."""
    return (
        deployment.status == Status.STOPPED
        and deployment.desired_state == State.STOPPED
        and is_production(deployment)
    )


def check_promote(deployment: Deployment, app: App) -> None:
    """Raise unless the deployment may be made live; the live one may, to end a rolled-back state."""
    _check_target(deployment, app)
    if app.current_deployment_id == deployment.id and not app.is_rolled_back:
        raise errors.DeploymentIsCurrent("The deployment is already the current deployment.")


def check_rollback(deployment: Deployment, app: App) -> None:
    """Raise unless the app may be rolled back to the deployment."""
    _check_target(deployment, app)
    if app.current_deployment_id == deployment.id:
        raise errors.DeploymentIsCurrent("The deployment is already the current deployment.")


def check_stop(deployment: Deployment, app: App) -> None:
    """Raise unless the deployment may be stopped; one that sleeps may, and then no request wakes it."""
    if deployment.asleep_since is None:
        if deployment.status != Status.READY:
            raise errors.DeploymentNotRunning("The deployment is not running.")
        if deployment.desired_state != State.RUNNING:
            raise errors.DeploymentIsStopping("The deployment is already stopping.")
    if is_production(deployment):
        raise errors.DeploymentIsProduction("Production deployments cannot be stopped.")


def check_start(deployment: Deployment, app: App) -> None:
    """Raise unless the deployment was stopped and may be started again."""
    stopped = deployment.status in {Status.STOPPED, Status.READY}
    if not stopped or deployment.desired_state != State.STOPPED:
        raise errors.DeploymentNotStopped("The deployment is not stopped.")
    if is_production(deployment):
        raise errors.DeploymentIsProduction("Production deployments cannot be started.")


def check_approve(deployment: Deployment) -> None:
    """Raise unless the deployment waits for somebody to approve it."""
    if deployment.status != Status.AWAITING_APPROVAL:
        raise errors.PreconditionFailed(
            f"The deployment is not awaiting approval: it is {deployment.status.replace('_', ' ')}."
        )


def check_workspace(workspace: Workspace) -> None:
    """Raise when nothing of the workspace may be deployed, started, approved or switched to."""
    if workspace.suspended_at is not None:
        raise errors.PreconditionFailed(
            "The workspace is suspended by its Compute spend cap. Raise the spend limit to resume."
        )


CHECKS: dict[str, Callable[[Deployment, App], None]] = {
    "promote": check_promote,
    "rollback": check_rollback,
    "stop": check_stop,
    "start": check_start,
}


def available_actions(deployment: Deployment, app: App) -> list[str]:
    """Return which of promote, rollback, stop and start would be accepted now."""
    return [action for action, check in CHECKS.items() if _passes(check, deployment, app)]


def _check_target(deployment: Deployment, app: App) -> None:
    if not on_standby(deployment):
        if deployment.status != Status.READY:
            raise errors.DeploymentNotReady("The deployment is not ready.")
        if deployment.desired_state != State.RUNNING:
            raise errors.DeploymentNotReady("The deployment is shutting down and cannot serve traffic.")
    if not is_production(deployment):
        raise errors.DeploymentNotProduction("Only production deployments can be promoted or rolled back.")
    if app.current_deployment_id is None:
        raise errors.DeploymentNoCurrent("The app has no current deployment.")


def _passes(check: Callable[[Deployment, App], None], deployment: Deployment, app: App) -> bool:
    try:
        check(deployment, app)
    except errors.Fault:
        return False
    return True
