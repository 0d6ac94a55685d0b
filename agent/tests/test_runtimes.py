"""The conformance test of runtimes: what `agent.runtimes.base.Runtime` promises, each keeps.

A further runtime is added to `KINDS`.
"""

import asyncio
import time

import pytest

from agent import health
from agent.runtimes import process
from agent.runtimes.base import Order, StartFailed
from agent.runtimes.process import LINE_CHARACTERS, LOG_BYTES, ProcessRuntime
from agent.tests import programs
from agent.tests.conftest import control_for
from agent.tests.control import LIMITS
from agent.wire import Plan, Settings

KINDS = ["process"]


class Ground:
    """Makes runtimes that all work on the same folder, as one agent after the other does."""

    def __init__(self, build, plane):
        self._build = build
        self._plane = plane
        self._controls = []

    def __call__(self):
        self._controls.append(control_for(self._plane))
        return self._build(self._controls[-1])

    def run(self, scenario):
        """Run a scenario, and close what it opened."""

        async def scene():
            try:
                await scenario()
            finally:
                for control in self._controls:
                    await control.close()

        asyncio.run(scene())


@pytest.fixture(params=KINDS)
def make(request, plane, root, environments):
    """Return a function that makes a runtime of each kind over the same ground."""
    (root / "environments").symlink_to(environments)
    assert request.param == "process"
    return Ground(lambda control: ProcessRuntime(root, control, LIMITS), plane)


@pytest.fixture
def order(plane, tmp_path):
    def build(program: str = programs.SERVER, name: str = "i_1", **changes) -> Order:
        image = plane.snapshot(tmp_path / name, {"app.py": program})
        values = {
            "name": name,
            "deployment_id": "d_1",
            "environment_id": "env_1",
            "region": "test",
            "image": image,
            "plan": Plan(command=["python", "app.py"]),
            "settings": Settings(),
            **changes,
        }
        return Order(**values)

    return build


async def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return found


async def listening(runtime, name):
    async def ready():
        seen = await runtime.observe(name)
        return seen if not await health.is_ready(seen.address, Settings()) else None

    return await until(ready)


def test_instance_starts_is_observed_and_stops(make, order):
    async def scenario():
        runtime = make()
        started = await runtime.start(order(variables={"GREETING": "hello"}))
        assert (started.name, started.deployment_id, started.alive) == ("i_1", "d_1", True)
        await listening(runtime, "i_1")
        await runtime.note("i_1", "a note")
        lines = [(line.stream, line.text) for line in await runtime.logs("i_1", 2)]
        assert sorted(lines) == [("agent", "a note"), ("output", "serving")]
        await runtime.stop("i_1", "SIGTERM", 5.0)
        seen = await runtime.observe("i_1")
        assert not seen.alive
        assert await health.accepts(seen.address) == "it does not listen on its PORT"
        assert "stopped by SIGTERM" in [line.text for line in await runtime.logs("i_1", 10)]
        await runtime.stop("i_1", "SIGTERM", 5.0)
        await runtime.remove("i_1")
        await runtime.remove("i_1")
        assert await runtime.logs("i_1", 10) == []
        with pytest.raises(KeyError):
            await runtime.observe("i_1")

    make.run(scenario)


def test_instances_do_not_meet(make, order):
    async def scenario():
        runtime = make()
        first, second = await runtime.start(order()), await runtime.start(order(name="i_2"))
        assert first.address != second.address
        await listening(runtime, "i_1")
        await listening(runtime, "i_2")
        await runtime.stop("i_1", "SIGTERM", 5.0)
        assert (await runtime.observe("i_2")).alive
        await runtime.stop("i_2", "SIGTERM", 5.0)

    make.run(scenario)


