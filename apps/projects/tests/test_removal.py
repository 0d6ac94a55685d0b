"""Deletion of projects, apps and environments: what is taken down, in which order, and that nothing stays."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import models

from apps.audit.models import AuditLog
from apps.cluster.models import Agent, Edge, Stream
from apps.cluster.tests.factories import AgentFactory, EdgeFactory
from apps.deployments import lifecycle
from apps.deployments.models import Deployment, Instance, OpenapiSpec, Topology
from apps.deployments.tests.conftest import Platform, make_platform, serve_programs
from apps.projects import removal
from apps.projects.models import App, Environment, Project
from apps.routing.models import FrontlineRoute, Sentinel
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.rpc.testing import Tenant, make_tenant
from unkey.tenancy import unscoped

HISTORY = {"audit", "workflows"}  # what happened stays told: the audit log, and runs until they are pruned
PLACE = {"project": "shop", "app": "default", "environment": "production"}
OPERATIONS = {
    "project": ("projects.deleteProject", {"project": "shop"}),
    "app": ("apps.deleteApp", {"project": "shop", "app": "default"}),
    "environment": ("environments.deleteEnvironment", PLACE),
}


@pytest.fixture(scope="module")
def shop(made_once: Callable[[], AbstractContextManager[None]]) -> Iterator[Platform]:
    """An app with something in every table that refers to a project, an app, an environment or a deployment."""
    with serve_programs() as programs, made_once():
        platform = make_platform(make_tenant())
        programs.answers["/openapi.yaml"] = (200, b"openapi: 3.0.3\npaths: {}\n")
        variables = [{"key": "A", "value": "1"}]
        platform.tenant("environments.setEnvironmentVariables", {**PLACE, "variables": variables})
        for environment in ("production", "production", "preview"):
            made = platform.create(environment)
            drain()
            platform.report(made, "running", address=programs.address)
            drain()
        platform.create("production")  # under way
        drain()
        yield platform


@pytest.fixture
def full(shop: Platform, db: None) -> Platform:
    """The app with something in every table."""
    return shop


def referring(ids: set[str]) -> Iterator[tuple[str, str, str]]:
    """Find every row of every table that mentions one of some ids anywhere."""
    with unscoped("test"):
        for model in apps.get_models():
            if model._meta.app_label in HISTORY:
                continue
            for row in model._default_manager.all():
                for field in model._meta.concrete_fields:
                    if isinstance(field, models.BinaryField):
                        continue
                    value = str(field.value_from_object(row))
                    yield from ((model._meta.label, field.name, each) for each in ids if each in value)


def owned(platform: Platform, scope: str) -> set[str]:
    """Return the ids of everything that goes with a project, an app or its production environment."""
    with unscoped("test"):
        environments = Environment.objects.filter(app__project__slug="shop")
        if scope == "environment":
            environments = environments.filter(slug="production")
        ids = set(environments.values_list("id", flat=True))
        ids |= set(Deployment.objects.filter(environment__in=environments).values_list("id", flat=True))
        if scope != "environment":
            ids |= set(App.objects.values_list("id", flat=True))
        if scope == "project":
            ids |= set(Project.objects.values_list("id", flat=True))
        return ids


def finish(platform: Platform) -> None:
    """Let the agents report that nothing runs, and the workflows end."""
    drain()
    for deployment in Deployment.objects.unscoped("test").values_list("id", flat=True):
        platform.report_none(deployment)
    with clock.shifted(timedelta(seconds=5)):
        drain()


@pytest.mark.parametrize("scope", OPERATIONS)
def test_nothing_refers_to_what_was_deleted(full: Platform, scope: str) -> None:
    ids = owned(full, scope)
    tables = {table for table, _, _ in referring(ids)}
    assert tables >= {
        "projects.App",
        "projects.Environment",
        "projects.EnvironmentVariable",
        "projects.EnvironmentRegion",
        "deployments.Deployment",
        "deployments.DeploymentStep",
        "deployments.Topology",
        "deployments.Instance",
        "deployments.OpenapiSpec",
        "deployments.ScheduledChange",
        "routing.FrontlineRoute",
        "routing.Sentinel",
    }
    full.tenant(*OPERATIONS[scope])
    finish(full)
    assert list(referring(ids)) == []
    assert WorkflowRun.objects.get(service=f"delete_{scope}").state == "succeeded"
    going = WorkflowRun.objects.exclude(state__in=("succeeded", "failed", "cancelled"))
    # What the other environment waits for goes on.
    assert {run.service for run in going} <= ({"desired_state"} if scope == "environment" else set())


def test_what_was_not_deleted_stays(full: Platform) -> None:
    other = Platform(full.tenant, app="other")
    full.tenant("apps.createApp", {"name": "Other", "slug": "other", "project": "shop"})
    live = other.deploy()
    full.tenant(*OPERATIONS["app"])
    finish(full)
    full.tenant.refused("apps.getApp", {"project": "shop", "app": "default"}, 404)
    with unscoped("test"):
        assert [row.id for row in Deployment.objects.all()] == [live]
        assert set(FrontlineRoute.objects.values_list("deployment_id", flat=True)) == {live}
    full.tenant("apps.createApp", {"name": "Again", "slug": "default", "project": "shop"})


def test_an_environment_goes_and_its_app_stays(full: Platform) -> None:
    full.tenant(*OPERATIONS["environment"])
    full.tenant.refused("environments.getEnvironment", PLACE, 404)
    full.tenant.refused("environments.deleteEnvironment", PLACE, 404)
    body = {**PLACE, "image": {"dockerImage": full.snapshot()}}
    full.tenant.refused("deployments.createDeployment", body, 404)
    finish(full)
    shown = full.tenant("apps.getApp", {"project": "shop", "app": "default"})
    assert "currentDeploymentId" not in shown
    names = full.tenant("environments.listEnvironments", {"project": "shop", "app": "default"})
    assert [row["slug"] for row in names] == ["preview"]
    preview = full.deploy("preview")
    assert full.get(preview)["status"] == "ready"


def test_every_level_is_told_of_in_the_audit_log_with_who_asked(full: Platform) -> None:
    full.tenant(*OPERATIONS["project"])
    finish(full)
    with unscoped("test"):
        rows = AuditLog.objects.filter(event__endswith=".delete")
        events = sorted((row.event, row.actor_type) for row in rows)
    assert events == [
        ("app.delete", "rootkey"),
        ("environment.delete", "rootkey"),
        ("environment.delete", "rootkey"),
        ("project.delete", "rootkey"),
    ]


@pytest.mark.parametrize("scope", OPERATIONS)
def test_what_is_protected_is_not_deleted(platform: Platform, scope: str) -> None:
    operation, body = OPERATIONS[scope]
    protect = {
        "project": "projects.updateProject",
        "app": "apps.updateApp",
        "environment": "environments.updateSettings",
    }[scope]
    platform.tenant(protect, {**body, "deleteProtection": True})
    error = platform.tenant.refused(operation, body, 412)
    assert error["type"].endswith("/protected_resource")
    assert not WorkflowRun.objects.filter(workspace_id=platform.tenant.workspace.id).exists()
    platform.tenant(protect, {**body, "deleteProtection": False})
    platform.tenant(operation, body)


def test_a_deployment_that_is_under_way_is_cancelled_and_says_why(platform: Platform) -> None:
    made = platform.create()
    drain()
    assert platform.row(made).status == "deploying"
    platform.tenant(*OPERATIONS["app"])

    rows = Deployment.objects.unscoped("test")
    drain()
    row = rows.get(pk=made)
    assert (row.status, row.desired_state) == ("cancelled", "stopped")
    assert row.steps.get(step="deploying").error == lifecycle.ENVIRONMENT_DELETED
    assert WorkflowRun.objects.get(service="deploy", input__deployment_id=made).state == "cancelled"
    assert Topology.objects.get(deployment=made).desired_status == "stopped"


def test_rows_stay_until_every_agent_and_edge_has_seen_the_end(full: Platform) -> None:
    agent, edge = AgentFactory.create(), EdgeFactory.create()
    full.tenant(*OPERATIONS["project"])
    finish(full)
    assert WorkflowRun.objects.get(service="delete_project").state == "waiting"
    assert Topology.objects.exists()
    assert FrontlineRoute.objects.unscoped("test").exclude(deleted_at=None).exists()
    versions = dict(Stream.objects.values_list("name", "version"))
    Agent.objects.filter(pk=agent.pk).update(applied=versions)
    with clock.shifted(timedelta(seconds=10)):
        drain()
    assert not Topology.objects.exists() or FrontlineRoute.objects.unscoped("test").exists()
    Edge.objects.filter(pk=edge.pk).update(applied=versions)
    with clock.shifted(timedelta(seconds=20)):
        drain()
    assert not Project.objects.unscoped("test").exists()


def test_an_agent_that_never_answers_is_not_waited_for_for_ever(full: Platform) -> None:
    full.tenant(*OPERATIONS["project"])
    drain()
    with clock.shifted(timedelta(seconds=5)):
        drain()
    assert WorkflowRun.objects.get(service="delete_project").current_step == "wait_for_instances"
    with clock.shifted(timedelta(minutes=6)):
        drain()
    assert not Project.objects.unscoped("test").exists()
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    "part", ["remove_routes", "stop_deployments", "end_runs", "release_slug", "remove_rows", "remove_apps"]
)
def test_a_deletion_that_breaks_off_anywhere_goes_on(
    full: Platform, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    ids = owned(full, "project")
    done = getattr(removal, part)
    calls: list[int] = []

    def crash(*args: Any) -> Any:
        result = done(*args)
        calls.append(1)
        if len(calls) in (1, 2):
            raise ConnectionError("the database went away")
        return result

    monkeypatch.setattr(removal, part, crash)
    full.tenant(*OPERATIONS["project"])
    for minute in range(1, 4):
        with clock.shifted(timedelta(minutes=minute)):
            finish(full)
    assert len(calls) > 2
    assert list(referring(ids)) == []


def test_two_deletions_of_one_thing_and_its_owner_both_end(full: Platform) -> None:
    full.tenant(*OPERATIONS["environment"])
    full.tenant(*OPERATIONS["app"])
    full.tenant(*OPERATIONS["project"])
    finish(full)
    finish(full)
    states = WorkflowRun.objects.filter(service__startswith="delete_").values_list("state", flat=True)
    assert list(states) == ["succeeded"] * 3
    assert not Project.objects.unscoped("test").exists()
    assert not Sentinel.objects.exists()
    assert not OpenapiSpec.objects.unscoped("test").exists()


def test_many_deployments_go_in_bounded_batches(full: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "BATCH", 1)
    ids = owned(full, "project")
    full.tenant(*OPERATIONS["project"])
    for minute in range(1, 4):  # a batch that met another's streams is tried again
        with clock.shifted(timedelta(minutes=minute)):
            finish(full)
    assert list(referring(ids)) == []


def test_another_workspace_deletes_nothing(full: Platform, stranger: Tenant) -> None:
    for operation, body in OPERATIONS.values():
        stranger.refused(operation, body, 404)
    assert Project.objects.unscoped("test").filter(deleting_at=None).count() == 1


def test_a_slug_that_is_being_taken_down_says_so(platform: Platform) -> None:
    platform.deploy()  # it runs, so that the end takes a while
    gone = "was deleted and is still being taken down. Try again when it is gone, or choose another slug."
    app = {"project": "shop", "name": "x", "slug": "default"}
    platform.tenant("apps.deleteApp", platform.names)
    error = platform.tenant.refused("apps.createApp", app, 409)
    assert error["detail"] == f"The app with the slug 'default' {gone}"
    platform.tenant("projects.deleteProject", {"project": "shop"})
    error = platform.tenant.refused("projects.createProject", {"name": "x", "slug": "shop"}, 409)
    assert error["detail"] == f"The project with the slug 'shop' {gone}"
    finish(platform)
    platform.tenant("projects.createProject", {"name": "x", "slug": "shop"})
    platform.tenant("apps.createApp", app)
