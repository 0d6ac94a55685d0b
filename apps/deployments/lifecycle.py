"""Changes of a deployment that its workflows and services share: steps, status, desired state.

Every function here runs inside its caller's transaction. Locks are taken in the order app,
deployment, streams of the change feed by name, so that no two of them wait for each other.
"""

from collections.abc import Iterable
from typing import Any

from apps.cluster import versions
from apps.deployments.models import Deployment, DeploymentStep, Instance, ScheduledChange, Topology
from apps.projects.models import App, Environment
from apps.routing import services as routing
from apps.routing.models import Sentinel
from apps.workflows.engine import WorkflowRun, cancel, notify
from unkey import clock

Status = Deployment.Status
State = Deployment.DesiredState

STEPS = ("queued", "starting", "building", "deploying", "network", "finalizing")
ERROR_MAX = 512
SUPERSEDED = (
    "superseded by newer commit: `unkey ps` shows that one, and `unkey redeploy` with this one's id and --force "
    "deploys this one after all."
)
CANCELLED = "Cancelled by user. `unkey redeploy` with its id deploys it after all."
SUSPENDED = "The workspace was suspended. Ask your operator to resume it, and deploy again."
APP_DELETED = "The app was deleted. Deploy to another one, or create it anew."
ENVIRONMENT_DELETED = "The environment was deleted. Deploy to another one, or create it anew."
# What an owner is told when something of ours went wrong in a step.
ACCIDENTS = {
    "queued": "Failed to read from database.",
    "starting": "Failed to read from database.",
    "building": "The source could not be looked at.",
    "deploying": "Regional deployment targets could not be prepared.",
    "network": "Routing configuration failed.",
    "finalizing": "Finalization failed.",
}
# Codes that an owner sees; every other failure is "unknown" to them.
ERROR_CODES = frozenset(
    {
        "no_schedulable_regions",
        "invalid_runtime_settings",
        "cpu_quota_exceeded",
        "memory_quota_exceeded",
        "storage_quota_exceeded",
        "build_failed",
    }
)


def lock(deployment_id: str) -> Deployment:
    """Return a deployment, its row held until the transaction ends.

    Raises:
        Deployment.DoesNotExist: it was deleted.
    """
    rows = Deployment.objects.unscoped("a workflow or an agent names it by its id").select_for_update()
    return rows.get(pk=deployment_id)


def lock_app(app_id: str) -> App:
    """Return an app, its row held until the transaction ends: who holds it may move its routes."""
    return App.objects.unscoped("a workflow names it by its id").select_for_update().get(pk=app_id)


def hold_streams(deployments: Iterable[str]) -> None:
    """Lock what stopping or starting these deployments stamps: rows first, then the streams in their order.

    For transactions that change several deployments.
    """
    ids = list(deployments)
    sentinels = Sentinel.objects.select_for_update().filter(deployment_id__in=ids)
    topologies = Topology.objects.select_for_update().filter(deployment_id__in=ids)
    streams = {row.stream for row in sentinels.order_by("deployment_id")}
    versions.hold(streams | {row.stream for row in topologies.select_related("region").order_by("id")})


def frozen_settings(environment: Environment) -> dict[str, Any]:
    """Return an environment's runtime and build settings as a deployment keeps them for good."""
    return {
        "port": environment.port,
        "cpuMillicores": environment.cpu_millicores,
        "memoryMib": environment.memory_mib,
        "storageMib": environment.storage_mib,
        "command": environment.command,
        "healthcheck": environment.healthcheck,
        "shutdownSignal": environment.shutdown_signal,
        "upstreamProtocol": environment.upstream_protocol,
        "openapiSpecPath": environment.openapi_spec_path,
        "thresholdCpu": environment.threshold_cpu,
        "thresholdMemory": environment.threshold_memory,
        "dockerfile": environment.dockerfile,
        "rootDirectory": environment.root_directory,
        "buildCommand": environment.build_command,
    }


def runtime_violations(settings: dict[str, Any]) -> list[str]:
    """Return what is wrong with frozen runtime settings, every fault at once."""
    found: list[str] = []
    if not 1 <= settings["port"] <= 65535:
        found.append("Port must be between 1 and 65535")
    if settings["cpuMillicores"] < 250:
        found.append("CPU millicores must be at least 250")
    if settings["memoryMib"] < 256:
        found.append("MemoryMib must be at least 256")
    return found


