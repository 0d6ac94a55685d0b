"""Edge processes that know a namespace from their snapshots count together, without a database."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from edge.http.tests.rig import PATIENCE, free_port
from edge.store import disk
from edge.store.records import Namespace, Override, Record, RootKey, Workspace
from edge.verify.verifier import digest_of

ROOT = Path(__file__).resolve().parents[3]
MONTH = 2_592_000_000  # so that no window turns within the test


@pytest.fixture
def edge(tmp_path):
    """Start edge processes on machines; return the base URLs of their APIs."""
    started = []

    def start(machine, edge_id, **settings):
        var = tmp_path / machine
        folder = var / "edge" / edge_id
        folder.mkdir(parents=True)
        tables: list[list[Record]] = [
            [Workspace("ws_1", True, 1)],
            [RootKey("key_1", digest_of("root"), "ws_1", ("ratelimit.*.limit",), True, None, 1)],
            [Namespace("rlns_1", "ws_1", "mails", 1)],
            [Override("rlor_1", "ws_1", "rlns_1", "bad_*", 0, MONTH, 1, 1)],
        ]
        disk.write(folder / "snapshot", {}, tables)
        ports = {
            name: str(free_port())
            for name in ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT")
        }
        environment = {
            "PATH": os.environ["PATH"],
            "UNKEY_VAR": str(var),
            "DATABASE_URL": f"sqlite:///{var}/missing.sqlite3",
            "EDGE_ID": edge_id,
            "LOG_LEVEL": "error",
            **ports,
            **settings,
        }
        started.append(subprocess.Popen([sys.executable, "-m", "edge"], cwd=ROOT, env=environment))
        return f"http://127.0.0.1:{ports['EDGE_API_PORT']}"

    yield start
    for process in started:
        process.terminate()
    for process in started:
        assert process.wait(PATIENCE) == 0


def limit(url, who, most=100, cost=1):
    """Ask a limit per month and return `data`; the edge may still be starting."""
    body = {"namespace": "mails", "identifier": who, "limit": most, "duration": MONTH, "cost": cost}
    until = time.monotonic() + PATIENCE
    while True:
        try:
            answer = httpx.post(
                f"{url}/v2/ratelimit.limit", json=body, headers={"Authorization": "Bearer root"}
            )
        except httpx.ConnectError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            assert answer.status_code == 200, answer.text
            return answer.json()["data"]


def test_edges_of_a_machine_count_together(edge):
    first, second = edge("a", "edge-1"), edge("a", "edge-2")
    for url in (first, second):
        limit(url, "user", cost=0)
    assert [limit(url, "user")["remaining"] for url in (first, second, second, first)] == [99, 98, 97, 96]
    denied = limit(second, "bad_actor")
    assert (denied["success"], denied["limit"], denied["overrideId"]) == (False, 0, "rlor_1")


@pytest.mark.services
def test_edges_of_two_machines_count_together_through_redis(edge):
    redis = {"REDIS_URL": os.environ["SERVICES_REDIS_URL"]}
    who = os.urandom(8).hex()
    urls = [edge(machine, "edge-1", **redis) for machine in ("a", "b")]
    for url in urls:
        limit(url, who, cost=10)
    until = time.monotonic() + PATIENCE
    while [limit(url, who, cost=0)["remaining"] for url in urls] != [80, 80]:
        assert time.monotonic() < until
        time.sleep(0.05)
