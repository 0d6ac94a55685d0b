"""Writes of barriers: what is refused before an environment's deployments, at every edge within a second."""

from typing import Any

from django.db import transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.projects.models import Environment
from apps.routing.models import Barrier
from edge.sentinel.iprules import Addresses
from unkey import clock, errors
from unkey.actors import Actor
from unkey.errors import Violation


def find_barrier(environment: Environment) -> Barrier:
    """Return an environment's barrier; one that refuses nobody where none was ever set."""
    return Barrier.objects.filter(environment=environment).first() or Barrier(environment=environment)


def set_barrier(
    environment: Environment,
    *,
    blocked: list[str] | None = None,
    maintenance: dict[str, Any] | None = None,
    actor: Actor,
) -> Barrier:
    """Change what is refused; what is None stays as it is.

    Args:
        environment: whose.
        blocked: addresses and CIDR ranges that are refused.
        maintenance: `enabled`, and `message`, `retryAfter` (seconds) and `exempt` (addresses and ranges that
            it is not for).
        actor: who does it.

    Raises:
        errors.EnvironmentNotFound: it was deleted meanwhile.
        errors.InvalidInput: a range cannot be read.
    """
    faults = [*_faults(blocked or (), "body.blocked")]
    if maintenance is not None:
        faults += _faults(maintenance.get("exempt", ()), "body.maintenance.exempt")
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=tuple(faults))
    with transaction.atomic():
        row = Environment.objects.select_for_update().filter(pk=environment.pk).first()
        if row is None:
            raise errors.EnvironmentNotFound("The requested environment does not exist.")
        barrier = find_barrier(row)
        before = outline(barrier)
        barrier.workspace_id = row.workspace_id
        if blocked is not None:
            barrier.blocked = list(dict.fromkeys(blocked))
        if maintenance is not None:
            barrier.maintenance = maintenance["enabled"]
            barrier.message = maintenance.get("message", "")
            barrier.retry_after = maintenance.get("retryAfter")
            barrier.exempt = list(dict.fromkeys(maintenance.get("exempt", ())))
        versions.stamp(barrier)
        barrier.save()
        row.updated_at = clock.now()
        row.save(update_fields=["updated_at"])
        audit.record(
            "environment.update",
            actor=actor,
            workspace_id=row.workspace_id,
            targets=[row],
            before={"barrier": before},
            after={"barrier": outline(barrier)},
            meta={"gateway": {"maintenance": barrier.maintenance, "blocked": len(barrier.blocked)}},
        )
    return barrier


def outline(barrier: Barrier) -> dict[str, Any]:
    """Return a barrier as the API tells it."""
    maintenance: dict[str, Any] = {"enabled": barrier.maintenance, "exempt": barrier.exempt}
    if barrier.message:
        maintenance["message"] = barrier.message
    if barrier.retry_after is not None:
        maintenance["retryAfter"] = barrier.retry_after
    return {"blocked": barrier.blocked, "maintenance": maintenance}


def _faults(ranges: Any, here: str) -> list[Violation]:
    found = []
    for place, each in enumerate(ranges):
        try:
            Addresses([each])
        except ValueError:
            found.append(
                Violation(
                    f"{each!r} is neither an address nor a range",
                    f"{here}[{place}]",
                    "Write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32.",
                )
            )
    return found