def begin_step(deployment: Deployment, step: str) -> None:
    """Open a step, or open it again, and let the deployment's status follow it."""
    DeploymentStep.objects.update_or_create(
        deployment=deployment,
        step=step,
        defaults={"started_at": clock.now(), "ended_at": None, "message": "", "error": ""},
    )
    if deployment.status not in Deployment.TERMINAL:
        set_status(deployment, Status.PENDING if step == "queued" else Status(step))


def end_step(deployment: Deployment, step: str, message: str = "", error: str = "") -> None:
    """Close a step; the first to close it decides what it says."""
    DeploymentStep.objects.filter(deployment=deployment, step=step, ended_at=None).update(
        ended_at=clock.now(), message=message, error=cut(error)
    )


def next_step(deployment: Deployment, ended: str, begun: str, message: str = "") -> None:
    """Close one step and open the next."""
    end_step(deployment, ended, message)
    begin_step(deployment, begun)


def cut(text: str) -> str:
    """Shorten an error to what a step keeps."""
    return text if len(text) <= ERROR_MAX else text[: ERROR_MAX - 3] + "..."


def set_status(deployment: Deployment, status: Deployment.Status) -> None:
    """Write a status, and with the first one that ends the deployment when that was."""
    deployment.status = status
    deployment.updated_at = clock.now()
    if status in Deployment.TERMINAL and deployment.finished_at is None:
        deployment.finished_at = deployment.updated_at
    deployment.save(update_fields=["status", "updated_at", "finished_at"])


def fail(deployment: Deployment, code: str, message: str) -> None:
    """Mark a deployment failed, unless it has ended otherwise, and close its open steps."""
    if deployment.status in Deployment.TERMINAL:
        _close_steps(deployment)
        return
    open_step = DeploymentStep.objects.filter(deployment=deployment, ended_at=None).last()
    deployment.error_code = code if code in ERROR_CODES else "unknown"
    deployment.error_step = open_step.step if open_step else ""
    deployment.error_message = message
    deployment.save(update_fields=["error_code", "error_step", "error_message"])
    _close_steps(deployment, error=cut(message))
    set_status(deployment, Status.FAILED)


def unexpected(deployment: Deployment, run_id: str) -> str:
    """Return what an owner is told of an accident in the step that a deployment is in."""
    open_step = DeploymentStep.objects.filter(deployment=deployment, ended_at=None).last()
    what = ACCIDENTS.get(open_step.step if open_step else "", "The deployment failed.")
    return f"{what} Please deploy again; if that fails as well, ask your operator to look at {run_id}."


def abandon(deployment_id: str, run_id: str, why: str) -> None:
    """End a deployment whose run will not do it: fail it, stop what runs of it, cancel the run."""
    deployment = lock(deployment_id)
    cancel(run_id)
    if deployment.status in Deployment.TERMINAL:
        return
    fail(deployment, "unknown", why)
    set_desired_state(deployment, State.STOPPED)


def give_up(deployment: Deployment, status: Deployment.Status, message: str) -> None:
    """End a deployment as superseded or cancelled, unless it has ended otherwise."""
    if deployment.status in Deployment.TERMINAL:
        _close_steps(deployment)
        return
    _close_steps(deployment, error=message)
    set_status(deployment, status)


def supersede_older(deployment: Deployment) -> list[str]:
    """End what of a new deployment's branch has not begun yet; return the ids.

    The caller holds the app's row. What has a build slot and has begun is left to go on: under a rapid
    fire of commits one of them has to get through.
    """
    if not deployment.git_branch:
        return []
    rows = Deployment.objects.unscoped("same environment").select_for_update()
    older = rows.filter(
        app_id=deployment.app_id,
        environment_id=deployment.environment_id,
        git_branch=deployment.git_branch,
        status__in=(Status.PENDING, Status.AWAITING_APPROVAL),
    ).exclude(pk=deployment.pk)
    found = list(older.order_by("id"))
    for row in found:
        give_up(row, Status.SUPERSEDED, SUPERSEDED)
        cancel_deploy(row.id)
    return [row.id for row in found]


