"""Times a switch: from the commit of a rollback to the first answer of the new target at the edge.

The commit is read from the routing row's own time (`updated_at`), the answer from a client that calls the
live host without pause. 50 switches back and forth; prints median, p99 and the slowest. Bar: p99 at most 250 ms.
"""

import argparse
import http.client
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.deploy import connect
from scripts.demo import HELLO, Platform, System, Visitor

BAR_SECONDS = 0.25


def main() -> int:
    """Run the benchmark; returns 1 when the p99 is past the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=50)
    switches = parser.parse_args().switches
    with tempfile.TemporaryDirectory(prefix="unkey-bench-") as folder:
        system = System(Path(folder) / "var")
        system.environ["PORTS"] = "auto"
        system.start()
        try:
            platform = connect(system)
            platform.call("projects.createProject", {"name": "bench", "slug": "bench"})
            platform.call("apps.createApp", {"project": "bench", "name": "Default", "slug": "default"})
            options = ("--project", "bench", "--app", "default")
            deployed = []
            for version in ("1", "2"):
                source = Path(folder) / f"source-{version}"
                shutil.copytree(HELLO, source)
                (source / "VERSION").write_text(version)
                deployed.append(platform.unkey("deploy", str(source), *options))
            visitor = system.visitor(min(deployed[0]["domains"], key=len))
            visitor.until_version("2", None)
            took = []
            for index in range(switches):
                target = index % 2
                took.append(
                    _switch(system, platform, visitor, deployed[target]["deploymentId"], str(target + 1))
                )
        finally:
            system.stop()
    took.sort()
    p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
    print(
        f"switch: median {statistics.median(took) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms of {len(took)} "
        f"(bar {BAR_SECONDS * 1000:.0f} ms)"
    )
    return int(p99 > BAR_SECONDS)


def _switch(system: System, platform: Platform, visitor: Visitor, target: str, version: str) -> float:
    """Roll back to the target; returns the seconds from the commit to the first answer of its version."""
    connection = visitor.connect()
    platform.call("deployments.rollbackDeployment", {"deploymentId": target})
    deadline = time.monotonic() + 30
    try:
        while visitor.fetch(connection, "/", None)[1]["version"] != version:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{target} is not served")
        seen = datetime.now(UTC)
    except http.client.HTTPException as error:
        raise RuntimeError(f"a request failed during the switch: {error!r}") from error
    finally:
        connection.close()
    return (seen - _committed(system, visitor.host)).total_seconds()


def _committed(system: System, host: str) -> datetime:
    database = sqlite3.connect(f"file:{system.var / 'unkey.sqlite3'}?mode=ro", uri=True, timeout=10)
    try:
        text = database.execute(
            "SELECT updated_at FROM routing_frontlineroute WHERE fqdn = ?", (host,)
        ).fetchone()[0]
    finally:
        database.close()
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
