"""Every declared operation against another workspace's rows: refused, and nothing changed.

Generated: an operation that is declared anywhere is tested here without being named.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import models

from apps.workspaces.models import Workspace
from apps.workspaces.permissions import TUPLES
from apps.workspaces.permissions import everything as all_permissions
from apps.workspaces.services import (
    create_root_key,
    delete_root_key,
    set_root_key_enabled,
    set_workspace_enabled,
)
from unkey import clock, ids
from unkey.rpc.routes import Archive, Route, routes
from unkey.rpc.testing import TESTS, Tenant, make_tenant, shared_client
from unkey.rpc.tests.samples import least
from unkey.tenancy import TenantManager, unscoped

BY_WORKSPACE = {
    # Operations that name nothing of the workspace's, so that there is nothing foreign to name.
    # (What SQL may name is tested by apps/analytics/tests/test_gateway.py.)
    "analytics.getGatewayRequests",
    "analytics.getRatelimits",
    "analytics.getRuntimeLogs",
    "analytics.getVerifications",
    "apis.createApi",
    "identities.createIdentity",
    "identities.listIdentities",
    "permissions.createPermission",
    "permissions.createRole",
    "permissions.listPermissions",
    "permissions.listRoles",
    "projects.createProject",
    "projects.listProjects",
    # What is another workspace's id is a name like any other: see apps/ratelimits/tests.
    "ratelimit.limit",
    "ratelimit.multiLimit",
    "rootKeys.createKey",
    "rootKeys.listKeys",
    "workspace.getUsage",
    "liveness",
}
SHOWN_TO_ALL = {"rootKeys.listKeys"}
"""Operations that leave out what the caller may not see, instead of refusing."""
# What a portal session may do is tested where portals are: it names a user, and no root key.
BY_ROOT_KEY = [
    route
    for route in routes().values()
    if not (route.public or route.session) and isinstance(route.request, dict)
]
PROTECTED = [route for route in BY_ROOT_KEY if route.name not in BY_WORKSPACE]


def owned(tenant: Tenant) -> dict[str, str]:
    """Make one of everything in a workspace, and return field name to id of what a body may name."""
    api_id = tenant("apis.createApi", {"name": "theirs"})["apiId"]
    key = tenant("keys.createKey", {"apiId": api_id, "credits": {"remaining": 3}, "permissions": ["theirs"]})
    named = {"apiId": api_id, "keyId": key["keyId"], "key": key["key"]}
    named["rootKeyId"] = tenant("rootKeys.createKey", {"name": "theirs", "permissions": []})["keyId"]
    named["identity"] = tenant("identities.createIdentity", {"externalId": "theirs"})["identityId"]
    limit = {"namespace": api_id, "identifier": "a", "limit": 9, "duration": 60_000}
    tenant("ratelimit.limit", limit)
    tenant("ratelimit.setOverride", limit)
    with unscoped("test"):
        namespaces = apps.get_model("ratelimits", "Namespace").objects
        named["namespace"] = namespaces.get(name=api_id).pk
    with unscoped("test"):
        named["keyspaceId"] = apps.get_model("keys", "Api").objects.get(pk=api_id).key_space_id
    portal = {"slug": "theirs", "displayName": "Theirs", "keyspaceId": named["keyspaceId"]}
    named["portal"] = tenant("portal.createPortal", portal)["portalId"]
    permission = tenant("permissions.createPermission", {"name": "Theirs", "slug": f"slug-{api_id[4:]}"})
    named["permission"] = permission["permissionId"]
    named["role"] = named["roleId"] = tenant("permissions.createRole", {"name": api_id})["roleId"]
    if "projects.createProject" in routes():
        named["project"] = tenant("projects.createProject", {"name": "Theirs", "slug": "theirs"})["id"]
    if "apps.createApp" in routes():
        made = tenant("apps.createApp", {"project": named["project"], "name": "Web", "slug": "web"})
        named["app"] = made.get("id") or made["appId"]
        named["environment"] = "production"
    named["deploymentId"] = _deployment(tenant, named) or ids.new("d")
    named["oldDeploymentId"] = named["newDeploymentId"] = named["deploymentId"]
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
            model._meta.label: sorted(
                map(repr, model._default_manager.filter(workspace=workspace).values(*columns(model)))
            )
            for model in apps.get_models()
            if isinstance(model._default_manager, TenantManager)
        }


def columns(model: type[models.Model]) -> list[str]:
    """Return the columns of a table that a mere call does not change."""
    return [field.attname for field in model._meta.concrete_fields if field.name != "last_used_at"]


@pytest.fixture(scope="module")
def other(made_once: Callable[[], AbstractContextManager[None]]) -> Iterator[tuple[Tenant, dict[str, str]]]:
    """The other workspace and what it owns."""
    with made_once():
        stranger = make_tenant("stranger")
        yield stranger, owned(stranger)


@pytest.fixture
def stranger(other: tuple[Tenant, dict[str, str]], db: None) -> Tenant:
    """The other workspace."""
    return other[0]


@pytest.fixture
def theirs(other: tuple[Tenant, dict[str, str]]) -> dict[str, str]:
    """What the other workspace owns."""
    return dict(other[1])


def body_of(route: Route, named: dict[str, str]) -> dict[str, Any]:
    """Return the least body of an operation, naming these rows wherever it can."""
    assert route.checker is not None
    body: dict[str, Any] = least(route.checker.schema)
    for name in route.checker.schema.get("properties", ()):
        if name in named:
            body[name] = named[name]
    if route.name.startswith("rootKeys.") and "keyId" in body:
        body["keyId"] = named["rootKeyId"]
    alternatives = [branch["required"][0] for branch in route.checker.schema.get("oneOf", ())]
    for name in [name for name in alternatives if name in body][1:]:
        del body[name]
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


PATH = ("project", "app", "environment")


@pytest.mark.parametrize(
    ("route", "own"),
    [
        (route, own)
        for route in PROTECTED
        if route.checker
        for own in range(1, len(PATH))
        if len([name for name in PATH if name in route.checker.schema.get("properties", ())]) > own
    ],
    ids=lambda value: value.name if isinstance(value, Route) else f"own-{PATH[value - 1]}",
)
def test_what_is_another_workspaces_is_not_found_below_what_is_ones_own(
    route: Route, own: int, tenant: Tenant, stranger: Tenant, theirs: dict[str, str]
) -> None:
    """A path of ids that begins in one's own workspace does not lead into another one."""
    ours = owned(tenant)
    with unscoped("test"):
        environments = apps.get_model("projects", "Environment").objects
        theirs["environment"] = str(environments.get(app=theirs["app"], kind="production").pk)
    before, own_before = everything(stranger.workspace), everything(tenant.workspace)

    answer = tenant.send(route.name, body_of(route, theirs | {name: ours[name] for name in PATH[:own]}))

    assert answer.status == 404, answer.body
    assert answer.body["error"]["type"].endswith("_not_found")
    assert everything(stranger.workspace) == before
    assert everything(tenant.workspace) == own_before


