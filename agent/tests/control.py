"""A control plane for tests: a real HTTP server that speaks the agents' contract, and nothing else."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unkey import snapshots

TOKEN = "test-agent-token"
LIMITS = snapshots.Limits(packed=10_000_000, unpacked=100_000_000)


class FakeControlPlane:
    """Feed and web in one: rows are put in by `topology`, and what agents say is kept."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 0
        self.rows: dict[str, bytes] = {}
        self.reports: list[dict[str, Any]] = []
        self.problems: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.watched: list[int] = []
        self.snapshots: dict[str, bytes] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.asked: list[int] = []
        self.edges_know = True
        self.failing = 0
        self.unheard: list[dict[str, Any]] = []
        self.away = False
        self.streams = 0
        self.closing = False
        handler = type("Handler", (_Handler,), {"plane": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def snapshot(self, folder: Path, files: dict[str, str]) -> str:
        """Pack files as a snapshot that agents can fetch; return its reference."""
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        out = io.BytesIO()
        packed = snapshots.pack(folder, out, LIMITS)
        self.snapshots[packed.digest] = out.getvalue()
        return packed.reference

    def topology(self, deployment_id: str, image: str, command: object, **changes: Any) -> int:
        """Put a row into the stream; return its version."""
        row = {
            "type": "topology",
            "deploymentId": deployment_id,
            "environmentId": "env_1",
            "workspaceId": "ws_1",
            "projectId": "proj_1",
            "appId": "app_1",
            "desired": "running",
            "replicas": 1,
            "image": image,
            "plan": {"kind": "command", "command": command, "install": changes.pop("install", None)},
            "settings": changes.pop("settings", {}),
            "variables": sorted(self.secrets.get(deployment_id, {})),
            **changes,
        }
        return self.put(deployment_id, row)

    def put(self, key: str, row: dict[str, Any]) -> int:
        """Put any row into the stream; return its version."""
        with self.changed:
            self.version += 1
            self.rows[key] = json.dumps({**row, "version": self.version}).encode()
            self.changed.notify_all()
            return self.version

    def leave(self) -> None:
        """Answer nobody any more, until `away` is false again."""
        self.away = True
        self.drop_streams()

    def drop_streams(self) -> None:
        """End every open watch stream."""
        with self.changed:
            self.streams += 1
            self.changed.notify_all()

    def instances(self, deployment_id: str) -> list[dict[str, Any]] | None:
        """Return what was reported last of a deployment."""
        with self.changed:
            for report in reversed(self.reports):
                if report["deploymentId"] == deployment_id:
                    found: list[dict[str, Any]] = report["instances"]
                    return found
        return None

    def history(self, deployment_id: str) -> list[list[str]]:
        """Return the statuses of every report of a deployment, oldest first, without repetitions."""
        statuses: list[list[str]] = []
        for report in list(self.reports):
            if report["deploymentId"] == deployment_id:
                now = [instance["status"] for instance in report["instances"]]
                if not statuses or statuses[-1] != now:
                    statuses.append(now)
        return statuses

    def wait(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Return what a condition gives as soon as that is true."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not (found := condition()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {seconds} s; reports: {self.reports[-3:]}")
                self.changed.wait(min(left, 0.05))
            return found

    def running(self, deployment_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Return a deployment's instances once so many are reported as running, and nothing else is."""

        def ready() -> list[dict[str, Any]] | None:
            found = self.instances(deployment_id)
            fits = found is not None and [each["status"] for each in found] == ["running"] * count
            return found if fits else None

        found: list[dict[str, Any]] = self.wait(ready)
        return found

    async def soon(self, condition: Callable[[], Any]) -> Any:
        """`wait` for tests whose agent runs in the same event loop."""
        return await asyncio.to_thread(self.wait, condition)


class _Handler(BaseHTTPRequestHandler):
    plane: FakeControlPlane
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def _authorized(self) -> bool:
        if self.plane.away:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return False
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, b"{}")
        return False

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if not self._authorized():
            return
        url = urlsplit(self.path)
        if url.path == "/internal/watch":
            self._watch(int(parse_qs(url.query)["version"][0]))
            return
        content = self.plane.snapshots.get(url.path.removeprefix("/internal/snapshots/"))
        self._answer(404 if content is None else 200, content or b"{}")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._authorized():
            return
        body = json.loads(raw)
        plane = self.plane
        answer: dict[str, Any] = {}
        status = 200
        with plane.changed:
            if plane.failing > 0:
                plane.failing -= 1
                status = 500
                if self.path == "/internal/instances/report":
                    plane.unheard.append(body)
            elif self.path == "/internal/instances/report":
                plane.reports.append(body)
                answer = {"version": len(plane.reports)}
            elif self.path == "/internal/instances/applied":
                plane.asked.append(body["version"])
                answer = {"applied": plane.edges_know}
            elif self.path == "/internal/agents/heartbeat":
                plane.heartbeats.append(body)
            elif self.path == "/internal/problems":
                plane.problems.append(body)
            elif self.path == "/internal/secrets":
                answer = {"variables": plane.secrets.get(body["deploymentId"], {})}
            plane.changed.notify_all()
        self._answer(status, json.dumps(answer).encode())

    def _watch(self, version: int) -> None:
        plane = self.plane
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        full = version == 0 or version > plane.version
        sent = 0 if full else version
        with plane.changed:
            plane.watched.append(version)
            stream = plane.streams
            backlog, sent = self._after(sent), plane.version
        synced = json.dumps({"type": "synced", "version": sent, "full": full}).encode() + b"\n"
        try:
            self.wfile.write(backlog + synced)
            while True:
                with plane.changed:
                    while not plane.closing and plane.streams == stream and plane.version <= sent:
                        plane.changed.wait()
                    if plane.closing or plane.streams != stream:
                        return
                    lines, sent = self._after(sent), plane.version
                self.wfile.write(lines)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _after(self, version: int) -> bytes:
        rows = sorted((json.loads(row)["version"], row) for row in self.plane.rows.values())
        return b"".join(row + b"\n" for at, row in rows if at > version)
