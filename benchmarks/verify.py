"""Verification: `keys.verifyKey` of one edge process, against a server that only parses and answers a constant.

    python -m benchmarks.verify [--seconds 2] [--rounds 5] [--profile FILE]

Both run on core 0, the load on core 1; runs are interleaved, and the ratio is the median of the rounds' own.
The edge is the real process, `python -m edge`, with telemetry, before a database of a million keys that is
made once and kept in `UNKEY_VAR/bench`. 100,000 keys, a tenth of them all, are asked for as Zipf has it. A
verification does everything: a query over permissions that come from key and role, a limit of the key and
one of its identity, name and metadata; credits are off. First every key is asked for once, which is a read
of the database each; then come the runs: one hot key, then all. Then the same with --changes keys changing
a second, and last 1,000 keys in rotation with credits. The constant is as long as an answer, headers included.

Bars: 20,000 requests a second, 0.4 of the constant, p99 5 ms, 1.5 KiB of memory per cached key.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.million import KEYS, METERED, World, seeded
from benchmarks.sides import Side, compare

RATE = 20_000
RATIO = 0.4
P99_MS = 5.0
KEY_BYTES = 1536
ASKED = 100_000
DRAWN = 200_000
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


def exchange(port: int, root_key: str, body: str) -> bytes:
    """Send one verification and return the raw answer.

    Raises:
        TimeoutError: no answer with status 200 within two minutes.
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
    until = time.monotonic() + 120
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


