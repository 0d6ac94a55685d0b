"""Deletion of projects and apps: out of sight at once, taken down here.

Shares the keys of the deploy workflows, so that no step of a deploy runs at the same time.
"""

from apps.projects import removal
from apps.projects.models import App, Project
from apps.workflows.engine import Run, Wait, Workflow, step


def _apps(run: Run) -> list[str]:
    one = run.input.get("app_id")
    return [one] if one else removal.app_ids(run.input["project_id"])


@step
def remove_routes(run: Run) -> None:
    """Let the host names answer no more."""
    removal.remove_routes(_apps(run))


@step
def stop_deployments(run: Run) -> None:
    """Stop what runs."""
    removal.stop_deployments(_apps(run))


@step
def release_slugs(run: Run) -> Wait | None:
    """Free the slugs, once a look around finds nothing that a deploy left behind meanwhile."""
    apps = _apps(run)
    again = [removal.remove_routes(apps), removal.stop_deployments(apps)]
    if any(again):
        return Wait(seconds=1)
    for app in App.objects.filter(pk__in=apps):
        removal.release_slug(app)
    if not run.input.get("app_id"):
        removal.release_slug(Project.objects.get(pk=run.input["project_id"]))
    return None


class DeleteProject(Workflow):
    """Takes down every app of a project."""

    service = "delete_project"
    key = "project_id"
    key_space = "project"
    exclusive = False
    steps = (remove_routes, stop_deployments, release_slugs)


class DeleteApp(Workflow):
    """Takes down one app."""

    service = "delete_app"
    key = "project_id"
    key_space = "project"
    exclusive = False
    steps = (remove_routes, stop_deployments, release_slugs)
