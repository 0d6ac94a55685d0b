"""A preview that nobody calls sleeps, and the first requests wake it, however slow web is."""

import threading
import time
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from scripts.demo import HELLO, Platform, System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]

CALLERS = 8
PATIENCE_SECONDS = 60


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
    woken = held(system, "woken")
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
    assert held(system, "woken") == woken + CALLERS


def held(system: System, outcome: str) -> int:
    """Return how many requests the edge has held that ended so."""
    name = f'unkey_frontline_held_total{{outcome="{outcome}"}} '
    return sum(int(line.removeprefix(name)) for line in metrics(system).splitlines() if line.startswith(name))


def metrics(system: System) -> str:
    """Return the edge's metrics."""
    with urllib.request.urlopen(f"{system.url('EDGE_METRICS_PORT')}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
