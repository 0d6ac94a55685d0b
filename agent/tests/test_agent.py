"""The agent against a control plane, in one event loop: what should run comes to run, and is reported."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from agent import wire
from agent.control_plane import Refused, Unreachable
from agent.tests import programs
from agent.tests.conftest import control_for, is_running

PYTHON = ["python", "app.py"]


def ask(instance: dict) -> dict:
    said: dict = httpx.get(f"http://{instance['address']}/", trust_env=False).json()
    return said


@pytest.fixture
def image(plane, tmp_path):
    return plane.snapshot(tmp_path / "app", {"app.py": programs.SERVER})


def run(coroutine):
    return asyncio.run(coroutine)


def test_instance_is_started_reported_drained_and_stopped(plane, image, in_process, root):
    plane.secrets["d_1"] = {"GREETING": "hällo", "PORT": "1"}
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process() as agent:
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            said = ask(instance)
            assert said["env"]["GREETING"] == "hällo"
            assert said["env"]["PORT"] == instance["address"].split(":")[1]
            assert said["env"]["UNKEY_DEPLOYMENT_ID"] == "d_1"
            assert said["env"]["UNKEY_REGION"] == "test"
            assert said["env"]["HOME"] == str(root / "instances" / instance["name"])
            assert not {"AGENT_TOKEN", "VAULT_MASTER_KEY", "UNKEY_VAR"} & set(said["env"])
            assert os.getsid(said["pid"]) == os.getpgid(said["pid"]) == said["pid"]
            assert resource.prlimit(said["pid"], resource.RLIMIT_CORE) == (0, 0)
            assert resource.prlimit(said["pid"], resource.RLIMIT_DATA)[1] == 4 * 256 * 1024 * 1024
            assert os.getpriority(os.PRIO_PROCESS, said["pid"]) == os.getpriority(os.PRIO_PROCESS, 0) + 5
            lines = await agent.reconciler.logs("d_1", 10)
            assert [(line.instance, line.stream, line.text) for line in lines] == [
                (instance["name"], "agent", line.text)
                if line.stream == "agent"
                else (instance["name"], "output", "serving")
                for line in lines
            ]
            written = [
                path.read_bytes() for path in root.rglob("*") if path.is_file() and root in path.parents
            ]
            assert not any("hällo".encode() in content for content in written)
            plane.topology("d_1", image, PYTHON, desired="stopped")
            await plane.soon(lambda: plane.instances("d_1") == [])
            assert not is_running(said["pid"])
            assert os.listdir(root / "instances") == []
            await plane.soon(
                lambda: plane.heartbeats and plane.heartbeats[-1]["applied"] == {"topologies:test": 2}
            )
        assert plane.history("d_1") == [["pending"], ["running"], ["draining"], []]

    run(scenario())


def test_replicas_follow_their_number(plane, image, in_process):
    plane.topology("d_1", image, PYTHON, replicas=2)

    async def scenario():
        async with in_process():
            two = await asyncio.to_thread(plane.running, "d_1", 2)
            assert len({instance["address"] for instance in two}) == 2
            plane.topology("d_1", image, PYTHON, replicas=1)
            (kept,) = await asyncio.to_thread(plane.running, "d_1", 1)
            assert kept in two

    run(scenario())


def test_instance_that_dies_is_reported_and_started_again(plane, image, in_process):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process():
            (before,) = await asyncio.to_thread(plane.running, "d_1")
            pid = ask(before)["pid"]
            os.kill(pid, signal.SIGKILL)
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
            failed = next(
                report["instances"][0]
                for report in plane.reports
                if report["instances"] and report["instances"][0]["status"] == "failed"
            )
            assert failed["message"].splitlines() == [
                "it was ended by SIGKILL; it is started again at once", "serving"
            ]  # fmt: skip
            (after,) = await asyncio.to_thread(plane.running, "d_1")
            assert after["name"] == before["name"]
            assert ask(after)["pid"] != pid

    run(scenario())


@pytest.mark.parametrize(
    ("files", "command", "settings", "says"),
    [
        ({"app.py": programs.CRASHES}, PYTHON, {}, ["it did not run after 2 attempts: it ended with status 3",
                                                     "cannot go on: no configuration"]),
        ({"app.py": programs.SILENT}, PYTHON, {}, ["it did not become well within 1 s: it does not listen on "
                                                    "its PORT", "thinking"]),
        ({"app.py": programs.SERVER}, ["no-such-program"], {}, ["'no-such-program' is not installed here"]),
        ({"app.py": programs.SERVER}, PYTHON, {"rootDirectory": "../.."}, ["no folder '../..'"]),
        ({"app.py": programs.SERVER}, PYTHON, {"rootDirectory": "sub"}, ["no folder 'sub'"]),
    ],
)  # fmt: skip
def test_program_that_cannot_run_fails_with_its_last_words(
    plane, in_process, tmp_path, files, command, settings, says
):
    image = plane.snapshot(tmp_path / "bad", files)
    plane.topology("d_1", image, command, settings=settings)

    async def scenario():
        async with in_process(start_deadline=1.0):
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
            (failed,) = plane.instances("d_1")
            for part in says:
                assert part in failed["message"]

    run(scenario())
    assert plane.history("d_1") == [["pending"], ["failed"]]


def test_health_check_decides_when_an_environment_has_one(plane, image, in_process, root):
    check = {
        "method": "GET",
        "path": "/health",
        "intervalSeconds": 1,
        "timeoutSeconds": 1,
        "failureThreshold": 1,
    }
    plane.topology("d_1", image, PYTHON, settings={"healthcheck": check, "shutdownSignal": "SIGINT"})

    async def scenario():
        async with in_process():
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            home = root / "instances" / instance["name"]
            (home / "broken").touch()
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
            failed = next(
                report["instances"][0]["message"] for report in plane.reports if "status 500" in str(report)
            )
            assert failed.startswith(
                "GET /health was answered by status 500 (1 health checks in a row failed)"
            )
            (home / "broken").unlink()
            await asyncio.to_thread(plane.running, "d_1")
            assert "stopped by SIGINT" in (home / "log").read_text()

    run(scenario())


def test_program_above_its_memory_is_ended(plane, in_process, tmp_path):
    image = plane.snapshot(tmp_path / "hungry", {"app.py": programs.HUNGRY})
    plane.topology("d_1", image, PYTHON, settings={"memoryMib": 64})

    async def scenario():
        async with in_process():
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
            assert "64 MiB are allowed" in str(plane.reports)

    run(scenario())


def test_nothing_of_a_stubborn_program_survives_its_stop(plane, in_process, tmp_path):
    import psutil

    image = plane.snapshot(tmp_path / "stubborn", {"app.py": programs.STUBBORN})
    plane.topology("d_1", image, "exec python app.py")

    async def scenario():
        async with in_process(grace=0.2):
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            pids = [
                process.pid
                for process in psutil.process_iter()
                if f"UNKEY_INSTANCE_ID={instance['name']}" in _environment(process.pid)
            ]
            assert len(pids) == 2
            plane.topology("d_1", image, "exec python app.py", desired="stopped")
            await plane.soon(lambda: plane.instances("d_1") == [])
            assert not any(is_running(pid) for pid in pids)

    run(scenario())


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def test_row_that_cannot_be_applied_is_reported_and_does_not_block_the_next(plane, image, in_process):
    plane.put("d_0", {"type": "topology", "deploymentId": "d_0", "replicas": -1})
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process():
            await asyncio.to_thread(plane.running, "d_1")
            (problem,) = plane.problems
            assert (problem["stream"], problem["version"], problem["row"]) == ("topologies:test", 1, "d_0")
            assert "missing required field" in problem["message"] or "Expected" in problem["message"]

    run(scenario())


def test_report_is_repeated_until_it_is_heard_and_the_newest_wins(plane, image, in_process):
    plane.failing = sys.maxsize
    plane.topology("d_1", image, PYTHON)

    def statuses(report):
        return [instance["status"] for instance in report["instances"]]

    async def scenario():
        async with in_process():
            await plane.soon(lambda: [report for report in plane.unheard if statuses(report) == ["running"]])
            with plane.changed:
                plane.failing = 0
            await asyncio.to_thread(plane.running, "d_1")
            # What had been tried before and is no longer so was not told any more.
            assert plane.history("d_1") == [["running"]]
            assert ["pending"] in map(statuses, plane.unheard)
            assert plane.reports[0]["number"] > max(report["number"] for report in plane.unheard)

    run(scenario())


def test_lost_stream_is_resumed_from_the_version_that_was_applied(plane, image, in_process):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process():
            await asyncio.to_thread(plane.running, "d_1")
            plane.drop_streams()
            await plane.soon(lambda: len(plane.watched) >= 2)
            plane.topology("d_2", image, PYTHON)
            await asyncio.to_thread(plane.running, "d_2")

    run(scenario())
    assert plane.watched[:2] == [0, 1]


def test_a_row_that_was_lost_is_made_good_by_the_next_whole_state(plane, image, in_process):
    plane.topology("d_1", image, PYTHON)
    plane.topology("d_2", image, PYTHON)

    async def scenario():
        async with in_process(whole_seconds=1.0):
            (kept,) = await asyncio.to_thread(plane.running, "d_2")
            with plane.changed:  # changed, but with a version that the agent has passed
                plane.rows["d_1"] = plane.rows["d_1"].replace(
                    b'"desired": "running"', b'"desired": "stopped"'
                )
            await plane.soon(lambda: plane.instances("d_1") == [])
            assert plane.instances("d_2") == [kept]

    run(scenario())
    assert plane.watched.count(0) >= 2


def test_what_the_whole_state_lacks_is_stopped(plane, image, in_process):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process():
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            pid = ask(instance)["pid"]
            # Another control plane: it never gave out this agent's version.
            plane.rows.clear()
            plane.version = 0
            plane.drop_streams()
            await plane.soon(lambda: plane.instances("d_1") == [])
            assert not is_running(pid)

    run(scenario())


def test_drift_is_corrected(plane, image, in_process, root):
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process(drift_seconds=0.1) as agent:
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            keeper = agent.reconciler._keepers["d_1"]
            # Somebody took the instance out of the agent's hands: it is missing, and one is strange.
            replica = keeper._replicas.pop(instance["name"])
            await plane.soon(
                lambda: [each["name"] for each in plane.instances("d_1")] not in ([], [instance["name"]])
            )
            replica.stop(drain=False)
            await replica.ended()
            (other,) = await asyncio.to_thread(plane.running, "d_1")
            plane.topology("d_1", image, PYTHON, desired="stopped")
            await plane.soon(lambda: not agent.reconciler.states())
            assert other["name"] != instance["name"]
        assert b"d_1" not in (root / "state.json").read_bytes()

    run(scenario())


WHEEL = """
import sys, zipfile

