"""Takes down what a deleted app had: its routes, its running deployments, its hold on its slug.

Every function runs inside its caller's transaction, may be repeated, and says whether it changed
anything: a deploy that was under way when the app was deleted may add something in between.
"""

from collections.abc import Sequence

from apps.cluster import versions
from apps.deployments import lifecycle
from apps.deployments.models import Deployment, Topology
from apps.projects.models import App, Project
from apps.routing.models import FrontlineRoute
from unkey import clock

SLUG_MAX = 255


def app_ids(project_id: str) -> list[str]:
    """Return the ids of all apps of a project, deleted ones too."""
    return list(App.objects.filter(project_id=project_id).order_by("id").values_list("id", flat=True))


def remove_routes(apps: Sequence[str]) -> bool:
    """Let the apps' host names answer no more; the rows stay so that every edge learns of it."""
    rows = FrontlineRoute.objects.select_for_update().filter(app_id__in=apps, deleted_at=None)
    found = list(rows.order_by("fqdn"))
    for route in found:
        route.deleted_at = clock.now()
        versions.stamp(route)
        route.save(update_fields=["deleted_at", "version"])
    return bool(found)


def stop_deployments(apps: Sequence[str]) -> bool:
    """Stop the apps' deployments in every region; those still under way fail."""
    rows = Deployment.objects.filter(app_id__in=apps, desired_state=Deployment.DesiredState.RUNNING)
    ids = list(rows.order_by("id").values_list("id", flat=True))
    # All of them before the first version is taken: who waits for a deployment must not hold a stream
    # that the deployment's holder needs. And every stream at once, since their regions may differ.
    found = [lifecycle.lock(deployment_id) for deployment_id in ids]
    regions = Topology.objects.filter(deployment_id__in=ids).values_list("region__name", flat=True)
    if found:
        versions.hold(["sentinels", *(f"topologies:{region}" for region in set(regions))])
    for deployment in found:
        lifecycle.cancel_scheduled(deployment)
        lifecycle.fail(deployment, "unknown", "The app was deleted.")
        lifecycle.set_desired_state(deployment, Deployment.DesiredState.STOPPED)
    return bool(found)


def release_slug(row: Project | App) -> None:
    """Make the slug of a deleted row free for others; `~` can be in no slug that is asked for."""
    suffix = f"~{row.pk}"
    if not row.slug.endswith(suffix):
        row.slug = row.slug[: SLUG_MAX - len(suffix)] + suffix
        row.save(update_fields=["slug"])
