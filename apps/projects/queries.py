"""Reads of projects, apps, environments and variables, inside the caller's workspace scope.

What is being deleted is not found any more. People may name a thing by its id or by its slug; if one
thing's slug is another's id, the id wins.
"""

from collections.abc import Sequence
from typing import TypeVar

from django.db.models import Prefetch, Q, QuerySet

from apps.projects.models import App, Environment, EnvironmentRegion, EnvironmentVariable, Project
from apps.vault import services as vault
from unkey import errors
from unkey.search import containing

_M = TypeVar("_M", Project, App, Environment)


def projects(search: str = "") -> "QuerySet[Project]":
    """Return the projects of the workspace; `search` looks in id, name and slug."""
    rows = Project.objects.filter(deleting_at=None)
    return rows.filter(containing(search, "id", "name", "slug")) if search else rows


def find_project(name: str) -> Project:
    """Return a project by id or slug.

    Raises:
        errors.ProjectNotFound
    """
    found = _by_id_or_slug(projects(), name)
    if found is None:
        raise project_not_found()
    return found


def apps(project: Project, search: str = "") -> "QuerySet[App]":
    """Return the apps of a project; `search` looks in id, name and slug."""
    rows = App.objects.filter(project=project, deleting_at=None).select_related("project")
    return rows.filter(containing(search, "id", "name", "slug")) if search else rows


def find_app(project: str, app: str) -> App:
    """Return an app with its project, each by id or slug.

    Raises:
        errors.ProjectNotFound, errors.AppNotFound
    """
    found = _by_id_or_slug(apps(find_project(project)), app)
    if found is None:
        raise app_not_found()
    return found


def environments(app: App) -> "QuerySet[Environment]":
    """Return the environments of an app with their regions, production first."""
    regions = EnvironmentRegion.objects.select_related("region").order_by("region__name")
    return (
        Environment.objects.filter(app=app, deleting_at=None)
        .select_related("app__project")
        .prefetch_related(Prefetch("regions", queryset=regions))
        .order_by("-kind", "id")
    )


def find_environment(project: str, app: str, environment: str) -> Environment:
    """Return an environment with its app, project and regions, each by id or slug.

    Raises:
        errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound
    """
    found = _by_id_or_slug(environments(find_app(project, app)), environment)
    if found is None:
        raise environment_not_found()
    return found


def variables(environment: Environment) -> "QuerySet[EnvironmentVariable]":
    """Return the variables of an environment, still encrypted."""
    return EnvironmentVariable.objects.filter(environment=environment)


def revealed(rows: Sequence[EnvironmentVariable]) -> dict[str, str]:
    """Return the values of those variables that may be read back, by id.

    Raises:
        apps.vault.errors.VaultError: a value cannot be decrypted.
    """
    return {
        row.id: vault.decrypt(row.environment_id, row.ciphertext)
        for row in rows
        if row.kind == EnvironmentVariable.Kind.RECOVERABLE
    }


def project_not_found() -> errors.Fault:
    """The refusal that also hides a project from those who may not see it."""
    return errors.ProjectNotFound("The requested project does not exist.")


def app_not_found() -> errors.Fault:
    """The refusal that also hides an app from those who may not see it."""
    return errors.AppNotFound("The requested app does not exist.")


def environment_not_found() -> errors.Fault:
    """The refusal that also hides an environment from those who may not see it."""
    return errors.EnvironmentNotFound("The requested environment does not exist.")


def _by_id_or_slug(rows: "QuerySet[_M]", name: str) -> _M | None:
    found = list(rows.filter(Q(pk=name) | Q(slug=name)))
    return next((row for row in found if row.pk == name), found[0] if found else None)