def cancel_deploy(deployment_id: str) -> None:
    """Let the run that deploys a deployment take back what it has begun; none that has ended."""
    run = deploy_run(deployment_id)
    if run is not None:
        cancel(run.id)


def deploy_run(deployment_id: str) -> WorkflowRun | None:
    """Return the run that deploys a deployment; None if it was never started or its history is gone."""
    rows = WorkflowRun.objects.filter(service="deploy", idempotency_key=deploy_key(deployment_id))
    return rows.first()


def deploy_key(deployment_id: str) -> str:
    """Return the idempotency key of a deployment's one deploy."""
    return f"deploy:{deployment_id}"


def _close_steps(deployment: Deployment, **said: str) -> None:
    open_steps = DeploymentStep.objects.filter(deployment=deployment, ended_at=None)
    open_steps.update(ended_at=clock.now(), **said)


def set_desired_state(
    deployment: Deployment, state: Deployment.DesiredState, *, edges: Sentinel.State | None = None
) -> None:
    """Tell the regions' agents and the edges whether a deployment should run.

    Args:
        edges: what edges do with its requests, where the state does not say it: `STANDBY` makes the
            first one wake it again, `WAKING` holds them until there is an instance.
    """
    asleep = (deployment.asleep_since or clock.now()) if edges == Sentinel.State.STANDBY else None
    if (deployment.desired_state, deployment.asleep_since) != (state, asleep):
        deployment.desired_state = state
        deployment.asleep_since = asleep
        deployment.updated_at = clock.now()
        deployment.save(update_fields=["desired_state", "asleep_since", "updated_at"])
    routing.set_sentinel_state(deployment.id, edges or Sentinel.State(state))
    rows = Topology.objects.select_for_update().filter(deployment=deployment).exclude(desired_status=state)
    for topology in sorted(rows, key=lambda row: str(row.region.name)):
        topology.desired_status = state
        versions.stamp(topology)
        topology.save(update_fields=["desired_status", "version"])
    settle(deployment)


def fall_asleep(deployment: Deployment) -> None:
    """Stop a deployment until somebody needs it: its next request wakes it, as its owner may."""
    set_desired_state(deployment, State.STOPPED, edges=Sentinel.State.STANDBY)


def wake(deployment: Deployment) -> None:
    """Let a stopped deployment run again; `deploying` until its instances are healthy."""
    set_status(deployment, Status.DEPLOYING)
    set_desired_state(deployment, State.RUNNING, edges=Sentinel.State.WAKING)


def awake(deployment: Deployment) -> None:
    """Mark a deployment that was woken as ready: its instances are healthy."""
    set_status(deployment, Status.READY)
    answer(deployment)


def answer(deployment: Deployment) -> int:
    """Let edges hold no requests of a deployment back any more: it is awake.

    Returns:
        The version of the stream `sentinels` at which they know.
    """
    return routing.set_sentinel_state(deployment.id, Sentinel.State.RUNNING)


def put_back(deployment: Deployment, *, asleep: bool) -> None:
    """Stop a deployment that was woken and did not become healthy; it may be started again.

    Args:
        asleep: it was on standby before, so that a request may try once more.
    """
    if deployment.status == Status.DEPLOYING:
        set_status(deployment, Status.STOPPED)
        set_desired_state(deployment, State.STOPPED, edges=Sentinel.State.STANDBY if asleep else None)


def settle(deployment: Deployment) -> None:
    """Mark a deployment stopped once it should be and no instance of it is left anywhere.

    A deployment that has failed keeps saying so.
    """
    if deployment.status != Status.READY or deployment.desired_state != State.STOPPED:
        return
    if not Instance.objects.filter(deployment=deployment).exclude(status=Instance.Status.GONE).exists():
        set_status(deployment, Status.STOPPED)


def cancel_scheduled(deployment: Deployment) -> None:
    """Forget a pending change of the desired state."""
    deleted, _ = ScheduledChange.objects.filter(deployment=deployment).delete()
    if deleted:
        notify(scheduled_topic(deployment.id))


def instances_topic(deployment_id: str) -> str:
    """Return the topic that is notified when instances of a deployment change."""
    return f"instances:{deployment_id}"


def scheduled_topic(deployment_id: str) -> str:
    """Return the topic that is notified when a pending change of a deployment is cancelled."""
    return f"scheduled:{deployment_id}"
