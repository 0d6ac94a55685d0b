"""Every endpoint, every role: who may not is refused, whoever is foreign is told nothing, nothing changes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from apps.console.models import KeptAnswer
from apps.console.rest.access import WorkspaceView
from apps.console.rest.deployments import ActionView
from apps.console.tests.conftest import Caller, Join
from apps.console.tests.endpoints import Endpoint, endpoints
from apps.deployments.tests.conftest import Platform
from apps.ratelimits.models import Namespace
from apps.workflows.models import WorkflowRun
from apps.workspaces import roles
from apps.workspaces.models import Membership, PersonalToken
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped, workspace_scope

pytestmark = pytest.mark.django_db

ROLES = ("viewer", "member", "admin", "owner")
ALL = list(endpoints())
BODIES: dict[str, Any] = {
    "POST projects": {"name": "Other", "slug": "other"},
    "POST projects/<str:project>/apps": {"name": "Other", "slug": "other"},
    "PATCH projects/<str:project>": {"name": "Renamed"},
    "PATCH projects/<str:project>/apps/<str:app>": {"name": "Renamed"},
    "POST members": {"username": "nina", "role": "viewer"},
    "PATCH members/<str:member>": {"role": "viewer"},
    "POST tokens": {"name": "mine", "role": "viewer", "expiresAt": 4_000_000_000_000},
    "POST apis": {"name": "Other"},
    "PATCH keys/<str:api_key>": {"enabled": False},
    "POST keys/<str:api_key>/reroll": {"expiration": 0},
    "POST keys/<str:api_key>/credits": {"operation": "set", "value": 1},
    "POST identities": {"externalId": "other"},
    "PATCH identities/<str:identity>": {"meta": {"stolen": True}},
    "POST permissions": {"name": "Other", "slug": "other"},
    "POST roles": {"name": "other"},
    "PUT roles/<str:role>": {"permissions": ["other"]},
    "POST ratelimits": {"name": "other"},
    "PATCH ratelimits/<str:namespace>": {"name": "other"},
    "PUT ratelimits/<str:namespace>/overrides": {"identifier": "ada", "limit": 0, "duration": 1000},
    "DELETE ratelimits/<str:namespace>/overrides": {"identifier": "ada"},
    "POST root-keys": {"permissions": []},
    "PATCH root-keys/<str:root_key>": {"enabled": False},
    "POST root-keys/<str:root_key>/reroll": {"expiration": 0},
}

_DEPLOYMENT = "workspaces/<str:workspace>/deployments/<str:deployment>"
QUERIES = {f"GET {_DEPLOYMENT}/openapi/diff": "?since={deployment}"}
NO_DOCUMENT = "err:unkey:data:openapi_spec_not_found"


def snapshot() -> dict[str, str]:
    """Return a digest of every table, but for what a mere look changes."""
    ignored = {PersonalToken, KeptAnswer}
    digests: dict[str, str] = {}
    with unscoped("test"):
        for model in apps.get_models():
            if model in ignored or model._meta.proxy:
                continue
            table = connection.ops.quote_name(model._meta.db_table)
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM {table} ORDER BY 1")
                rows = repr(cursor.fetchall()).encode()
            digests[model._meta.label] = hashlib.sha256(rows).hexdigest()
    return digests


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Fail unless the block leaves every table as it was."""
    before = snapshot()
    yield
    assert snapshot() == before


def body_of(endpoint: Endpoint) -> Any:
    """Return a body that the endpoint would take, as far as it matters."""
    tail = endpoint.pattern.removeprefix("workspaces/<str:workspace>/")
    return BODIES.get(f"{endpoint.method} {tail}")


def needed_by(endpoint: Endpoint) -> roles.Action:
    """Return what a role must allow for an endpoint."""
    assert issubclass(endpoint.view, WorkspaceView)
    return endpoint.view.needs[endpoint.method]


