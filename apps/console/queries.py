"""Reads of the dashboard, inside the caller's workspace scope."""

from collections.abc import Iterable
from typing import Any

from django.db.models import Count, Q, QuerySet

from apps.builds.models import BuildSlot
from apps.deployments.models import Deployment, Instance, Topology
from apps.projects.models import App, Environment, Project
from apps.quota.check import period_of_now
from apps.quota.models import Usage
from apps.routing.models import FrontlineRoute
from apps.workflows.models import WorkflowRun, WorkflowStep
from unkey.search import containing

RUNS_SHOWN = 100


def _place(filters: dict[str, Any]) -> Q:
    """Return what a row of the project, the app and the environment of these filters fits, by id or by slug."""
    place = Q()
    for name in ("project", "app", "environment"):
        if filters.get(name):
            place &= Q(**{f"{name}_id": filters[name]}) | Q(**{f"{name}__slug": filters[name]})
    return place


def deployments(filters: dict[str, Any]) -> "QuerySet[Deployment]":
    """Return the deployments that fit, with all that their description needs.

    Args:
        filters: `project`, `app`, `environment` (each an id or a slug), `status` and `branch` (lists),
            `since`, `until` (when they were made), `search` (in id, commit, branch and image).
    """
    rows = Deployment.objects.select_related("project", "app__workspace", "environment", "scheduled_change")
    rows = rows.filter(_place(filters))
    if filters.get("status"):
        rows = rows.filter(status__in=filters["status"])
    if filters.get("branch"):
        rows = rows.filter(git_branch__in=filters["branch"])
    if filters.get("since"):
        rows = rows.filter(created_at__gte=filters["since"])
    if filters.get("until"):
        rows = rows.filter(created_at__lt=filters["until"])
    if filters.get("search"):
        rows = rows.filter(containing(filters["search"], "id", "git_commit_sha", "git_branch", "image"))
    return rows


def topologies(of: Deployment) -> list[Topology]:
    """Return where a deployment should run, by region."""
    rows = Topology.objects.filter(deployment=of).select_related("region")
    return list(rows.order_by("region__name"))


def routes(filters: dict[str, Any]) -> "QuerySet[FrontlineRoute]":
    """Return the host names that the workspace's deployments answer.

    Args:
        filters: `project`, `app`, `environment` (id or slug), `deployment` (id), `sticky` (list),
            `search` (in the host name).
    """
    rows = FrontlineRoute.objects.filter(deleted_at=None).select_related("project", "app", "environment")
    rows = rows.filter(_place(filters))
    if filters.get("deployment"):
        rows = rows.filter(deployment_id=filters["deployment"])
    if filters.get("sticky"):
        rows = rows.filter(sticky__in=filters["sticky"])
    if filters.get("search"):
        rows = rows.filter(containing(filters["search"], "fqdn"))
    return rows


def build_queue(workspace_id: str) -> list[BuildSlot]:
    """Return who builds and who waits for it, in the order of their turns."""
    rows = BuildSlot.objects.filter(workspace_id=workspace_id).select_related(
        "deployment__project", "deployment__app", "deployment__environment"
    )
    building = rows.exclude(granted_at=None).order_by("granted_at", "deployment_id")
    waiting = rows.filter(granted_at=None).order_by("-production", "asked_at", "deployment_id")
    return [*building, *waiting]


def runs(workspace_id: str, filters: dict[str, Any]) -> "QuerySet[WorkflowRun]":
    """Return the workspace's workflow runs.

    Args:
        workspace_id: whose.
        filters: `service`, `state` (lists), `deployment` (id), `since`, `until` (when they were made).
    """
    rows = WorkflowRun.objects.filter(workspace_id=workspace_id)
    if filters.get("service"):
        rows = rows.filter(service__in=filters["service"])
    if filters.get("state"):
        rows = rows.filter(state__in=filters["state"])
    if filters.get("deployment"):
        rows = rows.filter(input__deployment_id=filters["deployment"])
    if filters.get("since"):
        rows = rows.filter(created_at__gte=filters["since"])
    if filters.get("until"):
        rows = rows.filter(created_at__lt=filters["until"])
    return rows


def journal(run: WorkflowRun) -> list[WorkflowStep]:
    """Return a run's finished and failed steps in the order of their places."""
    return list(WorkflowStep.objects.filter(run=run).order_by("started_at", "id"))


def children(run: WorkflowRun) -> list[str]:
    """Return the ids of the runs that a run has called."""
    rows = WorkflowRun.objects.filter(parent_id=run.id, workspace_id=run.workspace_id)
    return list(rows.order_by("arrival").values_list("id", flat=True)[:RUNS_SHOWN])


def usage(workspace_id: str) -> dict[str, Any]:
    """Return what the workspace has and runs at the moment, and what it has used of the month.

    CPU, memory and storage are those that its running instances may take at most.
    """
    running = Instance.objects.filter(deployment__workspace_id=workspace_id, status=Instance.Status.RUNNING)
    totals: dict[str, Any] = {"instances": 0, "cpu_millicores": 0, "memory_mib": 0, "storage_mib": 0}
    counted = running.values("deployment_id").annotate(instances=Count("id"))
    counts = {row["deployment_id"]: row["instances"] for row in counted.order_by()}
    frozen = Deployment.objects.filter(pk__in=list(counts)).values_list("id", "settings")
    for identifier, settings in frozen:
        number = counts[identifier]
        totals["instances"] += number
        totals["cpu_millicores"] += number * settings["cpuMillicores"]
        totals["memory_mib"] += number * settings["memoryMib"]
        totals["storage_mib"] += number * settings["storageMib"]
    period = period_of_now()
    month = Usage.objects.filter(workspace_id=workspace_id, period=period).first() or Usage()
    return totals | {
        "period": period,
        "verifications": month.verifications,
        "ratelimits": month.ratelimits,
        "projects": Project.objects.filter(deleting_at=None).count(),
        "apps": App.objects.filter(deleting_at=None).count(),
        "environments": Environment.objects.filter(deleting_at=None).count(),
        "deployments_running": Deployment.objects.filter(
            desired_state=Deployment.DesiredState.RUNNING, status=Deployment.Status.READY
        ).count(),
        "builds": BuildSlot.objects.filter(workspace_id=workspace_id).exclude(granted_at=None).count(),
        "builds_waiting": BuildSlot.objects.filter(workspace_id=workspace_id, granted_at=None).count(),
    }


def of_ids(identifiers: Iterable[str]) -> "QuerySet[Deployment]":
    """Return deployments by their ids, with all that their description needs."""
    return deployments({}).filter(pk__in=list(identifiers))
