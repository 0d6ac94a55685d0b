"""Times a deployment: from `deployments.createDeployment` to the first 200 at its own route.

The program's own start is measured beside it, outside the platform (spawn until the port answers), and
taken off. Prints a line per run and the median. Bar: at most 2 s.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.demo import HELLO, PYTHON, Platform, System

BAR_SECONDS = 2.0


def own_start() -> float:
    """Return the seconds from spawning the example until it answers 200."""
    port = 28999
    began = time.monotonic()
    process = subprocess.Popen(
        [PYTHON, "app.py"], cwd=HELLO, env={**os.environ, "PORT": str(port)}, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/")
                if connection.getresponse().status == 200:
                    return time.monotonic() - began
            except OSError:
                time.sleep(0.002)
            finally:
                connection.close()
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Run the benchmark; returns 1 when the median is past the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="unkey-bench-") as folder:
        system = System(Path(folder) / "var")
        system.environ["PORTS"] = "auto"
        system.start()
        try:
            platform = connect(system)
            place = {"project": "bench", "app": "default", "environment": "production"}
            platform.call("projects.createProject", {"name": "bench", "slug": "bench"})
            platform.call("apps.createApp", {"project": "bench", "name": "Default", "slug": "default"})
            options = ("--project", "bench", "--app", "default")
            first = platform.unkey("deploy", str(HELLO), *options)
            own, whole = [], []
            for run in range(runs):
                own.append(own_start())
                whole.append(_deploy(system, platform, place, first))
                print(f"  run {run + 1}: {whole[-1]:.3f} s, of which the program's own start {own[-1]:.3f} s")
        finally:
            system.stop()
    net = statistics.median(whole) - statistics.median(own)
    print(f"deploy: median {net:.3f} s without the program's start (bar {BAR_SECONDS} s)")
    return int(net > BAR_SECONDS)


def connect(system: System) -> Platform:
    """Make a workspace and a root key in a fresh system; returns its public interfaces."""
    system.manage("create_workspace", "Bench", "--slug", "bench", "--exist-ok", "--json")
    root = json.loads(
        system.manage("create_root_key", "--workspace", "bench", "--name", "b", "--all", "--json")
    )
    return Platform(system.url("EDGE_API_PORT"), root["root_key"], system.var / "login.json")


def _deploy(system: System, platform: Platform, place: dict[str, str], first: dict[str, Any]) -> float:
    """Deploy the first image once more; returns the seconds until the new deployment's own route answers 200."""
    began = time.monotonic()
    image = {"dockerImage": first["image"]}
    identifier = platform.call("deployments.createDeployment", {**place, "image": image})["deploymentId"]
    host = next(name for name in first["domains"] if slug(first["deploymentId"]) in name)
    visitor = system.visitor(host.replace(slug(first["deploymentId"]), slug(identifier)))
    while True:
        status, _ = visitor.get("/")
        if status == 200:
            return time.monotonic() - began
        if time.monotonic() - began > 60:
            raise RuntimeError(f"{visitor.host} still answers {status}")
        time.sleep(0.005)


def slug(identifier: str) -> str:
    """Return a deployment's id as it stands in a host name."""
    return identifier.lower().replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
