"""What the engine's tests share: a worker in this process, and real ones that can be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from django.db import connection

from apps.workflows.engine import WorkflowRun
from apps.workflows.models import ACTIVE
from apps.workflows.sweeper import Dispatcher
from unkey.env import ROOT, env

Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def until(request: pytest.FixtureRequest) -> Until:
    """Wait for a condition; its own time-out is a little less than the test's."""
    marker = request.node.get_closest_marker("timeout")
    seconds = (marker.args[0] if marker else 120) - 30

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited for {seconds} s in vain"
            time.sleep(0.01)

    return wait


@pytest.fixture
def settled(until: Until) -> Callable[[], None]:
    """Wait until no run is active."""
    return lambda: until(lambda: not WorkflowRun.objects.filter(state__in=ACTIVE).exists())


@pytest.fixture
def worker(transactional_db: None) -> Iterator[Dispatcher]:
    """A dispatcher with 8 threads in this process."""
    dispatcher = Dispatcher(None, threads=8)
    dispatcher.start()
    yield dispatcher
    dispatcher.stop()


class Process:
    """A worker in a process of its own, on the test's database."""

    def __init__(self, room: Path, threads: int, lease: int, database: str) -> None:
        self.log = room / f"worker-{time.monotonic_ns()}.log"
        with open(self.log, "w") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "apps.workflows.tests.worker", str(threads)],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DATABASE_URL": database,
                    "UNKEY_VAR": str(env.UNKEY_VAR),
                    "WORKFLOW_LEASE_SECONDS": str(lease),
                    "CELERY_BROKER_URL": f"filesystem://{room}/broker",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._popen.pid

    @property
    def ready(self) -> bool:
        """Whether it has begun to sweep."""
        assert self._popen.poll() is None, self.log.read_text()
        return "ready" in self.log.read_text()

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def threads(self) -> int:
        """Threads that live."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def kill(self) -> None:
        """End it without any warning."""
        self._popen.kill()
        self._popen.wait()

    def pause(self) -> None:
        """Stop it in the middle of whatever it does; returns when every thread stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        while any((task / "stat").read_text().rpartition(") ")[2][0] != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def go_on(self) -> None:
        """Let it continue."""
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def process(transactional_db: None, tmp_path: Path, until: Until) -> Iterator[Callable[..., Process]]:
    """Start worker processes; they are killed at the end of the test."""
    started: list[Process] = []

    def begin(
        *, threads: int = 2, lease: int = 15, wait: bool = True, database: str | None = None
    ) -> Process:
        made = Process(tmp_path, threads, lease, database or database_url())
        started.append(made)
        if wait:
            until(lambda: made.ready)
        return made

    yield begin
    for made in started:
        made.kill()


def database_url() -> str:
    """URL of the test's own database, not of the one that the settings name."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{settings['NAME']}"
    return (
        f"mysql://{quote(settings['USER'], safe='')}:{quote(settings['PASSWORD'], safe='')}"
        f"@{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"
    )
