"""Writes of APIs and keys: each in one transaction with its audit row and its version.

Every writer takes the lock of its key (or API) first and that of the workspace's stream second, by
stamping; rows that several keys share (identities, permissions) are touched only after both. So two
writers of a workspace never wait for each other in a circle.
"""

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.keys.models import (
    Api,
    CreditLease,
    EncryptedKey,
    Identity,
    Key,
    KeySpace,
    Permission,
    Ratelimit,
    Role,
)
from apps.keys.queries import api_not_found, balances, key_not_found
from apps.keys.values import Credits, NamedLimit, Refill
from apps.vault import services as vault
from apps.workspaces.models import shard_of
from apps.workspaces.services import hash_of
from unkey import clock, errors, ids
from unkey.actors import Actor
from unkey.partial import UNSET, Unset
from unkey.prepared import Prepared, insert

INT64 = 2**63 - 1
_START_CHARACTERS = 4
_COLUMNS = ("name", "enabled", "expires_at", "remaining", "refill_interval", "refill_amount", "refill_day")


def create_api(workspace_id: str, name: str, *, actor: Actor) -> Api:
    """Make an API and the key space behind it. Names need not be unique."""
    with transaction.atomic():
        api = Api(workspace_id=workspace_id, name=name, shard=shard_of(workspace_id))
        versions.stamp(api)
        api.key_space = KeySpace.objects.create(workspace_id=workspace_id)
        api.save(force_insert=True)
        audit.record("api.create", actor=actor, workspace_id=workspace_id, targets=[api, api.key_space])
    return api


def delete_api(api: Api, *, actor: Actor) -> None:
    """Delete an API; its keys verify as not found, everywhere within a second.

    Raises:
        ApiNotFound: it was deleted already.
        ProtectedResource: it is protected from deletion.
    """
    with transaction.atomic():
        found = Api.objects.select_for_update().filter(pk=api.pk, deleted_at=None).first()
        if found is None:
            raise api_not_found(api.pk)
        if found.delete_protection:
            raise errors.ProtectedResource("This API is protected from deletion; lift the protection first.")
        found.deleted_at = found.updated_at = clock.now()
        versions.stamp(found)
        found.save(update_fields=["deleted_at", "updated_at", "version"])
        audit.record("api.delete", actor=actor, workspace_id=found.workspace_id, targets=[found])


def create_key(
    api: Api,
    *,
    actor: Actor,
    prefix: str = "",
    name: str = "",
    byte_length: int | None = None,
    external_id: str | None = None,
    meta: dict[str, Any] | None = None,
    roles: Sequence[str] = (),
    permissions: Sequence[str] = (),
    expires_at: datetime | None = None,
    credits: Credits | None = None,
    ratelimits: Sequence[NamedLimit] = (),
    enabled: bool = True,
    recoverable: bool = False,
) -> tuple[Key, str]:
    """Make a key; its text is returned once, and kept only as a hash (and encrypted, if recoverable).

    Args:
        prefix: stands before the random part; empty: the key space's default.
        byte_length: random bytes, 16 to 255; None: the key space's default.
        external_id: whose key it is; the identity is made if there is none.
        roles: names of roles, which must exist.
        permissions: slugs; those that do not exist are made.

    Raises:
        PreconditionFailed: recoverable, but the key space keeps no encrypted keys.
        RoleNotFound: a role does not exist.
    """
    space = api.key_space
    if recoverable and not space.store_encrypted_keys:
        raise errors.PreconditionFailed(f"The API {api.pk} does not keep keys in a recoverable form.")
    plaintext, start = _new_text(prefix or space.default_prefix, byte_length or space.default_bytes)
    workspace_id = api.workspace_id
    ciphertext = vault.encrypt(workspace_id, plaintext) if recoverable else None
    key = Key(
        workspace_id=workspace_id,
        shard=shard_of(workspace_id),
        key_space=space,
        hash=hash_of(plaintext),
        start=start,
        name=name,
        meta=meta or {},
        enabled=enabled,
        expires_at=expires_at,
    )
    if credits is not None:
        key.remaining = credits.remaining
        _set_refill(key, credits.refill)
    with transaction.atomic():
        # Before the stream is locked, which all of a workspace wait for.
        audit.record("key.create", actor=actor, workspace_id=workspace_id, targets=[key, api])
        versions.stamp(key)
        if external_id is not None:
            key.identity = ensure_identity(workspace_id, external_id, actor)
        insert(key)
        if permissions:
            _connect_permissions(key, ensure_permissions(workspace_id, permissions, actor), actor)
        if roles:
            _connect_roles(key, _roles(workspace_id, roles), actor)
        if ratelimits:
            _replace_ratelimits(key, ratelimits)
        if ciphertext is not None:
            EncryptedKey.objects.create(key=key, workspace_id=workspace_id, ciphertext=ciphertext)
    return key, plaintext