@pytest.fixture
def things(platform: Platform, owner: Caller) -> dict[str, str]:
    """A value for each name of an address: things of the workspace of `owner`."""
    deployment = platform.deploy()
    platform.tenant(
        "environments.setEnvironmentVariables",
        {
            **platform.names,
            "environment": "production",
            "variables": [{"key": "SECRET", "value": "s3cret", "kind": "recoverable"}],
        },
    )
    platform.tenant(
        "gateway.setPolicies",
        {
            **platform.names,
            "environment": "production",
            "policies": [{"name": "deny", "enabled": True, "firewall": {"action": "ACTION_DENY"}}],
        },
    )
    with workspace_scope(owner.workspace.id):
        member = Membership.objects.get()
        token = PersonalToken.objects.get()
    environment = owner("GET", "projects/shop/apps/default/environments/production")
    policies = owner("GET", "projects/shop/apps/default/environments/production/policies")
    run = WorkflowRun.objects.filter(workspace_id=owner.workspace.id).first()
    assert run is not None
    return {
        "workspace": owner.workspace.id,
        "project": owner("GET", "projects/shop")["id"],
        "app": environment["appId"],
        "environment": environment["id"],
        "deployment": deployment,
        "member": member.id,
        "token": token.id,
        "key": "SECRET",
        "policy": policies["items"][0]["id"],
        "run": run.id,
        **_account(platform.tenant),
    }


def _account(tenant: Tenant) -> dict[str, str]:
    """Make one of each thing of the API product, and return them by their names in addresses."""
    api = tenant("apis.createApi", {"name": "payments"})["apiId"]
    key = tenant("keys.createKey", {"apiId": api, "credits": {"remaining": 3}})["keyId"]
    limit = {"namespace": "logins", "identifier": "ada", "limit": 5, "duration": 60_000}
    tenant("ratelimit.limit", limit)
    tenant("ratelimit.setOverride", limit)
    with workspace_scope(tenant.workspace.id):
        namespace = Namespace.objects.get().pk
    return {
        "api": api,
        "namespace": namespace,
        "api_key": key,
        "identity": tenant("identities.createIdentity", {"externalId": "ada"})["identityId"],
        "permission": tenant("permissions.createPermission", {"name": "Read", "slug": "read"})[
            "permissionId"
        ],
        "role": tenant("permissions.createRole", {"name": "reader"})["roleId"],
        "root_key": tenant("rootKeys.createKey", {"permissions": []})["keyId"],
    }


def test_every_method_in_a_workspace_says_what_it_needs():
    silent = [
        str(endpoint)
        for endpoint in ALL
        if issubclass(endpoint.view, WorkspaceView) and endpoint.method not in endpoint.view.needs
    ]
    assert silent == []
    assert len(ALL) > 50


def test_nobody_who_is_not_known_is_told_anything(things: dict[str, str], owner: Caller):
    public = {"GET session", "POST session", "DELETE session"}
    with nothing_changes():
        for endpoint in ALL:
            answer = owner.send(
                endpoint.method, endpoint.address(things), body_of(endpoint), Authorization=""
            )
            if str(endpoint) in public:
                assert answer.status in (200, 204, 400), str(endpoint)
            else:
                assert (answer.status, answer.body["code"]) == (
                    401,
                    "err:unkey:authentication:not_signed_in",
                ), str(endpoint)


def test_a_foreign_workspace_is_not_there(
    things: dict[str, str], stranger: Tenant, join: Join, platform: Platform
):
    callers = {role: join(stranger.workspace, role) for role in ROLES}
    # The stranger has a project, an app and a deployment of the same names.
    own = Platform(stranger)
    stranger("projects.createProject", {"name": "Shop", "slug": own.project})
    stranger("apps.createApp", {"name": "Default", "slug": own.app, "project": own.project})
    inside = {**things, "workspace": stranger.workspace.id}
    with nothing_changes():
        for (role, foreign), endpoint in product(callers.items(), ALL):
            if not endpoint.in_workspace:
                continue
            answer = foreign.send(endpoint.method, endpoint.address(things), body_of(endpoint))
            assert (answer.status, answer.body["code"]) == (
                404,
                "err:unkey:data:workspace_not_found",
            ), f"{role}: {endpoint}"
            if len(endpoint.names) < 2:
                continue
            # Things of the other workspace, named inside one's own.
            answer = foreign.send(endpoint.method, endpoint.address(inside), body_of(endpoint))
            allowed = roles.may(Membership.Role(role), needed_by(endpoint))
            refusals = {400, 404, 415} if allowed else {403}
            assert answer.status in refusals, f"{role}: {endpoint}: {answer.body}"
            assert platform.project not in str(answer.body)


