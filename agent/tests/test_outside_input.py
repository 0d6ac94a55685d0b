"""What comes from outside is read or refused, and never breaks the reader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import health, server, wire
from agent.desired import Desired
from agent.runtimes import processes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
GOOD = {
    "type": "topology",
    "version": 7,
    "deploymentId": "d_1",
    "environmentId": "env_1",
    "workspaceId": "ws_1",
    "projectId": "proj_1",
    "appId": "app_1",
    "desired": "running",
    "replicas": 1,
    "image": "snapshot@sha256:" + "0" * 64,
    "plan": {"kind": "python", "command": ["python"], "install": None},
    "settings": {
        "port": 8080,
        "cpuMillicores": 250,
        "memoryMib": 256,
        "storageMib": 0,
        "command": [],
        "healthcheck": {"method": "GET", "path": "/h", "intervalSeconds": 1},
        "shutdownSignal": "SIGINT",
        "upstreamProtocol": "http1",
        "openapiSpecPath": None,
        "dockerfile": None,
        "rootDirectory": ".",
        "buildCommand": None,
    },
    "variables": ["A"],
}


def test_row_as_the_control_plane_sends_it_is_understood():
    row = wire.decode(json.dumps(GOOD).encode())
    assert isinstance(row, wire.Topology)
    assert (row.version, row.deployment_id, row.desired, row.replicas) == (7, "d_1", "running", 1)
    assert row.settings.shutdown_signal == "SIGINT"
    assert row.settings.healthcheck == wire.Healthcheck(path="/h", interval_seconds=1)
    assert row.plan == wire.Plan(command=["python"], kind="python")
    assert wire.decode(b'{"type":"synced","version":3,"full":true}') == wire.Synced(3, full=True)
    assert wire.decode(b'{"type":"heartbeat","version":3}') == wire.Heartbeat(3)


@settings(deadline=None)
@given(st.data())
def test_any_change_of_a_row_is_read_or_refused_with_its_version(data):
    row = json.loads(json.dumps(GOOD))
    part = data.draw(st.sampled_from([row, row["settings"], row["plan"], row["settings"]["healthcheck"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
    refused = None
    try:
        wire.decode(json.dumps(row).encode())
    except wire.BadRow as error:
        refused = error
    if refused is not None:
        version = row["version"]
        known = isinstance(version, int) and not isinstance(version, bool) and 0 <= version < 2**63
        assert refused.version == (version if known else 0)


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_noise_is_a_bad_row(line):
    with pytest.raises(wire.BadRow):
        wire.decode(line)


def test_deeply_nested_row_is_a_bad_row():
    with pytest.raises(wire.BadRow):
        wire.decode(b'{"type":' * 100_000)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_state_file_that_was_damaged_means_the_whole_state_anew(tmp_path_factory, octets):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(octets)
    desired = Desired(path)
    assert (desired.version, desired.topologies) == (0, {})


def test_state_file_is_read_back(tmp_path):
    desired = Desired(tmp_path / "state.json")
    row = wire.decode(json.dumps(GOOD).encode())
    assert isinstance(row, wire.Topology)
    desired.apply(row)
    desired.proven.add("d_1")
    desired.save()
    again = Desired(tmp_path / "state.json")
    assert (again.version, again.topologies, again.proven) == (7, {"d_1": row}, {"d_1"})


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_request_head_is_parsed_or_refused(head):
    found = server.parse_head(head)
    assert found is None or found[1].startswith("/")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n", 200),
        (b"HTTP/1.0 503\r\n", 503),
        (b"HTTP/1.1 099 x\r\n", None),
        (b"HTTP/2 200\r\n", None),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"HTTP/1.1 2000 x\r\n", None),
    ],
)
def test_status_lines(line, status):
    assert health.status_of(line) == status


@given(st.binary(max_size=60))
def test_any_status_line_is_read_or_refused(line):
    status = health.status_of(line)
    assert status is None or 100 <= status <= 999


def test_pid_of_another_time_or_boot_is_another_process():
    import os

    own = processes.identity(os.getpid())
    assert own is not None
    assert processes.is_alive(own)
    assert not processes.is_alive(processes.Identity(own.pid, own.started + 1, own.boot))
    assert not processes.is_alive(processes.Identity(own.pid, own.started, "another boot"))
