"""Any process of the platform may be killed in the middle of a deployment: it still ends ready, once."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable

import pytest

from scripts.demo import Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def app(system: System, platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """An app with a live deployment."""
    made = Deployed(system, platform, tmp_path_factory.mktemp("sources"))
    made.deploy("1")
    return made


@pytest.mark.parametrize("process", ["web", "feed", "worker", "beat", "agent", "edge"])
def test_a_deploy_survives_the_death_of(process: str, system: System, app: Deployed) -> None:
    before = _pid(system, process)
    deployment = app.begin(f"without-{process}")
    _wait(lambda: _status(system, deployment) not in {"pending", "starting"}, "the deploy does not begin")
    os.kill(before, signal.SIGKILL)
    _wait(lambda: _status(system, deployment) in {"ready", "failed"}, "the deploy does not end")
    _wait(lambda: _pid(system, process) != before, f"{process} is not restarted")
    system.wait_healthy()

    row = app.deployment(deployment)
    assert (row["status"], row["isCurrent"]) == ("ready", True)
    visitor = system.visitor(min(row["domains"], key=len))
    visitor.until_version(f"without-{process}", None)
    _wait(lambda: _run_state(system, deployment) == "succeeded", "the workflow does not end")
    assert _counted_twice(system, deployment) == []


def _status(system: System, deployment: str) -> str:
    return str(_rows(system, "SELECT status FROM deployments_deployment WHERE id = ?", deployment)[0][0])


def _run_state(system: System, deployment: str) -> str:
    query = "SELECT state FROM workflows_workflowrun WHERE service = 'deploy' AND input LIKE ?"
    return str(_rows(system, query, f"%{deployment}%")[0][0])


def _counted_twice(system: System, deployment: str) -> list[tuple[object, ...]]:
    """Return effects that exist more than once: journal rows, topologies, routes, running instances."""
    journal = _rows(
        system,
        "SELECT s.name, count(*) FROM workflows_workflowstep s JOIN workflows_workflowrun r ON r.id = s.run_id "
        "WHERE r.input LIKE ? AND r.service = 'deploy' GROUP BY s.name, s.kind HAVING count(*) > 1",
        f"%{deployment}%",
    )
    topologies = _rows(
        system,
        "SELECT region_id, count(*) FROM deployments_topology WHERE deployment_id = ? GROUP BY region_id HAVING count(*) > 1",
        deployment,
    )
    instances = _rows(
        system,
        "SELECT deployment_id, count(*) FROM deployments_instance WHERE deployment_id = ? AND status = 'running' "
        "GROUP BY deployment_id HAVING count(*) != 1",
        deployment,
    )
    return [*journal, *topologies, *instances]


def _rows(system: System, query: str, *values: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{system.var / 'unkey.sqlite3'}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def _pid(system: System, process: str) -> int:
    try:
        return int((system.var / "run" / f"{process}.pid").read_text())
    except (OSError, ValueError):
        return -1


def _wait(holds: Callable[[], bool], otherwise: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)
