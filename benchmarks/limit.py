"""Rate limits: `ratelimit.limit` of one edge process, against a server that only parses and answers a constant.

    python -m benchmarks.limit [--seconds 2] [--rounds 5] [--profile FILE]

Both run on core 0, the load on core 1; runs are interleaved, and the ratio is the median of the rounds' own.
The edge is the real process, `python -m edge`, with telemetry, and shares its counts with another process of
the machine that has counted every identifier, too. 100,000 identifiers are asked for in random order, with
limits that pass and limits that deny. The namespace has overrides, one of them a pattern. The constant is as
long as an answer, headers included.

Bars: 20,000 requests a second, 0.4 of the constant, p99 5 ms.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.sides import Side, compare
from benchmarks.verify import P99_MS, RATE, RATIO, bare, stop

ASKED = 100_000
NAMESPACE = "bench"
DURATION = 60_000
BASE_PORT = 21320
BARE, HTTP, HTTPS, API, METRICS = range(BASE_PORT, BASE_PORT + 5)


def body(number: int) -> str:
    """Return a request for an identifier; one in ten has a limit that is soon exceeded."""
    limit = 5 if number % 10 == 0 else 1_000_000
    return json.dumps(
        {
            "namespace": NAMESPACE,
            "identifier": f"user_{number:06d}",
            "limit": limit,
            "duration": DURATION,
        }
    )


def seed() -> str:
    """Make a workspace with a namespace and overrides; return the text of a root key."""
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from apps.ratelimits import services
    from apps.workspaces.permissions import everything
    from apps.workspaces.services import create_root_key, create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    _, root_key = create_root_key(workspace, "bench", everything(workspace.id), actor=actor)
    with workspace_scope(workspace.id):
        namespace = services.create_namespace(workspace.id, NAMESPACE, actor=actor)
        for identifier in ("vip_*", "user_000001", "user_000002"):
            services.set_override(namespace, identifier, limit=9, duration_ms=DURATION, actor=actor)
    _count_elsewhere(workspace.id, namespace.id)
    return root_key


def _count_elsewhere(workspace_id: str, namespace_id: str) -> None:
    """Count every identifier once, as another process of this machine does."""
    from edge.store.counters import Counters
    from edge.verify.limiter import Limit, Limiter
    from unkey import clock
    from unkey.env import env

    limiter = Limiter(sharing=Counters(env.limits_folder))
    for number in range(ASKED):
        counter = (workspace_id, namespace_id, f"user_{number:06d}", DURATION)
        limiter.check(Limit(counter, 1_000_000), clock.now_ms())


def start_edge(profile: str) -> "subprocess.Popen[bytes]":
    """Start the real edge process on core 0."""
    environment = {
        **os.environ,
        "EDGE_API_PORT": str(API),
        "EDGE_HTTP_PORT": str(HTTP),
        "EDGE_HTTPS_PORT": str(HTTPS),
        "EDGE_METRICS_PORT": str(METRICS),
        "LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "edge"]
    if profile:
        command = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "edge"]
    return subprocess.Popen(pinned(0, command), cwd=ROOT, env=environment)


def ask(port: int, root_key: str, text: str) -> bytes:
    """Send one request and return the raw answer.

    Raises:
        TimeoutError: no answer with status 200 within 20 seconds.
    """
    import httpx

    headers = {"Authorization": f"Bearer {root_key}", "Content-Type": "application/json"}
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/v2/ratelimit.limit", content=text, headers=headers)
        except httpx.HTTPError:
            time.sleep(0.05)
            continue
        if answer.status_code == 200:
            return answer.content
        time.sleep(0.05)
    raise TimeoutError(f"port {port}")


def main() -> int:
    """Run the benchmark; 0 if the bars are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--profile", default="", help="write a cProfile of the edge to this file")
    parser.add_argument(
        "--bare", nargs=2, type=int, metavar=("PORT", "SIZE"), help="only run the bare server"
    )
    options = parser.parse_args()
    if options.bare:
        bare(*options.bare)
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ["UNKEY_VAR"] = str(folder / "var")
    children: list[subprocess.Popen[bytes]] = []
    try:
        root_key = seed()
        bodies = [body(number) for number in range(ASKED)]
        random.Random(5).shuffle(bodies)
        headers = {"Authorization": f"Bearer {root_key}", "Content-Type": "application/json"}

        def load(port: int, seconds: float) -> Result:
            return run(
                f"http://127.0.0.1:{port}/v2/ratelimit.limit",
                core=1,
                connections=options.connections,
                seconds=seconds,
                headers=headers,
                method="POST",
                bodies=bodies,
            )

        children.append(start_edge(options.profile))
        answer = ask(API, root_key, bodies[0])
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 000\r\n\r\n"
        size = len(head) + len(answer)
        bare_command = [sys.executable, "-m", "benchmarks.limit", "--bare", str(BARE), str(size)]
        children.append(subprocess.Popen(pinned(0, bare_command), cwd=ROOT))
        ask(BARE, root_key, bodies[0])
        load(API, options.seconds)
        edge = Side("edge", children[0], partial(load, API))
        bare_side = Side("bare", children[1], partial(load, BARE))
        ratio = compare(edge, bare_side, options.rounds, options.seconds)
        rate = statistics.median(result.rate for result in edge.results)
        p99 = statistics.median(result.p99_ms for result in edge.results)
        met = ratio >= RATIO and rate >= RATE and p99 <= P99_MS and not edge.failures
        print(
            f"limit: {ASKED:,} identifiers: {rate:,.0f} requests a second (bar {RATE:,}), ratio {ratio:.2f} "
            f"(bar {RATIO}), p99 {p99:.1f} ms (bar {P99_MS:.0f}), {size} bytes each {'ok' if met else 'MISSED'}"
        )
    finally:
        for child in children:
            stop(child)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
