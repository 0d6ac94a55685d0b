"""Writes of limits."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.quota.models import Limits
from unkey import clock
from unkey.actors import Actor


def set_limits(workspace_id: str, changes: Mapping[str, int | None], *, actor: Actor) -> Limits:
    """Change what a workspace may use; requests from now on, and deployments to come, are held to it.

    Args:
        workspace_id: whose.
        changes: column of Limits to its new value.
        actor: who does it.
    """
    with transaction.atomic():
        row = Limits.objects.select_for_update().get(pk=workspace_id)
        for name, value in changes.items():
            setattr(row, name, value)
        row.updated_at = clock.now()
        row.save(update_fields=[*changes, "updated_at"])
        # Edges hold requests of this workspace to its limits, and read them with it.
        versions.stamp(row.workspace)
        row.workspace.save(update_fields=["version"])
        meta: dict[str, Any] = {"limits": dict(changes)}
        audit.record(
            "workspace.update", actor=actor, workspace_id=row.workspace_id, targets=[row.workspace], meta=meta
        )
    return row
