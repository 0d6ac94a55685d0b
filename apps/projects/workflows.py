"""Deletion of projects, apps and environments: out of sight at once, taken down and removed here.

Top-down: host names, what runs, what agents and edges still have to learn, deployments, environments,
apps, and the project last, so that no row ever refers to one that is gone. Shares the keys of the
deploy workflows: no step of a deploy runs at the same time.
"""

from django.db.models import Q

from apps.projects import removal
from apps.projects.models import App, Environment, Project
from apps.workflows.engine import Run, Wait, Workflow, step

INSTANCES_DEADLINE_SECONDS = 300.0
POLL_SECONDS = 1.0


def _environments(run: Run) -> list[str]:
    if "environment_id" in run.input:
        return removal.environment_ids(Q(pk=run.input["environment_id"]))
    if "app_id" in run.input:
        return removal.environment_ids(Q(app_id=run.input["app_id"]))
    return removal.environment_ids(Q(app__project_id=run.input["project_id"]))


def _owners(run: Run) -> list[Project | App | Environment]:
    if "environment_id" in run.input:
        return list(Environment.objects.filter(pk=run.input["environment_id"]))
    if "app_id" in run.input:
        return list(App.objects.filter(pk=run.input["app_id"]))
    project = run.input["project_id"]
    return [*App.objects.filter(project_id=project), *Project.objects.filter(pk=project)]


@step
def remove_routes(run: Run) -> Wait | None:
    """Let the host names answer no more."""
    return Wait(seconds=0) if removal.remove_routes(_environments(run)) else None


@step
def stop_deployments(run: Run) -> Wait | None:
    """Stop what runs and end what is under way, until a look around finds nothing new."""
    environments = _environments(run)
    if removal.stop_deployments(environments) or removal.remove_routes(environments):
        return Wait(seconds=0)
    return Wait(seconds=POLL_SECONDS) if removal.end_runs(environments) else None


@step
def release_slugs(run: Run) -> None:
    """Let others have the slugs: nothing answers by them any more."""
    for row in _owners(run):
        removal.release_slug(row)


@step
def wait_for_instances(run: Run) -> Wait | None:
    """Wait until the agents have reported that nothing runs; one that is away is not waited for long."""
    environments = _environments(run)
    if not removal.instances_left(environments):
        return None
    if run.wait_expired:
        removal.give_up_instances(environments)
        return None
    return Wait(seconds=POLL_SECONDS, deadline=INSTANCES_DEADLINE_SECONDS)


@step
def remove_rows(run: Run) -> Wait | None:
    """Remove deployments and all of theirs, some at a time, as soon as every satellite knows their end."""
    environments = _environments(run)
    before = removal.rows(environments)
    if not removal.remove_rows(environments):
        return None
    return Wait(seconds=0 if removal.rows(environments) < before else POLL_SECONDS)


@step
def remove_owners(run: Run) -> None:
    """Remove the environments, then the apps, then the project."""
    actor = removal.actor_of(run.input["actor"])
    alone = "environment_id" not in run.input and "app_id" not in run.input
    if "environment_id" not in run.input:
        removal.remove_environments(_environments(run), actor)
    else:
        Environment.objects.filter(pk=run.input["environment_id"]).delete()
    if "app_id" in run.input:
        removal.remove_apps(App.objects.filter(pk=run.input["app_id"]), None)
    if alone:
        removal.remove_apps(App.objects.filter(project_id=run.input["project_id"]), actor)
        Project.objects.filter(pk=run.input["project_id"]).delete()


class _Delete(Workflow):
    key = "project_id"
    key_space = "project"
    exclusive = False
    steps = (remove_routes, stop_deployments, release_slugs, wait_for_instances, remove_rows, remove_owners)


class DeleteProject(_Delete):
    """Removes every app of a project, and then the project."""

    service = "delete_project"


class DeleteApp(_Delete):
    """Removes one app with its environments."""

    service = "delete_app"


class DeleteEnvironment(_Delete):
    """Removes one environment; its app stays."""

    service = "delete_environment"
