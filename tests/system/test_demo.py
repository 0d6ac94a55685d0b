"""`make demo` as its user runs it, minus the set-up of the virtual environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from scripts.demo import PYTHON, ROOT

pytestmark = [pytest.mark.xdist_group("system-2"), pytest.mark.timeout(240)]


def test_the_demo_does_what_it_says_twice(tmp_path: Path) -> None:
    environ = {**os.environ, "UNKEY_VAR": str(tmp_path / "var"), "PORTS": "auto"}
    for _ in range(2):
        done = subprocess.run(
            [PYTHON, "scripts/demo.py"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110
        )
        assert done.returncode == 0, done.stdout + done.stderr
        facts = json.loads((tmp_path / "var" / "demo.json").read_text())
        assert facts["background_failures"] == 0
        assert facts["background_requests"] > 100
        assert {"deploy_1", "guard", "credits", "deploy_2", "rollback", "promote"} <= set(facts["timings"])
