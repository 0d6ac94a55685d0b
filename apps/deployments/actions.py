"""What may be done to a deployment now: asked by what does it and by what lists it, so that both agree."""

from collections.abc import Iterable
from functools import cached_property

from apps.builds.models import Snapshot
from apps.deployments import compatibility, gates, lifecycle, queries
from apps.deployments.models import Deployment
from apps.projects.models import App, Environment, EnvironmentRegion
from apps.workflows.engine import WorkflowRun
from unkey import errors, snapshots
from unkey.env import env
from unkey.errors import Violation

# Those that the published API lists; the console lists the others, too.
PUBLISHED = ("promote", "rollback", "stop", "start")
CHANGE_SETTINGS = "Change the environment's settings and deploy again."
ALL = (*PUBLISHED, "cancel", "approve", "redeploy")


class Reader:
    """Reads what the checks of many deployments need at once, and each of it only when one asks for it.

    Args:
        rows: the deployments that are asked about.
        environments, images: what is to be deployed where, besides.
    """

    def __init__(
        self,
        rows: Iterable[Deployment] = (),
        environments: Iterable[Environment] = (),
        images: Iterable[str] = (),
    ) -> None:
        self._rows = list(rows)
        self._environments = {row.environment for row in self._rows} | set(environments)
        self._images = {row.image for row in self._rows} | set(images)

    @cached_property
    def pending(self) -> dict[str, WorkflowRun]:
        """The rollback or promote that has not happened yet, by the app's id."""
        return queries.pending_switches(row.project_id for row in self._rows)

    @cached_property
    def newest(self) -> dict[tuple[str, str], Deployment]:
        """The newest deployment by environment's id and branch."""
        return queries.newest_on_branches((row.environment_id, row.git_branch) for row in self._rows)

    @cached_property
    def snapshots(self) -> frozenset[str]:
        """The digests that the workspace has snapshots of."""
        asked = [image.partition("@sha256:")[2] for image in self._images if image.startswith("snapshot@")]
        rows = Snapshot.objects.filter(digest__in=asked)
        return frozenset(rows.values_list("digest", flat=True))

    @cached_property
    def regions(self) -> dict[str, list[EnvironmentRegion]]:
        """Where environments would be deployed to, in the order of the regions' names, by their id."""
        rows = EnvironmentRegion.objects.filter(environment__in=self._environments, region__can_schedule=True)
        found: dict[str, list[EnvironmentRegion]] = {}
        for row in rows.select_related("region").order_by("region__name"):
            found.setdefault(row.environment_id, []).append(row)
        return found


def available(rows: Iterable[Deployment], actions: Iterable[str]) -> dict[str, list[str]]:
    """Return which of some actions would be accepted now, by the deployment's id.

    Args:
        rows: with their `app` and `environment`, of the workspace in scope.
        actions: some of `ALL`.
    """
    found, asked = list(rows), tuple(actions)
    read = Reader(found)
    return {row.id: [action for action in asked if _passes(action, row, read)] for row in found}


def check(action: str, deployment: Deployment, app: App, read: Reader | None = None) -> None:
    """Raise unless an action may be done to a deployment; who does it holds the app's row.

    Whether a promote would break clients is not looked at: see `check_promise`.

    Raises:
        Fault: with the sentence that says why not, and what to do.
    """
    read = read or Reader([deployment])
    match action:
        case "promote" | "rollback":
            gates.check_open(deployment, app)
            gates.CHECKS[action](deployment, app)
            _check_no_other_switch(app, read)
        case "stop":
            gates.check_stop(deployment, app)
        case "start":
            gates.check_open(deployment, app)
            gates.check_start(deployment, app)
        case "cancel":
            gates.check_cancel(deployment)
        case "approve":
            gates.check_open(deployment, app)
            gates.check_approve(deployment)
        case "redeploy":
            check_overtaken(deployment, read)
            check_deploy(deployment.environment, app, image_of(deployment), read)


