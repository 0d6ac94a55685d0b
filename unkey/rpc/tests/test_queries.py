"""Every operation asks the database as often for twenty of something as for one.

Generated: an operation that is declared anywhere is tested here without being named, and must succeed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from apps.deployments.lifecycle import frozen_settings
from apps.workspaces.services import forget_presented
from unkey import clock
from unkey.env import env
from unkey.rpc.routes import Route, routes
from unkey.rpc.testing import Tenant, make_tenant
from unkey.rpc.tests.test_tenancy import body_of, owned
from unkey.tenancy import unscoped

MANY = 20
MOST = 40
PATH = ("project", "app", "environment")
LIMIT = {"limit": 9, "duration": 60_000, "autoApply": True}
STREAMED = {"snapshots.createSnapshot"}
"""Operations whose body is a stream: one file, one answer."""


@dataclass(frozen=True)
class World:
    """A workspace with `count` of everything, and the names of one of each."""

    count: int
    tenant: Tenant
    session: Tenant
    named: dict[str, str]

    def names(self, prefix: str) -> list[str]:
        """Return as many names as there are of everything."""
        return [f"{prefix}{number}" for number in range(self.count)]

    def limits(self) -> list[dict[str, Any]]:
        """Return as many limits."""
        return [{"name": name, **LIMIT} for name in self.names("limit-")]


def make_world(count: int) -> World:
    """Make one of everything that can be named, and `count` of what it has and of what stands beside it."""
    tenant = make_tenant(f"has-{count}")
    world = World(count, tenant, tenant, owned(tenant))
    named = world.named
    path = {name: named[name] for name in PATH}
    for name in world.names("role-"):
        tenant("permissions.createRole", {"name": name, "permissions": world.names("slug-")})
    tenant("identities.updateIdentity", {"identity": "theirs", "ratelimits": world.limits()})
    key = {"permissions": world.names("slug-"), "roles": world.names("role-"), "ratelimits": world.limits()}
    tenant("keys.updateKey", {"keyId": named["keyId"], "externalId": "theirs", **key})
    for number in range(count - 1):
        made = {"apiId": named["apiId"], "externalId": f"user-{number}", "credits": {"remaining": 9}}
        tenant("keys.createKey", made | key)
        tenant(
            "ratelimit.setOverride", {"namespace": named["namespace"], "identifier": f"o{number}", **_LIMIT}
        )
        tenant("rootKeys.createKey", {"permissions": ["api.*.read_api"]})
        tenant("projects.createProject", {"name": "More", "slug": f"more-{number}"})
        app = {"project": named["project"], "name": "More", "slug": f"more-{number}"}
        tenant("apps.createApp", app)
        tenant("portal.createSession", _session(f"user-{number}"))
    variables = [{"key": name, "value": "1"} for name in world.names("V")]
    tenant("environments.setEnvironmentVariables", {**path, "variables": variables})
    tenant("gateway.setPolicies", {**path, "policies": _policies(world)})
    named["policyId"] = tenant("gateway.listPolicies", path)[0]["id"]
    _deployments(world)
    with unscoped("test"):
        apps.get_model("keys", "KeyMigration").objects.create(
            workspace=tenant.workspace, name="old", algorithm="sha256"
        )
    other = tenant("apis.createApi", {"name": "other"})["apiId"]
    with unscoped("test"):
        named["otherKeyspaceId"] = apps.get_model("keys", "Api").objects.get(pk=other).key_space_id
    token = tenant("portal.exchangeCode", {"code": _code(world)})["accessToken"]
    return replace(world, session=replace(tenant, root_key=token))


_LIMIT = {"limit": 9, "duration": 60_000}


def _session(external_id: str) -> dict[str, Any]:
    scopes = ["keys:read", "keys:reroll", "analytics:read"]
    return {"portal": "theirs", "externalId": external_id, "scopes": scopes}


def _code(world: World) -> str:
    url: str = world.tenant("portal.createSession", _session("theirs"))["url"]
    return url.partition("?code=")[2]


def _policies(world: World) -> list[dict[str, Any]]:
    keyauth = {"keyspaces": [world.named["apiId"]]}
    return [{"name": name, "enabled": True, "keyauth": keyauth} for name in world.names("policy-")]


def _deployments(world: World) -> None:
    with unscoped("test"):
        model = apps.get_model("deployments", "Deployment")
        first = model.objects.get(pk=world.named["deploymentId"])
        first.environment = apps.get_model("projects", "Environment").objects.get(
            app=world.named["app"], slug="production"
        )
        first.settings = frozen_settings(first.environment)
        model.objects.filter(pk=first.pk).update(settings=first.settings, environment=first.environment)
        made = [
            model(
                settings=first.settings,
                regions=[],
                workspace=first.workspace,
                environment=first.environment,
                app=first.app,
                project=first.project,
            )
            for _ in range(world.count - 1)
        ]
        model.objects.bulk_create(made)


@pytest.fixture(scope="module")
def worlds(django_db_setup: None, django_db_blocker: Any) -> Iterator[dict[int, World]]:
    """A workspace with one and one with many of everything; what a test does is undone back to here."""
    around = transaction.atomic()
    around._from_testcase = True  # type: ignore[attr-defined]  # as the one that Django puts around each test
    portal = env._values["PORTAL_URL"]
    env._values["PORTAL_URL"] = "https://portal.example"
    try:
        with django_db_blocker.unblock(), around:
            yield {count: make_world(count) for count in (1, MANY)}
            transaction.set_rollback(True)
    finally:
        env._values["PORTAL_URL"] = portal


Body = dict[str, Any] | list[Any]


def _extra(world: World) -> dict[str, Body]:
    """Return by operation what is not the least of its body: as many in each list as there are of everything."""
    slugs, roles, limits = world.names("slug-"), world.names("role-"), world.limits()
    variables = [{"key": name, "value": "2"} for name in world.names("V")]
    key = {"permissions": slugs, "roles": roles, "ratelimits": limits, "externalId": "theirs"}
    fresh = [name.upper() for name in slugs]
    one = {"permissions": slugs[:1], "roles": roles[:1], "ratelimits": limits[:1], "externalId": "theirs"}
    imported = [{"hash": f"{number:064x}", **one} for number in range(world.count)]
    override = {"identifier": f"o{world.count - 2}" if world.count > 1 else "a"}
    now = clock.now_ms()
    spent = [{"name": name, "cost": 1} for name in world.names("limit-")]
    several = [{"namespace": world.named["apiId"], "identifier": name, **_LIMIT} for name in world.names("u")]
    query = {"query": "SELECT 1 AS a"}
    return {
        "analytics.getGatewayRequests": query,
        "analytics.getRatelimits": query,
        "analytics.getRuntimeLogs": query,
        "analytics.getVerifications": query,
        "environments.removeEnvironmentVariables": {"variables": world.names("V")},
        "environments.setEnvironmentVariables": {"variables": variables},
        "gateway.setPolicies": {"policies": _policies(world)},
        "identities.createIdentity": {"ratelimits": limits},
        "identities.updateIdentity": {"ratelimits": [{**limit, "limit": 7} for limit in limits]},
        "keys.addPermissions": {"permissions": fresh},
        "keys.addRoles": {"roles": roles},
        "keys.createKey": key,
        "keys.migrateKeys": {"migrationId": "old", "keys": imported},
        "keys.removePermissions": {"permissions": slugs},
        "keys.removeRoles": {"roles": roles},
        "keys.setPermissions": {"permissions": fresh},
        "keys.setRoles": {"roles": roles},
        "keys.updateCredits": {"operation": "set", "value": 3},
        "keys.updateKey": {
            **key,
            "permissions": fresh,
            "ratelimits": [{**limit, "limit": 7} for limit in limits],
        },
        "keys.verifyKey": {"permissions": " AND ".join(slugs), "ratelimits": spent},
        "permissions.createRole": {"permissions": fresh},
        "permissions.setRolePermissions": {"permissions": fresh},
        "portal.createPortal": {"slug": "other", "keyspaceId": world.named["otherKeyspaceId"]},
        "portal.createSession": _session("theirs"),
        "portal.exchangeCode": {"code": _code(world)},
        "portal.getVerifications": {"startTime": now - 3_600_000, "endTime": now},
        "portal.revokeSession": {"externalId": "theirs"},
        "ratelimit.deleteOverride": override,
        "ratelimit.getOverride": override,
        "ratelimit.multiLimit": several,
        "rootKeys.createKey": {"permissions": ["api.*.read_api"] * world.count},
    }


REFUSED = {
    # A deployment that was only written down cannot do these: what is asked before that is said counts.
    "deployments.approveDeployment": 412,
    "deployments.createDeployment": 400,
    "deployments.getOpenapiDiff": 404,
    "deployments.getOpenapiSpec": 404,
    "deployments.promoteDeployment": 412,
    "deployments.redeployDeployment": 412,
    "deployments.rollbackDeployment": 412,
    "deployments.startDeployment": 412,
    "deployments.stopDeployment": 412,
}


def queries(route: Route, world: World) -> int:
    """Return how often an operation asks the database; it must succeed."""
    caller = world.session if route.session else world.tenant
    body: Body = body_of(route, world.named) if route.checker else {}
    extra = _extra(world).get(route.name, {})
    body = body | extra if isinstance(extra, dict) and isinstance(body, dict) else extra
    forget_presented()
    with CaptureQueriesContext(connection) as asked:
        if route.method == "GET":
            answer = caller.client.get(route.path)
            status, said = answer.status_code, answer.content
        else:
            full = caller.send(route.name, body)
            status, said = full.status, full.body
    assert status == REFUSED.get(route.name, route.status), said
    return len(asked)


@pytest.mark.parametrize(
    "route",
    [route for route in routes().values() if route.name not in STREAMED],
    ids=lambda route: route.name,
)
def test_many_take_no_more_queries_than_one(route: Route, worlds: dict[int, World], db: None) -> None:
    one, many = (queries(route, worlds[count]) for count in (1, MANY))
    assert many <= one
    assert one <= MOST