def test_a_role_may_do_what_the_table_says_and_nothing_else(
    things: dict[str, str], owner: Caller, join: Join
):
    callers = {role: join(owner.workspace, role) for role in ROLES}
    with nothing_changes():
        for (role, caller), endpoint in product(callers.items(), ALL):
            if not endpoint.in_workspace or roles.may(Membership.Role(role), needed_by(endpoint)):
                continue
            problem = caller.refused(endpoint.method, endpoint.address(things), body_of(endpoint), status=403)
            assert problem["code"] == "err:unkey:authorization:forbidden", str(endpoint)
            assert problem["detail"] == (
                f"Your role {role} may not {needed_by(endpoint)}. Ask an owner of the workspace for more."
            )


def test_what_roles_may_do():
    table = {str(role): {action.name for action in allowed} for role, allowed in roles.ALLOWED.items()}
    assert table["viewer"] == {"READ", "TOKENS"}
    assert table["member"] - table["viewer"] == {"DEPLOY", "OPERATE", "CONFIGURE", "CREATE", "KEYS"}
    assert table["admin"] - table["member"] == {
        "DELETE",
        "APPROVE",
        "REVEAL",
        "AUDIT",
        "MEMBERS",
        "ROOT_KEYS",
    }
    assert table["owner"] - table["admin"] == {"OWNERS"}


def test_whoever_may_look_sees_everything_that_may_be_looked_at(
    things: dict[str, str], owner: Caller, join: Join
):
    callers = {role: join(owner.workspace, role) for role in ROLES}
    with nothing_changes():
        for (role, caller), endpoint in product(callers.items(), ALL):
            if endpoint.method != "GET" or not endpoint.in_workspace:
                continue
            if roles.may(Membership.Role(role), needed_by(endpoint)):
                query = QUERIES.get(str(endpoint), "").format(**things)
                answer = caller.send("GET", endpoint.address(things) + query)
                none = answer.status == 404 and answer.body["code"] == NO_DOCUMENT
                assert answer.status == 200 or none, f"{endpoint}: {answer.body}"


def test_bad_bodies_are_refused_and_never_a_fault_of_ours(things: dict[str, str], owner: Caller):
    spared = {"DELETE session", "POST session"}  # these have their own way to be refused
    bodies: list[Any] = [[], {"unknown": 1}, "text", 7, {"name": 7, "slug": None, "role": []}]
    with nothing_changes():
        for endpoint, body in product(ALL, bodies):
            if endpoint.method == "GET" or str(endpoint) in spared:
                continue
            answer = owner.send(endpoint.method, endpoint.address(things), body)
            assert answer.status in (400, 415), f"{endpoint} {body}: {answer.body}"
            assert answer.headers["Content-Type"] == "application/problem+json"


def test_missing_bodies_are_no_fault_of_ours(things: dict[str, str], owner: Caller):
    for endpoint in ALL:
        if endpoint.method in ("POST", "PUT", "PATCH") and not issubclass(endpoint.view, ActionView):
            answer = owner.send(endpoint.method, endpoint.address(things))
            assert answer.status < 500, f"{endpoint}: {answer.body}"


def test_unknown_parameters_are_refused(things: dict[str, str], owner: Caller):
    for endpoint in ALL:
        if endpoint.method == "GET" and endpoint.in_workspace:
            answer = owner.send("GET", f"{endpoint.address(things)}?colour=red")
            assert answer.status == 400, str(endpoint)
            assert answer.body["violations"][0]["location"] == "query.colour"


