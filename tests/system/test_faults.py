"""Programs that cannot run and archives that cannot be trusted: refused with the reason, nothing kept, nothing lost."""

import hashlib
import http.client
import io
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.demo import PYTHON, ROOT, DemoFailed, Platform, System, Visitor
from tests.system.conftest import Deployed, migrated

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(180)]

VALUE = "a value that nobody else shall read"
HEALTH = {
    "method": "GET",
    "path": "/healthz",
    "intervalSeconds": 1,
    "timeoutSeconds": 1,
    "failureThreshold": 2,
}
SICK = """
import http.server, os

class Sick(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked for", self.path, flush=True)
        self.send_error(500)

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Sick).serve_forever()
"""
BROKEN = {
    "exits": {"Procfile": "web: echo no database here; exit 3\n"},
    "silent": {"Procfile": "web: echo thinking about it; exec sleep 600\n"},
    "sick": {"Procfile": "web: python app.py\n", "app.py": SICK},
    "nothing": {"notes.txt": "nothing that runs\n"},
    "packages": {
        "Procfile": "web: python app.py\n",
        "app.py": "",
        "requirements.txt": "--no-index\nno-such-package==9.9\n",
    },
}


SHOWS = """
import http.server, json, os

class Shows(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"env": dict(os.environ), "version": "1"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Shows).serve_forever()
"""
WRITABLE_OCTETS = 48 * 1024 * 1024
LARGEST = 256 * 1024


@dataclass
class Outcome:
    """How an `unkey` command ended."""

    status: int
    said: str
    document: dict[str, Any]


class Disk:
    """Where a system writes: a small file system of its own where we may mount one.

    Where we may not, its processes are forbidden to write to files instead.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = folder / "filling"
        self._limited: psutil.Process | None = None
        mount = ["mount", "-t", "tmpfs", "-o", f"size={WRITABLE_OCTETS}", "tmpfs", str(folder)]
        self._mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self, system: System) -> None:
        """Leave nothing to write on."""
        if not self._mounted:
            assert system.process is not None
            self._limited = psutil.Process(system.process.pid)
            self._limit(0)
            return
        with suppress(OSError), self._filling.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filling.unlink(missing_ok=True)
        self._limit(None)
        self._limited = None

    def close(self) -> None:
        """Take the file system away."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _limit(self, octets: int | None) -> None:
        if self._limited is None:
            return
        for process in [self._limited, *self._limited.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                _, most = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (most if octets is None else octets, most))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    small = Disk(tmp_path_factory.mktemp("disk"))
    yield small
    small.close()


@pytest.fixture(scope="module")
def system(disk: Disk, schema: Path) -> Iterator[System]:
    """A running platform that gives up early, with a small disk."""
    running = System(disk.folder / "var")
    migrated(running, schema)
    running.environ |= {
        "PORTS": "auto",
        "AGENT_START_DEADLINE_SECONDS": "3",
        "SNAPSHOT_MAX_BYTES": str(LARGEST),
        "VAULT_MASTER_KEY": secrets.token_hex(32),
    }
    running.start()
    yield running
    disk.free()
    running.stop()


