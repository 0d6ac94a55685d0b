"""What may be done to a deployment and when; each refusal has a code and a sentence.

Pure: a service asks under the app's lock before it accepts, the workflow asks again before it acts, and
`actions` asks for who lists what may be done. The first sentence of a refusal says what is wrong, the next one
what to do.
"""

from collections.abc import Callable

from apps.deployments.models import Deployment
from apps.projects.models import App, given_slug
from apps.workspaces.models import Workspace
from unkey import errors

Status = Deployment.Status
State = Deployment.DesiredState
_LIST = "`unkey ps` lists all"
_GOING = "Deploy to another one, or create it anew once it is gone."


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
        raise errors.DeploymentIsCurrent(
            "The deployment is already the current deployment. There is nothing to do."
        )


def check_rollback(deployment: Deployment, app: App) -> None:
    """Raise unless the app may be rolled back to the deployment."""
    _check_target(deployment, app)
    if app.current_deployment_id == deployment.id:
        raise errors.DeploymentIsCurrent(
            f"The deployment is already the current deployment. Choose another one: {_LIST}."
        )


def check_stop(deployment: Deployment, app: App) -> None:
    """Raise unless the deployment may be stopped; one that sleeps may, and then no request wakes it."""
    if deployment.asleep_since is None:
        if deployment.status != Status.READY:
            raise errors.DeploymentNotRunning(
                f"The deployment is not running. There is nothing to stop: {_LIST}."
            )
        if deployment.desired_state != State.RUNNING:
            raise errors.DeploymentIsStopping("The deployment is already stopping. Wait until it has.")
    if is_production(deployment):
        raise errors.DeploymentIsProduction(
            "Production deployments cannot be stopped. Promote or roll back to another one: what is replaced "
            "goes to sleep by itself."
        )


def check_start(deployment: Deployment, app: App) -> None:
    """Raise unless the deployment was stopped and may be started again."""
    stopped = deployment.status in {Status.STOPPED, Status.READY}
    if not stopped or deployment.desired_state != State.STOPPED:
        raise errors.DeploymentNotStopped(
            f"The deployment is not stopped. Only what is can be started: {_LIST}."
        )
    if is_production(deployment):
        raise errors.DeploymentIsProduction(
            "Production deployments cannot be started. Promote it or roll back to it: that starts it."
        )


def check_cancel(deployment: Deployment) -> None:
    """Raise unless there is something of the deployment left to cancel."""
    if deployment.status in Deployment.TERMINAL:
        raise errors.PreconditionFailed(
            f"The deployment has ended already: it is {deployment.status}. There is nothing to cancel."
        )


def check_approve(deployment: Deployment) -> None:
    """Raise unless the deployment waits for somebody to approve it."""
    if deployment.status != Status.AWAITING_APPROVAL:
        raise errors.PreconditionFailed(
            f"The deployment is not awaiting approval: it is {deployment.status.replace('_', ' ')}. "
            "There is nothing to approve."
        )


def check_open(deployment: Deployment, app: App) -> None:
    """Raise when nothing of the deployment's environment may be started, approved or switched to.

    Asked before what depends on the deployment's state: of what is being deleted, waiting changes nothing.
    """
    check_workspace(app.workspace)
    if app.deleting_at is not None:
        raise errors.PreconditionFailed(f"The app {given_slug(app)} is being deleted. {_GOING}")
    if deployment.environment.deleting_at is not None:
        raise errors.PreconditionFailed(
            f"The environment {given_slug(deployment.environment)} is being deleted. {_GOING}"
        )


def check_workspace(workspace: Workspace) -> None:
    """Raise when nothing of the workspace may be deployed, started, approved or switched to."""
    if workspace.suspended_at is not None:
        raise errors.PreconditionFailed(
            "The workspace is suspended: nothing of it can be deployed, started or switched to. Ask your operator "
            "to resume it."
        )


CHECKS: dict[str, Callable[[Deployment, App], None]] = {
    "promote": check_promote,
    "rollback": check_rollback,
    "stop": check_stop,
    "start": check_start,
}


def _check_target(deployment: Deployment, app: App) -> None:
    if not on_standby(deployment):
        if deployment.status != Status.READY:
            raise errors.DeploymentNotReady(f"The deployment is not ready. Choose one that is: {_LIST}.")
        if deployment.desired_state != State.RUNNING:
            raise errors.DeploymentNotReady(
                "The deployment is shutting down and cannot serve traffic. Try again in a minute, or choose "
                f"another one: {_LIST}."
            )
    if not is_production(deployment):
        raise errors.DeploymentNotProduction(
            "Only production deployments can be promoted or rolled back. Deploy it to production first."
        )
    if app.current_deployment_id is None:
        raise errors.DeploymentNoCurrent(
            "The app has no current deployment. Deploy to production: the first one that gets ready is it."
        )
