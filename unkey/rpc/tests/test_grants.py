"""A root key that holds resource names alone does what one that holds every tuple does."""

import pytest

from unkey.actors import Principal
from unkey.rpc.routes import Route, routes
from unkey.rpc.testing import Tenant

TUPLES_ALONE = {
    # Their URN forms are not part of the contract; the edge answers these two, with the same rule.
    "ratelimit.limit",
    "ratelimit.multiLimit",
    # A tuple of any environment or project: the source belongs to nothing yet.
    "snapshots.createSnapshot",
}


@pytest.mark.parametrize(
    "route",
    [route for route in routes().values() if not (route.public or route.session)],
    ids=lambda route: route.name,
)
def test_an_operation_is_opened_by_a_resource_name_with_wildcards(route: Route, tenant: Tenant) -> None:
    principal = _principal(tenant, f"unkey:v1:{tenant.workspace.id}:**#*")
    rule = route.permission
    assert rule is not None
    ids = dict.fromkeys(rule.placeholders, "some_id")
    assert bool(rule.lacks(principal, ids)) is (route.name in TUPLES_ALONE)
    for other in ("unkey:v1:ws_other:**#*", f"unkey:v1:{tenant.workspace.id}:nothing/**#*"):
        assert rule.lacks(_principal(tenant, other), ids)


def _principal(tenant: Tenant, *permissions: str) -> Principal:
    return Principal(tenant.workspace.id, "rootkey", "key_r", "root", frozenset(permissions))


def test_a_grant_for_one_key_space_opens_its_api_and_no_other(tenant: Tenant) -> None:
    mine, other = (tenant("apis.createApi", {"name": name})["apiId"] for name in ("mine", "other"))
    space = tenant("keys.verifyKey", {"key": tenant("keys.createKey", {"apiId": mine})["key"]})["keyspaceId"]
    grant = f"unkey:v1:{tenant.workspace.id}:keyspaces/{space}"
    reader = tenant.holding(f"{grant}#read_keyspace")
    assert reader("apis.getApi", {"apiId": mine})["name"] == "mine"
    assert reader.send("apis.getApi", {"apiId": other}).status == 403
    assert reader.send("apis.getApi", {"apiId": "api_nobody00"}).status == 403
    assert reader.send("apis.deleteApi", {"apiId": mine}).status == 403
    tenant.holding(f"{grant}/**#*").refused("apis.deleteApi", {"apiId": mine}, 403)  # below it, not it
    tenant.holding(f"{grant}#delete_keyspace")("apis.deleteApi", {"apiId": mine})
    tenant.refused("apis.getApi", {"apiId": mine}, 404)
