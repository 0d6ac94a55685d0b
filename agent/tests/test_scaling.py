"""How many instances there are: by their load, and without losing what they were asked."""

import asyncio
import threading

import httpx
import pytest

from agent.runtimes import processes
from agent.tests import programs
from agent.tests.conftest import is_running

PYTHON = ["python", "app.py"]


def test_instances_follow_their_load_up_and_down(plane, in_process, tmp_path):
    burn = tmp_path / "burn"
    image = plane.snapshot(tmp_path / "app", {"app.py": programs.BURNER})
    plane.secrets["d_1"] = {"BURN": str(burn)}
    plane.topology("d_1", image, PYTHON, replicasMax=3, settings={"cpuMillicores": 50})

    async def scenario():
        async with in_process(scale=0.5, calm=1.2, default_interval=5.0) as agent:
            await asyncio.to_thread(plane.running, "d_1")
            burn.touch()
            three = await asyncio.to_thread(plane.running, "d_1", 3)
            assert len({instance["address"] for instance in three}) == 3
            lines = [line.text for line in await agent.reconciler.logs("d_1", 100)]
            assert any(
                line.startswith("scaled from 1 to ") and line.endswith(", 80 % is aimed at") for line in lines
            )
            burn.unlink()
            (last,) = await asyncio.to_thread(plane.running, "d_1", 1)
            assert last in three

    asyncio.run(scenario())
    assert not any("failed" in statuses for statuses in plane.history("d_1"))


def test_a_new_agent_keeps_as_many_as_it_finds(plane, in_process, tmp_path, start_agent):
    image = plane.snapshot(tmp_path / "app", {"app.py": programs.SERVER})
    plane.topology("d_1", image, PYTHON, replicas=3)
    agent = start_agent()
    three = plane.running("d_1", 3)
    agent.end(9)
    # Between one and three from now on: what is there is not taken away before the load was looked at.
    plane.topology("d_1", image, PYTHON, replicas=1, replicasMax=3)
    plane.reports.clear()

    async def scenario():
        async with in_process():
            await asyncio.to_thread(plane.running, "d_1", 3)
            found = plane.instances("d_1")
            assert {each["name"] for each in found} == {each["name"] for each in three}

    asyncio.run(scenario())


class Asking(threading.Thread):
    """One request to an instance, for as long as it takes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answer: object = None
        self._url = url

    def run(self) -> None:
        try:
            self.answer = httpx.get(self._url, trust_env=False, timeout=60).status_code
        except httpx.HTTPError as error:
            self.answer = error


@pytest.fixture
def patient(plane, tmp_path):
    return plane.snapshot(tmp_path / "app", {"app.py": programs.PATIENT})


def test_an_instance_ends_after_the_edges_know_and_its_requests_are_answered(
    plane, patient, in_process, root, monkeypatch
):
    """Its program knows of no signals: a request in flight would not survive one."""
    plane.topology("d_1", patient, PYTHON)

    async def scenario():
        async with in_process(drain=60.0) as agent:
            (instance,) = await asyncio.to_thread(plane.running, "d_1")
            url, name = f"http://{instance['address']}", instance["name"]
            port = int(instance["address"].rpartition(":")[2])
            pid = agent.reconciler._runtime._known[name].record.pid
            looks: list[int] = []
            connections = agent.reconciler._runtime.connections

            async def seen(name):
                looks.append(await connections(name))
                return looks[-1]

            monkeypatch.setattr(agent.reconciler._runtime, "connections", seen)
            asking = Asking(f"{url}/wait")
            asking.start()
            await plane.soon(lambda: processes.connections(port) == 1)
            plane.edges_know = False
            plane.topology("d_1", patient, PYTHON, desired="stopped")
            await plane.soon(lambda: len(plane.asked) >= 3)
            assert [each["status"] for each in plane.instances("d_1")] == ["draining"]
            # What an edge sends that does not know yet is answered.
            assert (await asyncio.to_thread(httpx.get, url, trust_env=False)).status_code == 200
            assert looks == []
            plane.edges_know = True
            await plane.soon(lambda: len(looks) >= 3)
            assert is_running(pid)
            (root / "instances" / name / "go").touch()
            await plane.soon(lambda: plane.instances("d_1") == [])
            await asyncio.to_thread(asking.join)
            assert asking.answer == 200
            assert (max(looks), looks[-1]) == (1, 0)
            assert not is_running(pid)

    asyncio.run(scenario())
    # The version that was asked for is of a report that said `draining`, never of one before.
    draining = next(
        number
        for number, report in enumerate(plane.reports, 1)
        if [each["status"] for each in report["instances"]] == ["draining"]
    )
    assert min(plane.asked) >= draining


def test_edges_that_never_know_are_not_waited_for_for_ever(plane, patient, in_process):
    plane.topology("d_1", patient, PYTHON)
    plane.edges_know = False

    async def scenario():
        async with in_process(drain=0.2):
            await asyncio.to_thread(plane.running, "d_1")
            plane.topology("d_1", patient, PYTHON, desired="stopped")
            await plane.soon(lambda: plane.instances("d_1") == [])

    asyncio.run(scenario())