def check_promise(deployment: Deployment, app: App) -> None:
    """Raise when it is known that a deployment would break clients of the live one, and must not.

    What is not known yet is asked for once more before the switch. Reads large documents.

    Raises:
        DeploymentBreaksClients: the environment refuses breaking changes, and these are known to break.
    """
    live = app.current_deployment_id
    objection = "" if compatibility.unread(deployment, live) else compatibility.objection(deployment, live)
    if objection:
        raise errors.DeploymentBreaksClients(objection)


def check_deploy(
    environment: Environment, app: App, image: str, read: Reader | None = None
) -> list[EnvironmentRegion]:
    """Return the regions where an image would be deployed to, in the order of their names.

    Raises:
        AppNotFound, EnvironmentNotFound: it is being deleted.
        PreconditionFailed: the workspace is suspended.
        InvalidInput: the runtime cannot run such an image.
        InvalidSnapshot: the reference is malformed.
        SnapshotNotFound: the workspace has no such snapshot.
        InvalidEnvironmentSettings: the environment cannot be deployed; the detail says all reasons.
    """
    read = read or Reader(environments=[environment], images=[image])
    if app.deleting_at:
        raise errors.AppNotFound("The requested app does not exist.")
    if environment.deleting_at:
        raise errors.EnvironmentNotFound("The requested environment does not exist.")
    gates.check_workspace(app.workspace)
    if image.startswith("snapshot@"):
        if snapshots.parse_reference(image) not in read.snapshots:
            raise errors.SnapshotNotFound(
                f"There is no snapshot {image}. Upload it with snapshots.createSnapshot first."
            )
    elif env.AGENT_RUNTIME == "process":
        message = (
            "This installation runs programs as local processes, so it deploys source snapshots, not "
            "container images. Upload the source with snapshots.createSnapshot or `unkey deploy`."
        )
        raise errors.InvalidInput(message, violations=(Violation(message, "body.image.dockerImage"),))
    reasons = lifecycle.runtime_violations(lifecycle.frozen_settings(environment))
    regions = read.regions.get(environment.id, [])
    if not regions:
        reasons.append("No regions configured. Please configure at least one region before deploying.")
    if reasons:
        advice = f". {CHANGE_SETTINGS}" if regions else ""
        raise errors.InvalidEnvironmentSettings(
            f'environment "{environment.slug}" is not deployable: {"; ".join(reasons)}{advice}',
            violations=tuple(Violation(reason, "body.environment") for reason in reasons),
        )
    return regions


def check_overtaken(earlier: Deployment, read: Reader | None = None) -> None:
    """Raise when a deployment's branch has a newer one that a redeploy would overtake."""
    newest = (read or Reader([earlier])).newest
    newer = newest.get((earlier.environment_id, earlier.git_branch))
    if newer is not None and newer.created_at > earlier.created_at:
        raise errors.PreconditionFailed(
            f"Branch {earlier.git_branch} has a newer deployment, {newer.id}, which is {newer.status}. "
            "Redeploy that one, or force this one."
        )


def image_of(earlier: Deployment) -> str:
    """Return the image of a deployment that is deployed again.

    Raises:
        PreconditionFailed: it never had one.
    """
    if not earlier.image:
        raise errors.PreconditionFailed(
            f"Deployment {earlier.id} never produced an image, so it cannot be deployed again. Deploy its source "
            "once more."
        )
    return str(earlier.image)


def _passes(action: str, deployment: Deployment, read: Reader) -> bool:
    try:
        check(action, deployment, deployment.app, read)
        if action == "promote":
            check_promise(deployment, deployment.app)
    except errors.Fault:
        return False
    return True


def _check_no_other_switch(app: App, read: Reader) -> None:
    """Refuse while another rollback or promote of the app has been accepted but has not happened."""
    other = read.pending.get(app.id)
    if other is not None:
        raise errors.PreconditionFailed(
            f"A {other.service} to {other.input['deployment_id']} was asked for before and has not happened "
            "yet. Look at what it does, and decide again."
        )
