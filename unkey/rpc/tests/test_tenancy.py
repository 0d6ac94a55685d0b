"""Every declared operation against another workspace's rows: refused, and nothing changed.

Generated: an operation that is declared anywhere is tested here without being named.
"""

import json
from typing import Any

import pytest
from django.apps import apps

from apps.workspaces.models import RootKey, Workspace
from unkey import ids
from unkey.rpc.routes import Archive, Route, routes
from unkey.rpc.testing import Tenant, shared_client
from unkey.rpc.tests.samples import least
from unkey.tenancy import TenantManager, unscoped

BY_WORKSPACE = {
    # Operations that name nothing of the workspace's, so that there is nothing foreign to name.
    "apis.createApi",
    "projects.createProject",
    "projects.listProjects",
    "liveness",
}
PROTECTED = [
    route
    for route in routes().values()
    if not route.public and isinstance(route.request, dict) and route.name not in BY_WORKSPACE
]


def owned(tenant: Tenant) -> dict[str, str]:
    """Make one of everything in a workspace, and return field name to id of what a body may name."""
    api_id = tenant("apis.createApi", {"name": "theirs"})["apiId"]
    key = tenant("keys.createKey", {"apiId": api_id, "credits": {"remaining": 3}, "permissions": ["theirs"]})
    named = {"apiId": api_id, "keyId": key["keyId"], "key": key["key"]}
    if "projects.createProject" in routes():
        named["project"] = tenant("projects.createProject", {"name": "Theirs", "slug": "theirs"})["id"]
    if "apps.createApp" in routes():
        made = tenant("apps.createApp", {"project": named["project"], "name": "Web", "slug": "web"})
        named["app"] = made.get("id") or made["appId"]
        named["environment"] = "production"
    named["deploymentId"] = _deployment(tenant, named) or ids.new("d")
    return named


def _deployment(tenant: Tenant, named: dict[str, str]) -> str | None:
    if "app" not in named:
        return None
    with unscoped("test"):
        environment = apps.get_model("projects", "Environment").objects.filter(app=named["app"]).first()
        if environment is None:
            return None
        model = apps.get_model("deployments", "Deployment")
        row = model(
            settings={},
            regions=[],
            workspace=tenant.workspace,
            environment=environment,
            app=environment.app,
            project=environment.app.project,
        )
        model.objects.bulk_create([row])
        return str(row.pk)


def everything(workspace: Workspace) -> dict[str, list[Any]]:
    """Return every row of every tenant table of a workspace."""
    with unscoped("test"):
        return {
            model._meta.label: sorted(map(repr, model._default_manager.filter(workspace=workspace).values()))
            for model in apps.get_models()
            if isinstance(model._default_manager, TenantManager) and model is not RootKey
        }


@pytest.fixture
def theirs(stranger: Tenant) -> dict[str, str]:
    """What the other workspace owns."""
    return owned(stranger)


def body_of(route: Route, named: dict[str, str]) -> dict[str, Any]:
    """Return the least body of an operation, naming these rows wherever it can."""
    assert route.checker is not None
    body: dict[str, Any] = least(route.checker.schema)
    for name in route.checker.schema["properties"]:
        if name in named:
            body[name] = named[name]
    return body


@pytest.mark.parametrize("route", PROTECTED, ids=lambda route: route.name)
def test_what_is_another_workspaces_is_not_found_and_stays_as_it_is(
    route: Route, tenant: Tenant, stranger: Tenant, theirs: dict[str, str]
) -> None:
    before, own_before = everything(stranger.workspace), everything(tenant.workspace)

    answer = tenant.send(route.name, body_of(route, theirs))

    if route.name == "keys.verifyKey":
        assert answer.body["data"] == {"valid": False, "code": "NOT_FOUND"}
    else:
        assert answer.status == 404, answer.body
        assert answer.body["error"]["type"].endswith("_not_found")
    assert everything(stranger.workspace) == before
    assert everything(tenant.workspace) == own_before


@pytest.mark.parametrize(
    "route",
    [route for route in routes().values() if not route.public and isinstance(route.request, dict)],
    ids=lambda route: route.name,
)
def test_without_permissions_nothing_is_shown_and_nothing_changes(
    route: Route, stranger: Tenant, theirs: dict[str, str]
) -> None:
    before = everything(stranger.workspace)
    nobody = stranger.holding()

    answer = nobody.send(route.name, body_of(route, theirs))

    if route.name == "keys.verifyKey":
        assert answer.body["data"] == {"valid": False, "code": "NOT_FOUND"}
    else:
        assert answer.status in (403, 404), answer.body
    after = everything(stranger.workspace)
    # The root key without permissions was itself audited.
    before.pop("audit.AuditLog"), after.pop("audit.AuditLog")
    assert after == before


@pytest.mark.parametrize(
    "route", [route for route in routes().values() if not route.public], ids=lambda route: route.name
)
def test_an_unknown_root_key_is_refused(route: Route, db: None) -> None:
    if isinstance(route.request, Archive):
        content, content_type = b"\x1f\x8b", route.request.content_type
    else:
        content, content_type = json.dumps(least(route.request or {})).encode(), "application/json"
    response = shared_client().post(
        route.path,
        data=content,
        content_type=content_type,
        headers={"Authorization": "Bearer unkey_nobody"},
    )
    assert response.status_code == 401
