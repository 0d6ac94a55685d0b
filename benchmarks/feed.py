"""Times the change feed: 1,000 agents on one feed process while 100 changes a second are committed.

Every agent watches the same region, so each hears of every change. Measured from just before a change's
commit to its receipt by each agent: p99 at most 1 s. Printed besides: memory of the feed process per
connection, and its reads of the database, with a tenth of the agents and with all of them: they do not
depend on how many there are. Then the whole state of 100,000 rows is read by one agent from a feed process
of its own: once a tenth of them is through, its memory must not grow with the rows (bar: 8 MiB).
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop

BAR_SECONDS = 1.0
BAR_GROWTH = 8 * 1024 * 1024
CHANGES_A_SECOND = 100
REGION = "bench"
MARK = b'"version":'


class Agent(asyncio.Protocol):
    """One agent's connection: notes when the last version in each packet came; versions come in order."""

    def __init__(self, port: int, token: str, name: str, version: int) -> None:
        self._request = (
            f"GET /internal/watch?region={REGION}&version={version}&agent={name} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        self.received: list[tuple[int, float]] = []
        self.synced = asyncio.get_running_loop().create_future()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self.synced.done():
            if b'"synced"' in data:
                self.synced.set_result(None)
            return
        place = data.rfind(MARK)
        if place >= 0:
            digits = data[place + len(MARK) : place + len(MARK) + 12].partition(b",")[0]
            if digits.isdigit():  # else the packet ends within: the next one counts for it
                self.received.append((int(digits), now))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.synced.done():
            self.synced.set_exception(exc or ConnectionError("the feed closed the connection"))


@contextmanager
def feed(var: Path, port: int) -> Iterator[psutil.Process]:
    """Run a feed process as `manage.py up` does."""
    command = [
        *(sys.executable, "-m", "uvicorn", "unkey.asgi:application", "--host", "127.0.0.1"),
        *("--port", str(port), "--loop", "uvloop", "--http", "unkey.streaming:Protocol"),
        *("--no-access-log", "--log-level", "warning"),
    ]
    with (var / "feed.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"feed does not start: {(var / 'feed.log').read_text()}") from None
                time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(15)


def metrics(port: int, token: str) -> dict[str, float]:
    """Return the feed's counters by name and labels."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith("unkey_feed"))
    return {name: float(number) for name, _, number in rows}


def reads(found: dict[str, float]) -> dict[str, float]:
    """Return the reads of the database by what they were of."""
    return {
        name.partition('of="')[2].rstrip('"}'): number
        for name, number in found.items()
        if name.startswith("unkey_feed_database_reads_total")
    }


class Changes:
    """Commits changes at an even rate from a thread of its own; notes when each began to be committed."""

    def __init__(self, ids: list[int]) -> None:
        self.committed: dict[int, float] = {}
        self.slowest = 0.0
        self._ids = ids

    def run(self, seconds: float) -> None:
        """Change one row after the other."""
        thread = threading.Thread(target=self._work, args=(seconds,))
        thread.start()
        self._thread = thread

    def join(self) -> None:
        self._thread.join()

    def _work(self, seconds: float) -> None:
        from django.db import connection, transaction

        from apps.cluster.versions import next_version
        from apps.deployments.models import Topology

        began = time.monotonic()
        for number in range(int(seconds * CHANGES_A_SECOND)):
            pause = began + number / CHANGES_A_SECOND - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            started = time.monotonic()
            with transaction.atomic():
                version = next_version(f"topologies:{REGION}")
                Topology.objects.filter(pk=self._ids[number % len(self._ids)]).update(version=version)
                self.committed[version] = time.monotonic()
            self.slowest = max(self.slowest, time.monotonic() - started)
        connection.close()


async def watch(
    port: int, token: str, count: int, seconds: float, changes: Changes, version: int
) -> dict[str, Any]:
    """Let agents watch while changes are committed; returns what was seen."""
    loop = asyncio.get_running_loop()
    agents = [Agent(port, token, f"agent-{number}", version) for number in range(count)]
    for start in range(0, count, 50):
        for agent in agents[start : start + 50]:
            await loop.create_connection(lambda agent=agent: agent, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*(agent.synced for agent in agents[start : start + 50]))
    before, used = await asyncio.to_thread(metrics, port, token), time.monotonic()
    changes.run(seconds)
    await asyncio.to_thread(changes.join)
    last = max(changes.committed)
    deadline = loop.time() + 30
    while not all(agent.received and agent.received[-1][0] == last for agent in agents):
        if loop.time() > deadline:
            break
        await asyncio.sleep(0.1)
    took = time.monotonic() - used
    after = await asyncio.to_thread(metrics, port, token)
    delays: list[float] = []
    for agent in agents:
        at = version
        for upto, moment in agent.received:
            delays += [moment - changes.committed[each] for each in range(at + 1, upto + 1)]
            at = upto
    delays.sort()
    expected = len(changes.committed) * count
    lost = sum(agent.lost for agent in agents)
    for agent in agents:
        agent.transport.abort()
    per_second = {
        of: (number - reads(before).get(of, 0)) / took
        for of, number in reads(after).items()
        if of in ("heads", "changes", "backlog", "token")
    }
    return {"delays": delays, "expected": expected, "lost": lost, "reads": per_second}


def prepare(var: Path, rows: int) -> list[int]:
    """Make a database with a region full of topologies; returns their keys."""
    from django.core.management import call_command
    from django.db import transaction

    from apps.cluster.models import Region, Stream
    from apps.deployments.models import Deployment, Topology
    from apps.projects.models import App, Environment, Project
    from apps.workspaces.models import Workspace
    from unkey.tenancy import unscoped

    call_command("migrate", verbosity=0)
    with unscoped("benchmark"), transaction.atomic():
        region = Region.objects.create(name=REGION)
        workspace = Workspace.objects.create(name="Bench", slug="bench")
        project = Project.objects.create(workspace=workspace, name="B", slug="b")
        app = App.objects.create(workspace=workspace, project=project, name="B", slug="b")
        environment = Environment.objects.create(
            workspace=workspace, app=app, slug="production", kind="production"
        )
        deployments = [
            Deployment(
                workspace=workspace,
                project=project,
                app=app,
                environment=environment,
                image="snapshot@sha256:" + "0" * 64,
                settings={"memoryMib": 256, "cpuMillicores": 250, "port": 8080},
                plan={"kind": "command", "command": ["true"], "install": None},
                regions=[{"region": REGION, "min": 1, "max": 1}],
            )
            for _ in range(rows)
        ]
        Deployment.objects.bulk_create(deployments, batch_size=500)
        Topology.objects.bulk_create(
            [
                Topology(deployment=deployment, region=region, desired_status="running", version=number + 1)
                for number, deployment in enumerate(deployments)
            ],
            batch_size=500,
        )
        Stream.objects.update_or_create(name=f"topologies:{REGION}", defaults={"version": rows})
    return list(Topology.objects.order_by("pk").values_list("pk", flat=True)[:1000])


def whole_state(port: int, token: str, process: psutil.Process, total: int) -> tuple[int, float, int, int]:
    """Read the whole state; returns rows, seconds, and the feed's own memory after a tenth and at its peak.

    In bytes; pages of the database's file that are mapped into memory are the kernel's, not its own.
    """

    def own() -> int:
        found = process.memory_info()
        return int(found.rss - found.shared)

    began = time.monotonic()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/internal/watch?region={REGION}&version=0&agent=whole",
        headers={"Authorization": f"Bearer {token}"},
    )
    rows = first = peak = 0
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if b'"synced"' in line:
                assert json.loads(line)["full"]
                break
            rows += 1
            if rows % 1000 == 0:
                peak = max(peak, own())
                if rows <= total // 10:
                    first = peak
    return rows, time.monotonic() - began, first, max(peak, own())


def main() -> int:
    """Run the benchmark; returns 1 when a figure is past its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unkey-bench-") as folder:
        return _run(Path(folder), options)


def _run(var: Path, options: argparse.Namespace) -> int:
    os.environ["UNKEY_VAR"] = str(var)
    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    import django

    django.setup()
    from django.db import connections

    from unkey import ports
    from unkey.env import env

    token = env.secret("AGENT_TOKEN")
    ids = prepare(var, options.rows)
    connections.close_all()
    port = ports.choose("127.0.0.1", ["FEED_PORT"])["FEED_PORT"]
    missed = False
    version = options.rows
    with feed(var, port) as process:
        idle = process.memory_info().rss
        loads: list[dict[str, float]] = []
        for count in (max(1, options.agents // 10), options.agents):
            changes = Changes(ids)
            used = sum(process.cpu_times()[:2])
            seen = uvloop.run(watch(port, token, count, options.seconds, changes, version))
            version += len(changes.committed)
            delays, memory = seen["delays"], process.memory_info().rss - idle
            loads.append(seen["reads"])
            complete = len(delays) == seen["expected"] and not seen["lost"]
            p99 = delays[int(len(delays) * 0.99)] if delays else float("inf")
            processor = (sum(process.cpu_times()[:2]) - used) / options.seconds
            print(
                f"feed: {count} agents, {len(changes.committed) / options.seconds:.0f} changes/s: "
                f"median {delays[len(delays) // 2] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms "
                f"(bar {BAR_SECONDS * 1000:.0f} ms), {len(delays):,} of {seen['expected']:,} receipts, "
                f"slowest commit {changes.slowest * 1000:.0f} ms, "
                f"{max(0, memory) / count / 1024:.1f} KiB a connection, {processor:.0%} of a core"
            )
            print("      reads of the database a second: " + _shown(seen["reads"]))
            missed |= not complete or p99 > BAR_SECONDS
        few, many = (sum(load.values()) for load in loads)
        print(f"      with a tenth of the agents {few:.1f} reads a second, with all of them {many:.1f}")
        missed |= many > few * 1.5 + 2
    port = ports.choose("127.0.0.1", ["FEED_PORT"])["FEED_PORT"]
    with feed(var, port) as process:
        rows, took, first, peak = whole_state(port, token, process, options.rows)
    growth = peak - first
    print(
        f"feed: whole state of {rows:,} rows in {took:.1f} s, memory {first / 2**20:.0f} MiB after a tenth, "
        f"at most {peak / 2**20:.0f} MiB (bar: {BAR_GROWTH / 2**20:.0f} MiB more)"
    )
    return int(missed or rows != options.rows or growth > BAR_GROWTH)


def _shown(load: dict[str, float]) -> str:
    return ", ".join(f"{of} {number:.1f}" for of, number in sorted(load.items()) if number)


if __name__ == "__main__":
    sys.exit(main())
