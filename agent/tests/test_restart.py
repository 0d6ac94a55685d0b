"""The agent as a process of its own: killed, stopped and started again while instances run."""

import json
import os
import signal
import time

import httpx
import pytest

from agent.tests import programs
from agent.tests.conftest import gone, is_running

PYTHON = ["python", "app.py"]


def pid_of(instance: dict) -> int:
    pid: int = httpx.get(f"http://{instance['address']}/", trust_env=False).json()["pid"]
    return pid


@pytest.fixture
def image(plane, tmp_path):
    return plane.snapshot(tmp_path / "app", {"app.py": programs.SERVER})


def test_killed_agent_finds_its_instances_again_without_restarting_them(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (before,) = plane.running("d_1")
    pid = pid_of(before)
    agent.end(signal.SIGKILL)
    assert pid_of(before) == pid
    plane.reports.clear()
    start_agent()
    assert plane.running("d_1") == [before]
    assert plane.history("d_1") == [["running"]]
    assert pid_of(before) == pid
    assert plane.watched == [0, 1]
    plane.topology("d_1", image, PYTHON, desired="stopped")
    plane.wait(lambda: plane.instances("d_1") == [])
    gone(pid)


def test_instance_that_died_while_no_agent_was_there_is_started_anew(plane, image, start_agent):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (before,) = plane.running("d_1")
    pid = pid_of(before)
    assert agent.end(signal.SIGTERM) == 0
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    plane.reports.clear()
    start_agent()
    (after,) = plane.running("d_1")
    assert after["name"] == before["name"]
    assert pid_of(after) != pid


def test_pid_that_was_given_to_a_stranger_is_not_taken_for_an_instance(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (before,) = plane.running("d_1")
    agent.end(signal.SIGKILL)
    path = root / "instances" / before["name"] / "instance.json"
    record = json.loads(path.read_bytes())
    pid = record["pid"]
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    path.write_text(json.dumps({**record, "pid": os.getpid(), "boot": record["boot"]}))
    plane.reports.clear()
    start_agent()
    (after,) = plane.running("d_1")
    assert pid_of(after) not in (pid, os.getpid())


def test_process_that_was_started_but_never_recorded_is_ended(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (before,) = plane.running("d_1")
    pid = pid_of(before)
    agent.end(signal.SIGKILL)
    path = root / "instances" / before["name"] / "instance.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "pid": 0}))
    start_agent()
    gone(pid)
    plane.wait(lambda: plane.instances("d_1")[0]["address"] != before["address"])
    (after,) = plane.running("d_1")
    assert pid_of(after) != pid


def test_agent_killed_again_and_again_ends_with_one_instance(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    for pause in (0.3, 0.45, 0.6, 0.75):
        agent = start_agent()
        time.sleep(pause)
        agent.end(signal.SIGKILL)
    start_agent()
    (instance,) = plane.running("d_1")
    assert os.listdir(root / "instances") == [instance["name"]]
    assert len(_marked(str(root / "instances" / instance["name"]))) == 1


def test_interrupt_stops_every_instance_and_the_next_start_brings_them_back(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON, replicas=2)
    agent = start_agent()
    pids = [pid_of(instance) for instance in plane.running("d_1", 2)]
    assert agent.end(signal.SIGINT) == 0
    assert not any(is_running(pid) for pid in pids)
    assert plane.instances("d_1") == []
    start_agent()
    plane.running("d_1", 2)


def test_agent_needs_no_control_plane_to_keep_what_runs(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (instance,) = plane.running("d_1")
    pid = pid_of(instance)
    plane.close()
    agent.end(signal.SIGKILL)
    agent = start_agent()
    assert agent.get("/health/live").status_code == 200
    assert agent.get("/health/ready").status_code == 503
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    path = root / "instances" / instance["name"] / "instance.json"
    deadline = time.monotonic() + 15
    while json.loads(path.read_bytes())["pid"] in (0, pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_server_answers_health_metrics_and_logs(plane, image, start_agent):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (instance,) = plane.running("d_1")
    assert agent.get("/health/ready").json() == {"status": "ok"}
    assert agent.get("/health/startup").status_code == 200
    assert 'agent_instances{status="running"} 1.0' in agent.get("/metrics").text
    lines = agent.get("/logs?deployment=d_1&tail=1").json()["lines"]
    assert [(line["instance"], line["stream"], line["text"]) for line in lines] == [
        (instance["name"], "output", "serving")
    ]
    assert abs(lines[0]["time"] - time.time() * 1000) < 60_000
    assert agent.get("/logs?deployment=unknown").json() == {"lines": []}
    assert agent.get("/logs?deployment=d_1&tail=x").status_code == 400
    assert agent.get("/logs").status_code == 400
    assert agent.get("/logs?deployment=d_1", token="wrong").status_code == 401
    assert agent.get("/nothing").status_code == 404


def _marked(folder: str) -> list[int]:
    from agent.runtimes import processes

    return processes.members(None, folder)
