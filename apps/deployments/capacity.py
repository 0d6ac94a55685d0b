"""How many instances a deployment may have: regional settings, clamped, and the workspace's quota."""

from typing import Any

from apps.deployments.models import Deployment, Topology
from apps.quota.models import Limits
from apps.workflows.engine import Terminal

State = Deployment.DesiredState


def replicas(row: dict[str, Any], limit: int) -> tuple[int, int]:
    """Return the fewest and the most instances of a region: at least one, at most the workspace's limit.

    Args:
        row: `min` and `max` of the regional settings, as a deployment keeps them.
        limit: the most that the workspace may run of a deployment in one region.
    """
    limit = max(limit, 1)
    least = min(max(int(row["min"]), 1), limit)
    return least, min(max(int(row["max"]), least), limit)


def lock_limits(workspace_id: str) -> Limits:
    """Return a workspace's limits, held so that two projects of it do not both take what is left."""
    found = Limits.objects.select_for_update().filter(pk=workspace_id).first()
    return found or Limits(workspace_id=workspace_id)


def reserved(workspace_id: str) -> dict[str, int]:
    """Return what all that a workspace may run already can take at most, by the name of its setting."""
    running = Topology.objects.filter(
        deployment__workspace_id=workspace_id, desired_status=State.RUNNING
    ).select_related("deployment")
    shares = [(row.deployment.settings, row.replicas_max) for row in running]
    return {
        setting: sum(settings[setting] * count for settings, count in shares)
        for setting in ("cpuMillicores", "memoryMib", "storageMib")
    }


def check_quota(deployment: Deployment, limits: Limits, instances: int) -> None:
    """Raise unless so many instances more fit in beside all that the workspace may run already.

    Raises:
        Terminal: with the first of CPU, memory and storage that is exceeded.
    """
    taken = reserved(deployment.workspace_id)
    for name, setting, limit in (
        ("CPU", "cpuMillicores", limits.cpu_millicores_max),
        ("Memory", "memoryMib", limits.memory_mib_max),
        ("Storage", "storageMib", limits.storage_mib_max),
    ):
        asked = deployment.settings[setting] * instances
        if taken[setting] + asked > limit:
            unit = "millicores" if name == "CPU" else "MiB"
            raise Terminal(
                f"{name.lower()}_quota_exceeded",
                f"We are unable to deploy this application as you have exceeded your {name} quota: it asks for "
                f"{asked} {unit}, and {taken[setting]} of {limit} are taken. Stop previews that are not needed "
                "(`unkey stop`), give the environment less or fewer instances, or ask your operator for a larger "
                "quota; then deploy again.",
            )
