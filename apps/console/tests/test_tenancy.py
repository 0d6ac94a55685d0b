"""Every endpoint, every role: who may not is refused, whoever is foreign is told nothing, nothing changes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.db import connection

from apps.console.models import KeptAnswer
from apps.console.rest.deployments import ActionView
from apps.console.tests.conftest import Caller, Join
from apps.console.tests.endpoints import Endpoint, endpoints
from apps.deployments.tests.conftest import Platform
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
    }


def test_every_method_in_a_workspace_says_what_it_needs():
    silent = [
        str(endpoint)
        for endpoint in ALL
        if issubclass(endpoint.view, object)
        and endpoint.in_workspace
        and endpoint.method not in endpoint.view.needs  # type: ignore[attr-defined]
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


@pytest.mark.parametrize("role", ROLES)
def test_a_foreign_workspace_is_not_there(
    role: str, things: dict[str, str], stranger: Tenant, join: Join, platform: Platform
):
    foreign = join(stranger.workspace, role)
    # The stranger has a project, an app and a deployment of the same names.
    own = Platform(stranger)
    stranger("projects.createProject", {"name": "Shop", "slug": own.project})
    stranger("apps.createApp", {"name": "Default", "slug": own.app, "project": own.project})
    inside = {**things, "workspace": stranger.workspace.id}
    with nothing_changes():
        for endpoint in ALL:
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
            allowed = roles.may(
                Membership.Role(role),
                endpoint.view.needs[endpoint.method],  # type: ignore[attr-defined]
            )
            refusals = {400, 404, 415} if allowed else {403}
            assert answer.status in refusals, f"{role}: {endpoint}: {answer.body}"
            assert platform.project not in str(answer.body)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_the_table_says_and_nothing_else(
    role: str, things: dict[str, str], owner: Caller, join: Join
):
    caller = join(owner.workspace, role)
    for endpoint in ALL:
        if not endpoint.in_workspace:
            continue
        needed = endpoint.view.needs[endpoint.method]  # type: ignore[attr-defined]
        if roles.may(Membership.Role(role), needed):
            continue
        with nothing_changes():
            problem = caller.refused(endpoint.method, endpoint.address(things), body_of(endpoint), status=403)
        assert problem["code"] == "err:unkey:authorization:forbidden", str(endpoint)
        assert problem["detail"] == (
            f"Your role {role} may not {needed}. Ask an owner of the workspace for more."
        )


def test_what_roles_may_do():
    table = {str(role): {action.name for action in allowed} for role, allowed in roles.ALLOWED.items()}
    assert table["viewer"] == {"READ", "TOKENS"}
    assert table["member"] - table["viewer"] == {"DEPLOY", "OPERATE", "CONFIGURE", "CREATE"}
    assert table["admin"] - table["member"] == {"DELETE", "APPROVE", "REVEAL", "AUDIT", "MEMBERS"}
    assert table["owner"] - table["admin"] == {"OWNERS"}


@pytest.mark.parametrize("role", ROLES)
def test_whoever_may_look_sees_everything_that_may_be_looked_at(
    role: str, things: dict[str, str], owner: Caller, join: Join
):
    caller = join(owner.workspace, role)
    with nothing_changes():
        for endpoint in ALL:
            if endpoint.method == "GET" and endpoint.in_workspace:
                needed = endpoint.view.needs["GET"]  # type: ignore[attr-defined]
                if roles.may(Membership.Role(role), needed):
                    answer = caller.send(
                        "GET", endpoint.address(things) + QUERIES.get(str(endpoint), "").format(**things)
                    )
                    none = answer.status == 404 and answer.body["code"] == NO_DOCUMENT
                    assert answer.status == 200 or none, f"{endpoint}: {answer.body}"


@pytest.mark.parametrize("body", [None, [], {"unknown": 1}, "text", 7, {"name": 7, "slug": None, "role": []}])
def test_bad_bodies_are_refused_and_never_a_fault_of_ours(body: Any, things: dict[str, str], owner: Caller):
    spared = {"DELETE session", "POST session"}  # these have their own way to be refused
    for endpoint in ALL:
        if endpoint.method == "GET" or str(endpoint) in spared:
            continue
        if body in (None, []) and endpoint.method == "DELETE":
            continue
        if body is None and issubclass(endpoint.view, ActionView):
            continue
        answer = owner.send(endpoint.method, endpoint.address(things), body)
        assert answer.status < 500, f"{endpoint}: {answer.body}"
        if body is not None:
            assert answer.status in (400, 415), f"{endpoint}: {answer.body}"
            assert answer.headers["Content-Type"] == "application/problem+json"


def test_unknown_parameters_are_refused(things: dict[str, str], owner: Caller):
    for endpoint in ALL:
        if endpoint.method == "GET" and endpoint.in_workspace:
            answer = owner.send("GET", f"{endpoint.address(things)}?colour=red")
            assert answer.status == 400, str(endpoint)
            assert answer.body["violations"][0]["location"] == "query.colour"
