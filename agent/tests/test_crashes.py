"""Instances that crash: made good at once, then later each time, counted, and remembered."""

import asyncio
import json
import os
import signal
import subprocess

import httpx
import pytest

from agent.tests import programs
from agent.tests.conftest import gone

PYTHON = ["python", "app.py"]


def ask(instance: dict) -> dict:
    said: dict = httpx.get(f"http://{instance['address']}/", trust_env=False).json()
    return said


def messages(plane, deployment_id: str) -> list[str]:
    """First lines of what was reported of a deployment's instances, without repetitions."""
    found: list[str] = []
    for report in list(plane.reports):
        if report["deploymentId"] == deployment_id:
            for instance in report["instances"]:
                line = instance["message"].partition("\n")[0]
                if line and line not in found:
                    found.append(line)
    return found


@pytest.fixture
def image(plane, tmp_path):
    return plane.snapshot(tmp_path / "app", {"app.py": programs.MOODY})


def said(instances: list[dict]) -> list[tuple[str, str, str, int]]:
    """What was reported of instances, but where they were to listen."""
    return [(each["name"], each["status"], each["message"], each["restarts"]) for each in instances]


async def again(plane, pid: int) -> dict:
    """Wait until the one instance runs as another process, and return it."""

    def other():
        (instance,) = plane.instances("d_1")
        try:
            return instance if instance["status"] == "running" and ask(instance)["pid"] != pid else None
        except httpx.HTTPError:  # its end was not reported yet
            return None

    instance: dict = await plane.soon(other)
    return instance


def test_a_crash_is_made_good_at_once_and_a_crash_loop_later_each_time(plane, image, in_process, root):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(first_crash=0.1, slowest_crash=0.3):
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            assert instance["restarts"] == 0
            broken = root / "instances" / instance["name"] / "broken"
            broken.touch()
            os.kill(ask(instance)["pid"], signal.SIGKILL)
            await plane.soon(lambda: "5 times" in str(plane.instances("d_1")))
            (failed,) = plane.instances("d_1")
            assert (failed["status"], failed["restarts"]) == ("failed", 5)
            assert failed["message"].splitlines() == [
                "crash loop: it ended with status 3, 5 times; next try in 0.3 s",
                "serving",
                *["cannot go on: no configuration"] * 4,
            ]
            broken.unlink()
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            assert instance["message"] == ""
            assert instance["restarts"] >= 5

    asyncio.run(scenario())
    assert messages(plane, "d_1")[:5] == [
        "it was ended by SIGKILL; it is started again at once",
        "crash loop: it ended with status 3, 2 times; next try in 0.1 s",
        "crash loop: it ended with status 3, 3 times; next try in 0.2 s",
        "crash loop: it ended with status 3, 4 times; next try in 0.3 s",
        "crash loop: it ended with status 3, 5 times; next try in 0.3 s",
    ]


def test_crashes_are_forgotten_after_a_stable_time_but_restarts_are_counted_on(
    plane, image, in_process, root
):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(settled=0.1, first_crash=60.0):
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            for restarts in (1, 2):
                pid = ask(instance)["pid"]
                os.kill(pid, signal.SIGKILL)
                instance = await again(plane, pid)
                assert instance["restarts"] == restarts
                await plane.soon(lambda: b'"crashes":0' in (root / "state.json").read_bytes())

    asyncio.run(scenario())
    assert messages(plane, "d_1") == ["it was ended by SIGKILL; it is started again at once"]