@pytest.fixture(scope="module")
def live(system: System, platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A project with a live deployment of version 1 and a variable."""
    app = Deployed(system, platform, tmp_path_factory.mktemp("sources"))
    variable = {"key": "GREETING", "value": VALUE, "kind": "writeonly"}
    platform.call("environments.setEnvironmentVariables", {**app.place, "variables": [variable]})
    app.deploy("1")
    return app


@pytest.fixture(scope="module")
def visitor(live: Deployed) -> Visitor:
    """Somebody who calls the live deployment."""
    row = live.platform.call("apps.getApp", {"project": live.project, "app": "default"})
    found = live.visitor(live.deployment(row["currentDeploymentId"]))
    found.until_version("1", None)
    return found


class Poller(threading.Thread):
    """Calls the live deployment until the block ends, and keeps what was not an answer of version 1."""

    def __init__(self, visitor: Visitor) -> None:
        super().__init__()
        self.calls = 0
        self.failures: list[str] = []
        self._visitor = visitor
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.calls += 1
            try:
                status, body = self._visitor.get("/")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                continue
            if (status, body.get("version")) != (200, "1"):
                self.failures.append(f"{status} {body}")

    def __enter__(self) -> "Poller":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()


def unkey(platform: Platform, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-m", "cli.main", *arguments, "--json"],
        cwd=ROOT,
        env=platform.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job's children inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def outcome(process: subprocess.Popen[str]) -> Outcome:
    out, said = process.communicate(timeout=90)
    return Outcome(process.returncode, said, json.loads(out))


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).write_text(text)
    return folder


def until(holds: Callable[[], object], otherwise: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def listed(app: Deployed) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = app.platform.call("deployments.listDeployments", {**app.place, "limit": 100})
    return rows


# ----- programs that cannot run


@pytest.fixture(scope="module")
def failures(
    live: Deployed, visitor: Visitor, platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """Deploy every broken program, side by side, while somebody calls the live one."""
    running: dict[str, subprocess.Popen[str]] = {}
    with Poller(visitor) as poller:
        for name, files in BROKEN.items():
            check = HEALTH if name == "sick" else None
            platform.call("environments.updateSettings", {**live.place, "healthcheck": check})
            before = len(listed(live))
            folder = write(tmp_path_factory.mktemp(name), files)
            running[name] = unkey(platform, "deploy", str(folder), "--project", live.project)
            until(partial(lambda count: len(listed(live)) > count, before), f"{name} is not deployed")
        ended = {name: outcome(process) for name, process in running.items()}
    assert poller.failures == []
    assert poller.calls > 20
    return ended


@pytest.mark.parametrize(
    ("name", "step", "code", "told"),
    [
        ("exits", "deploying", "unknown", ["it ended with status 3", "\nno database here"]),
        ("silent", "deploying", "unknown", ["it does not listen on its PORT", "\nthinking about it"]),
        ("sick", "deploying", "unknown", ["GET /healthz was answered by status 500", "\nasked for /healthz"]),
        ("nothing", "building", "build_failed", ["Looked for: a Procfile", "requirements.txt", "index.html"]),
        ("packages", "deploying", "unknown", ["-r requirements.txt ended with status 1", "no-such-package"]),
    ],
)
def test_a_program_that_cannot_run_fails_its_deployment_with_the_reason(
    name: str, step: str, code: str, told: list[str], failures: dict[str, Outcome], live: Deployed
) -> None:
    ended = failures[name]
    assert ended.status == 1
    assert ended.document["status"] == "failed"
    error = ended.document["error"]
    assert (error["step"], error["code"]) == (step, code)
    for text in told:
        assert text in error["message"]
    assert error["message"].splitlines()[0] in ended.said
    row = live.deployment(ended.document["deploymentId"])
    assert (row["status"], row["isCurrent"], row["error"]) == ("failed", False, error)


def test_nothing_of_a_failed_deployment_keeps_running(
    failures: dict[str, Outcome], live: Deployed, system: System
) -> None:
    (current,) = [row["id"] for row in listed(live) if row["isCurrent"]]

    def ran() -> set[str]:
        return {owner for process in psutil.process_iter() if (owner := _deployment_of(process, system.var))}

    until(lambda: ran() == {current}, "a failed deployment still runs")


def _deployment_of(process: psutil.Process, var: Path) -> str:
    try:
        if Path(process.cwd()).is_relative_to(var / "agent"):
            return process.environ().get("UNKEY_DEPLOYMENT_ID", "")
    except (psutil.Error, OSError):
        return ""
    return ""


# ----- archives that cannot be trusted


def packed(*entries: tuple[str, bytes, bytes | str]) -> bytes:
    """Return an archive of `(name, type of tarfile, content or link target)`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, what in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if isinstance(what, bytes):
                entry.size = len(what)
                archive.addfile(entry, io.BytesIO(what))
            else:
                entry.linkname = what
                archive.addfile(entry)
    return out.getvalue()


WHOLE = packed(("Procfile", tarfile.REGTYPE, b"web: true\n"), ("a", tarfile.REGTYPE, random.randbytes(4000)))
BAD = tarfile.REGTYPE, b"evil"
ARCHIVES = {
    "empty": b"",
    "no archive": b"this is no archive " * 50,
    "truncated": WHOLE[:-200],
    "damaged": WHOLE[:1000] + bytes(50) + WHOLE[1050:],
    "path upwards": packed(("../evil", *BAD)),
    "path upwards inside": packed(("a/../../evil", *BAD)),
    "absolute path": packed(("/tmp/evil", *BAD)),
    "link out": packed(("link", tarfile.SYMTYPE, "../../secrets")),
    "absolute link": packed(("link", tarfile.SYMTYPE, "/etc/passwd")),
    "file through a link": packed(("link", tarfile.SYMTYPE, "."), ("link/evil", *BAD)),
    "hard link": packed(("a", *BAD), ("b", tarfile.LNKTYPE, "a")),
    "device": packed(("null", tarfile.CHRTYPE, "")),
    "pipe": packed(("pipe", tarfile.FIFOTYPE, "")),
    "bomb": packed(("zeros", tarfile.REGTYPE, bytes(11 * LARGEST))),
}


def upload(platform: Platform, system: System, archive: bytes, digest: str = "") -> tuple[int, str]:
    """Send an archive; returns the status and the last part of the error's type."""
    connection = http.client.HTTPConnection("127.0.0.1", system.ports["WEB_PORT"], timeout=30)
    headers = {"Authorization": f"Bearer {platform.root_key}", "Content-Type": "application/gzip"}
    if digest:
        headers["X-Unkey-Digest"] = f"sha256:{digest}"
    connection.request("POST", "/v2/snapshots.createSnapshot", archive, headers)
    answer = connection.getresponse()
    envelope = json.loads(answer.read())
    connection.close()
    assert envelope["meta"]["requestId"].startswith("req_")
    return answer.status, envelope.get("error", {}).get("type", "").rpartition("/")[2]


def test_an_archive_that_cannot_be_trusted_is_refused_and_nothing_of_it_kept(
    system: System, platform: Platform
) -> None:
    def kept() -> tuple[object, ...]:
        connection = sqlite3.connect(f"file:{system.var / 'unkey.sqlite3'}?mode=ro", uri=True, timeout=10)
        try:
            rows = connection.execute("SELECT count(*) FROM builds_snapshot").fetchone()[0]
        finally:
            connection.close()
        objects = sorted(path for path in (system.var / "objects").rglob("*") if path.is_file())
        return rows, objects, sorted(Path(tempfile.gettempdir()).glob("unkey-upload-*"))

    before = kept()
    for name, archive in ARCHIVES.items():
        assert upload(platform, system, archive) == (400, "invalid_snapshot"), name
    assert upload(platform, system, WHOLE, "0" * 64) == (400, "invalid_snapshot")
    assert upload(platform, system, bytes(LARGEST + 1)) == (413, "request_body_too_large")
    assert kept() == before
    assert upload(platform, system, WHOLE, hashlib.sha256(WHOLE).hexdigest()) == (201, "")


# ----- secrets


def test_no_secret_is_written_in_clear_or_shown_in_a_list_of_processes(
    system: System, platform: Platform, live: Deployed, visitor: Visitor
) -> None:
    api = platform.call("apis.createApi", {"name": "secrets"})["apiId"]
    key = platform.call("keys.createKey", {"apiId": api})["key"]
    assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"
    platform.call("keys.verifyKey", {"key": key, "unknown": 1}, status=400)
    visitor.get("/", key)
    token = (system.var / "secrets" / "agent_token").read_text()
    time.sleep(1)  # the edge writes what it knows to its disk

    texts = {
        "variable": VALUE,
        "root key": platform.root_key,
        "key": key,
        "master key": system.environ["VAULT_MASTER_KEY"],
        "agent's token": token,
    }
    found = [
        (name, str(path.relative_to(system.var)))
        for path in system.var.rglob("*")
        if path.is_file() and not path.is_symlink()
        for content in [path.read_bytes()]
        for name, text in texts.items()
        if text.encode() in content
    ]
    assert found == [("agent's token", "secrets/agent_token")]
    for path in (system.var / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (system.var / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            assert not [name for name, text in texts.items() if text in line]


def test_an_instance_sees_its_variables_and_nothing_of_the_platform(
    system: System, platform: Platform, project: Callable[[], Deployed], tmp_path: Path
) -> None:
    app = project()
    own = {"key": "OWN", "value": "of this app", "kind": "recoverable"}
    platform.call("environments.setEnvironmentVariables", {**app.place, "variables": [own]})
    folder = write(tmp_path, {"Procfile": "web: python app.py\n", "app.py": SHOWS})
    deployed = platform.unkey("deploy", str(folder), "--project", app.project)
    status, body = app.visitor(deployed).get("/env")
    assert status == 200
    seen = body["env"]
    assert seen["OWN"] == "of this app"
    own_names = {"OWN", "PORT", "PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV", "PYTHONUNBUFFERED"}
    platforms = {
        f"UNKEY_{name}"
        for name in ("DEPLOYMENT_ID", "ENVIRONMENT_ID", "REGION", "INSTANCE_ID", "INSTANCE_FOLDER")
    }
    assert set(seen) - {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"} == own_names | platforms
    assert VALUE not in json.dumps(seen)


@pytest.mark.parametrize("root", ["..", "../..", "/etc", "a/../../.."])
def test_the_root_directory_cannot_leave_the_source(
    root: str, platform: Platform, project: Callable[[], Deployed]
) -> None:
    platform.call("environments.updateSettings", {**project().place, "rootDirectory": root}, status=400)


# ----- the command


def test_ctrl_c_leaves_the_deployment_going_and_says_so(
    live: Deployed, platform: Platform, project: Callable[[], Deployed]
) -> None:
    app = project()
    source = app.source("slow")
    # Slow enough that the signal comes before the end, on any machine.
    (source / "app.py").write_text(f"import time\n\ntime.sleep(1)\n{(source / 'app.py').read_text()}")
    process = unkey(platform, "deploy", str(source), "--project", app.project)
    until(lambda: listed(app), "nothing is deployed")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    ended = outcome(process)
    identifier = listed(app)[0]["id"]
    assert ended.status == 130
    assert ended.document == {"deploymentId": identifier, "error": "interrupted", "exitStatus": 130}
    assert f"{identifier} goes on without us" in ended.said
    until(lambda: app.deployment(identifier)["status"] == "ready", "the deployment does not go on")


def test_each_kind_of_failure_has_its_exit_status_and_a_document(
    live: Deployed, platform: Platform, tmp_path: Path
) -> None:
    source = str(live.source("1"))
    place = ("--project", live.project)
    stranger = ("--root-key", "unkey_stranger")
    cases: dict[str, tuple[int, tuple[str, ...]]] = {
        "no folder": (2, ("deploy", str(tmp_path / "missing"), *place)),
        "empty folder": (1, ("deploy", str(tmp_path), *place)),
        "stranger": (3, ("deploy", source, *place, *stranger)),
        "stranger's list": (3, ("ps", *place, *stranger)),
        "no such project": (4, ("ps", "--project", "no-such-project")),
        "no such deployment": (4, ("rollback", "d_missing")),
        "nobody answers": (5, ("ps", *place, "--url", "http://127.0.0.1:9")),
        "no URL": (2, ("ps", *place, "--url", "ftp://nowhere")),
        "no such environment": (4, ("deploy", source, *place, "--env", "staging")),
        "not in time": (6, ("deploy", source, *place, "--timeout", "0")),
        "bad assignment": (2, ("env", "set", "NOVALUE", *place)),
    }
    running = {name: unkey(platform, *arguments) for name, (_, arguments) in cases.items()}
    for name, process in running.items():
        ended = outcome(process)
        assert ended.status == cases[name][0], (name, ended)
        assert ended.said.startswith("error: "), (name, ended)
        assert "Traceback" not in ended.said
        assert ended.document.keys() & {"error", "status"}, (name, ended)


# ----- a full disk and a killed supervisor; last, since they are hard on the system


def test_a_full_disk_stops_no_serving_and_is_gone_with_its_cause(
    disk: Disk, system: System, platform: Platform, live: Deployed, visitor: Visitor
) -> None:
    api = platform.call("apis.createApi", {"name": "full"})["apiId"]
    key = platform.call("keys.createKey", {"apiId": api, "credits": {"remaining": 1000}})["key"]
    assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"
    identifiers = [row["id"] for row in listed(live)]

    with Poller(visitor) as poller:
        disk.fill(system)
        try:
            until(lambda: create_api(platform) == 500, "there is still room")
            assert create_api(platform) == 500
            assert upload(platform, system, WHOLE + bytes(1))[0] in {400, 500}
            assert upload(platform, system, packed(("new", *BAD))) == (500, "service_unavailable")
            assert [row["id"] for row in listed(live)] == identifiers
            for _ in range(20):
                assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"
            web = psutil.Process(int((system.var / "run" / "web.pid").read_text()))
            family = [web, *web.children(recursive=True)]
            web.kill()
            until(lambda: not [process for process in family if _lives(process)], "web outlives itself")
            system.wait_healthy(("WEB_PORT",))
        finally:
            disk.free()
        assert platform.call("apis.createApi", {"name": "room again"})["apiId"]
        live.platform.call("keys.updateKey", {"keyId": _key_id(platform, key), "name": "renamed"})
    assert poller.failures == []
    assert platform.call("keys.verifyKey", {"key": key})["code"] == "VALID"
    system.wait_healthy()


def create_api(platform: Platform) -> int:
    """Return the status of an attempt; some room may be left where the database had written before."""
    try:
        platform.call("apis.createApi", {"name": "nowhere"}, status=500)
    except DemoFailed:
        return 200
    return 500


def _key_id(platform: Platform, key: str) -> str:
    return str(platform.call("keys.verifyKey", {"key": key})["keyId"])


def test_a_killed_supervisor_takes_all_along_and_the_next_one_brings_the_live_deployment_back(
    system: System, visitor: Visitor
) -> None:
    assert system.process is not None
    below = psutil.Process(system.process.pid).children(recursive=True)
    system.process.kill()
    system.process.wait()
    # Agents are told by SIGINT: they stop their instances, too.
    until(lambda: not [process for process in below if _lives(process)], "something outlives `up`")
    system.start()
    visitor.http_port = system.ports["EDGE_HTTP_PORT"]
    visitor.until_version("1", None)
    system.stop()
    assert "nothing runs" in system.manage("down")


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
