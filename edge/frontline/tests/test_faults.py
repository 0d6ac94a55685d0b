"""An edge process that has no file descriptor left, or holds ten thousand connections that do nothing."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edge.http.tests.rig import Client, free_port
from edge.store import disk

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0
GET = b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n"
IDLE = 10_000


class Process:
    """An edge with an empty snapshot, which answers 404."""

    def __init__(self, folder: Path, **settings: str) -> None:
        snapshot = folder / "edge" / "edge-1" / "snapshot"
        snapshot.parent.mkdir(parents=True)
        disk.write(snapshot, {}, [])
        ports = ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT", "WEB_PORT")
        chosen = {name: str(free_port()) for name in ports}
        self.port = int(chosen["EDGE_HTTP_PORT"])
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge"],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "UNKEY_VAR": str(folder),
                    "DATABASE_URL": f"sqlite:///{folder}/missing.sqlite3",
                    **chosen,
                    **settings,
                },
                stdout=output,
                stderr=output,
            )

    def client(self) -> Client:
        client = Client(self.port)
        client.socket.settimeout(PATIENCE)
        return client

    def until_answered(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with contextlib.closing(self.client()) as client:
                    assert client.send(GET).answer()[0] == 404
                    return
            except (OSError, EOFError):
                assert self.process.poll() is None, self.output.read_text()
                assert time.monotonic() < deadline, self.output.read_text()
                time.sleep(0.05)


@pytest.fixture
def edge(tmp_path):
    """Start an edge; it is killed at the end."""
    started = []

    def start(**settings):
        started.append(Process(tmp_path, **settings))
        started[-1].until_answered()
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.services
def test_without_a_descriptor_left_connections_that_are_open_are_served_and_new_ones_are_later(edge):
    one = edge(EDGE_MAX_CONNECTIONS="100000")
    kept = one.client()
    assert kept.send(GET).answer()[0] == 404
    used = psutil.Process(one.process.pid).num_fds()
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
    others = []
    for _ in range(60):
        other = socket.socket()
        other.settimeout(PATIENCE)
        other.connect(("127.0.0.1", one.port))
        others.append(other)
    assert psutil.Process(one.process.pid).num_fds() <= used + 20
    for _ in range(20):
        assert kept.send(GET).answer()[0] == 404
    began = psutil.Process(one.process.pid).cpu_times().user
    assert kept.send(GET).answer()[0] == 404
    assert psutil.Process(one.process.pid).cpu_times().user - began < 1
    for other in others:
        other.close()
    one.until_answered()
    assert kept.send(GET).answer()[0] == 404
    kept.close()
    assert one.process.poll() is None


@pytest.mark.services
def test_ten_thousand_idle_connections_cost_little_and_keep_nobody_waiting(edge):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < IDLE + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 500, hard))
    one = edge(
        EDGE_MAX_CONNECTIONS=str(IDLE + 100),
        EDGE_IDLE_TIMEOUT_SECONDS="600",
        EDGE_HEADER_TIMEOUT_SECONDS="600",
    )
    process = psutil.Process(one.process.pid)
    before = process.memory_info().rss
    idle = []
    try:
        for number in range(IDLE):
            # By several source addresses: one has not so many ports.
            idle.append(socket.socket())
            idle[-1].settimeout(PATIENCE)
            idle[-1].bind((f"127.0.0.{number % 4 + 1}", 0))
            idle[-1].connect(("127.0.0.1", one.port))
            if number % 100 == 0:  # some have asked before they fell silent
                idle[-1].sendall(GET)
                assert idle[-1].recv(65536).startswith(b"HTTP/1.1 404 ")
        deadline = time.monotonic() + PATIENCE
        while process.num_fds() < IDLE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client = one.client()
        for _ in range(100):
            assert client.send(GET).answer()[0] == 404
        client.close()
        one.until_answered()
        assert (process.memory_info().rss - before) / IDLE < 16 * 1024
    finally:
        for each in idle:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
