"""Build slots: how many deployments of a workspace build at once, and whose turn is next.

Production goes first, then whoever asked first. Nothing here waits or watches: a run that waits asks
again whenever its topic is notified and once a minute, and whoever asks also looks for holders that
have died. Every function runs inside its caller's transaction; locks are taken in the order
deployment, limits of the workspace, topics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from apps.builds.models import BuildSlot
from apps.quota.models import Limits
from apps.workflows.engine import State, WorkflowRun, notify
from apps.workflows.models import ACTIVE
from unkey import clock

LEASE = timedelta(hours=1)
LONGEST = timedelta(hours=8)  # that a slot is held, whatever its holder says
EXPIRED = "build slot lease expired: deployment exceeded maximum build duration"
DIED = "build slot audit: the run of the deployment no longer exists"


@dataclass(frozen=True, slots=True)
class Lost:
    """A slot, or a place in the queue, that its holder can no longer claim.

    Args:
        deployment_id: whose.
        run_id: the run that asked for it.
        why: `EXPIRED` or `DIED`.
    """

    deployment_id: str
    run_id: str
    why: str


def ask(deployment_id: str, *, workspace_id: str, run_id: str, production: bool) -> int | None:
    """Ask for a slot, or again for the one that was asked for.

    Args:
        deployment_id: who is to build.
        workspace_id: whose slots.
        run_id: the run that builds.
        production: whether it goes before previews.

    Returns:
        None once the deployment holds a slot, else how many have to end before it builds.
    """
    limit = _lock(workspace_id)
    slot, _ = BuildSlot.objects.get_or_create(
        deployment_id=deployment_id,
        defaults={"workspace_id": workspace_id, "run_id": run_id, "production": production},
    )
    if slot.granted_at is not None:
        return None
    _grant(workspace_id, limit)
    return places([deployment_id]).get(deployment_id)


def release(deployment_id: str) -> None:
    """Give back a slot, or a place in the queue, if there is one; the next in the queue builds."""
    slot = BuildSlot.objects.filter(pk=deployment_id).first()
    if slot is None:
        return
    limit = _lock(slot.workspace_id)
    if BuildSlot.objects.filter(pk=deployment_id).delete()[0]:
        _grant(slot.workspace_id, limit)


def lost(workspace_id: str) -> list[Lost]:
    """Return who holds a slot or a place of a workspace without a live run, and renew the others' leases.

    A holder is given up when its run has ended or is gone, when the lease of one that stopped for an
    operator has passed, and after `LONGEST` in any case.
    """
    now = clock.now()
    rows = list(BuildSlot.objects.filter(workspace_id=workspace_id).order_by("deployment_id"))
    states = dict(WorkflowRun.objects.filter(pk__in=[row.run_id for row in rows]).values_list("id", "state"))
    found: list[Lost] = []
    for row in rows:
        why = _why_lost(row, states.get(row.run_id), now)
        if why:
            found.append(Lost(row.deployment_id, row.run_id, why))
        elif row.lease_expires_at is not None and row.lease_expires_at <= now:
            BuildSlot.objects.filter(pk=row.pk, granted_at=row.granted_at).update(
                lease_expires_at=now + LEASE
            )
    return found


def places(deployment_ids: Iterable[str]) -> dict[str, int]:
    """Return how many have to end before each of these deployments builds; only for those that wait."""
    wanted = dict(
        BuildSlot.objects.filter(pk__in=list(deployment_ids), granted_at=None).values_list(
            "deployment_id", "workspace_id"
        )
    )
    found: dict[str, int] = {}
    for workspace_id in set(wanted.values()):
        taken = _held(workspace_id) - _limit(Limits.objects.filter(pk=workspace_id).first())
        queue = _queue(workspace_id).values_list("deployment_id", flat=True)
        found |= {
            waiting: max(taken + index, 1) for index, waiting in enumerate(queue, 1) if waiting in wanted
        }
    return found


def describe(place: int) -> str:
    """Return what an owner reads while a deployment waits for its turn."""
    return f"waiting for a build slot: {place} before you"


def topic(deployment_id: str) -> str:
    """Return the topic that is notified when a deployment is given a slot."""
    return f"build_slot:{deployment_id}"


def _why_lost(row: BuildSlot, state: str | None, now: datetime) -> str:
    if state not in ACTIVE and state != State.NEEDS_ATTENTION:
        return DIED
    if row.granted_at is None or row.lease_expires_at is None:
        return ""
    stopped = state == State.NEEDS_ATTENTION and row.lease_expires_at <= now
    return EXPIRED if stopped or row.granted_at + LONGEST <= now else ""


def _lock(workspace_id: str) -> int:
    """Hold the workspace's limits until the transaction ends; return how many may build at once."""
    return _limit(Limits.objects.select_for_update().filter(pk=workspace_id).first())


def _limit(limits: Limits | None) -> int:
    return limits.builds_concurrent_max if limits is not None else 1


def _held(workspace_id: str) -> int:
    return BuildSlot.objects.filter(workspace_id=workspace_id).exclude(granted_at=None).count()


def _queue(workspace_id: str) -> Any:
    waiting = BuildSlot.objects.filter(workspace_id=workspace_id, granted_at=None)
    return waiting.order_by("-production", "asked_at", "deployment_id")


def _grant(workspace_id: str, limit: int) -> None:
    now = clock.now()
    for row in _queue(workspace_id)[: max(limit - _held(workspace_id), 0)]:
        row.granted_at, row.lease_expires_at = now, now + LEASE
        row.save(update_fields=["granted_at", "lease_expires_at"])
        notify(topic(row.deployment_id))
