"""`python -m edge` as a process: without a database, with a port that is taken, until SIGTERM."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edge.http.tests.rig import PATIENCE, free_port
from edge.store import disk

ROOT = Path(__file__).resolve().parents[3]
PORTS = ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT", "WEB_PORT")


@pytest.fixture
def settings(tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "UNKEY_VAR": str(tmp_path),
        "DATABASE_URL": f"sqlite:///{tmp_path}/missing.sqlite3",
        **{name: str(free_port()) for name in PORTS},
    }


@pytest.fixture
def edge(settings):
    """Start the process; it is killed at the end if it still runs."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "edge"],
            cwd=ROOT,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def get(url):
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_it_lives_without_a_database_and_stops_on_sigterm(settings, edge):
    process = edge()
    base = f"http://127.0.0.1:{settings['EDGE_METRICS_PORT']}"
    assert get(f"{base}/health/live") == 200
    assert get(f"http://127.0.0.1:{settings['EDGE_HTTP_PORT']}/") == 404
    assert get(f"http://127.0.0.1:{settings['EDGE_API_PORT']}/v2/liveness") == 500
    assert get(f"{base}/health/ready") == 503
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_one_clear_line(settings, edge):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings["EDGE_HTTP_PORT"] = str(port)
        process = edge()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"127.0.0.1:{port} (EDGE_HTTP_PORT)" in output
    assert "Traceback" not in output


def test_a_setting_that_cannot_be_used_is_one_clear_line(settings, edge):
    settings["EDGE_HTTP_PORT"] = "many"
    process = edge()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "EDGE_HTTP_PORT must be a port" in output
    assert "Traceback" not in output


def test_it_ends_with_a_status_when_a_background_task_has_ended(settings):
    script = """
import sys
from edge import __main__ as edge
from edge.store.store import Store

async def ended(self, work):
    pass

Store._forever = ended
sys.exit(edge.main())
"""
    settings["EDGE_ID"] = "edge-broken"
    snapshot = Path(settings["UNKEY_VAR"], "edge", "edge-broken", "snapshot")
    snapshot.parent.mkdir(parents=True)
    disk.write(snapshot, {}, [])
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert "edge.cannot_go_on" in process.stdout + process.stderr
