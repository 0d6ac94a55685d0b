"""Writes what satellites tell of themselves: regions, heartbeats of agents, rows they cannot apply."""

from collections.abc import Mapping

import structlog
from django.db import transaction

from apps.cluster.models import Agent, Region
from unkey import clock

KEPT_PROBLEMS = 20

log = structlog.get_logger(__name__)


def ensure_region(name: str) -> Region:
    """Return the region of that name, making it when it is not there yet."""
    region, _ = Region.objects.get_or_create(name=name)
    return region


def agent_heartbeat(
    agent_id: str,
    *,
    region: str,
    url: str,
    applied: Mapping[str, int],
    software: str = "",
    token_id: str = "",
) -> Agent:
    """Record that an agent lives; the first time, it is registered by that.

    Args:
        agent_id: the agent's own name.
        region: name of its region; made when it is new.
        url: where its logs can be read, without a trailing slash.
        applied: last version that it applied, by stream.
        software: its release.
        token_id: the token of its own that it bears, if any.
    """
    agent, _ = Agent.objects.update_or_create(
        id=agent_id,
        defaults={
            "region": ensure_region(region),
            "url": url,
            "applied": dict(applied),
            "software": software,
            "token_id": token_id or None,
            "last_seen_at": clock.now(),
        },
    )
    return agent


def agent_problem(agent_id: str, *, region: str, stream: str, version: int, row: str, message: str) -> None:
    """Record a row that an agent could not apply and went past; the admin shows the latest ones.

    Args:
        agent_id: the agent's own name.
        region: name of its region.
        stream: stream of the change feed.
        version: the row's version.
        row: what the row is of, for example a deployment's id.
        message: why it could not be applied.
    """
    log.error(
        "row_not_applied", agent=agent_id, region=region, stream=stream, version=version, row=row, why=message
    )
    problem = {
        "time": clock.now_ms(),
        "stream": stream,
        "version": version,
        "row": row,
        "message": message,
    }
    with transaction.atomic():
        agent, _ = Agent.objects.select_for_update().get_or_create(
            id=agent_id, defaults={"region": ensure_region(region)}
        )
        agent.problems = [problem, *agent.problems][:KEPT_PROBLEMS]
        agent.save(update_fields=["problems"])
