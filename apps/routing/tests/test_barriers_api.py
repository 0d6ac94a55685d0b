"""Blocked addresses and maintenance as callers of `/v2` see them."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.cluster.models import Stream
from apps.projects.models import Environment
from edge.sentinel.debugging import Debugging
from edge.store import feed
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

ENV = {"project": "shop", "app": "api", "environment": "production"}
OPEN = {"blocked": [], "maintenance": {"enabled": False, "exempt": []}}


@pytest.fixture
def shop(tenant: Tenant) -> Tenant:
    """A tenant with an environment to work on."""
    tenant("projects.createProject", {"name": "Shop", "slug": "shop"})
    tenant("apps.createApp", {"project": "shop", "name": "Api", "slug": "api"})
    return tenant


def told() -> list[Any]:
    """What the change feed tells edges of barriers."""
    version = Stream.objects.get(name="sentinels").version
    pages = feed.pages("sentinels", feed.FULL, version, 10, lambda table: None)
    return [record for page in pages for record in page]


def test_a_barrier_is_told_to_edges_and_changed_in_parts(shop: Tenant) -> None:
    assert shop("gateway.getBarrier", ENV) == OPEN
    closed = {"enabled": True, "message": "Back at noon.", "retryAfter": 600, "exempt": ["192.0.2.7"]}
    changed = shop("gateway.setBarrier", {**ENV, "maintenance": closed})
    assert changed == {"blocked": [], "maintenance": closed}
    ranges = ["198.51.100.0/24", "2001:db8::1"]
    assert shop("gateway.setBarrier", {**ENV, "blocked": [*ranges, ranges[0]]}) == {
        "blocked": ranges,
        "maintenance": closed,
    }
    assert shop("gateway.getBarrier", ENV) == {"blocked": ranges, "maintenance": closed}
    (record,) = told()
    assert (record.blocked, record.maintenance, record.message) == (tuple(ranges), True, "Back at noon.")
    assert (record.retry_after, record.exempt, record.version) == (600, ("192.0.2.7",), 2)
    opened = {"enabled": False}
    assert shop("gateway.setBarrier", {**ENV, "blocked": [], "maintenance": opened}) == OPEN
    with unscoped("test"):
        rows = AuditLog.objects.filter(event="environment.update").order_by("time")
        assert [row.meta for row in rows] == [
            {"gateway": {"maintenance": True, "blocked": 0}},
            {"gateway": {"maintenance": True, "blocked": 2}},
            {"gateway": {"maintenance": False, "blocked": 0}},
        ]


def test_a_range_that_cannot_be_read_changes_nothing(shop: Tenant) -> None:
    body = {**ENV, "blocked": ["192.0.2.1", "300.0.0.1"], "maintenance": {"enabled": True, "exempt": ["x"]}}
    refused = shop.refused("gateway.setBarrier", body, 400)
    places = [each["location"] for each in refused["errors"]]
    assert places == ["body.blocked[1]", "body.maintenance.exempt[0]"]
    assert shop("gateway.getBarrier", ENV) == OPEN
    with unscoped("test"):
        assert not AuditLog.objects.filter(event="environment.update").exists()


def test_a_debug_header_is_signed_for_one_environment_and_a_while(shop: Tenant) -> None:
    made = shop("gateway.createDebugHeader", {**ENV, "seconds": 60})
    assert made["name"] == "X-Unkey-Debug"
    (environment,) = Environment.objects.unscoped("test").filter(slug="production")
    watching = Debugging([env.secret("AGENT_TOKEN")])
    signed = made["value"].encode()
    assert watching.allows(signed, environment.id, made["expiresAt"] - 60_000)
    assert not watching.allows(signed, environment.id, made["expiresAt"])
    assert not watching.allows(signed, "env_other", made["expiresAt"] - 60_000)
