"""Reads of deployments: rows of a workspace, how far their regions are, what may be done to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Q, Sum

from apps.builds import slots
from apps.cluster.models import Agent
from apps.cluster.queries import LIVE_WITHIN, last_heard, live_agents
from apps.deployments.models import Deployment, DeploymentStep, Instance, Topology
from apps.workflows.engine import WorkflowRun
from apps.workflows.models import ACTIVE
from unkey import clock, errors

Status = Deployment.Status
ENDED_BADLY = (Status.FAILED, Status.SKIPPED, Status.STOPPED, Status.SUPERSEDED, Status.CANCELLED)
# Failures of a switch or start whose message is for who asked for it.
TOLD = frozenset(
    {
        "cancelled",
        "precondition_failed",
        "deployment_not_ready",
        "deployment_not_production",
        "deployment_no_current",
        "deployment_is_current",
        "deployment_breaks_clients",
        *Status.values,
    }
)
# The step of each switch that moves the routes.
SWITCHED_BY = {"rollback": "roll_back", "promote": "make_live"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far a deployment's regions are.

    Args:
        regions: how many should run it.
        healthy: names of those with as many running instances as they need at least.
        failed: what the last failed instance said, by name of each region where all have failed.
        waiting: what instances that neither run nor have failed said last.
        silent: of the regions that are neither, those without a live agent, and when one was heard of last.
    """

    regions: int
    healthy: tuple[str, ...]
    failed: dict[str, str]
    waiting: tuple[str, ...]
    silent: dict[str, datetime | None]

    @property
    def required(self) -> int:
        """How many regions must be healthy: one may be missing."""
        return max(self.regions - 1, 1)

    @property
    def ready(self) -> bool:
        """Whether enough regions are healthy."""
        return len(self.healthy) >= self.required

    @property
    def hopeless(self) -> bool:
        """Whether so many regions have failed that the others cannot be enough."""
        return self.regions - len(self.failed) < self.required

    @property
    def gone(self) -> str:
        """Sentences that name the regions whose agents are gone, and say what to do; empty: there are none."""
        return " ".join(_silence(region, last) for region, last in sorted(self.silent.items()))


def readiness(deployment_id: str) -> Readiness:
    """Return how far a deployment's regions are, from the agents' last reports.

    A report from before the last change of what should run there does not count: what it calls running
    may be on its way to its end.
    """
    healthy: list[str] = []
    failed: dict[str, str] = {}
    waiting: list[str] = []
    silent: dict[str, datetime | None] = {}
    rows = Topology.objects.filter(deployment_id=deployment_id)
    topologies = list(rows.select_related("region").order_by("region__name"))
    instances: dict[str, list[Instance]] = {}
    for instance in Instance.objects.filter(deployment_id=deployment_id).order_by("updated_at"):
        if instance.status not in {Instance.Status.GONE, Instance.Status.DRAINING}:
            instances.setdefault(instance.region_id, []).append(instance)
    for topology in topologies:
        here = instances.get(topology.region_id, [])
        states = [instance.status for instance in here]
        if topology.applied is not None and topology.applied < topology.version:
            here, states = [], []
        if states.count(Instance.Status.RUNNING) >= topology.replicas_min:
            healthy.append(topology.region.name)
        elif here and all(state == Instance.Status.FAILED for state in states):
            failed[topology.region.name] = here[-1].message
        else:
            waiting.extend(instance.message for instance in here if instance.message)
            heard = last_heard(topology.region_id)
            if heard is None or heard < clock.now() - LIVE_WITHIN:
                silent[topology.region.name] = heard
    return Readiness(len(topologies), tuple(healthy), failed, tuple(waiting), silent)


def _silence(region: str, last: datetime | None) -> str:
    since = (clock.now() - last).total_seconds() if last is not None else 0.0
    said = f"for {_span(since)}" if last is not None else "yet"
    return (
        f"No agent has reported from region {region} {said}: have its agent started again, or take the region "
        "out of the environment's regions and deploy again."
    )


