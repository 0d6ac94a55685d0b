"""`unkey spec`, `unkey diff` and `unkey settings`: what they ask for, print, and exit with."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.tests.test_cli import ROOT, Server, Unkey, data, refusal

ROWS = [
    {"id": "d_new", "isCurrent": False, "status": "ready"},
    {"id": "d_live", "isCurrent": True, "status": "ready"},
]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def unkey(server: Server, tmp_path: Path) -> Unkey:
    """Run the command line against the server, logged in."""
    environ = {"UNKEY_API_URL": server.url, "UNKEY_ROOT_KEY": "unkey_secret", "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", *arguments]
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def difference(*levels: int) -> dict[str, Any]:
    """Return an answer with one change of each level."""
    changes = [
        {"id": f"check-{level}", "text": "x", "level": level, "operation": "GET", "path": "/"}
        for level in levels
    ]
    return {"summary": {"diff": bool(levels)}, "hasBreakingChanges": 3 in levels, "changes": changes}


def test_diff_compares_the_live_deployment_with_the_newest(server: Server, unkey: Unkey) -> None:
    server.answers["deployments.listDeployments"] = data(ROWS)
    server.answers["deployments.getOpenapiDiff"] = data(difference(3) | {"report": "1 change\n"})
    done = unkey("diff", "--project", "shop")
    assert (done.returncode, done.stdout) == (0, "1 change\n")
    assert server.asked[-1][2] == {
        "oldDeploymentId": "d_live",
        "newDeploymentId": "d_new",
        "format": "text",
    }


@pytest.mark.parametrize(
    ("levels", "fail_on", "status"),
    [
        ((3, 1), None, 0),
        ((3, 1), "breaking", 1),
        ((2, 1), "breaking", 0),
        ((2, 1), "warning", 1),
        ((1,), "warning", 0),
        ((1,), "any", 1),
        ((), "any", 0),
    ],
)
def test_the_exit_status_of_diff_is_for_scripts(
    server: Server, unkey: Unkey, levels: tuple[int, ...], fail_on: str | None, status: int
) -> None:
    server.answers["deployments.getOpenapiDiff"] = data(difference(*levels) | {"report": "r"})
    done = unkey("diff", "d_a", "d_b", *(["--fail-on", fail_on] if fail_on else []))
    assert done.returncode == status


def test_diff_prints_json_and_markdown(server: Server, unkey: Unkey) -> None:
    server.answers["deployments.getOpenapiDiff"] = data(difference(3))
    for options in (("--format", "json"), ("--json",)):
        done = unkey("diff", "d_a", "d_b", *options)
        assert json.loads(done.stdout)["hasBreakingChanges"] is True
        assert "format" not in server.asked[-1][2]
    server.answers["deployments.getOpenapiDiff"] = data(difference(3) | {"report": "# API changes\n"})
    done = unkey("diff", "d_a", "d_b", "--format", "markdown")
    assert done.stdout == "# API changes\n"
    assert server.asked[-1][2]["format"] == "markdown"


def test_what_cannot_be_compared_is_said(server: Server, unkey: Unkey) -> None:
    server.answers["deployments.getOpenapiDiff"] = refusal(404, "d_a has served no OpenAPI document.")
    done = unkey("diff", "d_a", "d_b")
    assert done.returncode == 4
    assert "has served no OpenAPI document" in done.stderr
    server.answers["deployments.listDeployments"] = data(ROWS[1:])
    done = unkey("diff", "--project", "shop")
    assert done.returncode == 1
    assert "there are no two deployments to compare" in done.stderr


def test_spec_prints_or_writes_the_document(server: Server, unkey: Unkey, tmp_path: Path) -> None:
    document = "openapi: 3.0.3\n"
    server.answers["deployments.listDeployments"] = data(ROWS)
    server.answers["deployments.getOpenapiSpec"] = data({"path": "/openapi.yaml", "content": document})
    done = unkey("spec", "--project", "shop")
    assert (done.returncode, done.stdout) == (0, document)
    assert server.asked[-1][2] == {"deploymentId": "d_live"}
    done = unkey("spec", "d_a", "--output", str(tmp_path / "api.yaml"))
    assert (done.returncode, (tmp_path / "api.yaml").read_text()) == (0, document)


def test_settings_show_and_change_what_is_demanded(server: Server, unkey: Unkey) -> None:
    server.answers["environments.updateSettings"] = data({})
    server.answers["environments.getEnvironment"] = data({"refuseBreakingChanges": True})
    done = unkey("settings", "--project", "shop", "--refuse-breaking-changes")
    assert (done.returncode, done.stdout) == (
        0,
        "production refuses breaking changes of the API that is live\n",
    )
    assert server.asked[0][2]["refuseBreakingChanges"] is True
    server.answers["environments.getEnvironment"] = data({})
    done = unkey("settings", "--project", "shop", "--json")
    assert json.loads(done.stdout) == {"environment": "production", "refuseBreakingChanges": False}
