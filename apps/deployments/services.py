"""What people and agents ask of deployments: create, approve, cancel, roll back, promote, stop, start, report."""

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from django.db import transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.cluster.models import Region
from apps.deployments import actions, gates, lifecycle, queries, workflows
from apps.deployments.models import Deployment, Instance, ScheduledChange, Topology
from apps.projects.models import App, Environment, EnvironmentVariable
from apps.workflows.engine import notify, start
from unkey import clock, errors, ids
from unkey.actors import Actor
from unkey.errors import Violation

Status = Deployment.Status
State = Deployment.DesiredState
Trigger = Deployment.Trigger

MAX_IMAGE = 512  # characters of an image reference
MAX_MESSAGE = 16_384  # characters of what an agent says about an instance


class GitSource(TypedDict, total=False):
    """A commit to build: `branch`, `commitSha` and, for a fork, `repository` as `owner/name`."""

    branch: str
    commitSha: str
    repository: str


class InstanceReport(TypedDict):
    """What an agent says of one instance: its own name of it, `host:port`, status, why, and restarts."""

    name: str
    address: str
    status: str
    message: NotRequired[str]
    restarts: NotRequired[int]


def create_deployment(
    environment: Environment,
    *,
    image: str | None = None,
    redeploy_of: Deployment | None = None,
    git: GitSource | None = None,
    commit: GitSource | None = None,
    needs_approval: bool = False,
    trigger: Deployment.Trigger = Trigger.API,
    actor: Actor,
) -> Deployment:
    """Freeze an environment's settings, variables and policies with an image, and start deploying it.

    Exactly one source is given. A redeploy takes the image of an older deployment of the same app,
    and what the environment says *now*: that is how a changed variable or policy gets live.

    A commit on a branch ends the older deployments of that branch that have not begun yet. A redeploy
    ends none: whoever asks for an older version once more has not made the newer one worthless.

    Args:
        environment: where to; in the workspace in scope.
        image: `snapshot@sha256:<64 hex>`, or what the runtime can pull.
        redeploy_of: the deployment whose image to take.
        git: the commit to build.
        commit: the commit that the image was built from.
        needs_approval: it is not started before somebody of the workspace approves of it.
        trigger: what asked for it.
        actor: who.

    Raises:
        InvalidInput: the runtime cannot run such an image, or a fork comes without a commit.
        InvalidSnapshot: the reference is malformed.
        SnapshotNotFound: the workspace has no such snapshot.
        DeploymentNotFound: the deployment belongs to another app.
        InvalidEnvironmentSettings: the environment cannot be deployed; the detail says all reasons.
        PreconditionFailed: no repository is connected, the older deployment has no image, or the
            workspace is suspended.
    """
    if git is not None:
        _refuse_git(git)
    if redeploy_of is not None:
        if redeploy_of.app_id != environment.app_id:
            raise queries.not_found()
        image = actions.image_of(redeploy_of)
    if not image:
        raise ValueError("create_deployment needs a source")
    with transaction.atomic():
        # Held, so that settings, variables and policies are of one moment; the app's row first, as
        # everywhere, since a new route or deployment refers to both.
        try:
            app = lifecycle.lock_app(environment.app_id)
            environment = Environment.objects.select_for_update().get(pk=environment.pk)
        except (App.DoesNotExist, Environment.DoesNotExist):  # deleted since the caller has read them
            raise errors.EnvironmentNotFound("The requested environment does not exist.") from None
        regions = actions.check_deploy(environment, app, image)
        written = _written(commit, redeploy_of)
        variables = EnvironmentVariable.objects.filter(environment=environment).order_by("key")
        deployment = Deployment.objects.create(
            workspace_id=environment.workspace_id,
            project_id=app.project_id,
            app=app,
            environment=environment,
            trigger=trigger,
            image=image,
            git_commit_sha=written.get("commitSha", ""),
            git_branch=written.get("branch", ""),
            git_repository=written.get("repository", ""),
            settings=lifecycle.frozen_settings(environment),
            regions=[
                {"region": row.region.name, "min": row.replicas_min, "max": row.replicas_max}
                for row in regions
            ],
            variables=list(variables.values("key", "ciphertext")),
            policies=environment.policies,
        )
        lifecycle.begin_step(deployment, "queued")
        superseded = lifecycle.supersede_older(deployment) if redeploy_of is None else []
        audit.record(
            "deployment.rebuild" if redeploy_of else "deployment.create",
            actor=actor,
            workspace_id=deployment.workspace_id,
            targets=[deployment, environment],
            meta={"image": image}
            | ({"redeployOf": redeploy_of.id} if redeploy_of else {})
            | ({"superseded": superseded} if superseded else {}),
        )
        if needs_approval:
            lifecycle.set_status(deployment, Status.AWAITING_APPROVAL)
        else:
            _start_deploy(deployment)
    return deployment