def _nested(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return, by title, an operation on one's own rows that names another workspace's deeper in its body."""
    path = {name: ours[name] for name in PATH}
    key = {"keyId": ours["keyId"]}

    def guard(name: str) -> dict[str, Any]:
        return {"name": "guard", "enabled": True, "keyauth": {"keyspaces": [theirs[name]]}}

    return {
        "key spaces of policies": ("gateway.setPolicies", {**path, "policies": [guard("keySpaceId")]}),
        "APIs of policies": ("gateway.setPolicies", {**path, "policies": [guard("apiId")]}),
        "a policy": ("gateway.updatePolicy", {**path, "policyId": theirs["policyId"], "enabled": False}),
        "key spaces of a changed policy": (
            "gateway.updatePolicy",
            {**path, "policyId": ours["policyId"], "keyauth": {"keyspaces": [theirs["keySpaceId"]]}},
        ),
        "roles of a new key": ("keys.createKey", {"apiId": ours["apiId"], "roles": [theirs["role"]]}),
        "roles of a key": ("keys.updateKey", {**key, "roles": [theirs["role"]]}),
        "roles to add": ("keys.addRoles", {**key, "roles": [theirs["role"]]}),
        "roles to set": ("keys.setRoles", {**key, "roles": [theirs["role"]]}),
        "roles to remove": ("keys.removeRoles", {**key, "roles": [theirs["role"]]}),
        "permissions to remove": ("keys.removePermissions", {**key, "permissions": [theirs["slug"]]}),
        "a deployment to deploy again": (
            "deployments.createDeployment",
            {**path, "deployment": {"deploymentId": theirs["deploymentId"]}},
        ),
        "a snapshot": (
            "deployments.createDeployment",
            {**path, "image": {"dockerImage": f"snapshot@sha256:{theirs['digest']}"}},
        ),
    }


def _nameable(tenant: Tenant, digest: str, named: dict[str, str]) -> dict[str, str]:
    """Make, besides what `owned` makes, what bodies name deeper inside: a policy, a role, a slug, a snapshot."""
    slug = digest[:8]
    tenant("keys.addPermissions", {"keyId": named["keyId"], "permissions": [slug]})
    with unscoped("test"):
        named["keySpaceId"] = apps.get_model("keys", "Api").objects.get(pk=named["apiId"]).key_space_id
        role = apps.get_model("keys", "Role").objects.create(workspace=tenant.workspace, name=slug)
        apps.get_model("builds", "Snapshot").objects.create(
            workspace=tenant.workspace, digest=digest, size=1, files=1
        )
    policy = {"name": "guard", "enabled": True, "keyauth": {"keyspaces": [named["apiId"]]}}
    path = {name: named[name] for name in PATH}
    tenant("gateway.setPolicies", {**path, "policies": [policy]})
    named["policyId"] = tenant("gateway.listPolicies", path)[0]["id"]
    return {**named, "role": role.name, "slug": slug, "digest": digest}


@pytest.mark.parametrize("title", _nested(defaultdict(str), defaultdict(str)))
def test_what_is_another_workspaces_is_not_found_inside_a_body(
    title: str, tenant: Tenant, stranger: Tenant, theirs: dict[str, str]
) -> None:
    their = _nameable(stranger, "a" * 64, theirs)
    ours = _nameable(tenant, "b" * 64, owned(tenant))
    operation, body = _nested(ours, their)[title]
    before, own_before = everything(stranger.workspace), everything(tenant.workspace)

    answer = tenant.send(operation, body)

    assert answer.status == 404, answer.body
    assert answer.body["error"]["type"].endswith("_not_found")
    assert everything(stranger.workspace) == before
    assert everything(tenant.workspace) == own_before


def test_shared_names_stay_apart(tenant: Tenant, stranger: Tenant, theirs: dict[str, str]) -> None:
    """The same slug, external id or snapshot in two workspaces is two things."""
    stranger("keys.updateKey", {"keyId": theirs["keyId"], "externalId": "customer", "meta": {"plan": "gold"}})
    before = everything(stranger.workspace)
    api = tenant("apis.createApi", {"name": "ours"})["apiId"]
    body = {"apiId": api, "externalId": "customer", "permissions": ["theirs"]}
    tenant("keys.createKey", body)
    with unscoped("test"):
        for model, name in (("Identity", {"external_id": "customer"}), ("Permission", {"slug": "theirs"})):
            rows = apps.get_model("keys", model).objects.filter(**name)
            assert rows.filter(workspace=tenant.workspace).count() == 1
            assert rows.filter(workspace=stranger.workspace).count() == 1
    assert everything(stranger.workspace) == before


@pytest.mark.parametrize("route", PROTECTED, ids=lambda route: route.name)
def test_permissions_for_other_ids_open_nothing_here(
    route: Route, stranger: Tenant, theirs: dict[str, str]
) -> None:
    """A root key for one API, project, app and environment does nothing to the workspace's others."""
    other = {"api": "api_other", "project": "proj_other", "app": "app_other", "environment": "env_other"}
    grant = f"unkey:v1:{stranger.workspace.id}"
    limited = stranger.holding(
        *(
            f"{kind}.{other[kind]}.{action}"
            for kind in other
            for action in TUPLES[kind]
            if action != "create_api"
        ),
        f"{grant}:keyspaces/ks_other/**#*",
        f"{grant}:projects/proj_other/**#*",
    )
    before = everything(stranger.workspace)

    answer = limited.send(route.name, body_of(route, theirs))

    if route.name == "keys.verifyKey":
        assert answer.body["data"] == {"valid": False, "code": "NOT_FOUND"}
    else:
        assert answer.status in (403, 404), answer.body
    assert everything(stranger.workspace) == before


@pytest.mark.parametrize(
    "route",
    BY_ROOT_KEY,
    ids=lambda route: route.name,
)
def test_without_permissions_nothing_is_shown_and_nothing_changes(
    route: Route, stranger: Tenant, theirs: dict[str, str]
) -> None:
    nobody = stranger.holding()
    before = everything(stranger.workspace)

    answer = nobody.send(route.name, body_of(route, theirs))

    if route.name == "keys.verifyKey":
        assert answer.body["data"] == {"valid": False, "code": "NOT_FOUND"}
    elif route.name in SHOWN_TO_ALL:
        assert (answer.status, answer.body["data"]) == (200, [])
    else:
        assert answer.status in (403, 404), answer.body
    assert everything(stranger.workspace) == before


def _send(route: Route, root_key: str) -> Any:
    """Send the least that an operation takes, with this root key."""
    if isinstance(route.request, Archive):
        content, content_type = b"\x1f\x8b", route.request.content_type
    else:
        body = least(route.request) if route.request else {}
        content, content_type = json.dumps(body).encode(), "application/json"
    return shared_client().post(
        route.path, data=content, content_type=content_type, headers={"Authorization": f"Bearer {root_key}"}
    )


AUTHENTICATED = [route for route in routes().values() if not (route.public or route.session)]


@pytest.mark.parametrize("route", AUTHENTICATED, ids=lambda route: route.name)
def test_an_unknown_root_key_is_refused(route: Route, db: None) -> None:
    assert _send(route, "unkey_nobody").status_code == 401


def test_root_keys_that_do_not_work_any_more_are_refused_everywhere_and_change_nothing(
    tenant: Tenant,
) -> None:
    """Deleted, disabled, expired, and of a workspace that is disabled; every operation."""
    full = all_permissions(tenant.workspace.id)
    keys = {
        state: create_root_key(tenant.workspace, state, full, actor=TESTS)
        for state in ("deleted", "disabled", "of a disabled workspace")
    }
    end = clock.now() + timedelta(days=1)
    keys["expired"] = create_root_key(tenant.workspace, "expired", full, expires_at=end, actor=TESTS)
    delete_root_key(keys["deleted"][0], actor=TESTS)
    set_root_key_enabled(keys["disabled"][0], False, actor=TESTS)

    def asked(state: str) -> dict[str, int]:
        return {route.name: _send(route, keys[state][1]).status_code for route in AUTHENTICATED}

    before = everything(tenant.workspace)
    assert set(asked("deleted").values()) == {401}
    assert set(asked("disabled").values()) == {403}
    with clock.shifted(timedelta(days=2)):
        assert set(asked("expired").values()) == {403}
    assert everything(tenant.workspace) == before
    set_workspace_enabled(tenant.workspace, False, actor=TESTS)
    before = everything(tenant.workspace)
    assert set(asked("of a disabled workspace").values()) == {403}
    assert everything(tenant.workspace) == before


def test_the_matrix_leaves_nothing_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Every operation is asked by every kind of root key; how much that is, is printed."""
    kinds = {
        "unknown": AUTHENTICATED,
        "deleted": AUTHENTICATED,
        "disabled": AUTHENTICATED,
        "expired": AUTHENTICATED,
        "of a disabled workspace": AUTHENTICATED,
        "of another workspace": PROTECTED,
        "for other ids": PROTECTED,
        "without permissions": BY_ROOT_KEY,
    }
    assert set(routes()) >= BY_WORKSPACE  # nothing is spared that is not there
    asked = sum(map(len, kinds.values())) + len(_nested(defaultdict(str), defaultdict(str)))
    assert asked > 6 * len(AUTHENTICATED)
    with capsys.disabled():
        print(f"\n/v2: {len(routes())} operations, {len(kinds)} kinds of root keys: {asked} refusals")
