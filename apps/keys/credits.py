"""Credits that edges lease, spend and give back, so that a balance is never oversold.

`Key.remaining` is what no edge holds. A lease moves credits from there to one edge in one
conditional update. Setting a balance starts a new epoch and deletes the leases of the old one.
Near its end a balance is leased by the credit, and what edges hold besides is called back; the whole
rule is in docs/credits.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import F, Sum

from apps.cluster import versions
from apps.keys.models import CreditLease, Key
from unkey import clock
from unkey.tenancy import unscoped

LEASE_SECONDS = 900
# Half of an edge's part of what is left: with less, an edge leases only what its callers ask for now.
FEW = 10
# Of a large balance, a lease ahead of need is at least this part, within the bound.
_PART = 1000
_LARGEST = 10_000


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a request for credits: what was granted, and what the key has left besides.

    Args:
        granted: credits added to the lease; 0: none.
        remaining: what no edge holds afterwards, None: unlimited.
        epoch: the key's epoch; a lease of another epoch is void.
        few: there are so few left that nothing is leased ahead of need.
        elsewhere: what was refused is held by other edges, unspent as far as they told.
    """

    granted: int
    remaining: int | None
    epoch: int
    few: bool = False
    elsewhere: bool = False


def lease(
    edge_id: str,
    lease_id: str,
    key_id: str,
    epoch: int,
    *,
    least: int,
    most: int,
    wanted: int | None = None,
    edges: int = 1,
    call_back: bool = False,
) -> Grant:
    """Move credits from a key to an edge's lease, making the lease if need be.

    Args:
        edge_id: who leases.
        lease_id: the edge's own name of the lease.
        epoch: the epoch that the edge knows; nothing is granted in another.
        least: nothing is granted if fewer are left.
        most: how many the edge would like, ahead of need.
        wanted: what its callers wait for now, None: `least`; 0: nobody waits.
        edges: how many edges share what is left; of several, one takes no more than half its part ahead
            of need, and nothing if that is less than `FEW`.
        call_back: if fewer than `least` are left, have other edges give back what they hold.
    """
    wanted = least if wanted is None else wanted
    with unscoped("an edge leases credits of a key that it verified"), transaction.atomic():
        rows = Key.objects.filter(pk=key_id)
        key = rows.select_for_update().filter(deleted_at__isnull=True).first()
        if key is None:
            return Grant(0, 0, epoch)
        remaining, current = key.remaining, key.credits_epoch
        if remaining is None or current != epoch:
            return Grant(0, remaining, current)
        most = max(most, min(remaining // _PART, _LARGEST))
        ahead = min(most, remaining if edges <= 1 else -(-remaining // (2 * edges)))
        few = edges > 1 and ahead < min(most, FEW)
        if remaining < max(least, 1):
            elsewhere = _held_elsewhere(key, edge_id) >= max(least - remaining, 1)
            if elsewhere and call_back:
                # Other edges hear of it by the change feed: the key's row has a new version.
                versions.stamp(key)
                rows.update(version=key.version)
            return Grant(0, remaining, current, few, elsewhere)
        amount = min(remaining, wanted if few else max(wanted, ahead))
        if not amount:
            return Grant(0, remaining, current, few)
        rows.update(remaining=F("remaining") - amount)
        lapses = clock.now() + timedelta(seconds=LEASE_SECONDS)
        leases = CreditLease.objects.filter(pk=lease_id, edge_id=edge_id)
        if not leases.update(amount=F("amount") + amount, expires_at=lapses):
            CreditLease.objects.create(
                id=lease_id,
                workspace_id=key.workspace_id,
                key_id=key_id,
                edge_id=edge_id,
                epoch=epoch,
                amount=amount,
                expires_at=lapses,
            )
        return Grant(amount, remaining - amount, current, few)


def _held_elsewhere(key: Key, edge_id: str) -> int:
    """Return what other edges hold of a key, unspent as far as they told."""
    others = CreditLease.objects.filter(
        key_id=key.pk, epoch=key.credits_epoch, expires_at__gt=clock.now()
    ).exclude(edge_id=edge_id)
    return others.aggregate(unspent=Sum(F("amount") - F("spent")))["unspent"] or 0


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
