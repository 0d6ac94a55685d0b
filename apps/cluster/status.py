"""Who is how far behind: every agent and edge, as operators see them."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from apps.cluster.models import Agent, Edge, Stream
from apps.cluster.queries import LIVE_WITHIN, TOPOLOGIES
from unkey import clock
from unkey.env import env

EDGE_STREAMS = ("certificates", "instances", "keys", "routes", "sentinels")


@dataclass(frozen=True, slots=True)
class Satellite:
    """An agent or an edge.

    Args:
        kind: `agent` or `edge`.
        state: `live`; `silent`: not heard of for ten seconds; `left`: not waited for any longer.
        behind: versions that it has not applied, by stream; streams that it is up to date with are left out.
        whole: streams that it will have to read anew, since ends that it has not seen are removed.
        problems: rows that it could not apply, of late.
    """

    kind: str
    id: str
    region: str
    url: str
    software: str
    last_seen_at: datetime
    state: str
    behind: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    problems: int = 0

    @property
    def versions_behind(self) -> int:
        """How far it is behind in the stream that it is farthest behind in."""
        return max(self.behind.values(), default=0)


def satellites() -> list[Satellite]:
    """Return all agents, then all edges, by region and name."""
    streams = {row.name: row for row in Stream.objects.all()}
    found = []
    for agent in Agent.objects.select_related("region").order_by("region__name", "id"):
        mine = [f"{TOPOLOGIES}{agent.region.name}"]
        found.append(
            _satellite("agent", agent, agent.region.name, agent.url, mine, streams, len(agent.problems))
        )
    followed = [name for name in streams if name.partition(":")[0] in EDGE_STREAMS]
    for edge in Edge.objects.order_by("region_name", "id"):
        found.append(_satellite("edge", edge, edge.region_name, "", followed, streams, 0))
    return found


def forget(kind: str, name: str) -> bool:
    """Forget a satellite that will not return; one that does registers anew. Say whether it was known."""
    model: type[Agent] | type[Edge] = Agent if kind == "agent" else Edge
    return bool(model.objects.filter(pk=name).delete()[0])


def _satellite(
    kind: str,
    row: Agent | Edge,
    region: str,
    url: str,
    followed: list[str],
    streams: dict[str, Stream],
    problems: int,
) -> Satellite:
    silence = clock.now() - row.last_seen_at
    state = "live" if silence <= LIVE_WITHIN else "silent"
    if silence > timedelta(seconds=env.SATELLITE_KEPT_SECONDS):
        state = "left"
    behind: dict[str, int] = {}
    whole: list[str] = []
    for name in sorted(followed):
        stream, applied = streams.get(name), int(row.applied.get(name, 0))
        if stream is not None and stream.version > applied:
            behind[name] = stream.version - applied
            if applied < stream.compacted:
                whole.append(name)
    return Satellite(
        kind, row.pk, region, url, row.software, row.last_seen_at, state, behind, whole, problems
    )