def redeploy(
    earlier: Deployment, *, force: bool = False, trigger: Deployment.Trigger = Trigger.API, actor: Actor
) -> Deployment:
    """Deploy an earlier deployment's image once more to its environment, with today's settings.

    Args:
        earlier: whose image.
        force: also when its branch has a newer deployment, whose names the new one then takes.

    Raises:
        PreconditionFailed: it never had an image, or a newer one of its branch would be overtaken.
        Fault: as of `create_deployment`.
    """
    if not force:
        actions.check_overtaken(earlier)
    return create_deployment(earlier.environment, redeploy_of=earlier, trigger=trigger, actor=actor)


def approve(deployment: Deployment, *, actor: Actor) -> Deployment:
    """Let a deployment that awaits approval begin.

    Raises:
        PreconditionFailed: it does not await approval, the workspace is suspended, or the app is being deleted.
    """
    with transaction.atomic():
        app, deployment = _hold(deployment)
        actions.check("approve", deployment, app)
        lifecycle.set_status(deployment, Status.PENDING)
        audit.record(
            "deployment.approve", actor=actor, workspace_id=deployment.workspace_id, targets=[deployment]
        )
        _start_deploy(deployment)
    return deployment


def cancel(deployment: Deployment, *, actor: Actor) -> Deployment:
    """End a deployment that is not ready yet; what it has begun is taken back.

    One that has ended stays as it is. One that is being woken goes back to sleep.
    """
    with transaction.atomic():
        _, deployment = _hold(deployment)
        if deployment.status in Deployment.TERMINAL:
            return deployment
        if deployment.finished_at is None:
            lifecycle.give_up(deployment, Status.CANCELLED, lifecycle.CANCELLED)
            lifecycle.cancel_deploy(deployment.id)
        else:
            # Production is never started by hand: only a request can wake it.
            lifecycle.put_back(deployment, asleep=gates.is_production(deployment))
            notify(lifecycle.instances_topic(deployment.id))
        audit.record(
            "deployment.cancel", actor=actor, workspace_id=deployment.workspace_id, targets=[deployment]
        )
    return deployment


def cancel_scheduled_change(deployment: Deployment, *, actor: Actor) -> Deployment:
    """Let a deployment keep running that was to go on standby.

    Raises:
        PreconditionFailed: nothing is scheduled for it.
    """
    with transaction.atomic():
        _, deployment = _hold(deployment)
        if not ScheduledChange.objects.filter(deployment=deployment).exists():
            raise errors.PreconditionFailed("No change is scheduled for the deployment. It runs on.")
        lifecycle.cancel_scheduled(deployment)
        audit.record(
            "deployment.keep", actor=actor, workspace_id=deployment.workspace_id, targets=[deployment]
        )
    return deployment


def rollback(target: Deployment, *, actor: Actor) -> None:
    """Ask for an app to be rolled back to an earlier deployment; it happens within a moment.

    Raises:
        Fault: a gate refuses, with one of the 412 codes of `gates.check_rollback`.
        PreconditionFailed: somebody else's switch comes first, the workspace is suspended, or the app is
            being deleted.
    """
    _switch(target, workflows.Rollback, "rollback", actor)


