"""Credits that edges lease, spend and give back, so that a balance is never oversold.

`Key.remaining` is what no edge holds. A lease moves credits from there to one edge in one
conditional update. Setting a balance starts a new epoch and deletes the leases of the old one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import F

from apps.keys.models import CreditLease, Key
from unkey import clock
from unkey.tenancy import unscoped

LEASE_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a request for credits: what was granted, and what the key has left besides.

    Args:
        granted: credits added to the lease; 0: none.
        remaining: what the key has outside this edge's lease, None: unlimited.
        epoch: the key's epoch; a lease of another epoch is void.
    """

    granted: int
    remaining: int | None
    epoch: int


def lease(
    edge_id: str, lease_id: str, key_id: str, epoch: int, *, least: int, most: int, edges: int = 1
) -> Grant:
    """Move between `least` and `most` credits from a key to an edge's lease, making the lease if need be.

    Args:
        edge_id: who leases.
        lease_id: the edge's own name of the lease.
        epoch: the epoch that the edge knows; nothing is granted in another.
        edges: how many edges share what is left; one of several takes no more than half its part.
    """
    with unscoped("an edge leases credits of a key that it verified"), transaction.atomic():
        rows = Key.objects.filter(pk=key_id)
        found = (
            rows.select_for_update()
            .filter(deleted_at__isnull=True)
            .values_list("remaining", "credits_epoch", "workspace_id")
            .first()
        )
        if found is None:
            return Grant(0, 0, epoch)
        remaining, current, workspace_id = found
        if remaining is None or current != epoch or remaining < max(least, 1):
            return Grant(0, remaining, current)
        if edges > 1:
            most = max(least, min(most, -(-remaining // (2 * edges))))
        amount = min(remaining, most)
        if not rows.filter(remaining__gte=amount, credits_epoch=epoch).update(
            remaining=F("remaining") - amount
        ):
            return Grant(0, remaining, current)
        lapses = clock.now() + timedelta(seconds=LEASE_SECONDS)
        leases = CreditLease.objects.filter(pk=lease_id, edge_id=edge_id)
        if not leases.update(amount=F("amount") + amount, expires_at=lapses):
            CreditLease.objects.create(
                id=lease_id,
                workspace_id=workspace_id,
                key_id=key_id,
                edge_id=edge_id,
                epoch=epoch,
                amount=amount,
                expires_at=lapses,
            )
        return Grant(amount, remaining - amount, current)


def report_spent(edge_id: str, spent: Mapping[str, int]) -> set[str]:
    """Record what an edge has spent of its leases so far, and renew them.

    Args:
        spent: lease id to credits spent in all.

    Returns:
        the leases that are gone: voided or lapsed.
    """
    lapses = clock.now() + timedelta(seconds=LEASE_SECONDS)
    gone = set()
    with transaction.atomic():
        for lease_id, amount in sorted(spent.items()):
            rows = CreditLease.objects.filter(pk=lease_id, edge_id=edge_id)
            if not rows.update(spent=amount, expires_at=lapses):
                gone.add(lease_id)
    return gone


def give_back(edge_id: str, spent: Mapping[str, int]) -> dict[str, tuple[int, int | None]]:
    """End leases: what was not spent returns to its key if the epoch still is the same.

    Args:
        spent: lease id to credits spent in all.

    Returns:
        per key its epoch and what no edge holds afterwards.
    """
    leases = CreditLease.objects.filter(pk__in=list(spent), edge_id=edge_id)
    with unscoped("an edge gives back what it leased"), transaction.atomic():
        # Keys before leases, as everywhere: two that end and void leases never wait for each other.
        ids = list(leases.values_list("key_id", flat=True))
        keys = {key.id: key for key in Key.objects.select_for_update().filter(pk__in=ids).order_by("pk")}
        held = [row for row in leases.select_for_update() if row.key_id in keys]
        for row in held:
            key = keys[row.key_id]
            left = row.amount - spent[row.id]
            if left > 0 and row.epoch == key.credits_epoch and key.remaining is not None:
                key.remaining += left
        for key in keys.values():
            Key.objects.filter(pk=key.id).update(remaining=key.remaining)
        CreditLease.objects.filter(pk__in=[row.id for row in held]).delete()
    return {key.id: (key.credits_epoch, key.remaining) for key in keys.values()}


def lapse_expired() -> int:
    """End the leases of edges that were not heard of in time: what they held counts as spent."""
    deleted, _ = CreditLease.objects.filter(expires_at__lt=clock.now()).delete()
    return deleted