def start_edge(world: World, profile: str = "", capacity: int = ASKED) -> subprocess.Popen[bytes]:
    """Start the real edge process on core 0, with nothing in memory but the newest keys."""
    environment = {
        **os.environ,
        "UNKEY_VAR": str(world.folder),
        "EDGE_ID": f"bench-{os.getpid()}-{capacity}",
        "EDGE_KEY_CAPACITY": str(capacity),
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


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here."""
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def body(text: str) -> str:
    """Return the body of a verification."""
    return json.dumps({"key": text, "permissions": _QUERY})


def zipf(world: World, count: int) -> tuple[list[str], list[str]]:
    """Return a body for each of `count` keys, and `DRAWN` bodies as Zipf's law draws them."""
    chance = random.Random(5)
    numbers = range(METERED, KEYS, (KEYS - METERED) // count)[:count]
    bodies = [body(world.text(number)) for number in chance.sample(numbers, count)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return bodies, chance.choices(bodies, cum_weights=weights, k=DRAWN)


@contextlib.contextmanager
def changing(world: World, a_second: float) -> Iterator[None]:
    """Change that many keys a second in the database while the block runs, each with a version."""
    import sqlite3

    done = threading.Event()

    def work() -> None:
        database = sqlite3.connect(world.folder / "unkey.sqlite3", isolation_level=None, timeout=10)
        stream = database.execute(
            "SELECT name FROM cluster_stream WHERE name LIKE 'keys:%' AND version > 1000"
        )
        (name,) = stream.fetchone()
        for number in itertools.count():
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE cluster_stream SET version = version + 1 WHERE name = ?", [name])
            database.execute(
                "UPDATE keys_key SET version = (SELECT version FROM cluster_stream WHERE name = ?) WHERE id = ?",
                [name, f"key_{number % KEYS:016d}"],
            )
            database.execute("COMMIT")
            if done.wait(1 / a_second):
                break
        database.close()

    thread = threading.Thread(target=work)
    if a_second:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if a_second:
            thread.join()


def memory(process: subprocess.Popen[bytes]) -> int:
    """Return the memory that a process has to itself, in bytes.

    Without what it maps of files: 128 MiB of the database, as far as SQLite reads it, and the counters that
    processes share, 21 MiB however many keys there are.
    """
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def main() -> int:
    """Run the benchmark; 0 if the bars are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--keys", type=int, default=ASKED, help="how many keys are asked for")
    parser.add_argument("--changes", type=float, default=100, help="changes a second in the second part")
    parser.add_argument("--profile", default="", help="write a cProfile of the edge to this file")
    parser.add_argument(
        "--bare", nargs=2, type=int, metavar=("PORT", "SIZE"), help="only run the bare server"
    )
    options = parser.parse_args()
    if options.bare:
        bare(*options.bare)
    world = seeded()
    bodies, drawn = zipf(world, options.keys)
    metered = [body(world.text(number)) for number in range(METERED)]
    headers = {"Authorization": f"Bearer {world.root_key}", "Content-Type": "application/json"}
    children: list[subprocess.Popen[bytes]] = []

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

    met = True
    try:
        empty = start_edge(world, capacity=1)
        exchange(API, world.root_key, bodies[0])
        base = memory(empty)
        stop(empty)
        children.append(start_edge(world, options.profile, capacity=options.keys))
        answer = exchange(API, world.root_key, bodies[0])
        said = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
        assert said["valid"], said
        assert len(said["ratelimits"]) == 2, said
        size = len(answer) - len(b"connection: close\r\n")
        began = time.monotonic()
        ask_once(bodies, headers)
        took = time.monotonic() - began
        print(f"verify: {len(bodies):,} keys asked for the first time: {len(bodies) / took:,.0f} a second")
        load(API, drawn, options.seconds)
        each = (memory(children[0]) - base) / len(bodies)
        good = each <= KEY_BYTES
        met &= good
        print(f"verify: {each:,.0f} bytes of memory per key (bar {KEY_BYTES:,}) {'ok' if good else 'MISSED'}")
        bare_command = [sys.executable, "-m", "benchmarks.verify", "--bare", str(BARE), str(size)]
        children.append(subprocess.Popen(pinned(0, bare_command), cwd=ROOT))
        exchange(BARE, world.root_key, bodies[0])
        for name, sent, changes in (
            ("one hot key", bodies[:1], 0.0),
            (f"{len(bodies):,} keys of {KEYS:,}", drawn, 0.0),
            (f"the same with {options.changes:.0f} changes a second", drawn, options.changes),
            (f"{METERED:,} keys with credits", metered, 0.0),
        ):
            ask_once(sorted(set(sent)), headers)  # credits are leased at the first use
            load(API, sent, options.seconds)
            edge = Side("edge", children[0], partial(load, API, sent))
            bare_side = Side("bare", children[1], partial(load, BARE, sent))
            with changing(world, changes):
                ratio = compare(edge, bare_side, options.rounds, options.seconds)
            rate = statistics.median(result.rate for result in edge.results)
            p99 = statistics.median(result.p99_ms for result in edge.results)
            good = ratio >= RATIO and rate >= RATE and p99 <= P99_MS and not edge.failures
            met &= good
            print(
                f"verify: {name}: {rate:,.0f} requests a second (bar {RATE:,}), ratio {ratio:.2f} (bar {RATIO}), "
                f"p99 {p99:.1f} ms (bar {P99_MS:.0f}), {size} bytes each {'ok' if good else 'MISSED'}"
            )
    finally:
        for child in children:
            stop(child)
        for folder in (world.folder / "edge").glob(f"bench-{os.getpid()}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(world.folder / "analytics", ignore_errors=True)
    return 0 if met else 1


def ask_once(bodies: list[str], headers: dict[str, str]) -> None:
    """Verify each key once, on some connections at a time.

    Raises:
        RuntimeError: a key was not valid, or a connection broke.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def work(part: list[str]) -> None:
        with socket.create_connection(("127.0.0.1", API), timeout=60) as connection:
            for text in part:
                head = f"POST /v2/keys.verifyKey HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {len(text)}\r\n\r\n"
                connection.sendall((head + text).encode())
                said = connection.recv(65536)
                if b'"valid":true' not in said:
                    failed.append(said)

    failed: list[bytes] = []
    threads = [threading.Thread(target=work, args=(bodies[number::64],)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} keys were not valid: {failed[0]!r}")


if __name__ == "__main__":
    sys.exit(main())