with zipfile.ZipFile("greet-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("greet.py", "WORD = 'installed'")
    wheel.writestr("greet-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: greet\\nVersion: 1\\n")
    wheel.writestr("greet-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("greet-1.dist-info/RECORD", "greet.py,,\\ngreet-1.dist-info/METADATA,,\\n")
"""
PIP = ["python", "-m", "pip", "install", "-r", "requirements.txt"]


def test_python_packages_are_installed_once_for_equal_requirements(plane, in_process, tmp_path, root):
    folder = tmp_path / "packaged"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", WHEEL], cwd=folder, check=True)
    program = "import greet, sys; print(greet.WORD, sys.prefix, flush=True)\n" + programs.SERVER
    files = {"requirements.txt": "./greet-1-py3-none-any.whl\n", "app.py": program}
    image = plane.snapshot(folder, files)
    plane.topology("d_1", image, PYTHON, install=PIP)
    plane.topology("d_2", image, PYTHON, install=PIP)

    async def scenario():
        async with in_process() as agent:
            await asyncio.to_thread(plane.running, "d_1")
            await asyncio.to_thread(plane.running, "d_2")
            lines = [line.text for each in ("d_1", "d_2") for line in await agent.reconciler.logs(each, 99)]
            greetings = [line.split() for line in lines if line.startswith("installed ")]
            assert len(greetings) == 2
            assert greetings[0] == greetings[1]
            assert Path(greetings[0][1]).is_relative_to((root / "environments").resolve()) or Path(
                greetings[0][1]
            ).is_relative_to(root / "environments")
            assert sum("pip install" in line for line in lines) == 1

    run(scenario())


def test_packages_that_cannot_be_installed_fail_the_instance_with_the_installers_words(
    plane, in_process, tmp_path
):
    image = plane.snapshot(
        tmp_path / "packaged", {"requirements.txt": "-e no-such-folder\n", "app.py": programs.SERVER}
    )
    plane.topology("d_1", image, PYTHON, install=PIP)

    async def scenario():
        async with in_process():
            await plane.soon(lambda: ["failed"] in plane.history("d_1"))
            (failed,) = plane.instances("d_1")
            assert "ended with status" in failed["message"].splitlines()[0]
            assert "no-such-folder" in failed["message"]

    run(scenario())


def test_told_to_stop_in_the_moment_of_a_change_it_stops(plane, in_process):
    async def scenario():
        async with in_process() as agent:
            beating = asyncio.create_task(agent._keep_beating())
            await asyncio.sleep(0.3)  # now it waits for a change, or for the next heartbeat
            agent._beat.set()
            await asyncio.sleep(0)
            beating.cancel()
            done, _ = await asyncio.wait([beating], timeout=5)
            assert done

    run(scenario())


def test_what_is_about_to_end_is_never_reported_as_running_of_a_newer_start(plane, image, in_process):
    """Whoever waits for a start must not take the instance for it that the stop before has doomed."""
    plane.topology("d_1", image, PYTHON)

    async def scenario():
        async with in_process() as agent:
            (before,) = await asyncio.to_thread(plane.running, "d_1")
            row = wire.decode(plane.rows["d_1"])
            started = msgspec.structs.replace(row, version=row.version + 2)
            # Both at once, so that the stop's work has not begun when the start comes.
            agent.reconciler.apply(msgspec.structs.replace(row, version=row.version + 1, desired="stopped"))
            agent.reconciler.apply(started)
            await asyncio.to_thread(
                plane.wait,
                lambda: (
                    "running"
                    in [each["status"] for each in plane.instances("d_1") if each["name"] != before["name"]]
                ),
            )
            return before["name"], started.version

    before, started = run(scenario())
    later = [report for report in plane.reports if report["applied"] >= started]
    assert later
    for report in later:
        for instance in report["instances"]:
            assert (instance["name"], instance["status"]) != (before, "running")


def test_snapshot_with_other_octets_than_its_digest_says_is_refused(plane, in_process, tmp_path, root):
    image = plane.snapshot(tmp_path / "app", {"app.py": programs.SERVER})
    digest = image.rpartition(":")[2]
    plane.snapshots[digest] += b"x"
    plane.topology("d_1", image, PYTHON)
    plane.topology("d_2", "snapshot@sha256:" + "0" * 64, PYTHON)

    async def scenario():
        async with in_process():
            await plane.soon(
                lambda: ["failed"] in plane.history("d_1") and ["failed"] in plane.history("d_2")
            )
            assert "do not have its digest" in plane.instances("d_1")[0]["message"]
            assert "answered 404" in plane.instances("d_2")[0]["message"]
        assert os.listdir(root / "snapshots") == []

    run(scenario())


def test_wrong_token_and_silence_are_told_apart_from_refusals(plane):
    async def scenario():
        control = control_for(plane)
        control._client.headers["Authorization"] = "Bearer wrong"
        with pytest.raises(Unreachable, match="401"):
            await control.report("d_1", [], 0)
        control._client.headers["Authorization"] = "Bearer test-agent-token"
        with pytest.raises(Refused, match="404"):
            await control.snapshot("0" * 64, Path("/nonexistent/x"))
        await control.close()
        plane.close()
        control = control_for(plane)
        with pytest.raises(Unreachable):
            await control.report("d_1", [], 0)
        with pytest.raises(Unreachable):
            async with control.watch(0):
                pass
        await control.close()

    run(scenario())


def test_folder_of_files_is_served_by_the_platforms_own_server(plane, in_process, tmp_path):
    image = plane.snapshot(tmp_path / "site", {"public/index.html": "<h1>hello</h1>"})
    command = ["python", "-m", "agent.static", "public"]
    plane.topology("d_1", image, command, plan={"kind": "static", "command": command})

    async def scenario():
        async with in_process():
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            answer = httpx.get(f"http://{instance['address']}/", trust_env=False)
            assert (answer.status_code, answer.text) == (200, "<h1>hello</h1>")

    run(scenario())
