"""The published Python SDK's models read every answer, wholly: nothing missing, nothing unknown but `MORE`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

from apps.deployments.tests.conftest import Platform
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.env import env
from unkey.rpc.routes import routes
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db

OURS = {
    # Beyond the published API.
    "deployments.getLogs",
    "deployments.getOpenapiDiff",
    "deployments.getOpenapiSpec",
    "deployments.listInstances",
    "deployments.approveDeployment",
    "deployments.cancelDeployment",
    "deployments.getLastRequest",
    "deployments.listSteps",
    "environments.deleteEnvironment",
    "gateway.createDebugHeader",
    "gateway.getBarrier",
    "gateway.setBarrier",
    "deployments.redeployDeployment",
    "snapshots.createSnapshot",
}
# What a deployment says beyond the published models, which drop it; see docs/differences.md.
MORE = ("asleepSince", "instances", "objection")
HEALTHCHECK = {
    "method": "GET",
    "path": "/health",
    "intervalSeconds": 5,
    "timeoutSeconds": 2,
    "failureThreshold": 3,
    "initialDelaySeconds": 0,
}
POLICIES = [
    {
        "name": "keys",
        "enabled": True,
        "match": [
            {"path": {"path": {"prefix": "/api", "ignoreCase": True}}},
            {"method": {"methods": ["GET", "POST"]}},
            {"header": {"name": "x-plan", "value": {"exact": "pro"}}},
            {"queryParam": {"name": "q", "present": True}},
        ],
        "keyauth": {
            "locations": [{"bearer": {}}, {"header": {"name": "x-key", "stripPrefix": "Key "}}],
            "permissionQuery": "read OR write",
            "ratelimits": [{"name": "requests", "limit": 10, "duration": 1000, "cost": 2}],
            "credits": 2,
        },
    },
    {
        "name": "limit",
        "enabled": True,
        "ratelimit": {"limit": 5, "windowMs": 1000, "identifiers": [{"remoteIp": {}}, {"path": {}}]},
    },
    {"name": "wall", "enabled": False, "firewall": {"action": "ACTION_DENY"}},
    {"name": "schema", "enabled": True, "openapi": {}},
    {"name": "log", "enabled": True, "logging": {"requestHeaders": True}},
]


class Recorder:
    """Calls operations and keeps every answer."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.answers: list[tuple[str, Any]] = []

    def __call__(self, operation: str, body: Any = None) -> Any:
        envelope = self.tenant.full(operation, body)
        self.answers.append((operation, envelope))
        return envelope.get("data")

    def refused(self, operation: str, body: Any, status: int, tenant: Tenant | None = None) -> None:
        answer = (tenant or self.tenant).send(operation, body)
        assert answer.status == status, answer.body
        self.answers.append((f"error.{status}", answer.body))


def _keys(call: Recorder) -> str:
    api = call("apis.createApi", {"name": "payments"})["apiId"]
    call("apis.getApi", {"apiId": api})
    with unscoped("test"):
        apps.get_model("keys", "Role").objects.create(workspace=call.tenant.workspace, name="admin")
        apps.get_model("keys", "KeyMigration").objects.create(
            workspace=call.tenant.workspace, name="old", algorithm="sha256"
        )
    credits = {"remaining": 7, "refill": {"interval": "monthly", "amount": 9, "refillDay": 31}}
    limits = [{"name": "requests", "limit": 3, "duration": 60_000, "autoApply": True}]
    made = call(
        "keys.createKey",
        {
            "apiId": api,
            "prefix": "pay",
            "name": "first",
            "externalId": "customer-1",
            "meta": {"plan": {"name": "pro"}},
            "roles": ["admin"],
            "permissions": ["documents.read"],
            "expires": 4_000_000_000_000,
            "credits": credits,
            "ratelimits": limits,
        },
    )
    key = {"keyId": made["keyId"]}
    call("keys.verifyKey", {"key": made["key"], "permissions": "documents.read"})
    call("keys.verifyKey", {"key": "nobody"})
    imported = [{"hash": "a" * 64}, {"hash": "none"}]
    call("keys.migrateKeys", {"migrationId": "old", "apiId": api, "keys": imported})
    call("keys.getKey", key)
    call("keys.whoami", {"key": made["key"]})
    call("apis.listKeys", {"apiId": api})
    call("keys.addPermissions", {**key, "permissions": ["documents.write"]})
    call("keys.setPermissions", {**key, "permissions": ["documents.write"]})
    call("keys.removePermissions", {**key, "permissions": ["documents.write"]})
    for verb in ("add", "set", "remove"):
        call(f"keys.{verb}Roles", {**key, "roles": ["admin"]})
    call("keys.updateCredits", {**key, "operation": "increment", "value": 1})
    call("keys.updateKey", {**key, "name": None, "credits": None})
    call("keys.getKey", key)
    call("keys.rerollKey", {**key, "expiration": 0})
    call("keys.deleteKey", key)
    return str(api)


