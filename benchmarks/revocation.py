"""Revocation: how long after `updateKey enabled=false` each of several edges refuses the key.

    python -m benchmarks.revocation [--tries 500] [--edges 4] [--rate 5000]

Real edge processes on one database, and --rate verifications a second of other keys spread over them. A try
disables a key by the service that `keys.updateKey` calls, while a connection to each edge asks for it again
and again; its time runs from before the write to the first refusal. Bar: p99 of all tries and edges 1 s.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvloop

from benchmarks.load import ROOT

BAR_SECONDS = 1.0
BASE_PORT = 21360
KEYS = 40
_PATIENCE = 30.0


def seed() -> tuple[str, list[tuple[str, str]]]:
    """Make a workspace with keys; return its root key, and ids and texts of the keys."""
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from apps.keys import services as keys
    from apps.workspaces.permissions import everything
    from apps.workspaces.services import create_root_key, create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    _, root_key = create_root_key(workspace, "bench", everything(workspace.id), actor=actor)
    with workspace_scope(workspace.id):
        api = keys.create_api(workspace.id, "bench", actor=actor)
        made = [keys.create_key(api, actor=actor, prefix="sk") for _ in range(KEYS)]
    return root_key, [(key.id, text) for key, text in made]


def set_enabled(key_id: str, enabled: bool) -> None:
    """Do what `keys.updateKey` does."""
    from apps.keys import services as keys
    from apps.keys.models import Key
    from unkey.actors import system
    from unkey.tenancy import unscoped, workspace_scope

    with unscoped("the benchmark has one workspace"):
        key = Key.objects.get(pk=key_id)
    with workspace_scope(key.workspace_id):
        keys.update_key(key, actor=system("benchmark"), enabled=enabled)


def start_edges(count: int) -> list[subprocess.Popen[bytes]]:
    """Start edges, each with ports of its own."""
    edges = []
    for number in range(count):
        port = BASE_PORT + 4 * number
        names = ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT")
        ports = {name: str(port + place) for place, name in enumerate(names)}
        environment = {**os.environ, **ports, "EDGE_ID": f"bench-{number}", "LOG_LEVEL": "warning"}
        edges.append(subprocess.Popen([sys.executable, "-m", "edge"], cwd=ROOT, env=environment))
    return edges


class Line:
    """A kept connection to an edge that verifies one key at a time."""

    def __init__(self, port: int, root_key: str) -> None:
        self._port = port
        self._head = f"POST /v2/keys.verifyKey HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {root_key}\r\nContent-Length: "

    async def open(self) -> None:
        """Connect, as soon as the edge listens.

        Raises:
            OSError: it does not within half a minute.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)

    async def code(self, text: str) -> str:
        """Verify a key; return the code of the answer."""
        body = json.dumps({"key": text})
        self._writer.write(f"{self._head}{len(body)}\r\n\r\n{body}".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = json.loads(await self._reader.readexactly(length))
        return str(answer["data"]["code"]) if "data" in answer else str(answer["error"]["status"])


class Load:
    """A steady number of verifications a second, in a process of its own thread and loop."""

    def __init__(self, ports: list[int], root_key: str, texts: list[str], rate: float) -> None:
        self.done = 0
        self.wrong = 0
        self._ports, self._root_key, self._texts = ports, root_key, texts
        self._count = 8 * len(ports)
        self._period = self._count / rate if rate else 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self) -> "Load":
        if self._period:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._period:
            self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._work(number) for number in range(self._count)))

    async def _work(self, number: int) -> None:
        line = Line(self._ports[number % len(self._ports)], self._root_key)
        await line.open()
        due = time.monotonic() + self._period * number / self._count
        while not self._stopping.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # What could not be kept up with is not made up for in a burst.
            due = max(due + self._period, time.monotonic() - 0.1)
            code = await line.code(self._texts[(self.done + number) % len(self._texts)])
            self.done += 1
            self.wrong += code != "VALID"


async def measure(ports: list[int], root_key: str, keys: list[tuple[str, str]], tries: int) -> list[float]:
    """Revoke keys; return the seconds that each edge took each time."""
    lines = [Line(port, root_key) for port in ports]
    for line in lines:
        await line.open()

    async def until(line: Line, text: str, code: str, since: float) -> float:
        while await line.code(text) != code:
            if time.perf_counter() - since > _PATIENCE:
                raise TimeoutError(f"a key was not {code} within {_PATIENCE:.0f} s")
            await asyncio.sleep(0.002)
        return time.perf_counter() - since

    took: list[float] = []
    for number in range(tries):
        key_id, text = keys[number % len(keys)]
        await asyncio.gather(*(until(line, text, "VALID", time.perf_counter()) for line in lines))
        since = time.perf_counter()
        asking = [asyncio.ensure_future(until(line, text, "DISABLED", since)) for line in lines]
        await asyncio.to_thread(set_enabled, key_id, False)
        took.extend(await asyncio.gather(*asking))
        await asyncio.to_thread(set_enabled, key_id, True)
    return took


def main() -> int:
    """Run the benchmark; 0 if the bar is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--edges", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ["UNKEY_VAR"] = str(folder / "var")
    edges: list[subprocess.Popen[bytes]] = []
    try:
        root_key, keys = seed()
        edges = start_edges(options.edges)
        ports = [BASE_PORT + 4 * number for number in range(options.edges)]
        half = len(keys) // 2
        with Load(ports, root_key, [text for _, text in keys[half:]], options.rate) as load:
            began = time.monotonic()
            took = uvloop.run(measure(ports, root_key, keys[:half], options.tries))
            rate = load.done / (time.monotonic() - began)
        took.sort()
        p50, p99 = took[len(took) // 2], took[min(len(took) - 1, int(len(took) * 0.99))]
        good = p99 <= BAR_SECONDS and not load.wrong
        print(
            f"revocation: {options.tries} tries at each of {options.edges} edges, {rate:,.0f} other verifications "
            f"a second ({load.wrong} wrong): p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, "
            f"slowest {took[-1] * 1000:.0f} ms (bar {BAR_SECONDS * 1000:.0f}) {'ok' if good else 'MISSED'}"
        )
    finally:
        for edge in edges:
            edge.send_signal(signal.SIGTERM)
        for edge in edges:
            edge.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
