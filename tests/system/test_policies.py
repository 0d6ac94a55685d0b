"""What policies say, from the API over the control plane and the change feed to a request, and into SQL."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts.demo import Platform
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


def until(found: Callable[[], Any], wanted: Any) -> None:
    """Wait until a question has this answer."""
    deadline = time.monotonic() + 90
    while (answer := found()) != wanted:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def test_an_app_is_held_to_its_own_document_watched_and_closed_at_once(
    platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    logging = {"requestHeaders": True, "responseBody": True, "redactFields": ["message"]}
    policies = [
        {"name": "log", "enabled": True, "logging": logging},
        {"name": "fits", "enabled": True, "openapi": {}},
    ]
    platform.call("gateway.setPolicies", {**app.place, "policies": policies})
    visitor = app.visitor(app.deploy("1"))
    log, fits = (each["id"] for each in platform.call("gateway.listPolicies", app.place))

    def ask(path: str, **headers: str) -> tuple[int, str, Any]:
        connection = visitor.connect()
        try:
            connection.request(
                "GET", path, headers={"Host": visitor.host, "Accept": "application/json", **headers}
            )
            answer = connection.getresponse()
            return answer.status, answer.headers.get("X-Unkey-Trace", ""), json.loads(answer.read())
        finally:
            connection.close()

    assert ask("/greet?name=ali")[0] == 200
    status, trace, body = ask("/no/such/path")
    assert (status, trace, body["error"]["code"]) == (
        400,
        "",
        "err:frontline:client:openapi_validation_failed",
    )
    signed = platform.call("gateway.createDebugHeader", app.place)
    status, trace, _ = ask("/no/such/path", **{signed["name"]: signed["value"]})
    assert status == 400
    assert trace.startswith(f"{log};kind=logging;outcome=passed;us=")
    assert f"{fits};kind=openapi;outcome=refused;code=openapi_validation_failed;us=" in trace

    closed = {"enabled": True, "message": "Back at noon."}
    platform.call("gateway.setBarrier", {**app.place, "maintenance": closed})
    until(lambda: ask("/greet?name=ali")[0], 503)
    assert ask("/greet?name=ali")[2]["error"]["message"] == "Back at noon."
    platform.call(
        "gateway.setBarrier", {**app.place, "blocked": ["127.0.0.0/8"], "maintenance": {"enabled": False}}
    )
    until(lambda: ask("/greet?name=ali")[0], 403)
    platform.call("gateway.setBarrier", {**app.place, "blocked": []})
    until(lambda: ask("/greet?name=ali")[0], 200)

    columns = "policies, has(request_headers, 'Accept: application/json') AS told, response_body"
    query = f"SELECT {columns} FROM gateway_requests_v1 WHERE host = '{visitor.host}' AND response_status = 200 LIMIT 1"
    row = {
        "policies": [f"{log} logging passed", f"{fits} openapi passed"],
        "told": 1,
        "response_body": '{"message":"[REDACTED]","version":"1"}',
    }
    until(lambda: platform.call("analytics.getGatewayRequests", {"query": query}), [row])
