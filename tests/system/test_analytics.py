"""From a verification at the edge to an answer in SQL and to usage by key: through all processes."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts.demo import Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


def until(found: Callable[[], Any], wanted: Any) -> None:
    """Wait until a question has this answer."""
    deadline = time.monotonic() + 90
    while (answer := found()) != wanted:
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)


def test_what_edges_verify_and_limit_is_asked_in_sql_and_counted_as_usage(
    system: System, platform: Platform
) -> None:
    api = platform.call("apis.createApi", {"name": "metered"})["apiId"]
    keys = [platform.call("keys.createKey", {"apiId": api}) for _ in range(2)]
    for number in range(20):
        body = {"key": keys[number % 2]["key"], "tags": ["from=test"]}
        space = platform.call("keys.verifyKey", body)["keyspaceId"]
    asked = {"namespace": "metered", "identifier": "user", "limit": 3, "duration": 3_600_000}
    passed = [platform.call("ratelimit.limit", asked)["success"] for _ in range(5)]

    def sql(operation: str, query: str) -> Any:
        return platform.call(f"analytics.{operation}", {"query": query})

    one = "SELECT key_id, count() AS n FROM key_verifications_v1 WHERE has(tags, 'from=test') AND "
    by_key = sorted(({"key_id": key["keyId"], "n": 10} for key in keys), key=lambda row: row["key_id"])
    question = f"{one} key_space_id = '{space}' GROUP BY key_id ORDER BY key_id"
    until(lambda: sql("getVerifications", question), by_key)
    hours = f"SELECT sum(count) AS n FROM key_verifications_per_hour_v1 WHERE key_space_id = '{space}'"
    assert sql("getVerifications", hours) == [{"n": 20}]
    limits = "SELECT count() AS n, countIf(passed) AS passed FROM ratelimits_v1 WHERE identifier = 'user'"
    until(lambda: sql("getRatelimits", limits), [{"n": 5, "passed": sum(passed)}])

    shown = json.loads(system.manage("analytics", "keys", "test", "--json"))
    totals = {row["keyId"]: row["total"] for row in shown}
    assert [totals[key["keyId"]] for key in keys] == [10, 10]


def test_requests_to_apps_are_asked_in_sql(platform: Platform, project: Callable[[], Deployed]) -> None:
    app = project()
    visitor = app.visitor(app.deploy("1"))
    for _ in range(3):
        assert visitor.get("/?a=b", None)[0] == 200
    row = "SELECT path, query_string, response_status AS status, count() AS n FROM gateway_requests_v1"
    query = f"{row} WHERE host = '{visitor.host}' AND path = '/' GROUP BY path, query_string, status"
    until(
        lambda: platform.call("analytics.getGatewayRequests", {"query": query}),
        [{"path": "/", "query_string": "a=b", "status": 200, "n": 3}],
    )


def test_keys_that_the_gateway_verifies_are_events_of_its_own_and_no_billed_usage(
    platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    api = platform.call("apis.createApi", {"name": "guarded"})["apiId"]
    key = platform.call("keys.createKey", {"apiId": api})
    policy = {"name": "keys", "enabled": True, "keyauth": {"keyspaces": [api]}}
    platform.call("gateway.setPolicies", {**app.place, "policies": [policy]})
    visitor = app.visitor(app.deploy("1"))
    assert visitor.get("/", None)[0] == 401
    for _ in range(4):
        assert visitor.get("/", key["key"])[0] == 200
    row = "SELECT source, app_id != '' AS of_app, outcome, count() AS n FROM key_verifications_v1"
    query = f"{row} WHERE key_id = '{key['keyId']}' GROUP BY source, of_app, outcome"
    until(
        lambda: platform.call("analytics.getVerifications", {"query": query}),
        [{"source": "gateway", "of_app": 1, "outcome": "VALID", "n": 4}],
    )
