"""Projects, apps and environments as callers of `/v2` see them."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.cluster.models import Region
from apps.deployments.models import Deployment, Topology
from apps.projects.models import App, Environment, EnvironmentVariable, Project
from apps.quota.models import Limits
from apps.routing.models import FrontlineRoute
from apps.vault import services as vault
from apps.vault.errors import VaultUnavailable
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

ENV = {"project": "shop", "app": "api", "environment": "production"}


@pytest.fixture
def project(tenant: Tenant) -> str:
    created: str = tenant("projects.createProject", {"name": "Shop", "slug": "shop"})["id"]
    return created


@pytest.fixture
def app(tenant: Tenant, project: str) -> str:
    created: str = tenant("apps.createApp", {"project": project, "name": "Api", "slug": "api"})["appId"]
    return created


@pytest.fixture
def environment(tenant: Tenant, app: str) -> str:
    found: str = tenant("environments.getEnvironment", ENV)["id"]
    return found


def events(tenant: Tenant) -> list[tuple[str, dict[str, Any]]]:
    with unscoped("test"):
        rows = AuditLog.objects.filter(workspace=tenant.workspace, actor_type="rootkey").order_by("time")
        return [(row.event, row.meta) for row in rows]


# Projects


def test_a_created_project_is_found_by_id_and_slug(tenant: Tenant, project: str) -> None:
    shown = tenant("projects.getProject", {"project": project})
    created = shown.pop("createdAt")
    assert isinstance(created, int)
    assert shown == {"id": project, "name": "Shop", "slug": "shop", "deleteProtection": False}
    assert tenant("projects.getProject", {"project": "shop"})["id"] == project
    assert project.startswith("proj_")
    assert events(tenant) == [("project.create", {})]


def test_a_slug_is_taken_once_per_workspace(tenant: Tenant, stranger: Tenant, project: str) -> None:
    error = tenant.refused("projects.createProject", {"name": "x", "slug": "shop"}, 409)
    assert error["type"].endswith("/unkey/data/project_already_exists")
    assert error["detail"] == "A project with the slug 'shop' already exists. Choose another slug."
    stranger("projects.createProject", {"name": "x", "slug": "shop"})
    with unscoped("test"):
        assert Project.objects.count() == 2


@pytest.mark.parametrize("slug", ["default", "DEFAULT", "Default"])
def test_the_slug_default_is_reserved(tenant: Tenant, project: str, slug: str) -> None:
    for operation, body in (
        ("projects.createProject", {"name": "x", "slug": slug}),
        ("projects.updateProject", {"project": project, "slug": slug}),
    ):
        error = tenant.refused(operation, body, 400)
        assert error["detail"] == f"The project slug '{slug}' is reserved."
        assert error["errors"][0]["location"] == "body.slug"


@pytest.mark.parametrize(
    ("body", "locations"),
    [
        ({}, ["body.name", "body.slug"]),
        ({"name": "", "slug": "ab"}, ["body.name", "body.slug"]),
        ({"name": "x" * 257, "slug": "a b"}, ["body.name", "body.slug"]),
        ({"name": 1, "slug": None}, ["body.name", "body.slug"]),
        ({"name": "x", "slug": "abc", "more": 1}, ["body.more"]),
    ],
)
def test_faults_of_a_new_project_are_all_named(
    tenant: Tenant, body: dict[str, Any], locations: list[str]
) -> None:
    error = tenant.refused("projects.createProject", body, 400)
    assert sorted(fault["location"] for fault in error["errors"]) == locations
    with unscoped("test"):
        assert not Project.objects.exists()


def test_projects_are_listed_by_page_and_searched(tenant: Tenant, stranger: Tenant) -> None:
    stranger("projects.createProject", {"name": "theirs", "slug": "theirs"})
    made = sorted(
        tenant("projects.createProject", {"name": name, "slug": slug})["id"]
        for name, slug in (("One", "first"), ("100%", "second"), ("ÄRGER", "third_x"))
    )
    first = tenant.full("projects.listProjects", {"limit": 2})
    assert [row["id"] for row in first["data"]] == made[:2]
    assert first["pagination"] == {"hasMore": True, "cursor": made[2]}
    last = tenant.full("projects.listProjects", {"limit": 2, "cursor": made[2]})
    assert [row["id"] for row in last["data"]] == made[2:]
    assert last["pagination"] == {"hasMore": False}

    def search(text: str) -> list[str]:
        return sorted(row["slug"] for row in tenant("projects.listProjects", {"search": text}))

    assert search("") == ["first", "second", "third_x"]
    assert search("ONE") == search("irs") == ["first"]
    assert search("0%") == ["second"]
    assert search("%") == ["second"]
    assert search("d_x") == search("ÄRGER") == ["third_x"]
    assert search("nothing") == []
    assert search(made[0]) == [tenant("projects.getProject", {"project": made[0]})["slug"]]


def test_only_given_fields_change(tenant: Tenant, project: str) -> None:
    tenant("projects.createProject", {"name": "x", "slug": "other"})
    shown = tenant("projects.updateProject", {"project": "shop", "name": "New", "deleteProtection": True})
    assert (shown["name"], shown["slug"], shown["deleteProtection"]) == ("New", "shop", True)
    assert isinstance(shown["updatedAt"], int)
    assert tenant("projects.updateProject", {"project": "shop"})["name"] == "New"
    tenant.refused("projects.updateProject", {"project": "shop", "slug": "other"}, 409)
    assert tenant("projects.updateProject", {"project": "shop", "slug": "store"})["slug"] == "store"
    tenant.refused("projects.getProject", {"project": "shop"}, 404)
    assert events(tenant)[2:] == [
        ("project.update", {"name": "New", "delete_protection": True}),
        ("project.update", {"slug": "store"}),
    ]


# Apps


def test_an_app_comes_with_two_environments_with_default_settings(tenant: Tenant, app: str) -> None:
    shown = tenant("apps.getApp", {"project": "shop", "app": "api"})
    del shown["createdAt"]
    assert shown == {
        "id": app,
        "name": "Api",
        "slug": "api",
        "isRolledBack": False,
        "deleteProtection": False,
    }
    production, preview = tenant("environments.listEnvironments", {"project": "shop", "app": app})
    assert (production["slug"], production["kind"]) == ("production", "production")
    assert (preview["slug"], preview["kind"]) == ("preview", "preview")
    del production["createdAt"]
    assert production == {
        "id": production["id"],
        "slug": "production",
        "description": "",
        "kind": "production",
        "deleteProtection": False,
        "runtime": {
            "port": 8080,
            "vCpus": 0.25,
            "memoryMib": 256,
            "storageMib": 0,
            "command": [],
            "shutdownSignal": "SIGTERM",
            "upstreamProtocol": "http1",
        },
        "build": {"rootDirectory": ".", "watchPaths": [], "autoDeploy": True},
        "regions": [{"name": "local", "replicas": {"min": 1, "max": 1}}],
    }


def test_app_slugs_are_taken_once_per_project(tenant: Tenant, app: str) -> None:
    body = {"project": "shop", "name": "x", "slug": "api"}
    error = tenant.refused("apps.createApp", body, 409)
    assert error["type"].endswith("/unkey/data/app_already_exists")
    tenant("projects.createProject", {"name": "x", "slug": "other"})
    tenant("apps.createApp", {**body, "project": "other"})
    with unscoped("test"):
        assert Environment.objects.count() == 4


def test_a_repository_cannot_be_connected_yet_and_nothing_is_made(tenant: Tenant, project: str) -> None:
    body = {"project": "shop", "name": "x", "slug": "api", "git": {"repository": "acme/api"}}
    error = tenant.refused("apps.createApp", body, 412)
    assert error["type"].endswith("/unkey/application/precondition_failed")
    tenant.refused("apps.getApp", {"project": "shop", "app": "api"}, 404)
    limited = tenant.holding("project.*.create_app")
    assert limited.refused("apps.createApp", body, 403)["detail"] == (
        "Missing permission: 'app.*.connect_repository'"
    )


def test_an_empty_git_connects_nothing_yet(tenant: Tenant, project: str) -> None:
    limited = tenant.holding("project.*.create_app")
    body = {"project": "shop", "name": "x", "slug": "api", "git": {}}
    made = limited("apps.createApp", body)["appId"]
    shown = tenant("apps.getApp", {"project": "shop", "app": made})
    assert "git" not in shown

    error = tenant.refused("apps.createApp", {**body, "slug": "web", "git": {"defaultBranch": "main"}}, 400)
    assert error["errors"][0]["location"] == "body.git"
    tenant.refused("apps.getApp", {"project": "shop", "app": "web"}, 404)


def test_an_app_is_changed(tenant: Tenant, app: str) -> None:
    names = {"project": "shop", "app": "api"}
    shown = tenant("apps.updateApp", {**names, "name": "New", "slug": "web", "git": None})
    assert (shown["id"], shown["name"], shown["slug"]) == (app, "New", "web")
    assert "git" not in shown
    names["app"] = "web"
    tenant.refused("apps.updateApp", {**names, "git": {}}, 400)
    error = tenant.refused("apps.updateApp", {**names, "git": {"defaultBranch": "main"}}, 400)
    assert error["errors"][0]["location"] == "body.git"
    tenant.refused("apps.updateApp", {**names, "git": {"repository": "a/b"}, "name": "lost"}, 412)
    assert tenant("apps.getApp", names)["name"] == "New"
    assert events(tenant)[-1] == ("app.update", {"name": "New", "slug": "web"})


def test_apps_are_listed_and_searched(tenant: Tenant, app: str) -> None:
    other = tenant("apps.createApp", {"project": "shop", "name": "Web", "slug": "web"})["appId"]
    full = tenant.full("apps.listApps", {"project": "shop", "limit": 1})
    assert full["pagination"] == {"hasMore": True, "cursor": max(app, other)}
    assert [row["slug"] for row in tenant("apps.listApps", {"project": "shop", "search": "WEB"})] == ["web"]
    tenant.refused("apps.listApps", {"project": "nothing"}, 404)


# Permissions


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("projects.createProject", {"name": "x", "slug": "new"}, 403),
        ("projects.getProject", {"project": "shop"}, 404),
        ("projects.listProjects", {}, 403),
        ("projects.updateProject", {"project": "shop", "name": "x"}, 403),
        ("projects.deleteProject", {"project": "shop"}, 403),
        ("apps.createApp", {"project": "shop", "name": "x", "slug": "new"}, 403),
        ("apps.getApp", {"project": "shop", "app": "api"}, 404),
        ("apps.listApps", {"project": "shop"}, 404),
        ("apps.updateApp", {"project": "shop", "app": "api", "name": "x"}, 403),
        ("apps.updateApp", {"project": "shop", "app": "api", "git": None}, 403),
        ("apps.deleteApp", {"project": "shop", "app": "api"}, 403),
        ("environments.getEnvironment", ENV, 404),
        ("environments.listEnvironments", {"project": "shop", "app": "api"}, 404),
        ("environments.listEnvironmentVariables", ENV, 403),
        ("environments.setEnvironmentVariables", {**ENV, "variables": [{"key": "A", "value": "1"}]}, 403),
        ("environments.removeEnvironmentVariables", {**ENV, "variables": ["A"]}, 403),
        ("environments.updateSettings", {**ENV, "port": 1}, 403),
    ],
)
def test_without_the_permission_or_from_another_workspace_nothing_happens(
    tenant: Tenant, stranger: Tenant, app: str, operation: str, body: dict[str, Any], status: int
) -> None:
    before = events(tenant)
    tenant.holding("api.*.read_api").refused(operation, body, status)
    if "project" in body:
        stranger.refused(operation, body, 404)
    assert events(tenant) == before
    with unscoped("test"):
        assert Project.objects.get().name == "Shop"
        assert Environment.objects.filter(port=8080).count() == 2
        assert not EnvironmentVariable.objects.exists()


@pytest.mark.parametrize(
    ("operation", "body", "permission"),
    [
        ("projects.createProject", {"name": "x", "slug": "new"}, "projects/*#create_project"),
        ("projects.getProject", {"project": "shop"}, "project.{project}.read_project"),
        ("projects.updateProject", {"project": "shop"}, "projects/{project}#update_project"),
        ("projects.deleteProject", {"project": "shop"}, "project.{project}.delete_project"),
        (
            "apps.createApp",
            {"project": "shop", "name": "x", "slug": "new"},
            "projects/{project}/apps/*#create_app",
        ),
        ("apps.getApp", {"project": "shop", "app": "api"}, "app.{app}.read_app"),
        ("apps.listApps", {"project": "shop"}, "app.*.read_app"),
        ("apps.updateApp", {"project": "shop", "app": "api", "git": None}, "app.{app}.connect_repository"),
        ("apps.updateApp", {"project": "shop", "app": "api", "name": "x"}, "app.*.update_app"),
        ("apps.deleteApp", {"project": "shop", "app": "api"}, "projects/{project}/apps/{app}#delete_app"),
        ("environments.getEnvironment", ENV, "environment.{environment}.read_environment"),
        (
            "environments.listEnvironments",
            {"project": "shop", "app": "api"},
            "projects/{project}/apps/{app}/environments/*#read_environment",
        ),
        (
            "environments.setEnvironmentVariables",
            {**ENV, "variables": []},
            "projects/{project}/**#set_environment_variables",
        ),
        ("environments.updateSettings", {**ENV, "port": 1}, "environment.*.update_environment"),
    ],
)
def test_one_permission_suffices(
    tenant: Tenant,
    project: str,
    app: str,
    environment: str,
    operation: str,
    body: dict[str, Any],
    permission: str,
) -> None:
    text = permission.format(project=project, app=app, environment=environment)
    if "#" in text:
        text = f"unkey:v1:{tenant.workspace.id}:{text}"
    tenant.holding(text)(operation, body)


# Variables


def variables(tenant: Tenant) -> list[dict[str, Any]]:
    rows = tenant("environments.listEnvironmentVariables", ENV)
    for row in rows:
        del row["createdAt"]
    found: list[dict[str, Any]] = sorted(rows, key=lambda row: row["key"])
    return found


def test_variables_are_set_encrypted_and_only_recoverable_ones_read_back(
    tenant: Tenant, environment: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [
        {"key": "SECRET", "value": "s3cret"},
        {"key": "SHOWN", "value": "välue ", "kind": "recoverable", "description": "for all"},
    ]
    assert tenant("environments.setEnvironmentVariables", {**ENV, "variables": wanted}) == {}
    assert variables(tenant) == [
        {"key": "SECRET", "kind": "writeonly"},
        {"key": "SHOWN", "kind": "recoverable", "value": "välue ", "description": "for all"},
    ]
    with unscoped("test"):
        row = EnvironmentVariable.objects.get(key="SECRET")
    assert row.environment_id == environment
    assert "s3cret" not in row.ciphertext + caplog.text + capsys.readouterr().out
    assert vault.decrypt(environment, row.ciphertext) == "s3cret"
    assert events(tenant)[-1] == (
        "environment.update",
        {"variables": {"set": ["SECRET", "SHOWN"], "removed": []}},
    )


def test_without_the_vault_nothing_is_set_and_nothing_but_that_is_told(
    tenant: Tenant, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise VaultUnavailable("POST http://vault:8060/encrypt timed out")

    monkeypatch.setattr(vault, "encrypt_bulk", away)
    body = {**ENV, "variables": [{"key": "A", "value": "1"}]}
    error = tenant.refused("environments.setEnvironmentVariables", body, 500)
    assert error["type"].endswith("/unkey/application/service_unavailable")
    assert error["detail"] == "The vault does not answer at the moment. Please try again."
    with unscoped("test"):
        assert not EnvironmentVariable.objects.exists()


def test_variables_are_replaced_pruned_and_removed(tenant: Tenant, environment: str) -> None:
    def put(prune: bool, **values: str) -> None:
        wanted = [{"key": key, "value": value, "kind": "recoverable"} for key, value in values.items()]
        tenant("environments.setEnvironmentVariables", {**ENV, "variables": wanted, "prune": prune})

    def values() -> dict[str, str]:
        return {row["key"]: row["value"] for row in variables(tenant)}

    put(False, A="1", B="2")
    with unscoped("test"):
        before = EnvironmentVariable.objects.get(key="B").id
    put(False, B="3", C="4")
    assert values() == {"A": "1", "B": "3", "C": "4"}
    with unscoped("test"):
        assert EnvironmentVariable.objects.get(key="B").id == before
    put(True, C="5")
    assert values() == {"C": "5"}
    put(False)
    assert values() == {"C": "5"}
    put(False, D="6")
    tenant("environments.removeEnvironmentVariables", {**ENV, "variables": ["D", "NOTHING"]})
    assert values() == {"C": "5"}
    assert events(tenant)[-1][1] == {"variables": {"set": [], "removed": ["D"]}}
    put(True)
    assert values() == {}
    preview = {**ENV, "environment": "preview"}
    assert tenant("environments.listEnvironmentVariables", preview) == []


@pytest.mark.parametrize(
    ("wanted", "location"),
    [
        ([{"key": "A", "value": "1"}, {"key": "A", "value": "2"}], "body.variables[1].key"),
        ([{"key": "A", "value": "a\0b"}], "body.variables[0].value"),
        ([{"key": "1A", "value": "x"}], "body.variables[0].key"),
        ([{"key": "A", "value": ""}], "body.variables[0].value"),
        ([{"key": "A", "value": "x" * 16385}], "body.variables[0].value"),
        ([{"key": "A", "value": "x", "kind": "secret"}], "body.variables[0].kind"),
        ([{"key": f"A{n}", "value": "x"} for n in range(51)], "body.variables"),
    ],
)
def test_faulty_variables_are_refused_and_nothing_is_kept(
    tenant: Tenant, environment: str, wanted: list[dict[str, str]], location: str
) -> None:
    error = tenant.refused("environments.setEnvironmentVariables", {**ENV, "variables": wanted}, 400)
    assert [fault["location"] for fault in error["errors"]] == [location]
    assert variables(tenant) == []


# Settings


def test_settings_are_patched_and_null_clears(tenant: Tenant, environment: str) -> None:
    Region.objects.create(name="eu-1")
    given = {
        "dockerfile": "Dockerfile",
        "rootDirectory": "services/api",
        "buildCommand": "make",
        "watchPaths": ["src/**"],
        "autoDeploy": False,
        "port": 3000,
        "vCpus": 1.5,
        "memoryMib": 512,
        "storageMib": 10,
        "command": ["node", "x.js"],
        "healthcheck": {"method": "GET", "path": "/health", "intervalSeconds": 2},
        "shutdownSignal": "SIGINT",
        "upstreamProtocol": "h2c",
        "openapiSpecPath": "/openapi.yaml",
        "regions": [{"name": name, "replicas": {"min": 1, "max": 3}} for name in ("local", "eu-1")],
    }
    assert tenant("environments.updateSettings", {**ENV, **given}) == {}
    shown = tenant("environments.getEnvironment", ENV)
    assert shown["build"] == {
        name: given[name]
        for name in ("dockerfile", "rootDirectory", "buildCommand", "watchPaths", "autoDeploy")
    }
    assert shown["runtime"] == {
        "port": 3000,
        "vCpus": 1.5,
        "memoryMib": 512,
        "storageMib": 10,
        "command": ["node", "x.js"],
        "healthcheck": {
            "method": "GET",
            "path": "/health",
            "intervalSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
            "initialDelaySeconds": 0,
        },
        "shutdownSignal": "SIGINT",
        "upstreamProtocol": "h2c",
        "openapiSpecPath": "/openapi.yaml",
    }
    assert shown["regions"] == [
        {"name": "eu-1", "replicas": {"min": 1, "max": 3}},
        {"name": "local", "replicas": {"min": 1, "max": 3}},
    ]
    assert events(tenant)[-1][1] == {
        "settings": sorted(
            ["dockerfile", "root_directory", "build_command", "watch_paths", "auto_deploy", "port",
             "cpu_millicores", "memory_mib", "storage_mib", "command", "healthcheck", "shutdown_signal",
             "upstream_protocol", "openapi_spec_path", "regions"]
        )
    }  # fmt: skip
    cleared = {"dockerfile": None, "buildCommand": None, "healthcheck": None, "openapiSpecPath": None}
    tenant("environments.updateSettings", {**ENV, **cleared})
    after = tenant("environments.getEnvironment", ENV)
    assert "dockerfile" not in after["build"]
    assert "buildCommand" not in after["build"]
    assert "healthcheck" not in after["runtime"]
    assert "openapiSpecPath" not in after["runtime"]
    assert (after["runtime"]["port"], after["regions"]) == (3000, shown["regions"])


def _replicas(least: int, most: int, name: str = "local") -> dict[str, Any]:
    return {"name": name, "replicas": {"min": least, "max": most}}


@pytest.mark.parametrize(
    ("given", "locations"),
    [
        ({"vCpus": 8.001, "memoryMib": 16385, "storageMib": 102401},
         ["body.memoryMib", "body.storageMib", "body.vCpus"]),
        ({"vCpus": 1e308}, ["body.vCpus"]),
        ({"memoryMib": 2**62}, ["body.memoryMib"]),
        ({"rootDirectory": "../x"}, ["body.rootDirectory"]),
        ({"rootDirectory": "/x"}, ["body.rootDirectory"]),
        ({"command": ["a", "b\0"]}, ["body.command[1]"]),
        ({"regions": [_replicas(1, 1, "mars")]}, ["body.regions[0].name"]),
        ({"regions": [_replicas(1, 1), _replicas(1, 1)]}, ["body.regions[1].name"]),
        ({"regions": [_replicas(0, 1)]}, ["body.regions[0].replicas"]),
        ({"regions": [_replicas(2, 1)]}, ["body.regions[0].replicas"]),
        ({"regions": [_replicas(1, 11)]}, ["body.regions[0].replicas"]),
        ({"regions": [_replicas(1, 1), _replicas(1, 2, "eu-1")]}, ["body.regions[1].replicas"]),
        ({"vCpus": 0.2, "port": 0, "shutdownSignal": "SIGHUP"},
         ["body.port", "body.shutdownSignal", "body.vCpus"]),
        ({"healthcheck": {"method": "PUT", "path": "health"}},
         ["body.healthcheck.method", "body.healthcheck.path"]),
        ({"openapiSpecPath": "http://x/y"}, ["body.openapiSpecPath"]),
        ({"regions": []}, ["body.regions"]),
        ({"port": None}, ["body.port"]),
        ({"thresholdCpu": 0, "thresholdMemory": 101}, ["body.thresholdCpu", "body.thresholdMemory"]),
        ({"thresholdCpu": None}, ["body.thresholdCpu"]),
    ],
)  # fmt: skip
def test_settings_past_a_limit_are_refused_with_every_fault(
    tenant: Tenant, environment: str, given: dict[str, Any], locations: list[str]
) -> None:
    Region.objects.create(name="eu-1")
    before = tenant("environments.getEnvironment", ENV)
    error = tenant.refused("environments.updateSettings", {**ENV, "autoDeploy": False, **given}, 400)
    assert sorted(fault["location"] for fault in error["errors"]) == locations
    assert tenant("environments.getEnvironment", ENV) == before


def test_limits_of_the_workspace_decide(tenant: Tenant, environment: str) -> None:
    Limits.objects.update_or_create(
        workspace=tenant.workspace, defaults={"memory_mib_per_instance_max": 300, "replicas_max": 2}
    )
    tenant("environments.updateSettings", {**ENV, "memoryMib": 300, "regions": [_replicas(2, 2)]})
    error = tenant.refused("environments.updateSettings", {**ENV, "memoryMib": 301}, 400)
    assert error["type"].endswith("/unkey/application/invalid_environment_settings")
    assert error["detail"] == "memoryMib must be at most 300"


# Deletion


@pytest.fixture
def running(tenant: Tenant, environment: str) -> Deployment:
    """A deployment that runs in production and answers a host name."""
    with unscoped("test"):
        place = Environment.objects.select_related("app").get(pk=environment)
        row = Deployment.objects.create(
            workspace=tenant.workspace,
            project_id=place.app.project_id,
            app=place.app,
            environment=place,
            status="ready",
            settings={},
            regions=[],
        )
        region = Region.objects.get(name="local")
        Topology.objects.create(deployment=row, region=region, desired_status="running")
        FrontlineRoute.objects.create(
            workspace=tenant.workspace,
            fqdn="shop.unkey.localhost",
            project_id=place.app.project_id,
            app=place.app,
            environment=place,
            deployment=row,
            sticky="live",
        )
        return row


@pytest.mark.parametrize(
    ("operation", "body"),
    [("apps.deleteApp", {"project": "shop", "app": "api"}), ("projects.deleteProject", {"project": "shop"})],
)
def test_deletion_hides_at_once_and_takes_down_what_runs(
    tenant: Tenant, app: str, running: Deployment, operation: str, body: dict[str, Any]
) -> None:
    tenant(operation, body)
    tenant.refused("apps.getApp", {"project": "shop", "app": "api"}, 404)
    tenant.refused("environments.setEnvironmentVariables", {**ENV, "variables": []}, 404)
    tenant.refused(operation, body, 404)
    drain()
    with unscoped("test"):
        assert not FrontlineRoute.objects.exists()
        assert not Topology.objects.exists()
        assert not App.objects.exists()
    assert WorkflowRun.objects.get().state == "succeeded"
    if "app" not in body:
        tenant("projects.createProject", {"name": "Again", "slug": "shop"})
    tenant("apps.createApp", {"project": "shop", "name": "Again", "slug": "api"})
    assert tenant("apps.getApp", {"project": "shop", "app": "api"})["name"] == "Again"


def test_protected_things_are_not_deleted(tenant: Tenant, app: str) -> None:
    tenant("apps.updateApp", {"project": "shop", "app": "api", "deleteProtection": True})
    tenant("projects.updateProject", {"project": "shop", "deleteProtection": True})
    error = tenant.refused("apps.deleteApp", {"project": "shop", "app": "api"}, 412)
    assert error["type"].endswith("/unkey/application/protected_resource")
    tenant.refused("projects.deleteProject", {"project": "shop"}, 412)
    tenant("apps.getApp", {"project": "shop", "app": "api"})


def test_thresholds_of_autoscaling_are_kept_shown_and_taken_back(tenant: Tenant, environment: str) -> None:
    usual = tenant("environments.getEnvironment", ENV)
    assert not {"thresholdCpu", "thresholdMemory"} & set(usual)
    tenant("environments.updateSettings", {**ENV, "thresholdCpu": 1, "thresholdMemory": 100})
    shown = tenant("environments.getEnvironment", ENV)
    assert (shown["thresholdCpu"], shown["thresholdMemory"]) == (1, 100)
    tenant("environments.updateSettings", {**ENV, "thresholdCpu": 80, "thresholdMemory": None})
    shown = tenant("environments.getEnvironment", ENV)
    assert not {"thresholdCpu", "thresholdMemory"} & set(shown)
