"""Keys that were made elsewhere: imported by their hashes, and taken over at their first use.

A hash of the `sha256` kind is ours in another spelling, so its key works at once. One of a
prefixed-api-key is of a part of the key: whoever presents the key gives us what its own hash is made
from. Source: reference, api.md 2.6; https://github.com/seamapi/prefixed-api-key.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q

from apps.audit import services as audit
from apps.cluster import versions
from apps.keys.models import Api, Identity, Key, KeyMigration, Permission, Ratelimit, Role
from apps.keys.services import ensure_identity, ensure_permissions
from apps.keys.values import Credits, NamedLimit
from apps.workspaces.models import shard_of
from apps.workspaces.services import hash_of
from edge.store.records import KeyName
from unkey import clock, errors
from unkey.actors import Actor, system
from unkey.tenancy import workspace_scope

_CHUNK = 500
_ATTEMPTS = 3
_HEX = re.compile(r"[0-9a-fA-F]{64}\Z")
_DIGEST_OCTETS = 32
_START_CHARACTERS = 4
_START_LENGTH = 50


@dataclass(frozen=True, slots=True)
class ImportedKey:
    """A key to import; everything but the hash as for `services.create_key`.

    Args:
        hash: as the migration's algorithm wrote it.
        start: what may be shown of the key's text.
    """

    hash: str
    name: str = ""
    external_id: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    roles: Sequence[str] = ()
    permissions: Sequence[str] = ()
    expires_at: datetime | None = None
    enabled: bool = True
    credits: Credits | None = None
    ratelimits: Sequence[NamedLimit] = ()
    start: str = ""


def create_migration(workspace_id: str, name: str, algorithm: str, *, actor: Actor) -> KeyMigration:
    """Make a migration: a name under which keys of one kind may be imported.

    Args:
        algorithm: one of `KeyMigration.Algorithm`.

    Raises:
        InvalidInput: the workspace has one of this name, or the algorithm is none of ours.
    """
    if algorithm not in KeyMigration.Algorithm.values:
        known = ", ".join(KeyMigration.Algorithm.values)
        raise errors.InvalidInput(f"{algorithm} is not one of the algorithms: {known}.")
    migration = KeyMigration(workspace_id=workspace_id, name=name, algorithm=algorithm)
    try:
        with transaction.atomic():
            migration.save(force_insert=True)
            audit.record("key_migration.create", actor=actor, workspace_id=workspace_id, targets=[migration])
    except IntegrityError:
        raise errors.InvalidInput(f"The workspace already has a migration {name}.") from None
    return migration


def get_migration(name: str) -> KeyMigration:
    """Return a migration of the workspace by its name or id.

    Raises:
        MigrationNotFound: unknown, or another workspace's.
    """
    found = KeyMigration.objects.filter(name=name).first() or KeyMigration.objects.filter(pk=name).first()
    if found is None:
        raise errors.MigrationNotFound(f"The migration {name} does not exist.")
    return found


def import_keys(
    api: Api, migration: KeyMigration, keys: Sequence[ImportedKey], *, actor: Actor
) -> tuple[list[tuple[str, str]], list[str]]:
    """Make keys of hashes; missing identities, permissions and roles are made.

    Returns:
        Hash and key id of those that were made, and the hashes that were not: that are not of the
        migration's algorithm, are given twice, or exist.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _import_keys(api, migration, keys, actor)
        except IntegrityError:
            continue  # somebody imports the same hashes, or made the same role, at this moment
    return _import_keys(api, migration, keys, actor)


def _import_keys(
    api: Api, migration: KeyMigration, keys: Sequence[ImportedKey], actor: Actor
) -> tuple[list[tuple[str, str]], list[str]]:
    made: list[tuple[str, str]] = []
    failed: list[str] = []
    with transaction.atomic():
        version = versions.next_version(f"keys:{shard_of(api.workspace_id)}")
        known = _Known(api.workspace_id, keys, actor, version)
        seen: set[str] = set()
        for start in range(0, len(keys), _CHUNK):
            chunk = [
                (one, stored_hash(migration.algorithm, one.hash)) for one in keys[start : start + _CHUNK]
            ]
            # Every tenant's: a hash is one key, wherever it is; that it exists says nothing of whose it is.
            taken = set(
                Key.objects.unscoped("a hash is unique among all workspaces")
                .filter(hash__in=[digest for _, digest in chunk if digest])
                .values_list("hash", flat=True)
            )
            fresh: list[tuple[ImportedKey, Key]] = []
            for one, digest in chunk:
                if not digest or digest in taken or digest in seen:
                    failed.append(one.hash)
                    continue
                seen.add(digest)
                fresh.append((one, _row(api, migration, one, digest, known, version)))
            _insert(fresh, known)
            if fresh:
                audit.record(
                    "key.create",
                    actor=actor,
                    workspace_id=api.workspace_id,
                    targets=[api, *(key for _, key in fresh)],
                    meta={"migration": migration.name},
                )
            made.extend((one.hash, key.pk) for one, key in fresh)
    return made, failed


