"""Reads of routing."""

from apps.routing.models import FrontlineRoute
from unkey.tenancy import unscoped


def hosts_of(deployment_ids: list[str]) -> dict[str, list[str]]:
    """Return the host names that each of these deployments answers, live and environment names first.

    The caller has already found the deployments in a workspace.
    """
    order = {sticky: place for place, sticky in enumerate(("live", "environment", "branch", "none"))}
    found: dict[str, list[tuple[int, str]]] = {identifier: [] for identifier in deployment_ids}
    with unscoped("routes of deployments that the caller may see"):
        rows = FrontlineRoute.objects.filter(deployment_id__in=deployment_ids, deleted_at=None)
        for owner, sticky, fqdn in rows.values_list("deployment_id", "sticky", "fqdn"):
            found[owner].append((order.get(sticky, len(order)), fqdn))
    return {identifier: [fqdn for _, fqdn in sorted(hosts)] for identifier, hosts in found.items()}