def test_how_an_instance_ended_is_told_and_it_can_start_again(make, order):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.CRASHES))

        async def ended():
            seen = await runtime.observe("i_1")
            return seen if not seen.alive else None

        assert (await until(ended)).ended == "it ended with status 3"
        assert [line.text for line in await runtime.logs("i_1", 1)] == ["cannot go on: no configuration"]
        await runtime.start(order(name="i_1"))
        await listening(runtime, "i_1")
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_what_an_instance_wrote_can_be_read_after_it_is_gone_for_a_while(make, order, root, monkeypatch):
    async def scenario():
        runtime = make()
        for name, deployment in (("i_1", "d_1"), ("i_2", "d_1"), ("i_3", "d_10")):
            await runtime.start(order(programs.CRASHES, name=name, deployment_id=deployment))

            async def ended(name=name):
                return not (await runtime.observe(name)).alive

            await until(ended)
            await runtime.note(name, "it is removed")
            await runtime.remove(name)
            assert await runtime.logs(name, 10) == []
        read = [(line.instance, line.stream, line.text) for line in await runtime.last_logs("d_1", 10)]
        said = [("output", "cannot go on: no configuration"), ("agent", "it is removed")]
        assert sorted(read) == sorted((name, *each) for name in ("i_1", "i_2") for each in said)
        assert [line.text for line in await make().last_logs("d_10", 1)] == ["it is removed"]
        assert await runtime.last_logs("../instances/d_1", 10) == await runtime.last_logs("d_1", 0) == []
        monkeypatch.setattr(process, "LAST_LOGS", 1)
        await runtime.tidy(set())
        assert len(list((root / "logs").iterdir())) == 1
        monkeypatch.setattr(process, "LAST_LOGS_SECONDS", -1.0)
        await runtime.tidy(set())
        assert list((root / "logs").iterdir()) == []

    make.run(scenario)


def test_another_runtime_over_the_same_ground_finds_the_instances_again(make, order):
    async def scenario():
        runtime = make()
        await runtime.start(order())
        alive = await listening(runtime, "i_1")
        await runtime.start(order(programs.SILENT, name="i_2"))
        await runtime.stop("i_2", "SIGKILL", 0.0)
        found = {each.name: each for each in await make().recover()}
        assert found["i_1"] == alive
        assert (found["i_2"].alive, found["i_2"].deployment_id) == (False, "d_1")
        await runtime.stop("i_1", "SIGTERM", 5.0)

    make.run(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "nginx:latest"},
        {"image": "snapshot@sha256:" + "0" * 64},
        {"plan": Plan(command=["./no/such/program"])},
        {"variables": {"not a name": "x"}},
        {"variables": {"NAME": "nul\0"}},
    ],
)
def test_what_cannot_be_started_is_said_and_leaves_nothing_running(make, order, changes):
    async def scenario():
        runtime = make()
        with pytest.raises(StartFailed) as seen:
            await runtime.start(order(**changes))
        assert str(seen.value)
        assert not seen.value.again
        assert not (await runtime.observe("i_1")).alive

    make.run(scenario)


def test_log_is_bounded_and_keeps_its_end(make, order, root):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.MUTE))
        line = b"x" * 99 + b"\n"
        for _ in range(4):
            with (root / "instances/i_1/log").open("ab") as log:
                log.write(line * (LOG_BYTES // 300))
            await runtime.observe("i_1")
        with (root / "instances/i_1/log").open("ab") as log:
            log.write(b"the end\n")
        files = [path for path in (root / "instances/i_1").glob("log*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= LOG_BYTES
        assert [line.text for line in await runtime.logs("i_1", 1)] == ["the end"]
        assert len(await runtime.logs("i_1", 5000)) == 5000
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_a_line_without_end_does_not_hide_the_others(make, order, root):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.MUTE))
        with (root / "instances/i_1/log").open("ab") as log:
            log.write(b"before\n" + b"x" * (LINE_CHARACTERS + 7) + b"\nafter\n")
        read = [line.text for line in await runtime.logs("i_1", 3)]
        assert read == ["before", "x" * LINE_CHARACTERS + "… and 7 characters more", "after"]
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_a_log_that_cannot_be_kept_on_a_full_disk_is_no_harm_to_its_instance(make, order, root):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.MUTE))
        (root / "instances/i_1/log.1").symlink_to("/dev/full")
        with (root / "instances/i_1/log").open("ab") as log:
            log.write(bytes(LOG_BYTES // 2 + 1))
        assert (await runtime.observe("i_1")).alive
        assert (root / "instances/i_1/log").stat().st_size == 0
        assert not (root / "instances/i_1/log.1").is_symlink()
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_a_note_that_cannot_be_written_is_no_harm_to_its_instance(make, order, root):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.MUTE))
        (root / "instances/i_1/log").unlink()
        (root / "instances/i_1/log").symlink_to("/dev/full")
        await runtime.note("i_1", "lost")
        assert (await runtime.observe("i_1")).alive
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_usage_counts_all_processes_of_an_instance_and_of_no_other(make, order, tmp_path):
    burn = tmp_path / "burn"
    burn.touch()

    async def scenario():
        runtime = make()
        assert await runtime.usage() == {}
        await runtime.start(order(programs.BURNER, variables={"BURN": str(burn)}))
        await runtime.start(order(programs.SERVER, name="i_2"))
        await listening(runtime, "i_1")
        await listening(runtime, "i_2")
        before = await runtime.usage()

        async def burnt():
            now = await runtime.usage()
            return now if now["i_1"].cpu_seconds > before["i_1"].cpu_seconds + 0.3 else None

        now = await until(burnt)
        assert now["i_2"].cpu_seconds < before["i_2"].cpu_seconds + 0.3
        assert now["i_1"].memory_octets > now["i_2"].memory_octets > 4 * 1024 * 1024
        # An agent that finds it again counts on from the same place.
        other = make()
        await other.recover()
        assert (await other.usage())["i_1"].cpu_seconds >= now["i_1"].cpu_seconds
        for name in ("i_1", "i_2"):
            await runtime.stop(name, "SIGKILL", 0.0)
        assert await runtime.usage() == {}

    make.run(scenario)