def promote(target: Deployment, *, actor: Actor) -> None:
    """Ask for a deployment to be made the live one; ends the app's rolled-back state.

    Raises:
        Fault: a gate refuses, with one of the 412 codes of `gates.check_promote`.
        DeploymentBreaksClients: the environment refuses breaking changes, and these are known to break.
        PreconditionFailed: somebody else's switch comes first, the workspace is suspended, or the app is
            being deleted.
    """
    gates.check_open(target, target.app)
    gates.check_promote(target, target.app)
    actions.check_promise(target, target.app)
    _switch(target, workflows.Promote, "promote", actor)


def stop(deployment: Deployment, *, actor: Actor) -> Deployment:
    """Stop a preview deployment.

    Raises:
        DeploymentNotRunning, DeploymentIsStopping, DeploymentIsProduction: a gate refuses.
    """
    with transaction.atomic():
        app, deployment = _hold(deployment)
        actions.check("stop", deployment, app)
        lifecycle.cancel_scheduled(deployment)
        lifecycle.set_desired_state(deployment, State.STOPPED)
        audit.record(
            "deployment.stop", actor=actor, workspace_id=deployment.workspace_id, targets=[deployment]
        )
    return deployment


def start_again(deployment: Deployment, *, actor: Actor) -> Deployment:
    """Start a stopped preview deployment.

    Raises:
        DeploymentNotStopped, DeploymentIsProduction: a gate refuses.
        PreconditionFailed: the workspace is suspended, or the app is being deleted.
    """
    with transaction.atomic():
        app, deployment = _hold(deployment)
        actions.check("start", deployment, app)
        lifecycle.cancel_scheduled(deployment)
        asleep = deployment.asleep_since is not None
        lifecycle.wake(deployment)
        audit.record(
            "deployment.wake", actor=actor, workspace_id=deployment.workspace_id, targets=[deployment]
        )
        start(
            workflows.Wake,
            {"project_id": deployment.project_id, "deployment_id": deployment.id, "asleep": asleep},
            idempotency_key=ids.new("wake"),
            workspace_id=deployment.workspace_id,
        )
    return deployment


def report_instances(
    deployment_id: str,
    region: str,
    instances: Iterable[InstanceReport],
    agent_id: str,
    *,
    run: str = "",
    number: int = 0,
    applied: int | None = None,
) -> int:
    """Take an agent's complete list of a deployment's instances in its region.

    Rows that the list lacks become `gone`. Only what edges can see (a new instance, another status
    or address) takes a version; who waits for the deployment is woken by any change. A report that was
    overtaken by a later one of the same run, such as one whose time was up, changes nothing.

    Args:
        deployment_id: whose instances.
        region: name of the agent's region.
        instances: all of them.
        agent_id: who says so.
        run: which run of that agent.
        number: counts the run's reports; 0: not counted.
        applied: version of the topology that the instances follow; None: the agent does not say.

    Returns:
        The version of the stream `instances` from which on edges know of all this.

    Raises:
        RegionNotFound: no such region.
        DeploymentNotFound: the region was never told to run that deployment.
        InvalidInput: a status is unknown or a name is given twice.
    """
    told = list(instances)
    place = Region.objects.filter(name=region).first()
    if place is None:
        raise errors.RegionNotFound(f"There is no region {region!r}.")
    _check_reports(told)
    reports = {report["name"]: report for report in told}
    with transaction.atomic():
        topologies = Topology.objects.filter(deployment_id=deployment_id, region=place)
        topology = topologies.first()
        if topology is None:
            raise errors.DeploymentNotFound(
                f"Deployment {deployment_id} is not meant to run in {region}, yet agent {agent_id} reports it."
            )
        try:
            deployment = lifecycle.lock(deployment_id)
        except Deployment.DoesNotExist:  # deleted at this moment
            raise queries.not_found() from None
        known = {row.name: row for row in Instance.objects.filter(deployment=deployment, region=place)}
        if number:
            # The deployment's row is held: reports of it come one after the other here.
            if topologies.filter(reporter=run, report__gte=number).exists():
                return max((row.version for row in known.values()), default=0)
            topologies.update(reporter=run, report=number)
        changed = topology.applied != applied
        if changed:
            topologies.update(applied=applied)
        for name in sorted(reports):
            report = reports[name]
            row = known.get(name) or Instance(deployment=deployment, region=place, name=name, status="")
            changed |= _update_instance(
                row,
                report["status"],
                report["address"],
                report.get("message", "")[:MAX_MESSAGE],
                report.get("restarts", 0),
            )
            known[name] = row
        for name in sorted(known.keys() - reports.keys()):
            row = known[name]
            changed |= _update_instance(row, Instance.Status.GONE, row.address, row.message, row.restarts)
        if changed:
            lifecycle.settle(deployment)
            notify(lifecycle.instances_topic(deployment_id))
    return max((row.version for row in known.values()), default=0)


