"""The gateway's policies as callers of `/v2` see them."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.keys.models import Api
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

BCRYPT = "$2b$04$" + "a" * 53
ENV = {"project": "shop", "app": "api", "environment": "production"}


@pytest.fixture
def key_space(tenant: Tenant) -> str:
    """An environment to work on, and the key space of an API called `payments`."""
    tenant("projects.createProject", {"name": "Shop", "slug": "shop"})
    tenant("apps.createApp", {"project": "shop", "name": "Api", "slug": "api"})
    tenant("apis.createApi", {"name": "payments"})
    with unscoped("test"):
        found: str = Api.objects.get().key_space_id
        return found


def put(tenant: Tenant, *policies: dict[str, Any]) -> None:
    tenant("gateway.setPolicies", {**ENV, "policies": list(policies)})


def listed(tenant: Tenant) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tenant("gateway.listPolicies", ENV)
    return found


def audited() -> list[dict[str, Any]]:
    with unscoped("test"):
        rows = AuditLog.objects.filter(event="environment.update").order_by("time")
        return [row.meta for row in rows]


def named(name: str, **rule: Any) -> dict[str, Any]:
    return {"name": name, "enabled": True, **rule}


def test_every_kind_is_kept_as_it_was_sent_in_order_with_new_ids(tenant: Tenant, key_space: str) -> None:
    wanted = [
        named(
            "keys",
            match=[
                {"path": {"path": {"prefix": "/v1", "ignoreCase": True}}},
                {"method": {"methods": ["GET", "POST"]}},
                {"header": {"name": "x-team", "value": {"regex": "^a+$"}}},
                {"queryParam": {"name": "q", "present": True}},
            ],
            keyauth={
                "keyspaces": [key_space],
                "locations": [
                    {"bearer": {}},
                    {"header": {"name": "x-key", "stripPrefix": "Key "}},
                    {"queryParam": {"name": "key"}},
                ],
                "permissionQuery": "a AND b",
                "ratelimits": [{"name": "requests", "limit": 10, "duration": 1000, "cost": 2}],
                "credits": 0,
            },
        ),
        named("limit", ratelimit={"limit": 5, "windowMs": 1000, "identifiers": [{"remoteIp": {}}, {"path": {}}]}),
        named("one", ratelimit={"limit": 5, "windowMs": 1, "identifier": {"principalField": {"path": "a.b"}}}),
        named(
            "tokens",
            jwtauth={
                "oidcIssuer": "https://issuer.test",
                "audiences": ["api"],
                "algorithms": ["ES256"],
                "requiredClaims": [],
                "clockSkewMs": 5000,
                "locations": [{"bearer": {}}],
            },
        ),
        named("people", basicauth={"credentials": [{"username": "ali", "passwordHash": BCRYPT}]}),
        named("places", ipRules={"allow": ["192.0.2.0/24", "2001:db8::/32"], "deny": ["192.0.2.1"]}),
        {"name": "wall", "enabled": False, "firewall": {"action": "ACTION_DENY"}},
        named("spec", openapi={}),
        named("log", logging={"query": True}),
    ]  # fmt: skip
    put(tenant, *wanted)
    first = listed(tenant)
    ids = [policy.pop("id") for policy in first]
    assert all(identifier.startswith("pol_") for identifier in ids)
    assert len(set(ids)) == 9
    wanted[-1]["logging"] = {
        "requestHeaders": False,
        "responseHeaders": False,
        "requestBody": False,
        "responseBody": False,
        "query": True,
    }
    assert first == wanted
    assert audited() == [{"gateway": {"policies": ids}}]
    put(tenant, *wanted)
    assert not {policy["id"] for policy in listed(tenant)} & set(ids)
    put(tenant)
    assert listed(tenant) == []


def test_a_key_space_may_be_named_by_its_api(tenant: Tenant, key_space: str) -> None:
    api = tenant("apis.createApi", {"name": "second"})["apiId"]
    put(tenant, named("keys", keyauth={"keyspaces": [key_space, api, key_space]}))
    with unscoped("test"):
        second = Api.objects.get(pk=api).key_space_id
    assert listed(tenant)[0]["keyauth"]["keyspaces"] == [key_space, second]


def test_key_spaces_of_others_and_of_deleted_apis_do_not_exist(
    tenant: Tenant, stranger: Tenant, key_space: str
) -> None:
    theirs = stranger("apis.createApi", {"name": "theirs"})["apiId"]
    gone = tenant("apis.createApi", {"name": "gone"})["apiId"]
    tenant("apis.deleteApi", {"apiId": gone})
    for name in (theirs, gone, "ks_nothing"):
        body = {**ENV, "policies": [named("keys", keyauth={"keyspaces": [key_space, name]})]}
        error = tenant.refused("gateway.setPolicies", body, 404)
        assert error["type"].endswith("/unkey/data/key_space_not_found")
        assert error["detail"] == f"The key space '{name}' does not exist."
    assert listed(tenant) == []
    assert audited() == []


@pytest.mark.parametrize(
    ("policy", "location"),
    [
        (named("none"), "body.policies[0]"),
        (named("two", openapi={}, firewall={"action": "ACTION_DENY"}), "body.policies[0]"),
        ({"enabled": True, "openapi": {}}, "body.policies[0].name"),
        (named("x", firewall={"action": "ACTION_ALLOW"}), "body.policies[0].firewall.action"),
        (named("x", keyauth={"keyspaces": []}), "body.policies[0].keyauth.keyspaces"),
        (named("x", keyauth={"keyspaces": ["a"], "locations": [{}]}), "body.policies[0].keyauth.locations[0]"),
        (named("x", ratelimit={"limit": 1, "windowMs": 1}), "body.policies[0].ratelimit"),
        (named("x", ratelimit={"limit": 0, "windowMs": 1, "identifier": {"path": {}}}),
         "body.policies[0].ratelimit.limit"),
        (named("x", openapi={}, match=[{}]), "body.policies[0].match[0]"),
        (named("x", openapi={}, match=[{"method": {"methods": ["TRACE"]}}]),
         "body.policies[0].match[0].method.methods[0]"),
        (named("x", openapi={}, match=[{"path": {"path": {"regex": "(?=a)"}}}]),
         "body.policies[0].match[0].path.path.regex"),
        (named("x", openapi={}, match=[{"header": {"name": "a", "value": {"regex": "("}}}]),
         "body.policies[0].match[0].header.value.regex"),
        (named("x", openapi={}, match=[{"queryParam": {"name": "a", "present": False}}]),
         "body.policies[0].match[0].queryParam.present"),
        (named("x", jwtauth={}), "body.policies[0].jwtauth"),
        (named("x", jwtauth={"publicKeyPem": "none"}), "body.policies[0].jwtauth"),
        (named("x", jwtauth={"jwksUri": "https://a.test", "algorithms": ["none"]}),
         "body.policies[0].jwtauth.algorithms[0]"),
        (named("x", jwtauth={"jwksUri": "https://a.test", "algorithms": ["HS256", "RS256"]}),
         "body.policies[0].jwtauth"),
        (named("x", basicauth={"credentials": [{"username": "a", "passwordHash": "secret"}]}),
         "body.policies[0].basicauth"),
        (named("x", ipRules={}), "body.policies[0].ipRules"),
        (named("x", ipRules={"deny": ["300.0.0.0/8"]}), "body.policies[0].ipRules"),
        (named("x", openapi={}, mtls={}), "body.policies[0].mtls"),
    ],
)  # fmt: skip
def test_faulty_policies_are_refused_and_the_old_ones_stay(
    tenant: Tenant, key_space: str, policy: dict[str, Any], location: str
) -> None:
    put(tenant, named("old", openapi={}))
    before = listed(tenant)
    error = tenant.refused("gateway.setPolicies", {**ENV, "policies": [policy]}, 400)
    assert [fault["location"] for fault in error["errors"]] == [location]
    assert listed(tenant) == before


def test_at_most_fifty_policies(tenant: Tenant, key_space: str) -> None:
    put(tenant, *(named(str(number), openapi={}) for number in range(50)))
    many = [named(str(number), openapi={}) for number in range(51)]
    tenant.refused("gateway.setPolicies", {**ENV, "policies": many}, 400)


def test_one_policy_is_patched_in_its_place(tenant: Tenant, key_space: str) -> None:
    match = [{"path": {"path": {"exact": "/a"}}}]
    put(tenant, named("a", openapi={}, match=match), named("b", firewall={"action": "ACTION_DENY"}))
    first, second = listed(tenant)

    def change(**fields: Any) -> dict[str, Any]:
        assert tenant("gateway.updatePolicy", {**ENV, "policyId": first["id"], **fields}) == {}
        shown = listed(tenant)
        assert shown[1] == second
        return shown[0]

    assert change() == first
    assert change(enabled=False, name="c") == {**first, "enabled": False, "name": "c"}
    changed = change(keyauth={"keyspaces": [key_space]})
    assert changed == {
        "id": first["id"],
        "name": "c",
        "enabled": False,
        "match": match,
        "keyauth": {"keyspaces": [key_space]},
    }
    assert change(match=[]) == {**changed, "match": []}
    del changed["match"]
    assert change(match=None) == changed
    assert audited()[-1] == {"gateway": {"policy": first["id"], "fields": ["match"]}}


def test_a_faulty_patch_changes_nothing(tenant: Tenant, key_space: str) -> None:
    put(tenant, named("a", openapi={}))
    before = listed(tenant)
    body = {**ENV, "policyId": before[0]["id"]}
    two = {**body, "openapi": {}, "firewall": {"action": "ACTION_DENY"}}
    assert tenant.refused("gateway.updatePolicy", two, 400)["errors"][0]["location"] == "body"
    broken = {**body, "match": [{"path": {"path": {"regex": "a**"}}}]}
    assert tenant.refused("gateway.updatePolicy", broken, 400)["errors"][0]["location"] == (
        "body.match[0].path.path.regex"
    )
    tenant.refused("gateway.updatePolicy", {**body, "keyauth": {"keyspaces": ["ks_nothing"]}}, 404)
    error = tenant.refused("gateway.updatePolicy", {**body, "policyId": "pol_nothing"}, 404)
    assert error["type"].endswith("/unkey/data/policy_not_found")
    assert listed(tenant) == before


@pytest.mark.parametrize(
    ("operation", "body", "action"),
    [
        ("gateway.listPolicies", {}, "read_policies"),
        ("gateway.setPolicies", {"policies": []}, "set_policies"),
        ("gateway.updatePolicy", {"policyId": "x", "name": "new"}, "update_policy"),
    ],
)
def test_each_operation_has_its_own_permission(
    tenant: Tenant, stranger: Tenant, key_space: str, operation: str, body: dict[str, Any], action: str
) -> None:
    put(tenant, named("a", openapi={}))
    (before,) = listed(tenant)
    body = {**ENV, **body}
    if "policyId" in body:
        body["policyId"] = before["id"]
    others = {"read_policies", "set_policies", "update_policy"} - {action}
    tenant.holding(*(f"environment.*.{other}" for other in others)).refused(operation, body, 403)
    stranger.refused(operation, body, 404)
    assert listed(tenant) == [before]
    environment = tenant("environments.getEnvironment", ENV)["id"]
    tenant.holding(f"environment.{environment}.{action}")(operation, body)
