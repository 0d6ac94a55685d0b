"""Reads of APIs and keys, in the scope of a workspace."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import models
from django.db.models import F, Prefetch, Q, QuerySet, Sum, Value

from apps.keys.models import Api, CreditLease, Identity, Key, Permission, Ratelimit, Role
from unkey import clock, errors
from unkey.prepared import Prepared


def get_api(api_id: str) -> Api:
    """Return an API with its key space.

    Raises:
        ApiNotFound: unknown, deleted, or another workspace's.
    """
    api = find_api(api_id)
    if api is None:
        raise api_not_found(api_id)
    return api


def find_api(api_id: str) -> Api | None:
    """Return an API with its key space, or None."""
    return _API.first(api_id)


_API = Prepared(lambda api_id: Api.objects.select_related("key_space").filter(pk=api_id, deleted_at=None))


def key_spaces_of(api_ids: Iterable[str]) -> list[str]:
    """Return the key spaces of this workspace's APIs, deleted ones too; other ids are left out."""
    found = Api.objects.filter(pk__in=api_ids).order_by("key_space_id")
    return list(found.values_list("key_space_id", flat=True))


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


_KEY = Prepared(lambda key_id: live_keys().select_related("identity").filter(pk=key_id))
_KEY_OF_HASH = Prepared(lambda hash: live_keys().select_related("identity").filter(hash=hash))


def get_key(key_id: str) -> Key:
    """Return a key with its key space, API and identity.

    Raises:
        KeyNotFound: unknown, deleted, its API deleted, or another workspace's.
    """
    key = _KEY.first(key_id)
    if key is None:
        raise key_not_found(key_id)
    return key


def key_of_hash(stored: str) -> Key | None:
    """Return the key of a stored hash, as `get_key` does, or None."""
    return _KEY_OF_HASH.first(stored)


class HeldLimit(NamedTuple):
    """A limit as it is shown of a key or of an identity."""

    id: str
    name: str
    limit: int
    duration_ms: int
    auto_apply: bool


@dataclass(slots=True)
class Belongings:
    """What a key has beside its own columns.

    Args:
        slugs: of permissions, its roles' too.
        roles: their names.
        limits: its own.
        shared_limits: its identity's.
    """

    slugs: set[str] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)
    limits: list[HeldLimit] = field(default_factory=list)
    shared_limits: list[HeldLimit] = field(default_factory=list)


_LIMIT, _SHARED_LIMIT, _PERMISSION, _ROLE = range(4)


def belongings(keys: Sequence[Key]) -> dict[str, Belongings]:
    """Return what each of some keys has, by key id, in one query."""
    found = {key.pk: Belongings() for key in keys}
    ids = list(found)
    rows: Iterable[Any] = ()
    if ids:
        rows = _held(ids) if len(ids) > 1 else _HELD_BY_ONE.all(ids[0])
    for what, key_id, first, second, limit, duration, auto_apply in rows:
        of = found[key_id]
        if what == _PERMISSION:
            of.slugs.add(first)
        elif what == _ROLE:
            of.roles.add(first)
            if second is not None:
                of.slugs.add(second)
        else:
            held = of.limits if what == _LIMIT else of.shared_limits
            held.append(HeldLimit(first, second, limit, duration, auto_apply))
    for of in found.values():
        of.limits.sort(key=lambda one: one.name)
        of.shared_limits.sort(key=lambda one: one.name)
    return found


def _held(key_ids: Sequence[str]) -> "QuerySet[Any, Any]":
    """Return rows of what it is, whose, two texts, and a limit's numbers."""
    numbers = ("limit", "duration_ms", "auto_apply")
    none = (
        Value(None, models.BigIntegerField()),
        Value(None, models.BigIntegerField()),
        Value(None, models.BooleanField()),
    )
    own = Ratelimit.objects.filter(key__in=key_ids)
    shared = Key.objects.filter(pk__in=key_ids, identity__ratelimits__isnull=False)
    slugs = Key.objects.filter(pk__in=key_ids, permissions__isnull=False)
    roles = Key.objects.filter(pk__in=key_ids, roles__isnull=False)
    return own.values_list(Value(_LIMIT), "key_id", "id", "name", *numbers).union(
        shared.values_list(
            Value(_SHARED_LIMIT),
            "id",
            "identity__ratelimits__id",
            "identity__ratelimits__name",
            *(f"identity__ratelimits__{name}" for name in numbers),
        ),
        slugs.values_list(Value(_PERMISSION), "id", "permissions__slug", Value(""), *none),
        roles.values_list(Value(_ROLE), "id", "roles__name", "roles__permissions__slug", *none),
        all=True,
    )


_HELD_BY_ONE = Prepared(lambda key_id: _held([key_id]))


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


def live_identities() -> "QuerySet[Identity]":
    """Return the identities that are not deleted, with their limits at hand."""
    limits = Ratelimit.objects.order_by("name")
    return Identity.objects.filter(deleted_at=None).prefetch_related(Prefetch("ratelimits", queryset=limits))


def get_identity(name: str) -> Identity:
    """Return an identity by its id or its external id; an id goes first.

    Raises:
        IdentityNotFound: unknown, deleted, or another workspace's.
    """
    found = list(live_identities().filter(Q(pk=name) | Q(external_id=name)))
    if not found:
        raise identity_not_found(name)
    return max(found, key=lambda identity: identity.pk == name)


def identity_not_found(name: str) -> errors.Fault:
    """Return the fault for an identity that the caller may not know of."""
    return errors.IdentityNotFound(f"The identity {name} does not exist.")


def get_permission(name: str) -> Permission:
    """Return a permission by its id or its slug; an id goes first.

    Raises:
        PermissionNotFound: unknown, or another workspace's.
    """
    found = list(Permission.objects.filter(Q(pk=name) | Q(slug=name)))
    if not found:
        raise permission_not_found(name)
    return max(found, key=lambda permission: permission.pk == name)


def permission_not_found(name: str) -> errors.Fault:
    """Return the fault for a permission that the caller may not know of."""
    return errors.PermissionNotFound(f"The permission {name} does not exist.")


def get_role(name: str) -> Role:
    """Return a role by its id or its name; an id goes first.

    Raises:
        RoleNotFound: unknown, or another workspace's.
    """
    found = list(Role.objects.prefetch_related("permissions").filter(Q(pk=name) | Q(name=name)))
    if not found:
        raise role_not_found(name)
    return max(found, key=lambda role: role.pk == name)


def role_not_found(name: str) -> errors.Fault:
    """Return the fault for a role that the caller may not know of."""
    return errors.RoleNotFound(f"The role {name} does not exist.")
