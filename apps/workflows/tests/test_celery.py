"""The engine under real Celery workers, the same with every broker: a folder, Redis, RabbitMQ.

A message only wakes: it names a key, and may be lost, doubled or late. So the same must come true with
a broker that redelivers (RabbitMQ at once, Redis after its time-out) and with one that does not.
"""

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.workflows import wakeups
from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Until, database_url
from unkey.env import ROOT, env

# Several workers start in one test, which takes its time on a machine that has much to do.
pytestmark = pytest.mark.timeout(300)

Celery = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(
    params=[
        "folder",
        pytest.param("SERVICES_REDIS_URL", marks=pytest.mark.services),
        pytest.param("SERVICES_AMQP_URL", marks=pytest.mark.services),
    ]
)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a broker without messages."""
    if request.param == "folder":
        yield f"filesystem://{tmp_path}/broker"
        return
    url = os.environ[request.param]
    in_process(url, "app.connection_for_write().channel() and app.control.purge()")
    yield url


def in_process(broker: str, code: str) -> str:
    """Run Python with this broker in its settings, and return what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import django; django.setup()\nfrom unkey.celery import app\nfrom apps.workflows import wakeups\n{code}",
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "unkey.settings",
            "CELERY_BROKER_URL": broker,
            "UNKEY_VAR": str(env.UNKEY_VAR),
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def celery(transactional_db: None, tmp_path: Path) -> Iterator[Celery]:
    """Start `celery worker` on the test's database and a broker."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(broker: str, *words: str, lease: int = 15) -> subprocess.Popen[bytes]:
        with open(tmp_path / f"celery-{len(started)}.log", "w") as log:
            popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "unkey", "worker"),
                    *("-I", "apps.workflows.tests.flows", "-n", f"{uuid.uuid4().hex}@here", *words),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DATABASE_URL": database_url(),
                    "UNKEY_VAR": str(env.UNKEY_VAR),
                    "CELERY_BROKER_URL": broker,
                    "WORKFLOW_LEASE_SECONDS": str(lease),
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
    broker: str, celery: Celery, settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    worker = celery(broker)
    start(flows.Three, {"k": "a", "name": "r"})
    settled()
    assert flows.effects() == ["r.one", "r.two", "r.three"]
    held = start(flows.Reaches, {"k": "b", "name": "h", "room": str(tmp_path), "gates": ["gate"]})
    until((tmp_path / "gate.reached").exists)
    worker.send_signal(signal.SIGTERM)
    (tmp_path / "gate.open").touch()  # whether the signal comes first or not, the step in hand is recorded
    assert worker.wait(90) == 0
    held.refresh_from_db()
    assert held.state in (State.PENDING, State.SUCCEEDED)  # the step in hand was finished, not lost
    assert held.journal.filter(name="outside_step", ended_at__isnull=False).count() == 1


def test_a_wake_up_goes_to_the_queue_of_its_workflow(broker: str) -> None:
    printed = in_process(
        broker,
        """
from kombu import Exchange, Queue
wakeups.send("a:b", "builds")
with app.connection_for_read() as connection:
    for name in ("workflows", "builds"):
        queue = Queue(name, Exchange("unkey"), routing_key=name)
        with connection.SimpleQueue(queue) as messages:
            try:
                message = messages.get(timeout=1 if name == "workflows" else 20)
            except messages.Empty:
                print(name, "nothing")
            else:
                message.ack()
                print(name, message.headers["task"], message.payload[0])
""",
    )
    assert printed.splitlines() == ["workflows nothing", f"builds {wakeups.TASK} ['a:b']"]


def test_a_worker_drives_only_the_queues_that_it_serves(
    broker: str, celery: Celery, settled: Callable[[], None], until: Until
) -> None:
    other = start(flows.Three, {"k": "w", "name": "other"})
    build = start(flows.Builds, {"name": "build"})
    celery(broker, "-Q", "builds")
    until(lambda: WorkflowRun.objects.get(id=build.id).state == State.SUCCEEDED)
    other.refresh_from_db()
    assert other.state == State.PENDING
    celery(broker, "-Q", "workflows,default")
    settled()
    assert flows.effects() == ["build.one", "other.one", "other.two", "other.three"]


def test_a_killed_celery_worker_is_made_up_for_by_another(
    broker: str, celery: Celery, settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    doomed = celery(broker, lease=1)
    until((tmp_path / "gate.reached").exists)
    doomed.kill()
    (tmp_path / "gate.open").touch()
    celery(broker, lease=1)
    settled()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    assert flows.effects() == [f"{run.id}.inside", f"{run.id}.outside", "r.last"]


def test_w01_a_run_whose_message_was_wiped_from_the_broker_runs_all_the_same(
    broker: str, celery: Celery, settled: Callable[[], None]
) -> None:
    run = start(flows.Three, {"k": "a", "name": "r"})
    in_process(broker, f"wakeups.send({run.key!r}, 'workflows'); app.control.purge()")
    celery(broker)
    settled()
    assert flows.effects() == ["r.one", "r.two", "r.three"]


def test_w03_messages_that_are_doubled_during_a_long_step_begin_nothing_twice(
    broker: str, celery: Celery, settled: Callable[[], None], until: Until, tmp_path: Path
) -> None:
    """Redis and RabbitMQ redeliver what was not acknowledged in time; the lease is in the database."""
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["gate"]})
    for _ in range(2):
        celery(broker, lease=2)
    until((tmp_path / "gate.reached").exists)
    in_process(broker, f"for _ in range(20): wakeups.send({run.key!r}, 'workflows')")
    after = start(flows.Three, {"k": "z", "name": "after"})
    until(lambda: WorkflowRun.objects.get(id=after.id).state == State.SUCCEEDED)
    (tmp_path / "gate.open").touch()
    settled()
    assert (tmp_path / "world").read_text().splitlines() == [f"{run.id}/outside_step"]
    assert flows.effects("r.") == ["r.last"]


def test_messages_are_acknowledged_late_and_fetched_one_by_one() -> None:
    from unkey.celery import app

    conf = app.conf
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (
        True,
        True,
        1,
    )


def test_w01_a_celery_worker_whose_broker_is_away_still_runs_what_is_due(
    celery: Celery, settled: Callable[[], None]
) -> None:
    run = start(flows.Three, {"k": "a", "name": "r"})
    celery("redis://127.0.0.1:1/0")
    settled()
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


@pytest.mark.parametrize("away", ["redis://127.0.0.1:1/0", "amqp://guest@127.0.0.1:1//"])
def test_w01_a_wake_up_to_a_broker_that_is_away_fails_nobody(away: str) -> None:
    assert "went on" in in_process(away, "wakeups.send('a:b', 'workflows'); print('went on')")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_w01_a_wake_up_to_a_broker_that_never_answers_holds_nobody_up(scheme: str) -> None:
    """Its process goes on and even ends, although nothing ever comes back from the broker."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        assert "went on" in in_process(
            url, "for n in range(2000): wakeups.send(f'a:{n}', 'workflows')\nprint('went on')"
        )
