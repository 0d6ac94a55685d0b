"""Writes the audit log, in the transaction of the change it tells of."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connection, models

from apps.audit.models import AuditLog
from unkey import clock, ids
from unkey.actors import Actor
from unkey.prepared import insert
from unkey.tenancy import unscoped

SECRET = frozenset({"hash", "plaintext", "ciphertext", "secret", "token", "password", "private_key"})
HIDDEN = "[REDACTED]"

# One id for all that a transaction does in a workspace, by its outermost atomic block.
_correlations: "WeakKeyDictionary[object, dict[str, str]]" = WeakKeyDictionary()


def record(
    event: str,
    *,
    actor: Actor,
    workspace_id: str,
    targets: Iterable[models.Model] = (),
    description: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> AuditLog:
    """Add a row to the audit log; it commits or rolls back with the change.

    Args:
        event: `<thing>.<verb>`, for example `key.update`.
        actor: who did it.
        workspace_id: whose log.
        targets: the rows that were changed.
        description: a sentence for people.
        before: JSON-ready values of fields as they were; what did not change is left out of the row.
        after: the same fields as they are now.
        meta: other JSON-ready details; never a secret.

    Raises:
        RuntimeError: called outside a transaction.
    """
    row = entry(
        event,
        actor=actor,
        workspace_id=workspace_id,
        targets=targets,
        description=description,
        before=before,
        after=after,
        meta=meta,
    )
    with unscoped("the audit row belongs to the workspace of its target"):
        insert(row)
    return row


def record_all(entries: Sequence[AuditLog]) -> None:
    """Add the rows that `entry` made, together."""
    with unscoped("the audit row belongs to the workspace of its target"):
        AuditLog.objects.bulk_create(entries)


def entry(
    event: str,
    *,
    actor: Actor,
    workspace_id: str,
    targets: Iterable[models.Model] = (),
    description: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> AuditLog:
    """Return a row for `record_all`; arguments and errors as for `record`."""
    if not connection.in_atomic_block:
        raise RuntimeError(f"audit of {event} was written outside the transaction of its change")
    return AuditLog(
        workspace_id=workspace_id,
        event=event,
        description=description,
        actor_type=actor.type,
        actor_id=actor.id,
        actor_name=actor.name,
        remote_ip=actor.remote_ip,
        user_agent=actor.user_agent[:512],
        targets=[{"type": _type_of(target), "id": str(target.pk), "name": str(target)} for target in targets],
        changes=_changes(before or {}, after or {}),
        meta=_without_secrets(meta or {}),
        correlation_id=_correlation(workspace_id),
    )


# Where the published log calls a thing otherwise than its table: reference, api.md 9.1.
_TYPES = {
    "keyspace": "keySpace",
    "namespace": "ratelimitNamespace",
    "override": "ratelimitOverride",
    "portalsession": "portalSession",
}


def _type_of(target: models.Model) -> str:
    name = str(target._meta.model_name)
    return _TYPES.get(name, name)


def state(row: models.Model, *names: str) -> dict[str, Any]:
    """Return columns of a row as `record` takes them before and after a change; times in milliseconds."""
    values = {name: getattr(row, name) for name in names}
    return {
        name: clock.to_ms(value) if isinstance(value, datetime) else value for name, value in values.items()
    }


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {
        name: {"before": HIDDEN, "after": HIDDEN}
        if name in SECRET
        else {"before": _without_secrets(before.get(name)), "after": _without_secrets(after.get(name))}
        for name in changed
    }


def _without_secrets(value: Any) -> Any:
    """Return a value with the fields hidden that may hold a secret, whoever passed them."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if name in SECRET and item is not None else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return value


def _correlation(workspace_id: str) -> str:
    blocks = [block for block in connection.atomic_blocks if not block._from_testcase]  # type: ignore[attr-defined]
    if not blocks:
        return ids.new("cor")
    return _correlations.setdefault(blocks[0], {}).setdefault(workspace_id, ids.new("cor"))