def _inside(things: dict[str, str], foreign: dict[str, str]) -> list[tuple[str, str, Any]]:
    """Return requests on one's own rows that name another workspace's deeper in their bodies."""
    environment = "projects/shop/apps/default/environments/production"
    production = {"project": "shop", "app": "default", "environment": "production"}
    guard = {"name": "guard", "enabled": True, "keyauth": {"keyspaces": [foreign["api"]]}}
    return [
        ("PUT", f"{environment}/policies", {"policies": [guard]}),
        ("PATCH", f"{environment}/policies/{things['policy']}", {"keyauth": {"keyspaces": [foreign["api"]]}}),
        ("PATCH", f"keys/{things['api_key']}", {"roles": [foreign["role_name"]]}),
        ("POST", f"apis/{things['api']}/keys", {"roles": [foreign["role_name"]]}),
        ("POST", "root-keys", {"permissions": [f"unkey:v1:{foreign['workspace']}:**#*"]}),
        (
            "PATCH",
            f"root-keys/{things['root_key']}",
            {"permissions": [f"unkey:v1:{foreign['workspace']}:**#*"]},
        ),
        ("POST", "deployments", {**production, "deployment": {"deploymentId": foreign["deployment"]}}),
        ("POST", "deployments", {**production, "image": {"dockerImage": foreign["image"]}}),
        ("POST", "events/ticket", {"deployment": foreign["deployment"]}),
    ]


def test_what_is_foreign_is_not_found_inside_a_body(things: dict[str, str], owner: Caller, stranger: Tenant):
    api = stranger("apis.createApi", {"name": "theirs"})["apiId"]
    stranger("permissions.createRole", {"name": "theirs"})
    theirs = Platform(stranger)
    stranger("projects.createProject", {"name": "Shop", "slug": theirs.project})
    stranger("apps.createApp", {"name": "Default", "slug": theirs.app, "project": theirs.project})
    image = theirs.snapshot(Procfile="web: python theirs.py")
    foreign = {"api": api, "role_name": "theirs", "workspace": stranger.workspace.id}
    foreign |= {"image": image, "deployment": theirs.create(image=image)}
    with nothing_changes():
        for method, path, body in _inside(things, foreign):
            answer = owner.send(method, path, body)
            # A grant in another workspace is no permission here; all else is not found.
            assert answer.status == (400 if path.startswith("root-keys") else 404), (
                f"{method} {path}: {answer.body}"
            )


def test_members_of_workspaces_are_nobody_in_the_admin(things: dict[str, str], owner: Caller, client: Client):
    """No page and no action of it, for whoever is not staff, and for staff without a permission."""
    pages = [
        reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=arguments)
        for model in admin.site._registry
        for page, arguments in (("changelist", []), ("add", []), ("change", ["1"]), ("delete", ["1"]))
    ]
    clerk = User.objects.create(username="clerk", is_staff=True)
    for person, refused in ((owner.user, 302), (clerk, 403)):
        client.force_login(person)
        with nothing_changes():
            for page in pages:
                for method in ("get", "post"):
                    data = {"action": "delete", "_selected_action": list(things.values())}
                    answer = getattr(client, method)(page, data if method == "post" else None)
                    assert answer.status_code == refused, page


def test_the_size_of_the_matrix(capsys: pytest.CaptureFixture[str]):
    inside = [endpoint for endpoint in ALL if endpoint.in_workspace]
    deeper = [endpoint for endpoint in inside if len(endpoint.names) > 1]
    asked = len(ALL) + len(ROLES) * (len(inside) * 2 + len(deeper))
    pages = len(admin.site._registry) * 4 * 2 * 2
    with capsys.disabled():
        print(f"\n/api/: {len(ALL)} endpoints, {len(ROLES)} roles: {asked} requests; admin: {pages} requests")
    assert len(inside) > 80
