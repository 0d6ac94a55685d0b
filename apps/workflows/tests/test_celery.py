"""The engine under a real Celery worker: wake-ups through the broker, a warm stop, a broker that is away."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.workflows import wakeups
from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Until, database_url
from unkey.env import ROOT, env


@pytest.fixture
def celery(transactional_db: None, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start `celery worker` on the test's database and a broker of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(broker: str) -> subprocess.Popen[bytes]:
        with open(tmp_path / "celery.log", "w") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "unkey", "worker", "-I", "apps.workflows.tests.flows"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DATABASE_URL": database_url(),
                    "UNKEY_VAR": str(env.UNKEY_VAR),
                    "CELERY_BROKER_URL": broker,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(popen)
        return popen

    yield begin
    for popen in started:
        popen.kill()
        popen.wait()


def test_a_celery_worker_runs_what_is_started_and_stops_between_steps(
    celery: Callable[[str], subprocess.Popen[bytes]],
    settled: Callable[[], None],
    until: Until,
    tmp_path: Path,
) -> None:
    worker = celery(f"filesystem://{tmp_path}/broker")
    start(flows.Three, {"k": "a", "name": "r"})
    settled()
    assert flows.effects() == ["r.one", "r.two", "r.three"]
    held = start(flows.Reaches, {"k": "b", "name": "h", "room": str(tmp_path), "gates": ["gate"]})
    until((tmp_path / "gate.reached").exists)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # whether the signal comes first or not, the step in hand must be recorded
    (tmp_path / "gate.open").touch()
    assert worker.wait(90) == 0
    held.refresh_from_db()
    assert held.state in (State.PENDING, State.SUCCEEDED)  # the step in hand was finished, not lost
    assert held.journal.filter(name="outside_step", ended_at__isnull=False).count() == 1


def test_a_celery_worker_whose_broker_is_away_still_runs_what_is_due(
    celery: Callable[[str], subprocess.Popen[bytes]], settled: Callable[[], None]
) -> None:
    run = start(flows.Three, {"k": "a", "name": "r"})
    celery("redis://127.0.0.1:1/0")
    settled()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "amqp://guest@127.0.0.1:1//"])
@pytest.mark.django_db
def test_a_wake_up_to_a_broker_that_is_away_fails_nobody(broker: str) -> None:
    code = "from apps.workflows import wakeups; wakeups.send('a:b', 'workflows'); print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup(); {code}"],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "unkey.settings",
            "CELERY_BROKER_URL": broker,
            "UNKEY_VAR": str(env.UNKEY_VAR),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "went on" in done.stdout
    assert wakeups.TASK == "workflows.drive"
    assert not WorkflowRun.objects.exists()
