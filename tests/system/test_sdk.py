"""The published Python SDK works against the edge's API port: one base URL serves all of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.demo import PYTHON, Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system-3"), pytest.mark.timeout(180)]


def test_the_sdk_tells_the_story_of_the_demo(
    system: System, platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    app.deploy("1")
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
