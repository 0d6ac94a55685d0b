"""`analytics.*` through the front door: who may ask what, and how refusals read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.analytics import api, engines
from apps.analytics.embedded import Embedded
from apps.analytics.engines import Chdb, Missing
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import ratelimit_facts
from unkey import clock
from unkey.rpc.testing import Tenant

pytestmark = pytest.mark.django_db
COUNT = {"query": "SELECT key_space_id, count() AS n FROM key_verifications_v1 GROUP BY key_space_id"}


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """What is verified from now on, and the engine that is asked."""
    store = Embedded(tmp_path / "analytics")
    telemetry = Telemetry(store.spool, region="local")
    monkeypatch.setattr("apps.keys.verification.telemetry", lambda: telemetry)
    engine = Chdb(store)

    def taken() -> Chdb:
        telemetry.flush()
        store.take()
        return engine

    monkeypatch.setattr(api, "engine", taken)
    yield telemetry
    engine.close()


def verified(tenant: Tenant) -> tuple[str, str]:
    """Make an API with a key, verify that twice, and return the API and its key space."""
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    key = tenant("keys.createKey", {"apiId": api_id})
    for _ in range(2):
        answer = tenant("keys.verifyKey", {"key": key["key"]})
    return api_id, answer["keyspaceId"]


def test_verifications_are_asked_of_all_apis_or_of_those_that_the_caller_may_read(
    events: Telemetry, tenant: Tenant, stranger: Tenant
) -> None:
    first, first_space = verified(tenant)
    second, second_space = verified(tenant)
    verified(stranger)
    found = tenant("analytics.getVerifications", COUNT)
    assert {row["key_space_id"]: row["n"] for row in found} == {first_space: 2, second_space: 2}

    reader = tenant.holding(f"api.{second}.read_analytics", "api.api_elsewhere.read_analytics")
    assert reader("analytics.getVerifications", COUNT) == [{"key_space_id": second_space, "n": 2}]
    error = tenant.holding(f"api.{first}.read_api").refused("analytics.getVerifications", COUNT, 403)
    spaces = f"unkey:v1:{tenant.workspace.id}:keyspaces/*#read_analytics"
    assert error["detail"] == f"Missing one of these permissions: api.*.read_analytics or {spaces}"


def test_rate_limits_are_asked_of_all_namespaces_or_of_those_that_the_caller_may_read(
    events: Telemetry, tenant: Tenant
) -> None:
    for namespace in ("rlns_a", "rlns_b"):
        facts = ratelimit_facts(tenant.workspace.id, namespace, "user")
        events.record_ratelimit(b"req_1", clock.now_ms(), facts, True, 5, 4, clock.now_ms())
    query = {
        "query": "SELECT namespace_id, sum(total) AS n FROM ratelimits_per_minute_v1 GROUP BY 1 ORDER BY 1"
    }
    assert [row["namespace_id"] for row in tenant("analytics.getRatelimits", query)] == ["rlns_a", "rlns_b"]
    reader = tenant.holding("ratelimit.rlns_b.read_analytics")
    assert [row["namespace_id"] for row in reader("analytics.getRatelimits", query)] == ["rlns_b"]
    tenant.holding("api.*.read_analytics").refused("analytics.getRatelimits", query, 403)


def test_each_operation_asks_its_own_tables_only(events: Telemetry, tenant: Tenant) -> None:
    for operation, table in (
        ("getGatewayRequests", "gateway_requests_v1"),
        ("getRuntimeLogs", "runtime_logs_v1"),
    ):
        assert tenant(f"analytics.{operation}", {"query": f"SELECT * FROM {table}"}) == []
        error = tenant.refused(f"analytics.{operation}", COUNT, 400)
        assert error["type"].endswith("/user/bad_request/invalid_analytics_table")
        tenant.holding("api.*.read_analytics").refused(f"analytics.{operation}", {"query": "SELECT 1"}, 403)


def test_a_refusal_says_what_to_do(events: Telemetry, tenant: Tenant) -> None:
    error = tenant.refused("analytics.getVerifications", {"query": "SELECT sleep(1)"}, 400)
    assert error["type"].endswith("/user/bad_request/invalid_analytics_function")
    assert error["errors"] == []
    assert "'sleep' is not allowed" in error["detail"]
    tenant.refused("analytics.getVerifications", {"query": ""}, 400)
    tenant.refused("analytics.getVerifications", {"query": "SELECT '" + "é" * 10_000 + "'"}, 400)


def test_without_an_engine_it_says_what_to_install(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "engine", Missing)
    error = tenant.refused("analytics.getVerifications", COUNT, 412)
    assert error["type"].endswith("/unkey/data/analytics_not_configured")
    assert "requirements/analytics.txt" in error["detail"]
    # What cannot be asked anyway is told first.
    tenant.refused("analytics.getVerifications", {"query": "DROP TABLE a"}, 400)


def test_the_engine_of_the_settings_is_chdb_where_it_is_installed() -> None:
    assert isinstance(engines.engine(), Chdb)
