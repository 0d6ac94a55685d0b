"""Writes of workspaces and root keys, and the check of a root key."""

import base64
import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.quota.models import Limits
from apps.workspaces import permissions as catalogue
from apps.workspaces.models import RootKey, Workspace
from unkey import clock, errors, ids
from unkey.actors import Actor, Principal
from unkey.errors import Violation
from unkey.tenancy import workspace_scope

ROOT_KEY_PREFIX = "unkey_"
_ROOT_KEY_BYTES = 24


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
        workspace.enabled = enabled
        workspace.updated_at = clock.now()
        versions.stamp(workspace)
        workspace.save(update_fields=["enabled", "updated_at", "version"])
        audit.record(
            "workspace.update",
            actor=actor,
            workspace_id=workspace.id,
            targets=[workspace],
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
) -> tuple[RootKey, str]:
    """Make a key that manages a workspace; its text is returned once and never kept.

    Args:
        name: what people call it.
        permissions: tuples (`api.*.create_key`) and URN grants; see `apps.workspaces.permissions`.
        expires_at: when it stops working; None: never.

    Raises:
        InvalidInput: something is not a permission.
    """
    granted = sorted(set(permissions))
    faults = tuple(
        Violation(f"{permission} is not a permission: {fault}", f"permissions[{index}]")
        for index, permission in enumerate(granted)
        if (fault := catalogue.fault_of(permission, workspace.id))
    )
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=faults)
    secret = ids.base58(secrets.token_bytes(_ROOT_KEY_BYTES))
    plaintext = f"{ROOT_KEY_PREFIX}{secret}"
    with workspace_scope(workspace.id), transaction.atomic():
        root_key = RootKey(
            workspace=workspace,
            name=name,
            hash=hash_of(plaintext),
            start=f"{ROOT_KEY_PREFIX}{secret[:4]}",
            permissions=granted,
            expires_at=expires_at,
        )
        versions.stamp(root_key)
        root_key.save(force_insert=True)
        audit.record("key.create", actor=actor, workspace_id=workspace.id, targets=[root_key])
    return root_key, plaintext


def set_root_key_enabled(root_key: RootKey, enabled: bool, *, actor: Actor) -> RootKey:
    """Let a root key work, or stop it everywhere within a second.

    Raises:
        KeyNotFound: it was deleted.
    """
    with workspace_scope(root_key.workspace_id), transaction.atomic():
        root_key = _locked(root_key)
        root_key.enabled = enabled
        _save(root_key, "enabled")
        audit.record(
            "key.update",
            actor=actor,
            workspace_id=root_key.workspace_id,
            targets=[root_key],
            meta={"enabled": enabled},
        )
    return root_key


def delete_root_key(root_key: RootKey, *, actor: Actor) -> None:
    """Stop a root key for good.

    Raises:
        KeyNotFound: it was deleted already.
    """
    with workspace_scope(root_key.workspace_id), transaction.atomic():
        root_key = _locked(root_key)
        root_key.deleted_at = clock.now()
        _save(root_key, "deleted_at")
        audit.record("key.delete", actor=actor, workspace_id=root_key.workspace_id, targets=[root_key])


def authenticate_root_key(plaintext: str) -> Principal:
    """Return who a root key speaks for.

    The look-up is by SHA-256 of the whole text, so its time tells nothing about stored keys.

    Raises:
        RootKeyNotFound: unknown or deleted.
        WorkspaceDisabled: its workspace is.
        KeyDisabled: it is.
        Forbidden: it has expired.
    """
    found = (
        RootKey.objects.unscoped("who is asking is not known yet")
        .select_related("workspace__limits")
        .filter(hash=hash_of(plaintext), deleted_at=None)
        .first()
    )
    if found is None:
        raise errors.RootKeyNotFound("The provided root key is invalid.")
    if not found.workspace.enabled:
        raise errors.WorkspaceDisabled("The workspace is disabled.")
    if not found.enabled:
        raise errors.KeyDisabled("The root key is disabled.")
    if found.expires_at is not None and clock.now() > found.expires_at:
        raise errors.Forbidden("The root key has expired.")
    limits: Limits | None = getattr(found.workspace, "limits", None)
    return Principal(
        workspace_id=found.workspace_id,
        subject="rootkey",
        id=found.id,
        name=found.name,
        permissions=frozenset(found.permissions),
        requests_per_minute=limits.api_requests_per_minute if limits else None,
    )


def hash_of(plaintext: str) -> str:
    """Return what is stored of a key: base64 of the SHA-256 of its text."""
    return base64.b64encode(hashlib.sha256(plaintext.encode()).digest()).decode()


def _locked(root_key: RootKey) -> RootKey:
    found = RootKey.objects.select_for_update().filter(pk=root_key.pk, deleted_at=None).first()
    if found is None:
        raise errors.KeyNotFound(f"There is no root key {root_key.pk}.")
    return found


def _save(root_key: RootKey, *fields: str) -> None:
    root_key.updated_at = clock.now()
    versions.stamp(root_key)
    root_key.save(update_fields=[*fields, "updated_at", "version"])
