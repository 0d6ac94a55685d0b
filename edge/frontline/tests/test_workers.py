"""`python -m edge --workers N` as processes: one that ends is replaced, SIGHUP replaces all, SIGTERM ends them."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edge.http.tests.rig import Client, free_port
from edge.store import disk
from edge.supervisor import merged

ROOT = Path(__file__).resolve().parents[3]
PORTS = ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT", "WEB_PORT")
PATIENCE = 60.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n"


class Workers:
    """A supervised edge with an empty snapshot, which answers 404."""

    def __init__(self, folder: Path, count: int) -> None:
        self.settings = {
            "PATH": os.environ["PATH"],
            "UNKEY_VAR": str(folder),
            "DATABASE_URL": f"sqlite:///{folder}/missing.sqlite3",
            "EDGE_DRAIN_SECONDS": "5",
            **{name: str(free_port()) for name in PORTS},
        }
        self.port = int(self.settings["EDGE_HTTP_PORT"])
        for number in range(1, count + 1):  # so that they have something to serve from
            snapshot = folder / "edge" / f"edge-1-{number}a" / "snapshot"
            snapshot.parent.mkdir(parents=True)
            disk.write(snapshot, {}, [])
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge", "--workers", str(count)],
                cwd=ROOT,
                env=self.settings,
                stdout=output,
                stderr=output,
            )

    @property
    def pids(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.settings['EDGE_METRICS_PORT']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def serving(self) -> set[str]:
        """Which workers are ready."""
        return set(re.findall(r'unkey_edge_ready\{worker="(\d+)"\} 1', self.metrics()))

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def get(self) -> int:
        client = Client(self.port)
        client.socket.settimeout(PATIENCE)
        with contextlib.closing(client):
            return client.send(_REQUEST).answer()[0]


@pytest.fixture
def workers(tmp_path):
    """Start an edge of several workers; everything of it is gone at the end."""
    started = []

    def start(count):
        started.append(Workers(tmp_path, count))
        edge = started[-1]
        edge.until(lambda: len(edge.serving()) == count)
        return edge

    yield start
    for edge in started:
        pids = edge.pids if edge.process.poll() is None else set()
        edge.process.kill()
        edge.process.wait()
        for pid in pids:  # they end by themselves when their supervisor has
            _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_metrics_of_workers_are_one_text():
    one = '# HELP a A.\n# TYPE a counter\na 1\n# HELP b B.\n# TYPE b gauge\nb{x="y"} 2\n'
    two = "# HELP a A.\n# TYPE a counter\na 3\n"
    assert list(merged([("1", one), ("2", two), ("3", "")])) == [
        "# HELP a A.",
        "# TYPE a counter",
        'a{worker="1"} 1',
        'a{worker="2"} 3',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="1",x="y"} 2',
    ]


@pytest.mark.services
def test_a_killed_worker_is_replaced_and_what_was_connected_meanwhile_is_answered(workers):
    edge = workers(2)
    before = edge.pids
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    _wait_for_end(killed)
    # By the kernel's choice some of them wait in the socket of the one that was killed.
    assert [edge.get() for _ in range(20)] == [404] * 20
    edge.until(lambda: "unkey_edge_workers_replaced_total 1" in edge.metrics() and len(edge.serving()) == 2)
    assert len(edge.pids) == 2
    assert edge.pids & before == before - {killed}
    edge.process.terminate()
    assert edge.process.wait(PATIENCE) == 0, edge.output.read_text()
    assert "Traceback" not in edge.output.read_text()


@pytest.mark.services
def test_a_reload_under_load_loses_no_connection_and_no_request(workers):
    edge = workers(2)
    before = [edge.pids]
    over = threading.Event()
    statuses: list[object] = []

    def ask(keep: bool) -> None:
        client: Client | None = None
        while not over.is_set():
            try:
                client = client or Client(edge.port)
                client.socket.settimeout(PATIENCE)
                status, headers, _ = client.send(_REQUEST).answer()
                statuses.append(status)
            except (OSError, EOFError) as error:
                statuses.append(error)
                headers = {"connection": "close"}
            if not keep or headers.get("connection") == "close":
                if client is not None:
                    client.close()
                client = None
        if client is not None:
            client.close()

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            edge.process.send_signal(signal.SIGHUP)
            edge.until(lambda: len(edge.pids) == 2 and not edge.pids & before[-1])
            before.append(edge.pids)
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert set(statuses) == {404}
    assert "edge.reloaded" in edge.output.read_text()


@pytest.mark.services
def test_workers_end_when_their_supervisor_is_killed(workers):
    edge = workers(2)
    pids = edge.pids
    edge.process.kill()
    edge.process.wait()
    for pid in pids:
        _wait_for_end(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", edge.port))


def test_a_port_that_is_taken_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"PATH": os.environ["PATH"], "UNKEY_VAR": str(tmp_path), "EDGE_API_PORT": str(port)}
        process = subprocess.run(
            [sys.executable, "-m", "edge", "--workers", "2"],
            cwd=ROOT,
            env={**settings, "EDGE_METRICS_PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert process.returncode == 1
    assert f"127.0.0.1:{port} (EDGE_API_PORT)" in process.stdout + process.stderr
    assert "Traceback" not in process.stdout + process.stderr