def _portals(call: Recorder, api: str) -> None:
    with unscoped("test"):
        space = apps.get_model("keys", "Api").objects.get(pk=api).key_space_id
    key = call.tenant("keys.createKey", {"apiId": api, "externalId": "customer-9"})["keyId"]
    look = {"logoUrl": "https://a.example/logo.svg", "primaryColor": "#1a7f4b"}
    made = {"slug": "keys", "displayName": "Your keys", "keyspaceId": space, **look}
    call("portal.createPortal", made)
    portal = {"portal": "keys"}
    call("portal.getPortal", portal)
    call("portal.updatePortal", {**portal, "displayName": "Keys", "logoUrl": None})
    user = {**portal, "externalId": "customer-9"}
    scopes = ["keys:read", "keys:reroll", "analytics:read"]
    url = call("portal.createSession", {**user, "scopes": scopes})["url"]
    code = {"code": url.partition("?code=")[2]}
    token = call("portal.exchangeCode", code)["accessToken"]
    call("portal.listSessions", portal)
    session = Recorder(replace(call.tenant, root_key=token))
    session("portal.listKeys", {})
    session("portal.rerollKey", {"keyId": key, "expiration": 0})
    now = clock.now_ms()
    session("portal.getVerifications", {"startTime": now - 3_600_000, "endTime": now})
    call.answers += session.answers
    call("portal.revokeSession", user)
    call("portal.deletePortal", portal)


def _identities(call: Recorder) -> None:
    limits = [{"name": "requests", "limit": 3, "duration": 60_000, "autoApply": True}]
    named = {"identity": "customer-2"}
    call("identities.createIdentity", {"externalId": "customer-2", "meta": {"a": 1}, "ratelimits": limits})
    call("identities.getIdentity", named)
    call("identities.updateIdentity", {**named, "meta": {}, "ratelimits": []})
    call("identities.listIdentities", {"limit": 1})
    call("identities.deleteIdentity", named)


def _permissions(call: Recorder) -> None:
    call("permissions.createPermission", {"name": "Read", "slug": "books.read", "description": "all books"})
    role = {"name": "reader", "description": "reads", "permissions": ["books.read", "books.list"]}
    made = call("permissions.createRole", role)
    call("permissions.getPermission", {"permission": "books.read"})
    call("permissions.listPermissions", {"limit": 1})
    call("permissions.getRole", {"role": "reader"})
    call("permissions.listRoles", {})
    call("permissions.setRolePermissions", {"roleId": made["roleId"], "permissions": ["books.list"]})
    call("permissions.updatePermission", {"permission": "books.read", "description": "some books"})
    call("permissions.updateRole", {"role": "reader", "description": None})
    call("permissions.deletePermission", {"permission": "books.read"})
    call("permissions.deleteRole", {"role": "reader"})


def _account(call: Recorder) -> None:
    call("workspace.getLimits")
    call("workspace.getUsage", {})
    made = call("rootKeys.createKey", {"permissions": ["api.*.read_api"], "expires": 4_000_000_000_000})
    call("rootKeys.updateKey", {"keyId": made["keyId"], "name": "ci", "enabled": False})
    call("rootKeys.listKeys", {"limit": 1})
    call("rootKeys.listKeys", {})
    again = call("rootKeys.rerollKey", {"keyId": made["keyId"], "expiration": 0})
    call("rootKeys.deleteKey", {"keyId": again["keyId"]})


def _ratelimits(call: Recorder) -> None:
    limit = {"namespace": "mails", "identifier": "user-1", "limit": 9, "duration": 60_000}
    call("ratelimit.limit", limit)
    name = {"namespace": "mails", "identifier": "user-*"}
    call("ratelimit.setOverride", {**name, "limit": 0, "duration": 60_000})
    call("ratelimit.limit", limit)
    call("ratelimit.multiLimit", [limit, {**limit, "identifier": "other", "cost": 2}])
    call("ratelimit.getOverride", name)
    call("ratelimit.listOverrides", {"namespace": "mails", "limit": 1})
    call("ratelimit.deleteOverride", name)


def _analytics(call: Recorder) -> None:
    rows = "SELECT 1 AS a, 'b' AS b, [1] AS c, 0 / 0 AS d"
    for operation in ("getVerifications", "getRatelimits", "getGatewayRequests", "getRuntimeLogs"):
        call(f"analytics.{operation}", {"query": rows})


