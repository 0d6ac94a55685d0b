"""Which previews nobody uses: no request within PREVIEW_IDLE_SECONDS, and every edge has told so.

Edges count requests in memory and tell twice a minute. That one has told nothing lately is no sign
that there were no requests: it may have lost the database and serve on. Then nothing is idle.
"""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from apps.cluster.models import Edge
from apps.deployments.models import Deployment
from unkey import clock
from unkey.env import env

FORGOTTEN_AFTER = timedelta(days=1)  # an edge that was silent for so long is not there any more
SERVING = ("all", "frontline", "sentinel")


def idle_since() -> datetime | None:
    """Return the time since when a preview must have had no request to be idle; None: nothing is idle.

    It lies PREVIEW_IDLE_SECONDS before the last moment up to which every edge has told of its
    requests, and not before the last moment at which requests may have gone uncounted.
    """
    edges = Edge.objects.filter(role__in=SERVING, last_seen_at__gte=clock.now() - FORGOTTEN_AFTER)
    told = list(edges.values_list("counted_at", "count_lost_at"))
    known = [counted for counted, _ in told if counted is not None]
    if not told or len(known) < len(told):
        return None
    since = min(known) - timedelta(seconds=env.PREVIEW_IDLE_SECONDS)
    if any(lost is not None and lost > since for _, lost in told):
        return None
    return since


def idle_previews(since: datetime) -> Any:
    """Return the previews of all workspaces that run, have no change pending and are idle.

    Args:
        since: no request, no change of theirs after that.
    """
    rows = Deployment.objects.unscoped("previews of every workspace go to sleep").exclude(
        environment__kind="production"
    )
    return rows.filter(
        Q(updated_at=None) | Q(updated_at__lt=since),
        Q(sentinel__last_request_at=None) | Q(sentinel__last_request_at__lt=since),
        status=Deployment.Status.READY,
        desired_state=Deployment.DesiredState.RUNNING,
        created_at__lt=since,
        scheduled_change=None,
        sentinel__isnull=False,  # without one it has no name that an edge could count requests by
    ).order_by("pk")


def is_idle(deployment: Deployment) -> bool:
    """Say whether a preview is idle now."""
    since = idle_since()
    return since is not None and bool(idle_previews(since).filter(pk=deployment.pk).exists())
