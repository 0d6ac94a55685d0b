"""The published Python SDK works against the edge's API port: one base URL serves all of it."""

import http.client
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import PYTHON, Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def app(system: System, platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """An app with a project of its own."""
    return Deployed(system, platform, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def deployed(app: Deployed) -> dict[str, Any]:
    """Its live deployment, as the `unkey` command showed it."""
    return app.deploy("1")


def test_the_sdk_tells_the_story_of_the_demo(
    system: System, platform: Platform, app: Deployed, deployed: dict[str, Any]
) -> None:
    done = subprocess.run(
        [
            PYTHON,
            "-I",
            "-W",
            "ignore",
            str(Path(__file__).with_name("sdk_story.py")),
            system.url("EDGE_API_PORT"),
            platform.root_key,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout)
    assert story["fresh"] == [True, "VALID", 9, "first", {"plan": "pro"}, ["documents.read"]]
    assert story["limits"] == [["requests", 100, 99]]
    assert story["identity"] == "customer-1"
    assert story["shown"] == ["renamed", False, "sdk_"]
    assert (story["disabled"], story["deleted"]) == ("DISABLED", "NOT_FOUND")
    assert story["project"] == "proj_"
    assert [app.project, "default", "production", "ready"] in story["deployments"]
    assert story["missing"] == "404"


def test_the_api_port_passes_only_v2_on_and_keeps_the_clients_own_headers(
    system: System, app: Deployed, deployed: dict[str, Any]
) -> None:
    row = app.deployment(deployed["deploymentId"])
    assert row["trigger"] == {"via": "cli"}

    for path in ("/internal/agents/heartbeat", "/admin/", "/metrics", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", system.ports["EDGE_API_PORT"], timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["status"]) == (404, 404), path
        connection.close()