class _Known:
    """The identities, permissions and roles that imported keys name, made where there are none."""

    def __init__(self, workspace_id: str, keys: Sequence[ImportedKey], actor: Actor, version: int) -> None:
        names = {name for one in keys for name in one.roles}
        self.roles = _ensure_roles(workspace_id, names, actor, version)
        slugs = dict.fromkeys(slug for one in keys for slug in one.permissions)
        self.permissions: dict[str, Permission] = {
            row.slug: row for row in ensure_permissions(workspace_id, slugs, actor)
        }
        wanted = dict.fromkeys(one.external_id for one in keys if one.external_id is not None)
        self.identities: dict[str, Identity] = {
            row.external_id: row for row in Identity.objects.filter(external_id__in=wanted, deleted_at=None)
        }
        missing = [external_id for external_id in wanted if external_id not in self.identities]
        gone = set(Identity.objects.filter(external_id__in=missing).values_list("external_id", flat=True))
        for external_id in gone:
            self.identities[external_id] = ensure_identity(workspace_id, external_id, actor)
        fresh = [
            Identity(
                workspace_id=workspace_id,
                external_id=external_id,
                shard=shard_of(workspace_id),
                version=version,
            )
            for external_id in missing
            if external_id not in gone
        ]
        if fresh:
            Identity.objects.bulk_create(fresh)
            self.identities |= {row.external_id: row for row in fresh}
            audit.record("identity.create", actor=actor, workspace_id=workspace_id, targets=fresh)


def _ensure_roles(workspace_id: str, names: Iterable[str], actor: Actor, version: int) -> dict[str, Role]:
    wanted = set(names)
    found = {role.name: role for role in Role.objects.filter(name__in=wanted)}
    fresh = [
        Role(workspace_id=workspace_id, name=name, shard=shard_of(workspace_id), version=version)
        for name in sorted(wanted.difference(found))
    ]
    if fresh:
        Role.objects.bulk_create(fresh)
        audit.record("role.create", actor=actor, workspace_id=workspace_id, targets=fresh)
    return found | {role.name: role for role in fresh}


def _row(
    api: Api, migration: KeyMigration, one: ImportedKey, digest: str, known: _Known, version: int
) -> Key:
    key = Key(
        workspace_id=api.workspace_id,
        shard=shard_of(api.workspace_id),
        version=version,
        key_space=api.key_space,
        hash=digest,
        pending_migration=migration if migration.algorithm == KeyMigration.Algorithm.PREFIXED else None,
        start=one.start,
        name=one.name,
        meta=one.meta,
        enabled=one.enabled,
        expires_at=one.expires_at,
        identity=known.identities[one.external_id] if one.external_id is not None else None,
    )
    if one.credits is not None:
        key.remaining = one.credits.remaining
        if refill := one.credits.refill:
            key.refill_interval, key.refill_amount = refill.interval, refill.amount
            key.refill_day = refill.day if refill.interval == Key.Refill.MONTHLY else None
    return key


def _insert(fresh: Sequence[tuple[ImportedKey, Key]], known: _Known) -> None:
    Key.objects.bulk_create([key for _, key in fresh])
    held, roles = Key.permissions.through, Key.roles.through
    held.objects.bulk_create(
        held(key_id=key.pk, permission_id=known.permissions[slug].pk)
        for one, key in fresh
        for slug in dict.fromkeys(one.permissions)
    )
    roles.objects.bulk_create(
        roles(key_id=key.pk, role_id=known.roles[name].pk)
        for one, key in fresh
        for name in dict.fromkeys(one.roles)
    )
    Ratelimit.objects.bulk_create(
        Ratelimit(
            workspace_id=key.workspace_id,
            key=key,
            name=limit.name,
            limit=limit.limit,
            duration_ms=limit.duration_ms,
            auto_apply=limit.auto_apply,
        )
        for one, key in fresh
        for limit in one.ratelimits
    )


def stored_hash(algorithm: str, text: str) -> str:
    """Return how a foreign hash is stored until its key is used, empty if it is not of the algorithm.

    Args:
        algorithm: one of `KeyMigration.Algorithm`.
        text: SHA-256 in hexadecimal; for `sha256` also in base64.
    """
    if algorithm == KeyMigration.Algorithm.PREFIXED:
        return text.lower() if _HEX.match(text) else ""
    try:
        digest = bytes.fromhex(text) if _HEX.match(text) else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(digest).decode() if len(digest) == _DIGEST_OCTETS else ""


def take_over(workspace_id: str, migration_name: str, plaintext: str, may: Callable[[KeyName], bool]) -> bool:
    """Give an imported key a hash of ours, now that its text is known; say whether there is one.

    Args:
        workspace_id: whose keys may be taken over.
        migration_name: name or id of the migration that the key was imported under.
        plaintext: the text that was presented.
        may: whether who presents it may verify the key; if not, nothing changes.
    """
    prefix, _, tokens = plaintext.partition("_")
    short, _, long = tokens.rpartition("_")
    if not (prefix and short and long):
        return False
    with workspace_scope(workspace_id):
        pending = Key.objects.filter(
            Q(pending_migration__name=migration_name) | Q(pending_migration_id=migration_name),
            hash=hashlib.sha256(long.encode()).hexdigest(),
            deleted_at=None,
            key_space__api__deleted_at=None,
        )
        found = pending.values_list("id", "key_space_id", "key_space__api__id").first()
        if found is None:
            return False
        key_id, key_space_id, api_id = found
        if not may(KeyName(key_id, workspace_id, key_space_id, api_id)):
            return False
        with transaction.atomic():
            key = pending.select_for_update().first()
            if key is None:
                return True  # taken over for another request, a moment ago
            versions.stamp(key)
            key.hash, key.pending_migration = hash_of(plaintext), None
            key.start = f"{prefix}_{tokens[:_START_CHARACTERS]}"[:_START_LENGTH]
            key.updated_at = clock.now()
            key.save(update_fields=["hash", "start", "pending_migration", "updated_at", "version"])
            audit.record(
                "key.update",
                actor=system("keymigration"),
                workspace_id=workspace_id,
                targets=[key],
                meta={"migration": migration_name},
            )
    return True
