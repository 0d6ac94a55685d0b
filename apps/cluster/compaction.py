"""Removes rows whose end every satellite has passed: routes that are gone, instances that are gone.

An end is a state for as long as some satellite may not have seen it. A satellite that was not heard of for
`SATELLITE_KEPT_SECONDS` is not waited for any longer: its stream's `compacted` has moved past what it applied
when it returns, so it reads the whole state, and is told why.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Greatest

from apps.cluster import versions
from apps.cluster.models import Agent, Edge, Stream
from apps.deployments.models import Deployment, Instance, Topology
from apps.routing.models import FrontlineRoute
from unkey import clock
from unkey.env import env
from unkey.tenancy import unscoped

BATCH = 500
KEPT_AFTER_END = timedelta(hours=1)  # for people who look why

log = structlog.get_logger(__name__)


def passed(stream: str) -> int:
    """Return the version of a stream that every satellite which is still waited for has applied."""
    since = clock.now() - timedelta(seconds=env.SATELLITE_KEPT_SECONDS)
    kind, _, region = stream.partition(":")
    head = Stream.objects.filter(name=stream).values_list("version", flat=True).first() or 0
    rows: QuerySet[Any]
    rows = Agent.objects.filter(region__name=region) if kind == "topologies" else Edge.objects.all()
    applied = rows.filter(last_seen_at__gte=since).values_list("applied", flat=True)
    return min([head, *(int(each.get(stream, 0)) for each in applied)])


def compact() -> dict[str, int]:
    """Remove what every edge has passed; return how many rows of each stream."""
    before = clock.now() - KEPT_AFTER_END
    with unscoped("compaction looks at every workspace"):
        return {
            "instances": _compact("instances", lambda: _ended_instances(before)),
            "routes": _compact("routes", lambda: _ended_routes(before)),
        }


def remove_topologies(deployment_ids: Collection[str]) -> bool:
    """Remove what regions should run of stopped deployments, where every agent knows that they are.

    For the deletion of deployments: a row that vanished before its agents had seen `stopped` would leave
    its instances running.

    Returns:
        Whether none is left.
    """
    rows = Topology.objects.filter(deployment_id__in=deployment_ids)
    streams = {f"topologies:{name}" for name in rows.values_list("region__name", flat=True)}
    for stream in sorted(streams):
        ended = rows.filter(
            region__name=stream.partition(":")[2], desired_status=Deployment.DesiredState.STOPPED
        )
        _compact(stream, lambda ended=ended: ended)
    return not rows.exists()


def remove_instances(deployment_ids: Collection[str]) -> bool:
    """Remove instances of deployments that are gone, where every edge knows it; whether none is left."""
    rows = Instance.objects.filter(deployment_id__in=deployment_ids)
    _compact("instances", lambda: rows.filter(status=Instance.Status.GONE))
    return not rows.exists()


def remove_routes(environment_ids: Collection[str]) -> bool:
    """Remove deleted routes of environments, where every edge knows it; whether none is left."""
    rows = FrontlineRoute.objects.filter(environment_id__in=environment_ids)
    _compact("routes", lambda: rows.exclude(deleted_at=None))
    return not rows.exists()


def _ended_instances(before: datetime) -> QuerySet[Any]:
    return Instance.objects.filter(status=Instance.Status.GONE, updated_at__lt=before)


def _ended_routes(before: datetime) -> QuerySet[Any]:
    return FrontlineRoute.objects.filter(deleted_at__lt=before)


def _compact(stream: str, ended: Any) -> int:
    """Remove the ended rows of a stream that were passed, a batch a transaction."""
    removed = 0
    until = passed(stream)
    while True:
        with transaction.atomic():
            batch = list(
                ended()
                .select_for_update()
                .filter(version__lte=until)
                .order_by("version")
                .values_list("pk", "version")[:BATCH]
            )
            if not batch:
                break
            versions.hold([stream])
            Stream.objects.filter(name=stream).update(compacted=Greatest("compacted", batch[-1][1]))
            ended().filter(pk__in=[pk for pk, _ in batch]).delete()
        removed += len(batch)
        if len(batch) < BATCH:
            break
    if removed:
        log.info("compacted", stream=stream, rows=removed, passed=until)
    return removed
