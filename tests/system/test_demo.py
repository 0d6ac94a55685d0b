"""`make demo` as its user runs it, minus the set-up of the virtual environment."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import PYTHON, ROOT

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(330)]


def test_the_demo_does_what_it_says_and_leaves_its_system_running_if_asked(tmp_path: Path) -> None:
    environ = {**os.environ, "UNKEY_VAR": str(tmp_path / "var"), "PORTS": "auto", "KEEP": "1"}
    try:
        facts = _played(environ)
    finally:
        told = _down(environ)
    assert told == "stopped\n"
    assert facts["background_requests"] > 100
    assert {"deploy_1", "guard", "credits", "limit", "role", "reroll", "deploy_2", "rollback"} <= set(
        facts["timings"]
    )
    assert facts["breaking_changes"] == ["request-parameter-became-required"]
    assert facts["failed"]["step"] == "deploying"
    *_, cause, remedy = facts["failed"]["message"].splitlines()
    assert cause == "no answer from postgres://db:5432: is DATABASE_URL right?"
    assert remedy.endswith("Mend that and deploy again.")
    assert facts["queued"] == "waiting for a build slot: 1 before you"
    assert facts["preview_host"] == "hello-preview-demo.unkey.localhost"
    assert facts["host"] == "hello-demo.unkey.localhost"
    assert re.fullmatch(r"[0-9]+\.[0-9]s", facts["wake"])
    used = [one["outcomes"] for one in facts["usage"]]
    assert {"VALID": 3, "USAGE_EXCEEDED": 1} in used
    # What the gateway verified is counted, too: the visitor's key stands first.
    assert used[0]["VALID"] > facts["background_requests"] // 2
    assert (tmp_path / "var" / "demo.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.services
def test_the_demo_on_mariadb_and_redis_by_settings_alone_twice(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "UNKEY_VAR": str(tmp_path / "var"),
        "PORTS": "auto",
        "CELERY_BROKER_URL": os.environ["SERVICES_REDIS_URL"],
    }
    assert environ["DATABASE_URL"].startswith("mysql://")
    for _ in range(2):
        _played(environ)
        assert _down(environ) == f"nothing runs in {tmp_path / 'var'}\n"
    assert not (tmp_path / "var" / "unkey.sqlite3").exists()


def _played(environ: dict[str, str]) -> dict[str, Any]:
    """Play the demo, and return its facts."""
    done = subprocess.run(
        [PYTHON, "scripts/demo.py"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no answer from postgres://db:5432" in done.stdout  # why the broken version failed
    facts: dict[str, Any] = json.loads((Path(environ["UNKEY_VAR"]) / "demo.json").read_text())
    assert facts["background_failures"] == 0
    return facts


def _down(environ: dict[str, str]) -> str:
    return subprocess.run(
        [PYTHON, "manage.py", "down"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    ).stdout
