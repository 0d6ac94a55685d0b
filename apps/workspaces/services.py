"""Writes of workspaces and root keys, and the check of a root key."""

import base64
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.quota.models import Limits
from apps.workspaces import permissions as catalogue
from apps.workspaces.models import RootKey, Workspace
from unkey import clock, errors, ids
from unkey.actors import Actor, Principal
from unkey.errors import Violation
from unkey.partial import UNSET, Unset
from unkey.prepared import Prepared
from unkey.rpc.grants import gives
from unkey.tenancy import workspace_scope

ROOT_KEY_PREFIX = "unkey_"
_ROOT_KEY_BYTES = 24
_USED_EVERY = timedelta(minutes=1)
_PRESENT = timedelta(seconds=1)
_MOST_PRESENT = 10_000


def create_workspace(name: str, slug: str, *, actor: Actor) -> Workspace:
    """Make a tenant, with the default limits.

    Args:
        name: 1 to 256 characters.
        slug: 1 to 64 of letters, digits, `_` and `-`; unique on the platform.

    Raises:
        WorkspaceAlreadyExists: the slug is taken.
    """
    try:
        with transaction.atomic():
            workspace = Workspace(name=name, slug=slug)
            versions.stamp(workspace)
            workspace.save(force_insert=True)
            Limits.objects.create(workspace=workspace)
            audit.record("workspace.create", actor=actor, workspace_id=workspace.id, targets=[workspace])
    except IntegrityError:
        if Workspace.objects.filter(slug=slug).exists():
            raise errors.WorkspaceAlreadyExists(f"A workspace with the slug {slug} exists.") from None
        raise
    return workspace


def set_workspace_enabled(workspace: Workspace, enabled: bool, *, actor: Actor) -> Workspace:
    """Let a workspace's keys and root keys work, or stop all of them."""
    with transaction.atomic():
        workspace = Workspace.objects.select_for_update().get(pk=workspace.pk)
        before, workspace.enabled = audit.state(workspace, "enabled"), enabled
        workspace.updated_at = clock.now()
        versions.stamp(workspace)
        forget_presented()
        workspace.save(update_fields=["enabled", "updated_at", "version"])
        audit.record(
            "workspace.update",
            actor=actor,
            workspace_id=workspace.id,
            targets=[workspace],
            before=before,
            after=audit.state(workspace, *before),
            meta={"enabled": enabled},
        )
    return workspace


def create_root_key(
    workspace: Workspace,
    name: str,
    permissions: Iterable[str],
    *,
    actor: Actor,
    expires_at: datetime | None = None,
    giver: Principal | None = None,
) -> tuple[RootKey, str]:
    """Make a key that manages a workspace; its text is returned once and never kept.

    Args:
        name: what people call it.
        permissions: tuples (`api.*.create_key`) and URN grants; see `apps.workspaces.permissions`.
        actor: who does it.
        expires_at: when it stops working; None: never.
        giver: whose permissions it cannot exceed, and whom it cannot outlive; None: an operator.

    Raises:
        InvalidInput: something is not a permission, or it would expire in the past.
        InsufficientPermissions: the giver does not hold one of them.
        Forbidden: it would outlive the giver.
    """
    granted = _granted(permissions, workspace.id, giver)
    if expires_at is not None and expires_at <= clock.now():
        message = "expires must be in the future"
        raise errors.InvalidInput(message, violations=(Violation(message, "body.expires"),))
    _refuse_to_outlive(expires_at, giver)
    with workspace_scope(workspace.id), transaction.atomic():
        root_key, plaintext = _new_root_key(workspace.id, name, granted, expires_at)
        audit.record(
            "key.create",
            actor=actor,
            workspace_id=workspace.id,
            targets=[root_key],
            meta={"permissions": granted, "expires": _ms(expires_at)},
        )
    return root_key, plaintext


