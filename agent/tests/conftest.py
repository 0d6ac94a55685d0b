"""A control plane, an agent in this process, and agents as processes of their own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from agent.agent import Agent
from agent.control_plane import ControlPlane
from agent.reconciler import Timing
from agent.runtimes import ports, processes
from agent.runtimes.process import ProcessRuntime
from agent.tests.control import LIMITS, TOKEN, FakeControlPlane
from unkey.ports import choose

ROOT = Path(__file__).resolve().parents[2]
FAST = Timing(
    start_deadline=15.0,
    drain=0.05,
    grace=0.5,
    max_restarts=1,
    first_restart=0.05,
    slowest_restart=0.2,
    first_crash=0.05,
    slowest_crash=0.2,
    poll_running=0.05,
    default_interval=0.2,
    report_delivery=1.0,
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the agent's tests with one worker: they name their instances alike, and an instance is found by its name."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.xdist_group("agent"))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    plane = FakeControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A region's folder; no process of its instances outlives the test."""
    root = tmp_path / "agent" / "test"
    root.mkdir(parents=True)
    yield root
    instances = root / "instances"
    names = os.listdir(instances) if instances.is_dir() else []
    for name in names:
        processes.end(processes.members(None, str(instances / name)), signal.SIGKILL)


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual environments that the tests share, made once."""
    return tmp_path_factory.mktemp("environments")


def control_for(plane: FakeControlPlane) -> ControlPlane:
    return ControlPlane(web_url=plane.url, feed_url=plane.url, token=TOKEN, agent="agent-1", region="test")


@pytest.fixture
def in_process(plane: FakeControlPlane, root: Path, environments: Path):
    """Return a context manager that runs an agent in the test's event loop."""
    if not (root / "environments").exists():
        (root / "environments").symlink_to(environments)

    @asynccontextmanager
    async def running(
        drift_seconds: float = 60.0, whole_seconds: float = 600.0, **timing: float
    ) -> AsyncIterator[Agent]:
        control = control_for(plane)
        runtime = ProcessRuntime(root, control, LIMITS)
        agent = Agent(
            root=root,
            runtime=runtime,
            control=control,
            url="http://127.0.0.1:1",
            timing=replace(FAST, **timing),  # type: ignore[arg-type]
            drift_seconds=drift_seconds,
            whole_seconds=whole_seconds,
        )
        task = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for name in os.listdir(root / "instances"):
                await runtime.stop(name, "SIGKILL", 0.0)
            await control.close()

    return running


class AgentProcess:
    """`python -m agent` on its own."""

    def __init__(self, plane: FakeControlPlane, var: Path) -> None:
        self.port = choose("127.0.0.1", ["AGENT_PORT"])["AGENT_PORT"]
        self._log = (var / "agent.out").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent"],
            cwd=ROOT,
            env={
                **os.environ,
                "UNKEY_VAR": str(var),
                "REGION": "test",
                "WEB_URL": plane.url,
                "FEED_URL": plane.url,
                "AGENT_TOKEN": TOKEN,
                "AGENT_PORT": str(self.port),
                "AGENT_DRAIN_SECONDS": "0.05",
            },
            stdout=self._log,
            stderr=self._log,
        )

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(20)
        self._log.close()
        return status

    def get(self, path: str, token: str = TOKEN) -> httpx.Response:
        """Ask its server once it listens."""
        deadline = time.monotonic() + 15
        while True:
            try:
                return httpx.get(
                    f"http://127.0.0.1:{self.port}{path}",
                    headers={"Authorization": f"Bearer {token}"},
                    trust_env=False,
                )
            except httpx.ConnectError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@pytest.fixture
def start_agent(
    plane: FakeControlPlane, root: Path, environments: Path
) -> Iterator[Callable[[], AgentProcess]]:
    """Return a function that starts an agent; all of them are ended with the test."""
    started: list[AgentProcess] = []
    if not (root / "environments").exists():
        (root / "environments").symlink_to(environments)

    def start() -> AgentProcess:
        agent = AgentProcess(plane, root.parent.parent)
        started.append(agent)
        return agent

    yield start
    for agent in started:
        if agent.process.poll() is None:
            agent.end(signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Say whether a pid is a process that is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> None:
    """Wait until a process is gone."""
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


@pytest.fixture
def numbers() -> Iterator[range]:
    """Three ports in a row of this machine that nobody has now, nor another test beside this one."""
    for first in range(8_200, 10_000, 3):  # where neither connections nor systems take any by accident
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, ExitStack() as probes:
            try:
                ours.bind(f"\0unkey tested ports {first}")
                for number in range(3):
                    probes.enter_context(socket.socket()).bind((ports.HOST, first + number))
            except OSError:
                continue
            probes.close()
            yield range(first, first + 3)
            return
    raise AssertionError("no three ports in a row are free")