def update_key(
    key: Key,
    *,
    actor: Actor,
    name: str | Unset | None = UNSET,
    external_id: str | Unset | None = UNSET,
    meta: dict[str, Any] | Unset | None = UNSET,
    expires_at: datetime | Unset | None = UNSET,
    remaining: int | Unset | None = UNSET,
    refill: Refill | Unset | None = UNSET,
    ratelimits: Sequence[NamedLimit] | Unset = UNSET,
    enabled: bool | Unset = UNSET,
    roles: Sequence[str] | Unset = UNSET,
    permissions: Sequence[str] | Unset = UNSET,
) -> Key:
    """Change what is mentioned of a key; None clears, lists replace the whole set.

    Args:
        remaining: the balance; None: unlimited, and the refill goes with it unless one is given. What
            edges have leased of the old balance becomes void.

    Raises:
        KeyNotFound: it was deleted.
        RoleNotFound: a role does not exist.
    """
    with transaction.atomic():
        key = _locked(key)
        versions.stamp(key)
        changed: dict[str, Any] = {}
        before = _state(key)
        if name is not UNSET:
            key.name = name or ""
            changed["name"] = key.name
        if meta is not UNSET:
            key.meta = meta or {}
            changed["meta"] = sorted(key.meta)
        if expires_at is not UNSET:
            key.expires_at = expires_at
            changed["expires"] = clock.to_ms(expires_at) if expires_at else None
        if enabled is not UNSET:
            key.enabled = enabled
            changed["enabled"] = enabled
        if external_id is not UNSET:
            key.identity = (
                None if external_id is None else ensure_identity(key.workspace_id, external_id, actor)
            )
            changed["externalId"] = external_id
        if remaining is not UNSET:
            _renew_balance(key, remaining)
            changed["remaining"] = remaining
            if remaining is None:
                _set_refill(key, None)
        if refill is not UNSET:
            _set_refill(key, refill)
            changed["refill"] = refill is not None
        key.updated_at = clock.now()
        key.save()
        audit.record(
            "key.update",
            actor=actor,
            workspace_id=key.workspace_id,
            targets=[key],
            before=before,
            after=_state(key),
            meta=changed,
        )
        if ratelimits is not UNSET:
            _replace_ratelimits(key, ratelimits)
        if permissions is not UNSET:
            _replace_permissions(key, permissions, actor)
        if roles is not UNSET:
            _replace_roles(key, roles, actor)
    return key


def delete_key(key: Key, *, permanent: bool = False, actor: Actor) -> None:
    """Delete a key; it verifies as not found, everywhere within a second.

    Args:
        permanent: also forget everything that is kept of it. A bare row stays, deleted, so that
            edges learn of it.

    Raises:
        KeyNotFound: it was deleted already.
    """
    with transaction.atomic():
        key = _locked(key)
        versions.stamp(key)
        key.deleted_at = key.updated_at = clock.now()
        audit.record(
            "key.delete",
            actor=actor,
            workspace_id=key.workspace_id,
            targets=[key],
            meta={"permanent": permanent},
        )
        if permanent:
            key.name, key.start, key.meta, key.identity = "", "", {}, None
            _renew_balance(key, None)
            _set_refill(key, None)
            key.permissions.clear()
            key.roles.clear()
            key.ratelimits.all().delete()
            EncryptedKey.objects.filter(key=key).delete()
        key.save()


