"""Credits that edges lease, spend and give back, so that a balance is never oversold.

`Key.remaining` is what no edge holds. A lease moves credits from there to one edge in one
conditional update. Setting a balance starts a new epoch and deletes the leases of the old one.
Near its end a balance is leased by the credit, and what edges hold besides is called back; the whole
rule is in docs/credits.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from django.db import connection, transaction
from django.db.models import Model

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
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a wish: what was granted, and what the key has left besides.

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


@dataclass(frozen=True, slots=True)
class Wish:
    """What an edge asks for: to move credits from a key to its lease, making the lease if need be.

    Args:
        lease_id: the edge's own name of the lease.
        key_id: whose credits.
        epoch: the epoch that the edge knows; nothing is granted in another.
        least: nothing is granted if fewer are left.
        most: how many the edge would like, ahead of need.
        wanted: what its callers wait for now, None: `least`; 0: nobody waits.
        call_back: if fewer than `least` are left, have other edges give back what they hold.
    """

    lease_id: str
    key_id: str
    epoch: int
    least: int
    most: int
    wanted: int | None = None
    call_back: bool = False


def lease(edge_id: str, wishes: Sequence[Wish], *, edges: int = 1) -> list[Grant]:
    """Grant an edge's wishes in one transaction; the answers are in the order of the wishes.

    Args:
        edge_id: who leases.
        wishes: of different leases.
        edges: how many edges share what is left; of several, one takes no more than half its part ahead
            of need, and nothing if that is less than `FEW`.
    """
    with unscoped("an edge leases credits of keys that it verified"), transaction.atomic():
        rows = Key.objects.select_for_update().filter(pk__in={wish.key_id for wish in wishes})
        rows = Key.objects.select_for_update().filter(pk__in={wish.key_id for wish in wishes})
        rows = rows.only("workspace_id", "remaining", "credits_epoch", "shard", "version")
        keys = {key.id: key for key in rows.filter(deleted_at__isnull=True).order_by("pk")}
        short = [
            wish
            for wish in wishes
            if (key := keys.get(wish.key_id)) and key.remaining is not None
            if key.credits_epoch == wish.epoch and key.remaining < max(wish.least, 1)
        ]
        elsewhere = _held_elsewhere(edge_id, [keys[wish.key_id] for wish in short])
        grants = [_grant(keys.get(wish.key_id), wish, edges, elsewhere) for wish in wishes]
        moved = [(wish, grant) for wish, grant in zip(wishes, grants, strict=True) if grant.granted]
        _set_each(Key, "remaining", {wish.key_id: keys[wish.key_id].remaining for wish, _ in moved})
        _add(edge_id, keys, moved)
        called = {wish.key_id for wish, grant in zip(wishes, grants, strict=True) if _calls(wish, grant)}
        # In the order of their streams, as every transaction that stamps several.
        for key in sorted((keys[key_id] for key_id in called), key=lambda key: key.stream):
            # Other edges hear of it by the change feed: the key's row has a new version.
            versions.stamp(key)
            Key.objects.filter(pk=key.pk).update(version=key.version)
    return grants


def _grant(key: Key | None, wish: Wish, edges: int, elsewhere: Mapping[str, int]) -> Grant:
    """Decide on a wish and take what is granted from the key, in memory."""
    if key is None:
        return Grant(0, 0, wish.epoch)
    remaining, current = key.remaining, key.credits_epoch
    if remaining is None or current != wish.epoch:
        return Grant(0, remaining, current)
    wanted = wish.least if wish.wanted is None else wish.wanted
    most = max(wish.most, min(remaining // _PART, _LARGEST))
    ahead = min(most, remaining if edges <= 1 else -(-remaining // (2 * edges)))
    few = edges > 1 and ahead < min(most, FEW)
    if remaining < max(wish.least, 1):
        return Grant(0, remaining, current, few, elsewhere.get(key.id, 0) >= max(wish.least - remaining, 1))
    amount = min(remaining, wanted if few else max(wanted, ahead))
    key.remaining = remaining - amount
    return Grant(amount, key.remaining, current, few)


def _calls(wish: Wish, grant: Grant) -> bool:
    return wish.call_back and grant.elsewhere


def _add(edge_id: str, keys: Mapping[str, Key], moved: Sequence[tuple[Wish, Grant]]) -> None:
    """Write what was granted into the edge's leases."""
    lapses = clock.now() + timedelta(seconds=LEASE_SECONDS)
    leases = CreditLease.objects.filter(pk__in=[wish.lease_id for wish, _ in moved], edge_id=edge_id)
    known = dict(leases.values_list("pk", "amount")) if moved else {}
    amounts = {wish.lease_id: grant.granted for wish, grant in moved}
    if known:
        leases.update(expires_at=lapses)
        _set_each(CreditLease, "amount", {each: amount + amounts[each] for each, amount in known.items()})
    CreditLease.objects.bulk_create(
        CreditLease(
            id=wish.lease_id,
            workspace_id=keys[wish.key_id].workspace_id,
            key_id=wish.key_id,
            edge_id=edge_id,
            epoch=wish.epoch,
            amount=grant.granted,
            expires_at=lapses,
        )
        for wish, grant in moved
        if wish.lease_id not in known
    )


