"""Reads for satellites and for those who wait for them: heads, topologies, live agents and edges."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.cluster.models import Agent, Edge, Stream
from apps.deployments.models import Deployment, Instance, Topology
from unkey import clock

LIVE_WITHIN = timedelta(seconds=10)
PAGE = 1000


def live_edges() -> QuerySet[Edge]:
    """Return the edges that were heard of within the last ten seconds."""
    return Edge.objects.filter(last_seen_at__gte=clock.now() - LIVE_WITHIN)


def live_agents() -> QuerySet[Agent]:
    """Return the agents that were heard of within the last ten seconds."""
    return Agent.objects.filter(last_seen_at__gte=clock.now() - LIVE_WITHIN)


def edges_applied(stream: str, version: int) -> bool:
    """Say whether every live edge has applied a version of a stream; true where no edge lives."""
    return all(
        int(applied.get(stream, 0)) >= version for applied in live_edges().values_list("applied", flat=True)
    )


def topology_heads() -> dict[str, int]:
    """Return the last version of every region's topologies, by the region's name."""
    prefix = "topologies:"
    return {
        name.removeprefix(prefix): version
        for name, version in Stream.objects.filter(name__startswith=prefix).values_list("name", "version")
    }


def topologies_after(region: str, version: int) -> Iterator[dict[str, Any]]:
    """Yield a region's topologies with a greater version, in its order, as the feed's events.

    Version 0 asks for the whole state: what should run, and of the rest only what may still run.

    Args:
        region: the region's name.
        version: last version that the reader has applied.
    """
    rows = Topology.objects.filter(region__name=region).select_related("deployment").order_by("version")
    if version == 0:
        may_run = Instance.objects.filter(
            deployment=OuterRef("deployment"), region=OuterRef("region")
        ).exclude(status=Instance.Status.GONE)
        rows = rows.filter(Q(desired_status=Deployment.DesiredState.RUNNING) | Exists(may_run))
    position = version
    while page := list(rows.filter(version__gt=position)[:PAGE]):
        for row in page:
            yield _event(row)
        position = page[-1].version


def _event(row: Topology) -> dict[str, Any]:
    deployment = row.deployment
    return {
        "type": "topology",
        "version": row.version,
        "deploymentId": deployment.id,
        "environmentId": deployment.environment_id,
        "workspaceId": deployment.workspace_id,
        "projectId": deployment.project_id,
        "appId": deployment.app_id,
        "desired": row.desired_status,
        "replicas": row.replicas_min,
        "replicasMax": row.replicas_max,
        "thresholdCpu": row.threshold_cpu,
        "thresholdMemory": row.threshold_memory,
        "image": deployment.image,
        "plan": deployment.plan,
        "settings": deployment.settings,
        "variables": [variable["key"] for variable in deployment.variables],
    }
