"""The data plane does not need the control plane: the edge serves with everything else dead."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing

import psutil
import pytest

from edge.store import disk
from edge.store.records import KeyRecord
from scripts.demo import PYTHON, ROOT, Platform, System, Visitor
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


def test_known_hosts_and_known_keys_are_answered_without_control_plane_and_database(
    system: System, platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    api = platform.call("apis.createApi", {"name": "blackout"})["apiId"]
    made = platform.call("keys.createKey", {"apiId": api})
    key = made["key"]
    policy = {"name": "keys", "enabled": True, "keyauth": {"keyspaces": [api]}}
    platform.call("gateway.setPolicies", {**app.place, "policies": [policy]})
    visitor = app.visitor(app.deploy("1"))
    visitor.until_version("1", key)
    assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"
    _until_snapshot_is_current(system, made["keyId"])

    supervisor = psutil.Process(system.process.pid) if system.process else None
    assert supervisor is not None
    supervisor.suspend()  # so that nothing is restarted
    try:
        for process in ("web", "feed", "worker", "beat", "agent"):
            _kill(system, process)
        for file in system.var.glob("unkey.sqlite3*"):
            file.rename(file.with_name(f"away-{file.name}"))
        _serves(visitor, platform, key)

        _kill(system, "edge")
        edge = subprocess.Popen(
            [PYTHON, "-m", "edge"],
            cwd=ROOT,
            env={**system.environ, **{name: str(port) for name, port in system.ports.items()}},
        )
        try:
            system.wait_healthy(("EDGE_METRICS_PORT",))
            _serves(visitor, platform, key)
            assert not (system.var / "unkey.sqlite3").exists()
        finally:
            edge.terminate()
            edge.wait(timeout=30)

        supervisor.resume()  # what it starts again must not make an empty database in the place of the lost one
        time.sleep(5)
        system.wait_healthy(("EDGE_METRICS_PORT",))
        assert not list(system.var.glob("unkey.sqlite3*"))
        _serves(visitor, platform, key)
    finally:
        for file in system.var.glob("away-unkey.sqlite3*"):
            file.rename(file.with_name(file.name.removeprefix("away-")))
        supervisor.resume()


def _serves(visitor: Visitor, platform: Platform, key: str) -> None:
    for _ in range(50):
        assert visitor.get("/", key)[0] == 200
        assert visitor.get("/", key, tls=True)[0] == 200
        assert visitor.get("/")[0] == 401
        assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"


def _kill(system: System, process: str) -> None:
    pid = int((system.var / "run" / f"{process}.pid").read_text())
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    if process == "agent":
        family = family[:1]  # instances outlive their agent
    for member in family:
        os.kill(member.pid, signal.SIGKILL)


def _until_snapshot_is_current(system: System, key_id: str) -> None:
    """Wait until what the edge has written to disk knows of every change, and of this key."""
    database = f"file:{system.var / 'unkey.sqlite3'}?mode=ro"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(database, uri=True, timeout=10)) as connection:
            rows = connection.execute(
                "SELECT name, version FROM cluster_stream WHERE name NOT LIKE 'topologies%'"
            )
            heads = dict(rows)
        for path in (system.var / "edge").glob("*/snapshot"):
            applied, records = disk.read(path)
            keys = {record.id for record in records if isinstance(record, KeyRecord)}
            if key_id in keys and all(applied.get(name, 0) >= head for name, head in heads.items()):
                return
        time.sleep(0.1)
    raise AssertionError("the edge does not write down what it knows")