def _held_elsewhere(edge_id: str, keys: Sequence[Key]) -> dict[str, int]:
    """Return, by key, what other edges hold of it, unspent as far as they told."""
    if not keys:
        return {}
    epochs = {key.pk: key.credits_epoch for key in keys}
    others = CreditLease.objects.filter(key_id__in=epochs, expires_at__gt=clock.now())
    held: dict[str, int] = {}
    told = others.exclude(edge_id=edge_id).values_list("key_id", "epoch", "amount", "spent")
    for key_id, epoch, amount, spent in told:
        if epoch == epochs[key_id]:
            held[key_id] = held.get(key_id, 0) + amount - spent
    return held


def _set_each(model: type[Model], column: str, values: Mapping[str, int | None]) -> None:
    """Set a column of rows, each to its own number, in a statement for some hundred of them.

    The ORM's own way to say this takes as long to put together as a request takes to answer, for each row.
    """
    table = connection.ops.quote_name(model._meta.db_table)
    items = sorted(values.items())
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        cases = " ".join(["WHEN %s THEN %s"] * len(part))
        places = ", ".join(["%s"] * len(part))
        statement = f"UPDATE {table} SET {column} = CASE id {cases} END WHERE id IN ({places})"  # noqa: S608
        with connection.cursor() as cursor:
            cursor.execute(statement, [*chain.from_iterable(part), *(each for each, _ in part)])


def report_spent(edge_id: str, spent: Mapping[str, int]) -> set[str]:
    """Record what an edge has spent of its leases so far, and renew them.

    Args:
        spent: lease id to credits spent in all.

    Returns:
        the leases that are gone: voided or lapsed.
    """
    lapses = clock.now() + timedelta(seconds=LEASE_SECONDS)
    with transaction.atomic():
        leases = CreditLease.objects.select_for_update().filter(pk__in=list(spent), edge_id=edge_id)
        known = set(leases.order_by("pk").values_list("pk", flat=True))
        _set_each(CreditLease, "spent", {each: spent[each] for each in known})
        leases.update(expires_at=lapses)
    return set(spent) - known


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
        held = [row for row in leases.select_for_update().order_by("pk") if row.key_id in keys]
        more = {}
        for row in held:
            key = keys[row.key_id]
            left = row.amount - spent[row.id]
            if left > 0 and row.epoch == key.credits_epoch and key.remaining is not None:
                more[key.id] = key.remaining = key.remaining + left
        _set_each(Key, "remaining", more)
        CreditLease.objects.filter(pk__in=[row.id for row in held]).delete()
    return {key.id: (key.credits_epoch, key.remaining) for key in keys.values()}


def lapse_expired() -> int:
    """End the leases of edges that were not heard of in time: what they held counts as spent."""
    deleted, _ = CreditLease.objects.filter(expires_at__lt=clock.now()).delete()
    return deleted
