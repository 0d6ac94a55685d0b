"""What live progress shows of deployments, read for all connections of a process at once.

Level-triggered: a part of a deployment (the deployment itself, one step, its instances) is always shown
as a whole, with a digest that tells whether a reader has seen it. Nothing is lost by a reader that
missed what was in between.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db.models import Q

from apps.builds import slots
from apps.console import queries
from apps.console.rest import deployments as shown
from apps.deployments import logs
from apps.deployments import queries as known
from apps.deployments.models import Deployment, DeploymentStep, Instance
from apps.workspaces.models import Membership, PersonalToken
from unkey import clock
from unkey.tenancy import unscoped

OVERLAP = timedelta(seconds=10)  # a transaction may commit this long after the time that it writes
RECENT = 200
TAIL = 500


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is shown.

    Args:
        event: name of its event.
        digest: changes with what is shown.
        payload: JSON.
    """

    event: str
    digest: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """By what right a stream is open: a person, a workspace, and the token if there was one."""

    user: int
    workspace: str
    token: str


Parts = dict[str, Part]


def of_deployments(identifiers: Collection[str]) -> dict[str, Parts]:
    """Return the parts of each deployment by name, in the order in which they are sent.

    Names are `deployment`, `step.<name>` in the order of their beginning, and `instances`. Deployments
    that are gone are left out. A fixed number of queries, however many are asked for.
    """
    found: dict[str, Parts] = {}
    if not identifiers:
        return found
    with unscoped("live progress: every connection's place was checked, and is again"):
        rows = list(queries.of_ids(identifiers))
        steps: dict[str, list[DeploymentStep]] = defaultdict(list)
        for step in DeploymentStep.objects.filter(deployment_id__in=identifiers):
            steps[step.deployment_id].append(step)
        instances: dict[str, list[Instance]] = defaultdict(list)
        running = Instance.objects.filter(deployment_id__in=identifiers).exclude(status=Instance.Status.GONE)
        for instance in running.select_related("region").order_by("region__name", "name"):
            instances[instance.deployment_id].append(instance)
        queued = [row.id for row in rows if row.status == Deployment.Status.PENDING]
        places = slots.places(queued) if queued else {}
        for row, summary in zip(rows, shown.shown(rows), strict=True):
            parts: Parts = {"deployment": _part("deployment", summary)}
            for step in steps[row.id]:
                if step.step == "queued" and step.ended_at is None and row.id in places:
                    step.message = slots.describe(places[row.id])
                parts[f"step.{step.step}"] = _part("step", dict(shown.StepSerializer(step).data))
            listed = shown.InstanceSerializer(instances[row.id], many=True).data
            parts["instances"] = _part("instances", {"items": listed})
            found[row.id] = parts
    return found


def of_workspaces(since: dict[str, datetime]) -> dict[str, Parts]:
    """Return the deployments of each workspace that have changed, as parts by their id.

    Args:
        since: by workspace, how far back to look; a little more is returned, at most the newest 200.
    """
    found: dict[str, Parts] = {}
    if not since:
        return found
    with unscoped("live progress: every connection's place was checked, and is again"):
        changed = Q()
        for workspace_id, moment in since.items():
            found[workspace_id] = {}
            changed |= Q(workspace_id=workspace_id, created_at__gte=moment - OVERLAP)
            changed |= Q(workspace_id=workspace_id, updated_at__gte=moment - OVERLAP)
        recent = Deployment.objects.filter(changed).order_by("-created_at")
        identifiers = list(recent.values_list("id", flat=True)[:RECENT])
        rows = list(queries.of_ids(identifiers).order_by("created_at", "id")) if identifiers else []
        for row, summary in zip(rows, shown.shown(rows), strict=True):
            found[row.workspace_id][row.id] = _part("deployment", summary)
    return found


def log_of(deployment_id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the last lines of a deployment's instances, oldest first, and what could not be asked."""
    with unscoped("live progress: every connection's place was checked, and is again"):
        deployment = Deployment.objects.filter(pk=deployment_id).first()
        agents = known.agents(deployment) if deployment else []
    return logs.fetch(agents, deployment_id, TAIL) if agents else ([], [])


def lost(places: Iterable[Place]) -> set[Place]:
    """Return those places that are no longer there: no member, or the token or the person is disabled."""
    asked = set(places)
    if not asked:
        return set()
    with unscoped("live progress: whether people still have their places"):
        members = set(
            Membership.objects.filter(
                user__in={place.user for place in asked}, user__is_active=True
            ).values_list("user_id", "workspace_id")
        )
        tokens = set(
            PersonalToken.objects.filter(
                pk__in={place.token for place in asked if place.token},
                revoked_at=None,
                expires_at__gt=clock.now(),
            ).values_list("id", flat=True)
        )
    return {
        place
        for place in asked
        if (place.user, place.workspace) not in members or (place.token and place.token not in tokens)
    }


def _part(event: str, payload: Any) -> Part:
    encoded = msgspec.json.encode(payload)
    return Part(event, hashlib.sha256(encoded).hexdigest()[:6], encoded)
