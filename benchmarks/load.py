"""A load generator for every benchmark: wrk if it is installed, else a client of our own on uvloop.

result = run("http://127.0.0.1:7080/", core=1, connections=64, seconds=5, headers={"Host": "a.b"})
result.rate, result.p99_ms, result.failures

With `paths` or `bodies` the requests differ: each sends the next of them, in rotation.
"""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """What a run saw.

    Args:
        rate: complete answers with status 2xx per second.
        p50_ms, p99_ms: latency in milliseconds.
        failures: answers that are not 2xx, and broken connections.
        generator: `wrk` or `python`.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    failures: int
    generator: str


def pinned(core: int, command: list[str]) -> list[str]:
    """Return the command bound to one core."""
    return ["taskset", "-c", str(core), *command]


def run(
    url: str,
    *,
    core: int,
    connections: int = 64,
    seconds: float = 5,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    paths: Sequence[str] = (),
    bodies: Sequence[str] = (),
) -> Result:
    """Send requests on kept connections, from one core.

    Args:
        paths: paths to ask in rotation, instead of the URL's; of one line each.
        bodies: bodies to send in rotation, of one line each; one path or one body goes with all of the others.

    Raises:
        subprocess.CalledProcessError: the generator failed.
    """
    job = {
        "url": url,
        "connections": connections,
        "seconds": seconds,
        "headers": headers or {},
        "method": method,
        "paths": list(paths),
        "bodies": list(bodies),
    }
    if shutil.which("wrk"):
        return _wrk(core, job)
    command = pinned(core, [sys.executable, "-m", "benchmarks.load"])
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, input=json.dumps(job)
    )
    return Result(**json.loads(done.stdout))


_SCRIPT = """
wrk.method = "%s"
local function lines(path)
  local found = {}
  for line in io.lines(path) do found[#found + 1] = line end
  return found
end
local paths, bodies, texts, next = lines("%s"), lines("%s"), {}, 0
init = function(args)
  for index = 1, math.max(#paths, #bodies, 1) do
    local path = paths[(index - 1) %% math.max(#paths, 1) + 1]
    texts[index] = wrk.format(nil, path, nil, bodies[(index - 1) %% math.max(#bodies, 1) + 1])
  end
end
if math.max(#paths, #bodies) > 1 then
  request = function()
    next = next %% #texts + 1
    return texts[next]
  end
else
  wrk.path = paths[1] or wrk.path
  wrk.body = bodies[1]
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %%f %%f %%f %%d\\n",
    (summary.requests - errors.status) / summary.duration * 1e6, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


def _wrk(core: int, job: dict[str, object]) -> Result:
    headers = job["headers"]
    assert isinstance(headers, dict)
    with tempfile.TemporaryDirectory() as folder:
        # Files: a Lua program has room for 65,536 constants.
        files = [Path(folder) / name for name in ("paths", "bodies")]
        for file in files:
            file.write_text("".join(f"{line}\n" for line in cast(list[str], job[file.name])))
        script = Path(folder) / "load.lua"
        script.write_text(_SCRIPT % (job["method"], *files))
        options = ["-t1", f"-c{job['connections']}", f"-d{max(1, round(float(str(job['seconds']))))}s"]
        named = [text for name, value in headers.items() for text in ("-H", f"{name}: {value}")]
        command = pinned(core, ["wrk", *options, "-s", str(script), *named, str(job["url"])])
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+)", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout + done.stderr)
    return Result(float(found[1]), float(found[2]), float(found[3]), int(found[4]), "wrk")


class _Client(asyncio.Protocol):
    """One connection: the next request goes out when the answer to the last one is complete."""

    def __init__(self, requests: Iterator[bytes], times: list[float], failures: list[int]) -> None:
        self._requests = requests
        self._times = times
        self._failures = failures
        self._missing = -1
        self._held = b""
        self._sent_at = 0.0
        self._good = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._held += data
            end = self._held.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._held[:end].lower()
            self._good = head.startswith(b"http/1.1 2")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head)
            self._missing = (int(length[1]) if length else 0) - (len(self._held) - end - 4)
            self._held = b""
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._missing = -1
            if self._good:
                self._times.append(time.perf_counter() - self._sent_at)
            else:
                self._failures[0] += 1
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._failures[0] += 1


async def _python(job: dict[str, object]) -> Result:
    url = urlsplit(str(job["url"]))
    given = job["headers"]
    assert isinstance(given, dict)
    headers = {"Host": url.netloc, **given}
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    paths, bodies = cast(list[str], job["paths"]) or [target], cast(list[str], job["bodies"]) or [""]
    texts = []
    for index in range(max(len(paths), len(bodies))):
        path, body = paths[index % len(paths)], bodies[index % len(bodies)].encode()
        framing = f"Content-Length: {len(body)}\r\n" if body else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + framing
        texts.append(f"{job['method']} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    requests = itertools.cycle(texts)
    times: list[float] = []
    failures = [0]
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    transports = [
        (
            await loop.create_connection(
                lambda: _Client(requests, times, failures), url.hostname or "", url.port or 80
            )
        )[0]
        for _ in range(int(str(job["connections"])))
    ]
    await asyncio.sleep(float(str(job["seconds"])))
    took = time.perf_counter() - started
    for transport in transports:
        transport.abort()
    times.sort()
    if not times:
        return Result(0, 0, 0, failures[0], "python")
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return Result(len(times) / took, p50 * 1000, p99 * 1000, failures[0], "python")


if __name__ == "__main__":
    import uvloop

    print(json.dumps(asdict(uvloop.run(_python(json.load(sys.stdin))))))
