"""Restate with its Python SDK, installed into a folder of its own and run with its defaults: fsync on."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unkey.ports import choose

ROOT = Path(__file__).resolve().parent.parent
SERVER = "@restatedev/restate-server"
SDK = ("restate-sdk[serde]", "hypercorn")
STEPS = 10


class Missing(Exception):
    """Restate cannot be installed here."""


def install(folder: Path) -> tuple[Path, Path]:
    """Install the server and the SDK, unless they are there; return the server and the SDK's folder of programs.

    Raises:
        Missing: there is no npm, or an installation failed.
    """
    server, programs = folder / "node_modules" / ".bin" / "restate-server", folder / "venv" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    if not server.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("Restate's side needs npm, which is not installed")
        _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), SERVER])
    if not (programs / "hypercorn").exists():
        uv = shutil.which("uv")
        if uv is not None:
            _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(programs.parent)])
            _run([uv, "pip", "install", "--quiet", "--python", str(programs / "python"), *SDK])
        else:
            _run([sys.executable, "-m", "venv", "--clear", str(programs.parent)])
            _run([str(programs / "pip"), "install", "--quiet", *SDK])
    return server, programs


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout).strip()[-300:]}")


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Run the server and the service; gives the port of the ingress.

    Raises:
        Missing: they cannot be installed, or do not start.
    """
    server, programs = install(folder)
    ports = choose("127.0.0.1", ["node", "admin", "ingress", "service"])
    base = folder / f"data-{os.getpid()}"
    environment = {
        **os.environ,
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_BIND_PORT": str(ports["node"]),
        "RESTATE_ADMIN__BIND_PORT": str(ports["admin"]),
        "RESTATE_INGRESS__BIND_PORT": str(ports["ingress"]),
        "RESTATE_LOG_FILTER": "warn",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    address = f"127.0.0.1:{ports['service']}"
    with open(folder / "log", "w") as log:
        processes = [
            subprocess.Popen(
                [str(server), "--base-dir", str(base), "--no-logo"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # npm's wrapper and the server that it starts end together
            ),
            subprocess.Popen(
                [
                    str(programs / "hypercorn"),
                    "restate_service:app",
                    "--bind",
                    address,
                    "--log-level",
                    "warning",
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ),
        ]
    try:
        _register(f"http://127.0.0.1:{ports['admin']}", f"http://{address}", folder / "log")
        yield ports["ingress"]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()
        shutil.rmtree(base, ignore_errors=True)


def _register(admin: str, service: str, log: Path) -> None:
    request = urllib.request.Request(
        f"{admin}/deployments", json.dumps({"uri": service}).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(120):
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        time.sleep(0.5)
    raise Missing(f"Restate does not start: {log.read_text()[-300:]}")


def measure(port: int, at_once: int, seconds: float) -> float:
    """Return the steps a second of so many callers, each with one run at a time on a key of its own."""
    return asyncio.run(_measure(port, at_once, seconds))


async def _measure(port: int, at_once: int, seconds: float) -> float:
    done = [0]
    began = time.perf_counter()
    await asyncio.gather(*(_call(port, began + seconds, done) for _ in range(at_once)))
    return done[0] * STEPS / (time.perf_counter() - began)


async def _call(port: int, end: float, done: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        head = f"POST /bench/{uuid.uuid4().hex}/ten HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 1\r\n\r\n1".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise RuntimeError(f"Restate answered {answer!r}")
        await reader.readexactly(int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        done[0] += 1
    writer.close()