def test_an_agent_that_is_started_again_goes_on_waiting(plane, image, start_agent, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (instance,) = plane.running("d_1")
    (root / "instances" / instance["name"] / "broken").touch()
    pid = ask(instance)["pid"]
    os.kill(pid, signal.SIGKILL)
    plane.wait(lambda: "2 times" in str(plane.instances("d_1")))
    (failed,) = plane.instances("d_1")
    assert failed["message"].splitlines()[0] == (
        "crash loop: it ended with status 3, 2 times; next try in 10 s"
    )
    agent.end(signal.SIGKILL)
    record = (root / "instances" / instance["name"] / "instance.json").read_bytes()
    plane.reports.clear()
    start_agent()
    plane.wait(lambda: plane.instances("d_1"))
    assert said(plane.instances("d_1")) == said([failed])
    assert (root / "instances" / instance["name"] / "instance.json").read_bytes() == record


def test_a_program_that_never_ran_has_failed_for_the_next_agent_too(plane, in_process, tmp_path):
    image = plane.snapshot(tmp_path / "bad", {"app.py": programs.CRASHES})
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(first_crash=60.0, slowest_crash=60.0):
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
        (failed,) = plane.instances("d_1")
        assert failed["message"].startswith("it did not run after 2 attempts: it ended with status 3")
        plane.reports.clear()
        async with in_process(first_crash=60.0, slowest_crash=60.0):
            await plane.soon(lambda: plane.instances("d_1"))
            assert said(plane.instances("d_1")) == said([failed])

    asyncio.run(scenario())
    assert plane.history("d_1") == [["failed"]]


def test_a_program_that_never_ran_is_tried_on_while_it_is_wanted(plane, image, in_process, root):
    """Such as in a region that may be missing, whose database comes a minute later."""
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(max_restarts=1, first_restart=0.3, first_crash=0.1) as agent:
            while not (states := agent.reconciler.states().get("d_1")):
                await asyncio.sleep(0)
            home = root / "instances" / states[0].name
            home.mkdir(exist_ok=True)
            (home / "broken").touch()
            await plane.soon(lambda: "crash loop: " in str(plane.instances("d_1")))
            assert {"running"} not in [set(statuses) for statuses in plane.history("d_1")]
            (home / "broken").unlink()
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            assert instance["restarts"] >= 3

    asyncio.run(scenario())
    assert plane.history("d_1") == [["pending"], ["failed"], ["running"]]


def test_crashed_instance_is_restarted_from_memory_while_the_control_plane_is_away(
    plane, image, in_process, root
):
    plane.secrets["d_1"] = {"GREETING": "hällo"}
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process():
            (before,) = await asyncio.to_thread(plane.running, "d_1")
            pid = ask(before)["pid"]
            plane.leave()
            os.kill(pid, signal.SIGKILL)
            gone(pid)
            path = root / "instances" / before["name"] / "instance.json"

            def serving():
                record = json.loads(path.read_bytes())
                try:
                    answer = ask({"address": f"127.0.0.1:{record['port']}"})
                except httpx.HTTPError:
                    return None
                return answer if answer["pid"] == record["pid"] != pid else None

            assert (await plane.soon(serving))["env"]["GREETING"] == "hällo"
            assert plane.instances("d_1") == [before]
            plane.away = False
            after = await again(plane, pid)
            assert after["restarts"] == 1
        state = (root / "state.json").read_bytes()
        assert b"GREETING" in state
        assert "hällo".encode() not in state

    asyncio.run(scenario())


def test_agent_started_while_the_control_plane_is_away_waits_with_what_needs_variables(
    plane, image, start_agent, root
):
    plane.secrets["d_1"] = {"GREETING": "hällo"}
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (instance,) = plane.running("d_1")
    pid = ask(instance)["pid"]
    plane.leave()
    agent.end(signal.SIGKILL)
    agent = start_agent()
    assert agent.get("/health/live").status_code == 200
    assert ask(instance)["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    log = root / "instances" / instance["name"] / "log"
    plane.wait(lambda: "The variables cannot be fetched now" in log.read_text())
    plane.away = False
    (after,) = plane.wait(
        lambda: (found := plane.instances("d_1")) and found[0]["status"] == "running" and
        found[0]["restarts"] and found
    )  # fmt: skip
    assert ask(after)["env"]["GREETING"] == "hällo"


def test_what_runs_is_left_alone_while_nothing_is_known_of_it(plane, image, start_agent, in_process, root):
    plane.topology("d_1", image, PYTHON)
    agent = start_agent()
    (instance,) = plane.running("d_1")
    pid = ask(instance)["pid"]
    agent.end(signal.SIGKILL)
    (root / "state.json").unlink()
    plane.leave()
    plane.reports.clear()

    async def scenario():
        async with in_process() as agent:

            def statuses():
                return [state.status for state in agent.reconciler.states().get("d_1", ())]

            await plane.soon(lambda: statuses() == ["running"])
            for _ in range(3):
                agent.reconciler.correct_drift()
            assert statuses() == ["running"]
            plane.away = False
            assert await asyncio.to_thread(plane.running, "d_1") == [instance]
            assert ask(instance)["pid"] == pid

    asyncio.run(scenario())


def test_processes_and_folders_that_are_no_instance_are_removed(plane, image, in_process, root):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(drift_seconds=0.1):
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            folder = root / "instances" / "i_stranger"
            folder.mkdir()
            stray = subprocess.Popen(
                ["sleep", "600"], env={"PATH": "/usr/bin:/bin", "UNKEY_INSTANCE_FOLDER": str(folder)}
            )
            assert await asyncio.to_thread(stray.wait, 20) == -signal.SIGKILL
            await plane.soon(lambda: not folder.exists())
            assert await asyncio.to_thread(plane.running, "d_1") == [instance]

    asyncio.run(scenario())