def _update_instance(row: Instance, status: str, address: str, message: str, restarts: int) -> bool:
    visible = (row.status, row.address) != (status, address)
    if not visible and (row.message, row.restarts) == (message, restarts):
        return False
    row.status, row.address, row.message, row.restarts = status, address, message, restarts
    row.updated_at = clock.now()
    if visible:
        versions.stamp(row)
    row.save()
    return True


def _check_reports(reports: list[InstanceReport]) -> None:
    if len({report["name"] for report in reports}) < len(reports):
        message = "two instances have the same name"
        raise errors.InvalidInput(message, violations=(Violation(message, "body.instances"),))
    for report in reports:
        if report["status"] not in Instance.Status.values:
            raise errors.InvalidInput(
                f"{report['status'][:32]!r} is not a status of an instance",
                violations=(Violation(f"one of {', '.join(Instance.Status.values)}", "body.instances"),),
            )


def _switch(
    target: Deployment, workflow: "type[workflows.Rollback | workflows.Promote]", verb: str, actor: Actor
) -> None:
    with transaction.atomic():
        app, target = _hold(target)
        actions.check(verb, target, app)
        # A pending stop must not overtake the switch that has just been accepted.
        lifecycle.cancel_scheduled(target)
        start(
            workflow,
            {
                "project_id": target.project_id,
                "app_id": target.app_id,
                "deployment_id": target.id,
                "current_id": app.current_deployment_id,
                "actor": workflows.actor_input(actor),
            },
            # A key for the cause, not the object: the same target may be asked for again and again.
            idempotency_key=ids.new(verb),
            workspace_id=target.workspace_id,
        )


def _hold(deployment: Deployment) -> tuple[App, Deployment]:
    """Lock a deployment and its app.

    Raises:
        DeploymentNotFound: it was deleted since the caller has read it.
    """
    try:
        return lifecycle.lock_app(deployment.app_id), lifecycle.lock(deployment.id)
    except (App.DoesNotExist, Deployment.DoesNotExist):
        raise queries.not_found() from None


def _start_deploy(deployment: Deployment) -> None:
    start(
        workflows.Deploy,
        {"project_id": deployment.project_id, "deployment_id": deployment.id},
        idempotency_key=lifecycle.deploy_key(deployment.id),
        workspace_id=deployment.workspace_id,
    )


def _written(commit: GitSource | None, redeploy_of: Deployment | None) -> GitSource:
    """Return the commit that a new deployment says it comes from."""
    if redeploy_of is not None:
        return {
            "commitSha": redeploy_of.git_commit_sha,
            "branch": redeploy_of.git_branch,
            "repository": redeploy_of.git_repository,
        }
    return commit or {}


def _refuse_git(git: GitSource) -> None:
    if git.get("repository") and not git.get("commitSha"):
        message = "A fork's repository needs a commitSha as well."
        fix = "Add commitSha, the full SHA of the fork's commit."
        raise errors.InvalidInput(message, violations=(Violation(message, "body.git.commitSha", fix),))
    raise errors.PreconditionFailed(
        "The app has no connected repository. Connect one, or deploy an image or a source snapshot."
    )
