"""Four agents in four regions; one is lost with all that it ran, and returns."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from scripts.demo import ROOT, Platform, System, Visitor
from tests.system.conftest import Deployed
from tests.system.test_rollback_under_load import Caller

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]  # slow: twelve processes

REGIONS = ("fra", "gru", "iad", "sin")
PATIENCE = 60.0
# What `up` would restart at once is run by the test itself.
ONLY = "web,feed,worker,beat,edge,agent-fra,agent-gru,agent-iad"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A platform of four regions, the agent of the last of which is not started; edges in two of them."""
    running = System(tmp_path_factory.mktemp("regions") / "var", "--only", ONLY)
    running.environ.pop("DATABASE_URL", None)  # agents of other systems are not to be seen
    running.environ |= {"PORTS": "auto", "REGIONS": ",".join(REGIONS), "EDGE_REGIONS": "sin,fra"}
    running.start()
    yield running
    running.stop()


class LostAgent:
    """The agent of region sin, which can be killed with everything that it runs."""

    def __init__(self, system: System) -> None:
        port = system.ports["AGENT_PORT@agent-sin"]
        self._environ = {
            **system.environ,
            **{name: str(port) for name, port in system.ports.items() if "@" not in name},
            "REGION": "sin",
            "AGENT_ID": "agent-sin",
            "AGENT_PORT": str(port),
        }
        self._log = system.var / "agent-sin.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent"], cwd=ROOT, env=self._environ, stdout=log, stderr=log
            )

    def kill(self) -> int:
        """End it and its instances by SIGKILL; returns how many instances there were."""
        assert self._process is not None
        instances = psutil.Process(self._process.pid).children(recursive=True)
        for process in (psutil.Process(self._process.pid), *instances):
            process.kill()
        self._process.wait()
        psutil.wait_procs(instances)
        return len(instances)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)


@pytest.fixture
def lost(system: System) -> Iterator[LostAgent]:
    agent = LostAgent(system)
    agent.start()
    yield agent
    agent.stop()


class App(Deployed):
    """The example, saying where it runs."""

    def source(self, version: str) -> Any:
        folder = super().source(version)
        program = folder / "app.py"
        text = program.read_text()
        says = '"version": VERSION, "region": os.environ["UNKEY_REGION"]}'
        program.write_text(text.replace('"version": VERSION}', says, 1))
        return folder


def agents(system: System) -> dict[str, dict[str, Any]]:
    """Return what `cluster status` says of the agents, by region."""
    done = subprocess.run(
        [sys.executable, "manage.py", "cluster", "status", "--json"],
        cwd=ROOT,
        env=system.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return {row["region"]: row for row in json.loads(done.stdout) if row["kind"] == "agent"}


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_region_is_lost_others_take_over_and_it_catches_up_when_it_returns(
    system: System, platform: Platform, lost: LostAgent, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = App(system, platform, tmp_path_factory.mktemp("sources"))
    until(lambda: set(agents(system)) == set(REGIONS), "four agents register")
    places = [{"name": region, "replicas": {"min": 1, "max": 1}} for region in REGIONS]
    platform.call("environments.updateSettings", {**app.place, "regions": places})
    host = min(app.deploy("1")["domains"], key=len)
    far, near = (
        Visitor(host, system.ports[f"EDGE_HTTP_PORT{edge}"], 0, system.var) for edge in ("@edge-fra", "")
    )

    def served(visitor: Visitor) -> tuple[str, str]:
        status, body = visitor.get("/")
        assert status == 200, body
        return body["region"], body["version"]

    until(lambda: served(near) == ("sin", "1"), "the edge of sin is served by sin")
    until(lambda: served(far) == ("fra", "1"), "the edge of fra is served by fra")
    stop = threading.Event()
    callers = [Caller(visitor, stop) for visitor in (near, near, far)]
    for caller in callers:
        caller.start()
    try:
        assert lost.kill() >= 1
        assert served(near)[0] in {"fra", "gru", "iad"}
        assert app.deploy("2")["status"] == "ready"
        until(lambda: served(near)[1] == served(far)[1] == "2", "both edges serve the new version")
        assert served(near)[0] in {"fra", "gru", "iad"}
        lost.start()
        until(lambda: served(near) == ("sin", "2"), "the region that returned serves the new version")
        until(lambda: agents(system)["sin"]["behind"] == {}, "its agent has caught up")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    # A request that an instance had already taken when it was killed is lost with it; none after that is.
    failures = [failure for caller in callers for failure in caller.failures]
    assert set(failures) <= {"status 502"}
    assert len(failures) <= len(callers)
    assert all(len(caller.answers) > 20 for caller in callers)