def update_credits(key: Key, operation: str, value: int | None, *, actor: Actor) -> Key:
    """Set, raise or lower a key's balance.

    Args:
        operation: `set` (a value of None: unlimited, without refill), `increment`, or `decrement`, which
            stops at 0.

    Raises:
        KeyNotFound: it was deleted.
        InvalidInput: the key is unlimited, or the value is missing.
    """
    with transaction.atomic():
        key = _locked(key)
        versions.stamp(key)
        before = _state(key)
        if operation == "set":
            _renew_balance(key, value)
            if value is None:
                _set_refill(key, None)
        else:
            if value is None:
                raise errors.InvalidInput(f"To {operation} credits, a value is needed.")
            if key.remaining is None:
                raise errors.InvalidInput("The key has unlimited credits; set a balance first.")
            if operation == "increment":
                key.remaining = min(key.remaining + value, INT64)
            elif value <= key.remaining:
                key.remaining -= value
            else:
                # Part of what is taken away is leased: the leases become void.
                _renew_balance(key, max(0, balances([key])[key.pk] - value))
        key.updated_at = clock.now()
        key.save()
        audit.record(
            "key.update",
            actor=actor,
            workspace_id=key.workspace_id,
            targets=[key],
            before=before,
            after=_state(key),
            meta={"credits": operation, "value": value},
        )
    return key


def reroll_key(key: Key, grace: timedelta | None, *, actor: Actor) -> tuple[Key, str]:
    """Replace a key by a new one of the same settings; the old one expires after a grace.

    Args:
        grace: how long the old key goes on working; its end is rounded up to the full minute, 0 ends it
            now; None: as long as before.

    Raises:
        KeyNotFound: it was deleted.
    """
    with transaction.atomic():
        old = _locked(key)
        versions.stamp(old)
        space = KeySpace.objects.get(pk=old.key_space_id)
        prefix = old.start.rpartition("_")[0] or space.default_prefix
        plaintext, start = _new_text(prefix, space.default_bytes)
        new = Key(
            workspace_id=old.workspace_id,
            shard=old.shard,
            key_space=space,
            identity_id=old.identity_id,
            hash=hash_of(plaintext),
            start=start,
            name=old.name,
            meta=old.meta,
            enabled=old.enabled,
            expires_at=old.expires_at,
            refill_interval=old.refill_interval,
            refill_amount=old.refill_amount,
            refill_day=old.refill_day,
            last_refill_at=old.last_refill_at,
            remaining=balances([old]).get(old.pk),
        )
        versions.stamp(new)
        new.save(force_insert=True)
        new.permissions.set(old.permissions.all())
        new.roles.set(old.roles.all())
        Ratelimit.objects.bulk_create(
            Ratelimit(
                workspace_id=old.workspace_id,
                key=new,
                name=one.name,
                limit=one.limit,
                duration_ms=one.duration_ms,
                auto_apply=one.auto_apply,
            )
            for one in old.ratelimits.all()
        )
        if EncryptedKey.objects.filter(key=old).exists():
            EncryptedKey.objects.create(
                key=new,
                workspace_id=old.workspace_id,
                ciphertext=vault.encrypt(old.workspace_id, plaintext),
            )
        ends = None if grace is None else _end_of_grace(grace)
        before = audit.state(old, "expires_at")
        if ends is not None and (old.expires_at is None or ends < old.expires_at):
            old.expires_at = ends
        old.updated_at = clock.now()
        old.save(update_fields=["expires_at", "updated_at", "version"])
        audit.record(
            "key.reroll",
            actor=actor,
            workspace_id=old.workspace_id,
            targets=[old, new],
            before=before,
            after=audit.state(old, *before),
        )
    return new, plaintext


def add_permissions(key: Key, slugs: Sequence[str], *, actor: Actor) -> None:
    """Give a key permissions by slug; those that do not exist are made."""
    with transaction.atomic():
        key = _touched(key)
        _connect_permissions(key, ensure_permissions(key.workspace_id, slugs, actor), actor)


def remove_permissions(key: Key, slugs: Sequence[str], *, actor: Actor) -> None:
    """Take permissions from a key; one that it does not have is passed over.

    Raises:
        PermissionNotFound: a slug does not exist.
    """
    with transaction.atomic():
        key = _touched(key)
        found = {row.slug: row for row in Permission.objects.filter(slug__in=slugs)}
        for slug in slugs:
            if slug not in found:
                raise errors.PermissionNotFound(f"The permission {slug} does not exist.")
        _disconnect_permissions(key, found.values(), actor)