def _span(seconds: float) -> str:
    """Say how long that is, in its largest whole unit; not in seconds, so that who follows reads it once."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "some seconds"


def find(deployment_id: str) -> Deployment:
    """Return a deployment of the workspace in scope with what its description needs.

    Raises:
        DeploymentNotFound: there is none.
    """
    found = _described().filter(pk=deployment_id).first()
    if found is None:
        raise not_found()
    return found


def not_found() -> errors.Fault:
    """The refusal that also hides a deployment from those who may not see it."""
    return errors.DeploymentNotFound("The requested deployment does not exist.")


def newest(
    *,
    project_id: str | None = None,
    app_id: str | None = None,
    environment_id: str | None = None,
    statuses: list[str] | None = None,
    branches: list[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
    cursor: str | None = None,
) -> tuple[list[Deployment], str | None]:
    """Return a page of the workspace's deployments, newest first, and the cursor of the next page.

    Args:
        project_id, app_id, environment_id: only those of it.
        statuses, branches: only those of one of these; empty or None: of any.
        since: only those made then or later.
        until: only those made before.
        limit: most rows of the page.
        cursor: id of the page's first deployment.

    Raises:
        InvalidInput: the cursor names no deployment of the workspace.
    """
    rows = _described()
    if project_id:
        rows = rows.filter(project_id=project_id)
    if app_id:
        rows = rows.filter(app_id=app_id)
    if environment_id:
        rows = rows.filter(environment_id=environment_id)
    if statuses:
        rows = rows.filter(status__in=statuses)
    if branches:
        rows = rows.filter(git_branch__in=branches)
    if since:
        rows = rows.filter(created_at__gte=since)
    if until:
        rows = rows.filter(created_at__lt=until)
    if cursor:
        first = Deployment.objects.filter(pk=cursor).values_list("created_at", "id").first()
        if first is None:
            raise errors.InvalidInput(
                "The cursor is not one that a previous page returned. Begin with the first page, without one."
            )
        made, identifier = first
        rows = rows.filter(Q(created_at__lt=made) | Q(created_at=made, id__lte=identifier))
    page = list(rows.order_by("-created_at", "-id")[: limit + 1])
    return page[:limit], page[limit].id if len(page) > limit else None


def steps(of: Deployment) -> list[DeploymentStep]:
    """Return a deployment's steps in the order in which they began; one that waits says for what."""
    rows = list(DeploymentStep.objects.filter(deployment=of))
    for row in rows:
        if row.step == "queued" and row.ended_at is None:
            place = slots.places([of.id]).get(of.id)
            row.message = slots.describe(place) if place is not None else row.message
        if row.step == "deploying" and row.ended_at is None:
            row.message = readiness(of.id).gone or row.message
    return rows


def newest_on_branches(branches: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Deployment]:
    """Return the newest deployment of each branch that has not ended badly.

    Args:
        branches: ids of environments, each with a branch's name.
    """
    wanted = {pair for pair in branches if pair[1]}
    rows = Deployment.objects.unscoped("same environments").exclude(status__in=ENDED_BADLY)
    rows = rows.filter(
        environment_id__in={environment for environment, _ in wanted},
        git_branch__in={branch for _, branch in wanted},
    )
    latest = rows.order_by().values("environment_id", "git_branch").annotate(made=Max("created_at"))
    moments = {(row["environment_id"], row["git_branch"]): row["made"] for row in latest}
    found = rows.filter(created_at__in=set(moments.values())).order_by("pk") if moments else ()
    by_branch = {(row.environment_id, row.git_branch): row for row in found}
    return {pair: by_branch[pair] for pair, made in moments.items() if by_branch[pair].created_at == made}


def pending_switches(project_ids: Iterable[str]) -> dict[str, WorkflowRun]:
    """Return the rollback or promote that was accepted and has not moved the routes yet, by the app's id."""
    runs = WorkflowRun.objects.filter(
        service__in=SWITCHED_BY,
        key__in=[f"project:{each}" for each in set(project_ids)],
        state__in=ACTIVE,
        undo__isnull=True,
    )
    pending = [run for run in runs.order_by("-arrival") if not has_switched(run)]
    return {run.input["app_id"]: run for run in pending}


def has_switched(run: WorkflowRun) -> bool:
    """Say whether a rollback or promote has moved the routes."""
    by = SWITCHED_BY.get(run.service)
    return by in run.step_names and run.step_index > run.step_names.index(by)


def told(run: WorkflowRun) -> str:
    """Return why a rollback, promote or start failed, in words for who asked for it."""
    if run.error_code in TOLD:
        return run.error_message
    return f"Something of ours went wrong. Please try again; if it fails again, tell your operator {run.id}."


def last_request(of: Deployment) -> WorkflowRun | None:
    """Return the newest rollback, promote or wake that was asked for a deployment; None if there is none."""
    runs = WorkflowRun.objects.filter(
        service__in=(*SWITCHED_BY, "wake"), key=f"project:{of.project_id}", input__deployment_id=of.id
    )
    return runs.order_by("-arrival").first()


def instances(of: Deployment) -> list[Instance]:
    """Return a deployment's instances that are not gone, by region and name."""
    rows = Instance.objects.filter(deployment=of).exclude(status=Instance.Status.GONE)
    return list(rows.select_related("region").order_by("region__name", "name"))


def instance_counts(deployment_ids: list[str]) -> dict[str, dict[str, int]]:
    """Return how many instances deployments have, how many run, and their restarts; by deployment's id."""
    rows = Instance.objects.filter(deployment__in=deployment_ids).exclude(status=Instance.Status.GONE)
    counted = rows.values("deployment").annotate(
        total=Count("id"),
        running=Count("id", filter=Q(status=Instance.Status.RUNNING)),
        restarts=Sum("restarts"),
    )
    return {
        row["deployment"]: {name: row[name] for name in ("total", "running", "restarts")} for row in counted
    }


def agents(of: Deployment) -> list[Agent]:
    """Return the live agents of the regions that run a deployment, with their regions."""
    regions = Topology.objects.filter(deployment=of).values("region")
    rows = live_agents().filter(region__in=regions).exclude(url="")
    return list(rows.select_related("region", "token").order_by("region__name", "id"))


def _described() -> Any:
    return Deployment.objects.select_related("project", "app__workspace", "environment")
