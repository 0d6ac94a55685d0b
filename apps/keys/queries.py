"""Reads of APIs and keys, in the scope of a workspace."""

from collections.abc import Iterable

from django.db.models import F, Prefetch, QuerySet, Sum

from apps.keys.models import Api, CreditLease, Key, Ratelimit
from unkey import clock, errors


def get_api(api_id: str) -> Api:
    """Return an API with its key space.

    Raises:
        ApiNotFound: unknown, deleted, or another workspace's.
    """
    api: Api | None = Api.objects.select_related("key_space").filter(pk=api_id, deleted_at=None).first()
    if api is None:
        raise api_not_found(api_id)
    return api


def api_not_found(api_id: str) -> errors.Fault:
    """Return the fault for an API that the caller may not know of."""
    return errors.ApiNotFound(f"The API {api_id} does not exist.")


def key_not_found(key_id: str) -> errors.Fault:
    """Return the fault for a key that the caller may not know of."""
    return errors.KeyNotFound(f"The key {key_id} does not exist.")


def live_keys() -> QuerySet[Key]:
    """Return the keys that are not deleted and whose API is not, with their API at hand."""
    return Key.objects.filter(deleted_at=None, key_space__api__deleted_at=None).select_related(
        "key_space__api"
    )


def get_key(key_id: str) -> Key:
    """Return a key with its key space and API.

    Raises:
        KeyNotFound: unknown, deleted, its API deleted, or another workspace's.
    """
    key = live_keys().filter(pk=key_id).first()
    if key is None:
        raise key_not_found(key_id)
    return key


def shown(keys: "QuerySet[Key]") -> "QuerySet[Key]":
    """Fetch with the keys, in a handful of queries, everything that is shown of them."""
    ratelimits = Ratelimit.objects.order_by("name")
    return keys.select_related("identity", "encrypted").prefetch_related(
        Prefetch("ratelimits", queryset=ratelimits),
        Prefetch("identity__ratelimits", queryset=ratelimits),
        "permissions",
        "roles__permissions",
    )


def balances(keys: Iterable[Key]) -> dict[str, int]:
    """Return the credits left of each limited key: what no edge has leased, and what is unspent of leases."""
    limited = {key.pk: key for key in keys if key.remaining is not None}
    totals = {key_id: int(key.remaining or 0) for key_id, key in limited.items()}
    if not totals:
        return totals
    leases = (
        CreditLease.objects.filter(
            key_id__in=limited, epoch=F("key__credits_epoch"), expires_at__gt=clock.now()
        )
        .values("key_id")
        .annotate(unspent=Sum(F("amount") - F("spent")))
    )
    for row in leases:
        totals[row["key_id"]] += row["unspent"]
    return totals