def set_permissions(key: Key, slugs: Sequence[str], *, actor: Actor) -> None:
    """Give a key exactly these permissions; those that do not exist are made."""
    with transaction.atomic():
        _replace_permissions(_touched(key), slugs, actor)


def add_roles(key: Key, names: Sequence[str], *, actor: Actor) -> None:
    """Give a key roles by name.

    Raises:
        RoleNotFound: a role does not exist.
    """
    with transaction.atomic():
        key = _touched(key)
        _connect_roles(key, _roles(key.workspace_id, names), actor)


def remove_roles(key: Key, names: Sequence[str], *, actor: Actor) -> None:
    """Take roles from a key; one that it does not have is passed over.

    Raises:
        RoleNotFound: a role does not exist.
    """
    with transaction.atomic():
        key = _touched(key)
        _disconnect_roles(key, _roles(key.workspace_id, names), actor)


def set_roles(key: Key, names: Sequence[str], *, actor: Actor) -> None:
    """Give a key exactly these roles.

    Raises:
        RoleNotFound: a role does not exist.
    """
    with transaction.atomic():
        _replace_roles(_touched(key), names, actor)


def _new_text(prefix: str, length: int) -> tuple[str, str]:
    """Return the text of a new key and what may be shown of it."""
    secret = ids.base58(secrets.token_bytes(length))
    lead = f"{prefix}_" if prefix else ""
    return lead + secret, lead + secret[:_START_CHARACTERS]


def _locked(key: Key) -> Key:
    found = Key.objects.select_for_update().filter(pk=key.pk, deleted_at=None).first()
    if found is None:
        raise key_not_found(key.pk)
    return found


def _state(key: Key) -> dict[str, Any]:
    """Return what the audit log tells of a key before and after a change; of its meta, the names."""
    return {**audit.state(key, *_COLUMNS), "identity": key.identity_id, "meta": sorted(key.meta)}


def _touched(key: Key) -> Key:
    key = _locked(key)
    versions.stamp(key)
    key.updated_at = clock.now()
    key.save(update_fields=["updated_at", "version"])
    return key


def _renew_balance(key: Key, remaining: int | None) -> None:
    """Set a balance and void what edges have leased of the old one."""
    key.remaining = remaining
    key.credits_epoch += 1
    CreditLease.objects.filter(key=key).delete()


def _set_refill(key: Key, refill: Refill | None) -> None:
    key.refill_interval = refill.interval if refill else ""
    key.refill_amount = refill.amount if refill else None
    key.refill_day = refill.day if refill and refill.interval == "monthly" else None


def _end_of_grace(grace: timedelta) -> datetime:
    now = clock.now()
    if not grace:
        return now
    minute = timedelta(minutes=1)
    past = (now + grace - clock.EPOCH) % minute
    return now + grace + (minute - past if past else timedelta(0))


_IDENTITY = Prepared(lambda external_id: Identity.objects.select_for_update().filter(external_id=external_id))


def ensure_identity(workspace_id: str, external_id: str, actor: Actor) -> Identity:
    """Return the identity of an external id, made if there is none; its stream is locked already."""
    found = _IDENTITY.first(external_id)
    if found is None:
        identity = Identity(workspace_id=workspace_id, external_id=external_id, shard=shard_of(workspace_id))
        versions.stamp(identity)
        identity.save(force_insert=True)
    elif found.deleted_at is not None:
        identity = found
        identity.deleted_at, identity.meta, identity.updated_at = None, {}, clock.now()
        identity.ratelimits.all().delete()
        versions.stamp(identity)
        identity.save()
    else:
        return found
    audit.record("identity.create", actor=actor, workspace_id=workspace_id, targets=[identity])
    return identity


