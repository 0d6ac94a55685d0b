"""Instances follow their load up and down again, and no request is lost on the way."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import System
from tests.system.conftest import Deployed
from tests.system.test_rollback_under_load import Caller

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]  # slow: it burns CPU until it is scaled

CALLERS = 6
# Of the smallest instance there is, a quarter of a CPU: what a program gets on a busy machine, too.
THRESHOLD = """
from django.db import transaction
from apps.cluster.versions import stamp
from apps.deployments.models import Topology

with transaction.atomic():
    (topology,) = Topology.objects.all()
    topology.threshold_cpu = 20
    stamp(topology)
    topology.save()
"""
# Takes its time for each request, burns CPU while the file is there, and ends at once at a signal: what it
# had not answered by then is lost.
PROGRAM = """
import http.server, json, os, subprocess, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.4)
        body = json.dumps({"version": os.environ["UNKEY_INSTANCE_ID"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

while len(sys.argv) > 1:
    time.sleep(0.05)
    until = time.monotonic() + 0.1
    while os.path.exists(%r) and time.monotonic() < until:
        pass
for _ in range(3):
    subprocess.Popen([sys.executable, __file__, "burn"])
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose agent looks often and is soon sure."""
    running = System(tmp_path_factory.mktemp("unkey") / "var")
    running.environ.pop("DATABASE_URL", None)
    running.environ |= {
        "PORTS": "auto",
        "AGENT_SCALE_SECONDS": "0.4",
        "AGENT_SCALE_DOWN_SECONDS": "1.2",
        "LOG_LEVEL": "info",
    }
    running.start()
    yield running
    running.stop()


def until(condition: Callable[[], Any]) -> Any:
    """Return what a condition gives as soon as that is true."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_from_one_to_three_instances_and_back_without_a_lost_request(
    project: Callable[[], Deployed], tmp_path: Path
) -> None:
    app = project()
    source, flag = tmp_path / "source", tmp_path / "burn"
    source.mkdir()
    (source / "app.py").write_text(PROGRAM % str(flag))
    (source / "Procfile").write_text("web: python app.py\n")
    replicas = {"min": 1, "max": 3}
    regions = [{"name": "local", "replicas": replicas}]
    app.platform.call("environments.updateSettings", {**app.place, "regions": regions})
    made = app.platform.unkey("deploy", str(source), "--project", app.project, "--env", "production")
    app.system.manage("shell", "-c", THRESHOLD)

    def running(count: int) -> set[str] | None:
        rows = app.platform.call("deployments.listInstances", {"deploymentId": made["deploymentId"]})
        fits = [row["status"] for row in rows] == ["running"] * count
        return {row["address"] for row in rows} if fits else None

    visitor = app.visitor(made)
    stop = threading.Event()
    callers = [Caller(visitor, stop) for _ in range(CALLERS)]
    (first,) = until(lambda: running(1))
    for caller in callers:
        caller.start()
    try:
        flag.touch()
        three = until(lambda: running(3))
        assert first in three
        until(lambda: len({version for caller in callers for _, version in caller.answers[-20:]}) == 3)
        flag.unlink()
        assert until(lambda: running(1)) <= three
        seen = sum(len(caller.answers) for caller in callers)
        until(lambda: sum(len(caller.answers) for caller in callers) > seen + CALLERS)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert [failure for caller in callers for failure in caller.failures] == []
    counts = app.deployment(made["deploymentId"])["instances"]
    assert counts == {"running": 1, "total": 1, "restarts": 0}
