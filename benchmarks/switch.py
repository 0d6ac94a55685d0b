"""Times switches under load: from the commit of a rollback or promote to every one of four edges.

The commit is read from the routing row's own time (`updated_at`); the answers come from a client per edge
that calls the live host without pause. Rollbacks and promotes take turns. Prints median, p99 and the slowest
of the slowest edge, and of all edges. Bar: p99 at most 250 ms, and not one failed request.
"""

import argparse
import http.client
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.deploy import connect
from scripts.demo import HELLO, Platform, System, Visitor

BAR_SECONDS = 0.25
EDGES = 4


class Watcher(threading.Thread):
    """Calls the live host at one edge without pause, and notes when each version was first answered."""

    def __init__(self, visitor: Visitor, pause: float) -> None:
        super().__init__(daemon=True)
        self.requests = 0
        self.failures: list[str] = []
        self.switches: list[tuple[str, datetime]] = []
        self._visitor = visitor
        self._pause = pause
        self._ended = threading.Event()

    def run(self) -> None:
        """Call until told to end."""
        connection = self._visitor.connect()
        while not self._ended.is_set():
            try:
                status, body = self._visitor.fetch(connection, "/", None)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                connection = self._visitor.connect()
                continue
            self.requests += 1
            if status != 200:
                self.failures.append(f"status {status}: {body}")
            elif not self.switches or self.switches[-1][0] != body["version"]:
                self.switches.append((body["version"], datetime.now(UTC)))
            if self._pause:
                time.sleep(self._pause)
        connection.close()

    def end(self) -> None:
        """Stop calling."""
        self._ended.set()
        self.join()


def main() -> int:
    """Run the benchmark; returns 1 when the p99 is past the bar or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--edges", type=int, default=EDGES)
    parser.add_argument("--pause-ms", type=float, default=2, help="between two requests of a client")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unkey-bench-") as folder:
        system = System(Path(folder) / "var")
        system.environ |= {"PORTS": "auto", "EDGE_REGIONS": ",".join(["local"] * options.edges)}
        system.start()
        try:
            watchers, took = _switches(system, Path(folder), options)
        finally:
            system.stop()
    failures = [failure for watcher in watchers for failure in watcher.failures]
    slowest = sorted(max(each) for each in took)
    every = sorted(seconds for each in took for seconds in each)
    p99 = _p99(slowest)
    print(
        f"switch: {len(took)} rollbacks and promotes, to every one of {len(watchers)} edges: "
        f"median {statistics.median(slowest) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms "
        f"(bar {BAR_SECONDS * 1000:.0f} ms), slowest {slowest[-1] * 1000:.0f} ms; "
        f"edge by edge: median {statistics.median(every) * 1000:.0f} ms, p99 {_p99(every) * 1000:.0f} ms"
    )
    requests = sum(watcher.requests for watcher in watchers)
    print(f"        {requests:,} requests meanwhile, {len(failures)} failed {failures[:3] or ''}")
    return int(p99 > BAR_SECONDS or bool(failures))


def _switches(
    system: System, folder: Path, options: argparse.Namespace
) -> tuple[list[Watcher], list[list[float]]]:
    """Deploy two versions and switch between them; returns the seconds to each edge, by switch."""
    platform = connect(system)
    platform.call("projects.createProject", {"name": "bench", "slug": "bench"})
    platform.call("apps.createApp", {"project": "bench", "name": "Default", "slug": "default"})
    deployed = []
    for version in ("1", "2"):
        source = folder / f"source-{version}"
        shutil.copytree(HELLO, source)
        (source / "VERSION").write_text(version)
        deployed.append(platform.unkey("deploy", str(source), "--project", "bench", "--app", "default"))
    host = min(deployed[0]["domains"], key=len)
    ports = [port for name, port in sorted(system.ports.items()) if name.startswith("EDGE_HTTP_PORT")]
    watchers = [
        Watcher(Visitor(host, port, 0, system.var / "ca" / "ca.pem"), options.pause_ms / 1000)
        for port in ports
    ]
    for watcher in watchers:
        watcher.start()
    took = []
    try:
        _until(watchers, "2")
        for index in range(options.switches):
            # Back to the first, which leaves the app rolled back, and forth to the second, which ends that.
            version = "12"[index % 2]
            verb = "rollback" if version == "1" else "promote"
            took.append(_switch(system, platform, watchers, host, verb, deployed[index % 2], version))
    finally:
        for watcher in watchers:
            watcher.end()
    return watchers, took


def _switch(
    system: System,
    platform: Platform,
    watchers: list[Watcher],
    host: str,
    verb: str,
    target: dict[str, str],
    version: str,
) -> list[float]:
    platform.call(f"deployments.{verb}Deployment", {"deploymentId": target["deploymentId"]})
    _until(watchers, version)
    committed = _committed(system, host)
    return [(watcher.switches[-1][1] - committed).total_seconds() for watcher in watchers]


def _until(watchers: list[Watcher], version: str) -> None:
    deadline = time.monotonic() + 30
    while not all(watcher.switches and watcher.switches[-1][0] == version for watcher in watchers):
        if time.monotonic() > deadline:
            seen = [watcher.switches[-1:] for watcher in watchers]
            failures = [watcher.failures[-1:] for watcher in watchers]
            raise RuntimeError(f"version {version} is not served everywhere: {seen} {failures}")
        time.sleep(0.005)


def _committed(system: System, host: str) -> datetime:
    database = sqlite3.connect(f"file:{system.var / 'unkey.sqlite3'}?mode=ro", uri=True, timeout=10)
    try:
        text = database.execute(
            "SELECT updated_at FROM routing_frontlineroute WHERE fqdn = ?", (host,)
        ).fetchone()[0]
    finally:
        database.close()
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


if __name__ == "__main__":
    sys.exit(main())