def _deployments(call: Recorder, api: str) -> None:
    call("projects.createProject", {"name": "Shop", "slug": "shop"})
    project = {"project": "shop"}
    call("projects.getProject", project)
    call("projects.updateProject", {**project, "name": "The shop", "deleteProtection": False})
    call("projects.listProjects", {"limit": 1})
    call("apps.createApp", {**project, "name": "Web", "slug": "default"})
    names = {**project, "app": "default"}
    call("apps.updateApp", {**names, "name": "The web"})
    call("apps.listApps", project)
    where = {**names, "environment": "production"}
    call("environments.updateSettings", {**where, "healthcheck": HEALTHCHECK, "command": ["run"]})
    call("environments.updateSettings", {**where, "openapiSpecPath": "/spec.json", "dockerfile": "D"})
    call("environments.getEnvironment", where)
    call("environments.listEnvironments", names)
    variables = [
        {"key": "A", "value": "1", "kind": "recoverable", "description": "a"},
        {"key": "B", "value": "2"},
    ]
    call("environments.setEnvironmentVariables", {**where, "variables": variables})
    call("environments.listEnvironmentVariables", where)
    call("environments.removeEnvironmentVariables", {**where, "variables": ["B"]})
    policies = [dict(policy) for policy in POLICIES]
    policies[0]["keyauth"] = {**POLICIES[0]["keyauth"], "keyspaces": [api]}  # type: ignore[dict-item]
    call("gateway.setPolicies", {**where, "policies": policies})
    policy = call("gateway.listPolicies", where)[0]["id"]
    call("gateway.updatePolicy", {**where, "policyId": policy, "match": None})

    platform = Platform(call.tenant)
    first = platform.deploy()
    call("apps.getApp", names)
    image = {"dockerImage": platform.snapshot()}
    second = call("deployments.createDeployment", {**where, "image": image})["deploymentId"]
    call("deployments.getDeployment", {"deploymentId": second})
    platform.finish(second)
    call("deployments.listDeployments", {**names, "limit": 1})
    call("deployments.rollbackDeployment", {"deploymentId": first})
    drain()
    call("deployments.promoteDeployment", {"deploymentId": second})
    preview = {"deploymentId": platform.deploy("preview")}
    call("deployments.stopDeployment", preview)
    call("deployments.startDeployment", preview)
    broken = platform.create()
    with unscoped("test"):
        apps.get_model("deployments", "Deployment").objects.filter(pk=broken).update(
            status="failed", error_code="build_failed", error_step="building", error_message="why"
        )
    call("deployments.getDeployment", {"deploymentId": broken})
    call("apps.deleteApp", names)
    call("projects.deleteProject", project)


def _without_more(answer: Any) -> Any:
    """Leave out of an answer about deployments what is beyond the published models."""
    rows = answer.get("data")
    for row in rows if isinstance(rows, list) else [rows]:
        if isinstance(row, dict) and "availableActions" in row:
            for name in MORE:
                row.pop(name, None)
    return answer


def test_every_answer_is_read_wholly_by_the_published_models(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(env._values, "PORTAL_URL", "https://portal.example")
    call = Recorder(tenant)
    api = _keys(call)
    _portals(call, api)
    _identities(call)
    _permissions(call)
    _ratelimits(call)
    _account(call)
    _analytics(call)
    _deployments(call, api)
    call.refused("apis.createApi", {}, 400)
    key = call("keys.createKey", {"apiId": api})["key"]
    call.refused("keys.verifyKey", {"key": key, "permissions": "a AND"}, 400)
    call.refused("apis.getApi", {"apiId": "api_nobody0"}, 404)
    call.refused("apis.createApi", {"name": "mine"}, 403, tenant.holding())
    call.refused("apis.createApi", {"name": "mine"}, 401, Tenant(tenant.workspace, "unkey_nobody"))
    call("projects.createProject", {"name": "a", "slug": "taken"})
    call.refused("projects.createProject", {"name": "a", "slug": "taken"}, 409)
    git = {"project": "taken", "name": "x", "slug": "api", "git": {"repository": "acme/api"}}
    call.refused("apps.createApp", git, 412)
    call("apis.deleteApi", {"apiId": api})
    call.answers.append(("liveness", json.loads(tenant.client.get("/v2/liveness").content)))
    assert {operation for operation, _ in call.answers} >= set(routes()) - OURS

    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", str(Path(__file__).with_name("sdk_models.py"))],
        input=json.dumps(
            [(name, _without_more(answer)) for name, answer in call.answers if name != "liveness"]
        ),
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
