"""Reads for satellites and for those who wait for them: heads, topologies, live agents and edges."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.cluster.models import Agent, Edge, Stream
from apps.deployments.models import Deployment, Instance, Topology
from unkey import clock

LIVE_WITHIN = timedelta(seconds=10)
TOPOLOGIES = "topologies:"


def live_edges() -> QuerySet[Edge]:
    """Return the edges that were heard of within the last ten seconds."""
    return Edge.objects.filter(last_seen_at__gte=clock.now() - LIVE_WITHIN)


def live_agents() -> QuerySet[Agent]:
    """Return the agents that were heard of within the last ten seconds."""
    return Agent.objects.filter(last_seen_at__gte=clock.now() - LIVE_WITHIN)


def last_heard(region_id: str) -> datetime | None:
    """Return when an agent of a region was heard of last; None: never."""
    rows = Agent.objects.filter(region_id=region_id).order_by("-last_seen_at")
    return rows.values_list("last_seen_at", flat=True).first()


def edges_applied(stream: str, version: int) -> bool:
    """Say whether every live edge has applied a version of a stream; true where no edge lives."""
    return all(
        int(applied.get(stream, 0)) >= version for applied in live_edges().values_list("applied", flat=True)
    )


def topology_heads() -> dict[str, int]:
    """Return the last version of every region's topologies, by the region's name."""
    rows = Stream.objects.filter(name__startswith=TOPOLOGIES).values_list("name", "version")
    return {name.removeprefix(TOPOLOGIES): version for name, version in rows}


def topology_bounds(region: str) -> tuple[int, int]:
    """Return the last version of a region's topologies, and that up to which they are compacted."""
    found = Stream.objects.filter(name=f"{TOPOLOGIES}{region}").values_list("version", "compacted").first()
    return found or (0, 0)


def topologies_after(region: str, version: int, *, limit: int, settled: int = 0) -> list[dict[str, Any]]:
    """Return a region's topologies with a greater version, in its order, as the feed's events.

    Args:
        region: the region's name.
        version: greatest version that the reader has.
        limit: most rows to read; fewer are returned only when there are no more.
        settled: up to this version, leave out what neither should run nor may still run: for a reader
            who knows of nothing yet.
    """
    rows = Topology.objects.filter(region__name=region, version__gt=version).order_by("version")
    if version < settled:
        may_run = Instance.objects.filter(
            deployment=OuterRef("deployment"), region=OuterRef("region")
        ).exclude(status=Instance.Status.GONE)
        running = Q(desired_status=Deployment.DesiredState.RUNNING)
        rows = rows.filter(running | Exists(may_run) | Q(version__gt=settled))
    # Not as models: a whole state is read several times as fast without the columns that nobody is told.
    return [_event(row) for row in rows.values_list(*_FIELDS.values())[:limit]]


_FIELDS = {
    "version": "version",
    "deploymentId": "deployment_id",
    "environmentId": "deployment__environment_id",
    "workspaceId": "deployment__workspace_id",
    "projectId": "deployment__project_id",
    "appId": "deployment__app_id",
    "desired": "desired_status",
    "replicas": "replicas_min",
    "replicasMax": "replicas_max",
    "thresholdCpu": "threshold_cpu",
    "thresholdMemory": "threshold_memory",
    "image": "deployment__image",
    "plan": "deployment__plan",
    "settings": "deployment__settings",
    "variables": "deployment__variables",
}
"""What an agent is told of a topology, and the column that says it."""


def _event(row: Sequence[Any]) -> dict[str, Any]:
    event = {"type": "topology", **dict(zip(_FIELDS, row, strict=True))}
    # Their values are asked for by those who start an instance, at that moment.
    event["variables"] = [variable["key"] for variable in event["variables"]]
    return event
