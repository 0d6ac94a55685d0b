"""Takes down environments that are being deleted, and removes every row of theirs.

An end is a state first: routes that are gone, instances that are gone and topologies that are stopped stay
until every satellite has seen them so; then the rows go. Every function runs inside its caller's
transaction, does a bounded part, may be repeated, and says whether something is left to do: a deploy
that was under way when the deletion was asked for may add something in between.
"""

from collections.abc import Sequence
from typing import Any

from django.db.models import Q, QuerySet

from apps.audit import services as audit
from apps.cluster import compaction, versions
from apps.deployments import lifecycle
from apps.deployments.models import Deployment, Instance, Topology
from apps.projects.models import App, Environment, Project
from apps.routing.models import FrontlineRoute
from apps.workflows.engine import State, WorkflowRun, cancel
from unkey import clock
from unkey.actors import Actor

BATCH = 50
SLUG_MAX = 255
_GOING = (State.PENDING, State.RUNNING, State.WAITING, State.COMPENSATING)


def environment_ids(where: Q) -> list[str]:
    """Return the ids of environments that are being deleted or whose app or project is."""
    return list(Environment.objects.filter(where).order_by("id").values_list("id", flat=True))


def remove_routes(environments: Sequence[str]) -> bool:
    """Let host names answer no more; the rows stay so that every edge learns of it."""
    rows = FrontlineRoute.objects.select_for_update().filter(environment_id__in=environments, deleted_at=None)
    found = list(rows.order_by("fqdn")[:BATCH])
    for route in found:
        route.deleted_at = clock.now()
        versions.stamp(route)
        route.save(update_fields=["deleted_at", "version"])
    return bool(found)


def stop_deployments(environments: Sequence[str]) -> bool:
    """Stop deployments in every region, and end what was still under way."""
    unfinished = Q(desired_state=Deployment.DesiredState.RUNNING) | ~Q(status__in=Deployment.TERMINAL)
    rows = Deployment.objects.filter(unfinished, environment_id__in=environments)
    found = [
        (deployment_id, app_id)
        for deployment_id, app_id in rows.order_by("app_id", "id").values_list("id", "app_id")[:BATCH]
    ]
    for app_id in sorted({app_id for _, app_id in found}):
        app = lifecycle.lock_app(app_id)
        if app.current_deployment_id in {each for each, of in found if of == app_id}:
            app.current_deployment = None
            app.is_rolled_back = False
            app.save(update_fields=["current_deployment", "is_rolled_back"])
    deployments = [lifecycle.lock(deployment_id) for deployment_id, _ in found]
    lifecycle.hold_streams([deployment.id for deployment in deployments])
    for deployment in deployments:
        lifecycle.cancel_scheduled(deployment)
        lifecycle.give_up(deployment, Deployment.Status.CANCELLED, lifecycle.ENVIRONMENT_DELETED)
        lifecycle.set_desired_state(deployment, Deployment.DesiredState.STOPPED)
    return bool(found)


def end_runs(environments: Sequence[str]) -> bool:
    """Cancel the workflows of deployments that are going away; True while one of them still goes on."""
    deployments = list(
        Deployment.objects.filter(environment_id__in=environments).values_list("id", flat=True)
    )
    left = False
    for start in range(0, len(deployments), BATCH):
        runs = WorkflowRun.objects.filter(
            state__in=_GOING, input__deployment_id__in=deployments[start : start + BATCH]
        )
        for run in runs.order_by("id"):
            cancel(run.id)
            left = True
    return left


def instances_left(environments: Sequence[str]) -> bool:
    """Say whether an agent still has to report that something has stopped."""
    rows = Instance.objects.filter(deployment__environment_id__in=environments)
    return bool(rows.exclude(status=Instance.Status.GONE).exists())


def give_up_instances(environments: Sequence[str]) -> None:
    """Mark instances as gone whose agent does not answer; it stops them when it is back."""
    rows = Instance.objects.select_for_update().filter(deployment__environment_id__in=environments)
    for instance in rows.exclude(status=Instance.Status.GONE).order_by("id"):
        instance.status = Instance.Status.GONE
        instance.updated_at = clock.now()
        versions.stamp(instance)
        instance.save(update_fields=["status", "updated_at", "version"])


def rows(environments: Sequence[str]) -> int:
    """Count what `remove_rows` has to remove."""
    deployments = Q(deployment__environment_id__in=environments)
    return (
        Deployment.objects.filter(environment_id__in=environments).count()
        + FrontlineRoute.objects.filter(environment_id__in=environments).count()
        + Topology.objects.filter(deployments).count()
        + Instance.objects.filter(deployments).count()
    )


def remove_rows(environments: Sequence[str]) -> bool:
    """Remove what every satellite has passed, deployments last; True while something is left."""
    deployments = Deployment.objects.filter(environment_id__in=environments)
    ids = list(deployments.order_by("id").values_list("id", flat=True)[:BATCH])
    seen = [
        compaction.remove_instances(ids),
        compaction.remove_routes(environments),
        compaction.remove_topologies(ids),
    ]
    if not all(seen):
        return True
    deployments.filter(pk__in=ids).delete()
    return deployments.exists()


def remove_environments(environments: Sequence[str], actor: Actor) -> None:
    """Remove environments that have no deployments any more, with their variables and settings."""
    for environment in Environment.objects.filter(pk__in=environments).order_by("id"):
        audit.record(
            "environment.delete", actor=actor, workspace_id=environment.workspace_id, targets=[environment]
        )
        environment.delete()


def remove_apps(apps: "QuerySet[App]", actor: Actor | None) -> None:
    """Remove apps that have no environments any more; with an actor, the audit log is told."""
    for app in apps.order_by("id"):
        if actor is not None:
            audit.record("app.delete", actor=actor, workspace_id=app.workspace_id, targets=[app])
        app.delete()


def release_slug(row: Project | App | Environment) -> None:
    """Make the slug of a deleted row free for others; `~` can be in no slug that is asked for."""
    suffix = f"~{row.pk}"
    if not row.slug.endswith(suffix):
        row.slug = row.slug[: SLUG_MAX - len(suffix)] + suffix
        row.save(update_fields=["slug"])


def actor_of(said: dict[str, Any]) -> Actor:
    """Return the actor that a workflow's input carries."""
    return Actor(**said)