def test_connections_to_an_instance_are_counted_while_they_are_open(make, order):
    async def scenario():
        runtime = make()
        await runtime.start(order())
        host, _, port = (await listening(runtime, "i_1")).address.rpartition(":")

        async def count(expected):
            async def fits():
                return await runtime.connections("i_1") == expected

            await until(fits)

        await count(0)
        _, first = await asyncio.open_connection(host, int(port))
        _, second = await asyncio.open_connection(host, int(port))
        await count(2)
        first.close()
        await count(1)
        second.close()
        await count(0)
        assert await runtime.connections("i_9") == 0
        await runtime.stop("i_1", "SIGKILL", 0.0)

    make.run(scenario)


def test_what_a_killed_agent_had_begun_to_fetch_or_install_is_dropped(make, root):
    async def scenario():
        (root / "snapshots").mkdir(exist_ok=True)
        (root / "snapshots" / ".0123.tar.gz.abcd").write_bytes(b"half")
        (root / "environments" / "unfinished").mkdir()
        await make().recover()
        assert list((root / "snapshots").iterdir()) == []
        assert not (root / "environments" / "unfinished").exists()

    make.run(scenario)


def test_a_full_disk_is_said_so_and_tried_again(make, order, root, monkeypatch):
    async def scenario():
        runtime = make()
        (root / "instances/i_1").mkdir(parents=True)
        (root / "instances/i_1/log").symlink_to("/dev/full")
        with pytest.raises(StartFailed, match="disk is full: the instance is started as soon as") as seen:
            await runtime.start(order(plan=Plan(command=["python", "app.py"], install=["true"])))
        assert seen.value.again

    make.run(scenario)


def test_what_no_deployment_uses_is_dropped(make, order, root):
    async def scenario():
        runtime = make()
        await runtime.start(order(programs.SILENT))
        used = order(programs.SILENT).image
        await runtime.tidy({used})
        assert len(list((root / "snapshots").iterdir())) == 1
        await runtime.stop("i_1", "SIGKILL", 0.0)
        await runtime.remove("i_1")
        await runtime.tidy(set())
        assert list((root / "snapshots").iterdir()) == []

    make.run(scenario)


def test_a_dead_instances_port_is_not_given_to_another(make, order, monkeypatch, numbers):
    """An edge that has not heard of its end yet would send the other one what was meant for it."""

    async def scenario():
        monkeypatch.setattr(process, "PORTS", numbers[:2])
        runtime = make()
        first = await runtime.start(order(name="i_1"))
        await runtime.stop("i_1", "SIGKILL", 0.0)
        second = await runtime.start(order(name="i_2"))
        assert second.address != first.address
        await runtime.remove("i_1")
        with pytest.raises(StartFailed, match=r"^No port from ") as refused:
            await runtime.start(order(name="i_3"))
        assert refused.value.again
        # Nor by an agent that comes after, which finds the one and has never heard of the other.
        after = make()
        await after.recover()
        with pytest.raises(StartFailed, match=r"^No port from "):
            await after.start(order(name="i_3"))
        await runtime.stop("i_2", "SIGKILL", 0.0)

    make.run(scenario)