def ensure_permissions(workspace_id: str, slugs: Iterable[str], actor: Actor) -> list[Permission]:
    """Return the permissions of these slugs, made where there are none."""
    wanted = list(dict.fromkeys(slugs))
    if not wanted:
        return []
    known = set(Permission.objects.filter(slug__in=wanted).values_list("slug", flat=True))
    fresh = [
        Permission(workspace_id=workspace_id, name=slug, slug=slug) for slug in wanted if slug not in known
    ]
    if fresh:
        # Whoever makes the same slug at this moment may be first; then theirs is taken.
        Permission.objects.bulk_create(fresh, ignore_conflicts=True)
        made = {row.pk for row in fresh}
        ours = list(Permission.objects.filter(pk__in=made))
        if ours:
            audit.record("permission.create", actor=actor, workspace_id=workspace_id, targets=ours)
    return list(Permission.objects.filter(slug__in=wanted))


def _roles(workspace_id: str, names: Iterable[str]) -> list[Role]:
    wanted = list(dict.fromkeys(names))
    found = {role.name: role for role in Role.objects.filter(name__in=wanted)}
    for name in wanted:
        if name not in found:
            raise errors.RoleNotFound(f"The role {name} does not exist.")
    return list(found.values())


def _connect_permissions(key: Key, rows: Iterable[Permission], actor: Actor) -> None:
    held = set(key.permissions.values_list("pk", flat=True))
    added = [row for row in rows if row.pk not in held]
    if added:
        key.permissions.add(*added)
        _tell("authorization.connect_permission_and_key", key, added, actor)


def _disconnect_permissions(key: Key, rows: Iterable[Permission], actor: Actor) -> None:
    held = set(key.permissions.values_list("pk", flat=True))
    removed = [row for row in rows if row.pk in held]
    if removed:
        key.permissions.remove(*removed)
        _tell("authorization.disconnect_permission_and_key", key, removed, actor)


def _replace_permissions(key: Key, slugs: Sequence[str], actor: Actor) -> None:
    wanted = ensure_permissions(key.workspace_id, slugs, actor)
    kept = {row.pk for row in wanted}
    _disconnect_permissions(key, [row for row in key.permissions.all() if row.pk not in kept], actor)
    _connect_permissions(key, wanted, actor)


def _connect_roles(key: Key, rows: Iterable[Role], actor: Actor) -> None:
    held = set(key.roles.values_list("pk", flat=True))
    added = [row for row in rows if row.pk not in held]
    if added:
        key.roles.add(*added)
        _tell("authorization.connect_role_and_key", key, added, actor)


def _disconnect_roles(key: Key, rows: Iterable[Role], actor: Actor) -> None:
    held = set(key.roles.values_list("pk", flat=True))
    removed = [row for row in rows if row.pk in held]
    if removed:
        key.roles.remove(*removed)
        _tell("authorization.disconnect_role_and_key", key, removed, actor)


def _replace_roles(key: Key, names: Sequence[str], actor: Actor) -> None:
    wanted = _roles(key.workspace_id, names)
    kept = {row.pk for row in wanted}
    _disconnect_roles(key, [row for row in key.roles.all() if row.pk not in kept], actor)
    _connect_roles(key, wanted, actor)


def _tell(event: str, key: Key, others: Sequence[Permission] | Sequence[Role], actor: Actor) -> None:
    audit.record(event, actor=actor, workspace_id=key.workspace_id, targets=[key, *others])


def _replace_ratelimits(key: Key, limits: Sequence[NamedLimit]) -> None:
    """Give a key exactly these limits; one of the same name keeps its id."""
    present = {row.name: row for row in key.ratelimits.all()}
    wanted = {limit.name: limit for limit in limits}
    if gone := [row.pk for name, row in present.items() if name not in wanted]:
        Ratelimit.objects.filter(pk__in=gone).delete()
    for name, limit in wanted.items():
        row = present.get(name) or Ratelimit(workspace_id=key.workspace_id, key=key, name=name)
        row.limit, row.duration_ms, row.auto_apply = limit.limit, limit.duration_ms, limit.auto_apply
        present[name] = row
    save_limits(present[name] for name in wanted)


def save_limits(rows: Iterable[Ratelimit]) -> None:
    """Write limits, new ones and known ones, in one statement each."""
    rows = list(rows)
    if fresh := [row for row in rows if row._state.adding]:
        Ratelimit.objects.bulk_create(fresh)
    if known := [row for row in rows if row not in fresh]:
        Ratelimit.objects.bulk_update(known, ["limit", "duration_ms", "auto_apply"])
