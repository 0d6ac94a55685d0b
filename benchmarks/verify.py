"""Verification: `keys.verifyKey` of one edge process, against a server that only parses and answers a constant.

    python -m benchmarks.verify [--seconds 2] [--rounds 5] [--profile FILE]

Both run on core 0, the load on core 1; runs are interleaved, and the ratio is the median of the rounds' own.
Two loads: one hot key, for which the bar is, and 1,000 hot keys in rotation. The edge is the real process, `python -m edge`. The key is hot and its answer full: name, metadata, permissions by a
role and a query over them, identity, a rate limit and credits. The constant is as long as that answer,
headers included. Bar: 0.4.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import cast

from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.sides import Side, compare

BAR = 0.4
HOT_KEYS = 1000
BASE_PORT = 21310
BARE, HTTP, HTTPS, API, METRICS = range(BASE_PORT, BASE_PORT + 5)
_QUERY = "documents.read AND (documents.write OR billing.admin)"


def bare(port: int, size: int) -> None:
    """Parse each request and answer `size` bytes, for ever: what uvloop and httptools cost by themselves.

    To parse is to have the target, the headers and the body in hand.
    """
    import asyncio

    import httptools
    import uvloop

    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    answer = b"x"
    for length in range(size):
        answer = head % length + b"x" * length
        if len(answer) >= size:
            break

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)
            self.parser = httptools.HttpRequestParser(self)

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_message_begin(self) -> None:
            self.url = self.body = b""
            self.headers: list[tuple[bytes, bytes]] = []

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name, value))

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            self.transport.write(answer)
            if not self.parser.should_keep_alive():
                self.transport.close()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Connection, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    uvloop.run(serve())


def seed(count: int = 1) -> tuple[str, list[str]]:
    """Make a workspace with a root key and keys that have everything; return the texts."""
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from django.db import transaction

    from apps.cluster import versions
    from apps.keys import services as keys
    from apps.keys.models import Permission, Role
    from apps.keys.values import Credits, NamedLimit
    from apps.workspaces.permissions import everything
    from apps.workspaces.services import create_root_key, create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    _, root_key = create_root_key(workspace, "bench", everything(workspace.id), actor=actor)
    with workspace_scope(workspace.id), transaction.atomic():
        api = keys.create_api(workspace.id, "bench", actor=actor)
        role = Role(workspace=workspace, name="editor", shard=api.shard)
        versions.stamp(role)
        role.save(force_insert=True)
        role.permissions.add(
            Permission.objects.create(workspace=workspace, name="write", slug="documents.write")
        )
        texts = [
            keys.create_key(
                api,
                actor=actor,
                prefix="sk",
                name="the key of the benchmark",
                external_id="user_1234",
                meta={"plan": "pro", "seats": 12, "features": ["search", "export"]},
                roles=["editor"],
                permissions=["documents.read"],
                credits=Credits(1_000_000_000),
                ratelimits=[NamedLimit("requests", 1_000_000, 1000, auto_apply=True)],
            )[1]
            for _ in range(count)
        ]
    return root_key, texts


def exchange(port: int, root_key: str, body: str) -> bytes:
    """Send one verification and return the raw answer.

    Raises:
        TimeoutError: no answer with status 200 within 20 seconds.
    """
    lines = (
        "POST /v2/keys.verifyKey HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {root_key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    request = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            time.sleep(0.05)
            continue
        if answer.startswith(b"HTTP/1.1 200"):
            return answer
        time.sleep(0.05)
    raise TimeoutError(f"port {port}")


def start_edge(profile: str) -> subprocess.Popen[bytes]:
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


def main() -> int:
    """Run the benchmark; 0 if the bar is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
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
    met = False
    try:
        root_key, texts = seed(HOT_KEYS)
        bodies = [json.dumps({"key": text, "permissions": _QUERY}) for text in texts]
        children.append(start_edge(options.profile))
        answer = exchange(API, root_key, bodies[0])
        said = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
        assert said["valid"], said
        size = len(answer) - len(b"connection: close\r\n")
        bare_command = [sys.executable, "-m", "benchmarks.verify", "--bare", str(BARE), str(size)]
        children.append(subprocess.Popen(pinned(0, bare_command), cwd=ROOT))
        exchange(BARE, root_key, bodies[0])
        headers = {"Authorization": f"Bearer {root_key}", "Content-Type": "application/json"}

        def load(port: int, sent: list[str], seconds: float) -> Result:
            return run(
                f"http://127.0.0.1:{port}/v2/keys.verifyKey",
                core=1,
                connections=options.connections,
                seconds=seconds,
                headers=headers,
                method="POST",
                bodies=sent,
            )

        for name, sent, bar in (("one hot key", bodies[:1], BAR), (f"{HOT_KEYS:,} hot keys", bodies, 0.0)):
            load(API, sent, 3)  # keys are hot once their first credits are leased
            edge = Side("edge", children[0], partial(load, API, sent))
            bare_side = Side("bare", children[1], partial(load, BARE, sent))
            reached = compare(edge, bare_side, options.rounds, options.seconds)
            good = reached >= bar and not edge.failures
            print(f"verify: {name}: ratio {reached:.2f}", end="")
            print(f" (bar {bar}), {size} bytes each {'ok' if good else 'MISSED'}" if bar else "")
            met = good if bar else met
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
