"""Writes the audit log, in the transaction of the change it tells of."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connection, models

from apps.audit.models import AuditLog
from unkey.actors import Actor
from unkey.tenancy import unscoped


def record(
    event: str,
    *,
    actor: Actor,
    workspace_id: str,
    targets: Iterable[models.Model] = (),
    description: str = "",
    meta: Mapping[str, Any] | None = None,
) -> AuditLog:
    """Add a row to the audit log; it commits or rolls back with the change.

    Args:
        event: `<thing>.<verb>`, for example `key.update`.
        actor: who did it.
        workspace_id: whose log.
        targets: the rows that were changed.
        description: a sentence for people.
        meta: JSON-ready details; never a secret.

    Raises:
        RuntimeError: called outside a transaction.
    """
    if not connection.in_atomic_block:
        raise RuntimeError(f"audit of {event} was written outside the transaction of its change")
    with unscoped("the audit row belongs to the workspace of its target"):
        return AuditLog.objects.create(
            workspace_id=workspace_id,
            event=event,
            description=description,
            actor_type=actor.type,
            actor_id=actor.id,
            actor_name=actor.name,
            remote_ip=actor.remote_ip,
            user_agent=actor.user_agent[:512],
            targets=[
                {"type": target._meta.model_name, "id": str(target.pk), "name": str(target)}
                for target in targets
            ],
            meta=dict(meta or {}),
        )
