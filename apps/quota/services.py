"""Writes of limits."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.quota.models import Limits, Usage
from apps.workspaces.models import Workspace
from apps.workspaces.services import forget_presented
from unkey import clock
from unkey.actors import Actor

_BATCH = 500


def set_limits(workspace_id: str, changes: Mapping[str, int | None], *, actor: Actor) -> Limits:
    """Change what a workspace may use; requests from now on, and deployments to come, are held to it.

    Args:
        workspace_id: whose.
        changes: column of Limits to its new value.
        actor: who does it.
    """
    with transaction.atomic():
        row = Limits.objects.select_for_update().get(pk=workspace_id)
        before = audit.state(row, *changes)
        for name, value in changes.items():
            setattr(row, name, value)
        row.updated_at = clock.now()
        row.save(update_fields=[*changes, "updated_at"])
        # Edges hold requests of this workspace to its limits, and read them with it.
        versions.stamp(row.workspace)
        row.workspace.save(update_fields=["version"])
        forget_presented()
        meta: dict[str, Any] = {"limits": dict(changes)}
        audit.record(
            "workspace.update",
            actor=actor,
            workspace_id=row.workspace_id,
            targets=[row.workspace],
            before=before,
            after=audit.state(row, *changes),
            meta=meta,
        )
    return row


def write_usage(period: str, totals: Mapping[str, tuple[int, int]]) -> int:
    """Write what workspaces have used of a month so far; return how many rows have changed.

    Totals only grow: an earlier, larger one stays, so that writing again, late or out of order is safe.

    Args:
        period: `YYYY-MM`, in UTC.
        totals: workspace to verifications and rate limits.
    """
    changed = 0
    ids = sorted(totals)
    for start in range(0, len(ids), _BATCH):
        with transaction.atomic():
            batch = list(
                Workspace.objects.filter(pk__in=ids[start : start + _BATCH]).values_list("pk", flat=True)
            )
            Usage.objects.bulk_create(
                [Usage(workspace_id=pk, period=period) for pk in batch], ignore_conflicts=True
            )
            rows = Usage.objects.select_for_update().filter(period=period, workspace_id__in=batch)
            grown = []
            for row in rows.order_by("workspace_id"):
                verifications, ratelimits = totals[row.workspace_id]
                if verifications > row.verifications or ratelimits > row.ratelimits:
                    row.verifications = max(row.verifications, verifications)
                    row.ratelimits = max(row.ratelimits, ratelimits)
                    row.updated_at = clock.now()
                    grown.append(row)
            Usage.objects.bulk_update(grown, ["verifications", "ratelimits", "updated_at"])
            changed += len(grown)
    return changed
