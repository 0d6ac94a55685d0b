"""Writes of identities: users of a customer's, who hold keys and share limits among them."""

from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.keys.models import Identity, Ratelimit
from apps.keys.queries import identity_not_found
from apps.keys.services import save_limits
from apps.keys.values import NamedLimit
from apps.workspaces.models import shard_of
from unkey import clock, errors
from unkey.actors import Actor
from unkey.partial import UNSET, Unset


def create_identity(
    workspace_id: str,
    external_id: str,
    *,
    meta: dict[str, Any] | None = None,
    ratelimits: Sequence[NamedLimit] = (),
    actor: Actor,
) -> Identity:
    """Make an identity; the row of a deleted one of the same external id is used again.

    Raises:
        IdentityAlreadyExists: there is one of this external id.
    """
    taken = errors.IdentityAlreadyExists(f"An identity with the external id '{external_id}' already exists.")
    try:
        with transaction.atomic():
            identity = Identity.objects.select_for_update().filter(
                external_id=external_id
            ).first() or Identity(
                workspace_id=workspace_id, external_id=external_id, shard=shard_of(workspace_id)
            )
            fresh = identity._state.adding
            if not fresh and identity.deleted_at is None:
                raise taken
            identity.meta, identity.deleted_at = meta or {}, None
            identity.created_at = clock.now() if not fresh else identity.created_at
            versions.stamp(identity)
            identity.save(force_insert=fresh)
            audit.record("identity.create", actor=actor, workspace_id=workspace_id, targets=[identity])
            _replace_limits(identity, ratelimits, actor)
    except IntegrityError:
        raise taken from None
    return identity


def update_identity(
    identity: Identity,
    *,
    meta: dict[str, Any] | Unset = UNSET,
    ratelimits: Sequence[NamedLimit] | Unset = UNSET,
    actor: Actor,
) -> Identity:
    """Change what is mentioned of an identity; both replace what was there.

    Raises:
        IdentityNotFound: it was deleted.
    """
    with transaction.atomic():
        identity = _locked(identity)
        versions.stamp(identity)
        changed: dict[str, Any] = {}
        before = {"meta": sorted(identity.meta)}
        if meta is not UNSET:
            identity.meta = meta
            changed["meta"] = sorted(meta)
        identity.updated_at = clock.now()
        identity.save()
        audit.record(
            "identity.update",
            actor=actor,
            workspace_id=identity.workspace_id,
            targets=[identity],
            before=before,
            after={"meta": sorted(identity.meta)},
            meta=changed,
        )
        if ratelimits is not UNSET:
            _replace_limits(identity, ratelimits, actor)
    return identity


def delete_identity(identity: Identity, *, actor: Actor) -> None:
    """Delete an identity: its keys go on working, without it and its limits.

    Raises:
        IdentityNotFound: it was deleted already.
    """
    with transaction.atomic():
        identity = _locked(identity)
        versions.stamp(identity)
        identity.deleted_at = identity.updated_at = clock.now()
        identity.save(update_fields=["deleted_at", "updated_at", "version"])
        audit.record("identity.delete", actor=actor, workspace_id=identity.workspace_id, targets=[identity])
        _replace_limits(identity, (), actor)


def _locked(identity: Identity) -> Identity:
    found = Identity.objects.select_for_update().filter(pk=identity.pk, deleted_at=None).first()
    if found is None:
        raise identity_not_found(identity.external_id)
    return found


def _replace_limits(identity: Identity, limits: Sequence[NamedLimit], actor: Actor) -> None:
    """Give an identity exactly these limits; one of the same name keeps its id."""
    present = {row.name: row for row in identity.ratelimits.all()}
    wanted = {limit.name: limit for limit in limits}
    told = []
    gone = []
    saved = []

    def tell(verb: str, row: Ratelimit, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        told.append(
            audit.entry(
                f"ratelimit.{verb}",
                actor=actor,
                workspace_id=identity.workspace_id,
                targets=[row, identity],
                before=before,
                after=after,
            )
        )

    def state(row: Ratelimit) -> dict[str, Any]:
        return audit.state(row, "limit", "duration_ms", "auto_apply")

    for name, row in present.items():
        if name not in wanted:
            tell("delete", row, state(row), None)
            gone.append(row.pk)
    for name, limit in wanted.items():
        known = present.get(name)
        row = known or Ratelimit(workspace_id=identity.workspace_id, identity=identity, name=name)
        before = None if known is None else state(row)
        row.limit, row.duration_ms, row.auto_apply = limit.limit, limit.duration_ms, limit.auto_apply
        if before != state(row):
            saved.append(row)
            tell("create" if known is None else "update", row, before, state(row))
    if gone:
        Ratelimit.objects.filter(pk__in=gone).delete()
    save_limits(saved)
    audit.record_all(told)
