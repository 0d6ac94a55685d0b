"""A preview that nobody calls sleeps, and the first requests wake it, however slow web is."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import psutil
import pytest

from scripts.demo import HELLO, Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system-3"), pytest.mark.timeout(180)]

CALLERS = 8
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running platform whose previews sleep soon and whose edge waits long for them."""
    running = System(tmp_path_factory.mktemp("unkey") / "var")
    running.environ |= {
        "PORTS": "auto",
        "LOG_LEVEL": "info",
        "PREVIEW_IDLE_SECONDS": "2",
        "EDGE_WAKE_SECONDS": str(PATIENCE_SECONDS),
    }
    running.start()
    yield running
    running.stop()


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_first_requests_of_a_sleeping_preview_are_held_and_answered_although_web_is_slow(
    system: System, platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    options = ("--project", app.project, "--app", "default", "--env", "preview")
    made = platform.unkey("deploy", str(HELLO), *options)
    visitor = app.visitor(made)
    assert visitor.wake()[0] == 200
    until(lambda: bool(app.deployment(made["deploymentId"])["status"] == "stopped"))
    pid = int((system.var / "run" / "web.pid").read_text())
    web = psutil.Process(pid).children(recursive=True)
    answers: list[tuple[int, str]] = []
    callers = [threading.Thread(target=lambda: answers.append(visitor.wake())) for _ in range(CALLERS)]
    for process in web:
        process.suspend()
    try:
        for caller in callers:
            caller.start()
        until(lambda: f"unkey_frontline_holding {CALLERS}\n" in metrics(system))
    finally:
        for process in web:
            process.resume()
    for caller in callers:
        caller.join()
    assert len(answers) == CALLERS
    assert {status for status, _ in answers} == {200}
    assert all(held.endswith("s") and float(held[:-1]) >= 0 for _, held in answers)
    assert f'unkey_frontline_held_total{{outcome="woken"}} {CALLERS}\n' in metrics(system)


def metrics(system: System) -> str:
    """Return the edge's metrics."""
    with urllib.request.urlopen(f"{system.url('EDGE_METRICS_PORT')}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