def update_root_key(
    root_key_id: str,
    *,
    actor: Actor,
    name: str | Unset = UNSET,
    enabled: bool | Unset = UNSET,
    permissions: Iterable[str] | Unset = UNSET,
    giver: Principal | None = None,
) -> RootKey:
    """Change what is mentioned of a root key of the workspace in scope, everywhere within a second.

    Args:
        permissions: all that it holds from now on.
        giver: as for `create_root_key`.

    Raises:
        KeyNotFound: there is none, or it was deleted.
        InvalidInput, InsufficientPermissions, Forbidden: as for `create_root_key`.
    """
    with transaction.atomic():
        root_key = _locked(root_key_id)
        _refuse_to_outlive(root_key.expires_at, giver)
        before = audit.state(root_key, "name", "enabled", "permissions")
        if name is not UNSET:
            root_key.name = name
        if permissions is not UNSET:
            root_key.permissions = _granted(permissions, root_key.workspace_id, giver)
        if enabled is not UNSET:
            root_key.enabled = enabled
        _save(root_key, *before)
        audit.record(
            "key.update",
            actor=actor,
            workspace_id=root_key.workspace_id,
            targets=[root_key],
            before=before,
            after=audit.state(root_key, *before),
        )
    return root_key


def reroll_root_key(
    root_key_id: str, grace: timedelta | None, *, actor: Actor, giver: Principal | None = None
) -> tuple[RootKey, str]:
    """Make a root key of the workspace in scope anew: same name, state, end and permissions, another text.

    Args:
        grace: how long the old one goes on working, never longer than it would have; 0 deletes it now,
            None leaves it as it is.
        giver: as for `create_root_key`; must hold all that the old one does.

    Raises:
        KeyNotFound: there is none, or it was deleted.
        InsufficientPermissions, Forbidden: as for `create_root_key`.
    """
    with transaction.atomic():
        old = _locked(root_key_id)
        granted = _granted(old.permissions, old.workspace_id, giver)
        _refuse_to_outlive(old.expires_at, giver)
        new, plaintext = _new_root_key(old.workspace_id, old.name, granted, old.expires_at, old.enabled)
        before = audit.state(old, "expires_at", "deleted_at")
        if grace is not None:
            now = clock.now()
            ends = now + grace
            if not grace:
                old.deleted_at = now
            elif old.expires_at is None or ends < old.expires_at:
                old.expires_at = ends
            _save(old, "expires_at", "deleted_at")
        audit.record(
            "key.reroll",
            actor=actor,
            workspace_id=old.workspace_id,
            targets=[old, new],
            before=before,
            after=audit.state(old, *before),
        )
    return new, plaintext


def set_root_key_enabled(root_key: RootKey, enabled: bool, *, actor: Actor) -> RootKey:
    """Let a root key work, or stop it everywhere within a second.

    Raises:
        KeyNotFound: it was deleted.
    """
    with workspace_scope(root_key.workspace_id):
        return update_root_key(root_key.pk, enabled=enabled, actor=actor)


def delete_root_key(root_key: RootKey, *, actor: Actor) -> None:
    """Stop a root key for good.

    Raises:
        KeyNotFound: it was deleted already.
    """
    with workspace_scope(root_key.workspace_id), transaction.atomic():
        root_key = _locked(root_key.pk)
        root_key.deleted_at = clock.now()
        _save(root_key, "deleted_at")
        audit.record("key.delete", actor=actor, workspace_id=root_key.workspace_id, targets=[root_key])


_PRESENTED = Prepared(
    lambda hash: (
        RootKey.objects.unscoped("who is asking is not known yet")
        .filter(hash=hash, deleted_at=None)
        .values_list(
            "id",
            "workspace_id",
            "name",
            "permissions",
            "enabled",
            "expires_at",
            "last_used_at",
            "workspace__enabled",
            "workspace__limits__api_requests_per_minute",
        )
    )
)


@dataclass(frozen=True, slots=True)
class _Presented:
    """A root key as it was read a moment ago."""

    since: datetime
    principal: Principal
    enabled: bool
    workspace_enabled: bool


_presented: dict[str, _Presented] = {}


