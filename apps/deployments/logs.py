"""Asks the agents of a deployment's regions for what its instances wrote. Network, no database."""

from collections.abc import Iterable
from typing import Any

import httpx

from apps.cluster import tokens
from apps.cluster.models import Agent

_TIMEOUT = httpx.Timeout(3.0, connect=1.0)


def fetch(agents: Iterable[Agent], deployment_id: str, tail: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a deployment's last log lines from its agents, oldest first.

    Args:
        agents: who to ask, each with its region.
        deployment_id: whose lines.
        tail: how many lines at most.

    Returns:
        Lines `{"time", "instance", "stream", "text"}` with `region` added, and a sentence for each
        agent that could not be asked.
    """
    lines: list[dict[str, Any]] = []
    notes: list[str] = []
    asked = False
    # trust_env=False: agents are reached directly, never through a proxy of this process.
    with httpx.Client(timeout=_TIMEOUT, trust_env=False) as client:
        for agent in agents:
            asked = True
            try:
                for credential in tokens.credentials_for(agent):
                    answer = client.get(
                        f"{agent.url.rstrip('/')}/logs",
                        params={"deployment": deployment_id, "tail": tail},
                        headers={"Authorization": f"Bearer {credential}"},
                    )
                    if answer.status_code != 401:  # it may still know the control plane by an earlier one
                        break
                answer.raise_for_status()
                lines.extend({**line, "region": agent.region.name} for line in answer.json()["lines"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                notes.append(f"The agent {agent.id} of region {agent.region.name} did not answer.")
    if not asked:
        notes.append("No agent of the deployment's regions can be reached at the moment.")
    lines.sort(key=lambda line: line.get("time") or 0)
    return lines[-tail:], notes