def authenticate_root_key(plaintext: str) -> Principal:
    """Return who a root key speaks for.

    The look-up is by SHA-256 of the whole text, so its time tells nothing about stored keys. What it found
    stands for a second; changes that this process makes are seen at once.

    Raises:
        RootKeyNotFound: unknown or deleted.
        WorkspaceDisabled: its workspace is.
        KeyDisabled: it is.
        Forbidden: it has expired.
    """
    now = clock.now()
    digest = hash_of(plaintext)
    found = _presented.get(digest)
    if found is None or not found.since <= now < found.since + _PRESENT:
        found = _read_presented(digest, now)
    if not found.workspace_enabled:
        raise errors.WorkspaceDisabled("The workspace is disabled.")
    if not found.enabled:
        raise errors.KeyDisabled("The root key is disabled.")
    principal = found.principal
    if principal.expires_at is not None and now > principal.expires_at:
        raise errors.Forbidden("The root key has expired.")
    return principal


def forget_presented() -> None:
    """Have every root key read anew: one of them, its workspace or its limits is being changed."""
    _presented.clear()


def _read_presented(digest: str, now: datetime) -> _Presented:
    row = _PRESENTED.first(digest)
    if row is None:
        raise errors.RootKeyNotFound("The provided root key is invalid.")
    key_id, workspace_id, name, permissions, enabled, expires_at, used_at, workspace_enabled, rate = row
    works = enabled and workspace_enabled and (expires_at is None or now <= expires_at)
    if works and (used_at is None or now - used_at > _USED_EVERY):
        RootKey.objects.unscoped("the key that is asking").filter(pk=key_id).update(last_used_at=now)
    principal = Principal(
        workspace_id=workspace_id,
        subject="rootkey",
        id=key_id,
        name=name,
        permissions=frozenset(permissions),
        requests_per_minute=rate,
        expires_at=expires_at,
    )
    if len(_presented) >= _MOST_PRESENT:
        _presented.clear()
    found = _presented[digest] = _Presented(now, principal, enabled, workspace_enabled)
    return found


def hash_of(plaintext: str) -> str:
    """Return what is stored of a key: base64 of the SHA-256 of its text."""
    return base64.b64encode(hashlib.sha256(plaintext.encode()).digest()).decode()


def _granted(permissions: Iterable[str], workspace_id: str, giver: Principal | None) -> list[str]:
    """Return permissions in order, each once; all of them are some, and the giver's to give."""
    given = list(permissions)
    faults = tuple(
        Violation(f"{permission} is not a permission: {fault}", f"body.permissions[{index}]")
        for index, permission in enumerate(given)
        if (fault := catalogue.fault_of(permission, workspace_id))
    )
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=faults)
    granted = sorted(set(given))
    if giver is not None:
        beyond = next((one for one in granted if not gives(giver.permissions, one)), None)
        if beyond is not None:
            raise errors.InsufficientPermissions(
                f"Missing permission: '{beyond}'. A root key gives only what it holds itself."
            )
    return granted


def _refuse_to_outlive(expires_at: datetime | None, giver: Principal | None) -> None:
    if giver is None or giver.expires_at is None:
        return
    if expires_at is None or expires_at > giver.expires_at:
        raise errors.Forbidden(
            "A root key that expires manages only root keys that expire no later than itself, "
            f"at {clock.to_ms(giver.expires_at)}."
        )


def _new_root_key(
    workspace_id: str, name: str, granted: list[str], expires_at: datetime | None, enabled: bool = True
) -> tuple[RootKey, str]:
    secret = ids.base58(secrets.token_bytes(_ROOT_KEY_BYTES))
    plaintext = f"{ROOT_KEY_PREFIX}{secret}"
    root_key = RootKey(
        workspace_id=workspace_id,
        name=name,
        hash=hash_of(plaintext),
        start=f"{ROOT_KEY_PREFIX}{secret[:4]}",
        end=secret[-4:],
        permissions=granted,
        enabled=enabled,
        expires_at=expires_at,
    )
    versions.stamp(root_key)
    root_key.save(force_insert=True)
    return root_key, plaintext


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else clock.to_ms(moment)


def _locked(root_key_id: str) -> RootKey:
    found = RootKey.objects.select_for_update().filter(pk=root_key_id, deleted_at=None).first()
    if found is None:
        raise errors.KeyNotFound("The requested root key does not exist.")
    return found


def _save(root_key: RootKey, *fields: str) -> None:
    root_key.updated_at = clock.now()
    versions.stamp(root_key)
    forget_presented()
    root_key.save(update_fields=[*fields, "updated_at", "version"])
