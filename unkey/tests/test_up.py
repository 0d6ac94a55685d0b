"""`manage.py up` and `down`, with the real processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from unkey.env import ROOT, SETTINGS
from unkey.tests.test_supervisor import alive, until

# A group begins first: what takes longest would otherwise come last, and leave the other workers idle.
pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.timeout(300)]

ENVIRON = {name: value for name, value in os.environ.items() if name not in {s.name for s in SETTINGS}}


def manage(var: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**ENVIRON, "UNKEY_VAR": str(var), **environ},
        capture_output=True,
        text=True,
        timeout=240,
    )


class System:
    """`manage.py up` in a folder of its own, on free ports."""

    def __init__(self, var: Path, *arguments: str) -> None:
        self.var, self.run = var, var / "run"
        self.out = var.with_suffix(".log")
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", *arguments],
                cwd=ROOT,
                env={**ENVIRON, "UNKEY_VAR": str(var), "PORTS": "auto"},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> "System":
        deadline = time.monotonic() + 150
        ready = self.run / "ready"
        while not (ready.exists() and ready.read_text() == f"{self.process.pid}\n"):
            assert self.process.poll() is None, self.out.read_text()
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.1)
        return self

    @property
    def ports(self) -> dict[str, int]:
        read: dict[str, int] = json.loads((self.run / "ports.json").read_text())
        return read

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, port: str, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=10) as answer:
            status: int = answer.status
            return status

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., System]]:
    systems: list[System] = []

    def begin(*arguments: str) -> System:
        systems.append(System(tmp_path / "var", *arguments))
        return systems[-1]

    yield begin
    for system in systems:
        if system.process.poll() is None:
            for process in system.below():
                process.kill()
            system.process.kill()
            system.process.wait()


def restarted(pid_file: Path, old: int) -> bool:
    return pid_file.exists() and pid_file.read_text() != f"{old}\n"


def test_everything_starts_survives_kills_and_leaves_nothing_behind(up: Callable[..., System]) -> None:
    system = up().ready()
    for port in ("WEB_PORT", "FEED_PORT", "AGENT_PORT", "EDGE_METRICS_PORT"):
        assert system.get(port, "/health/live") == 200
        assert system.get(port, "/health/ready") == 200
        assert system.get(port, "/health/startup") == 200
    assert system.get("WEB_PORT", "/admin/login/") == 200
    assert system.get("WEB_PORT", "/static/admin/css/base.css") == 200

    pids = {file.stem: int(file.read_text()) for file in system.run.glob("*.pid")}
    assert set(pids) == {"up", "web", "feed", "worker", "beat", "agent", "edge"}
    assert pids["up"] == system.process.pid

    for name in ("web", "worker"):
        os.kill(pids[name], signal.SIGKILL)
    for name in ("web", "worker"):
        file = system.run / f"{name}.pid"
        until(partial(restarted, file, pids[name]))
    until(lambda: (system.run / "worker.ready").exists())

    second = manage(system.var, "up", PORTS="auto")
    assert second.returncode == 1
    assert second.stderr == (
        f"error: already running in {system.var} (pid {system.process.pid}): "
        "`manage.py down` stops it, UNKEY_VAR chooses another folder\n"
    )

    ports, processes = system.ports, system.below()
    assert system.stop() == 0, system.out.read_text()
    assert not [process for process in processes if alive(process.pid)]
    assert not list(system.run.glob("*.json"))
    for number in ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
    assert "Traceback" not in system.out.read_text()


def test_systems_run_side_by_side_down_stops_its_own_and_nothing_outlives_a_killed_up(
    tmp_path: Path, up: Callable[..., System], schema: Path
) -> None:
    for name in ("var", "other"):
        (tmp_path / name).mkdir(mode=0o700)
        shutil.copyfile(schema, tmp_path / name / "unkey.sqlite3")
    one = up("--only", "web,worker").ready()
    two = System(tmp_path / "other", "--only", "web")
    try:
        two.ready()
        assert not set(one.ports.values()) & set(two.ports.values())
        processes = two.below()
        done = manage(two.var, "down")
        assert (done.returncode, done.stdout) == (0, "stopped\n")
        assert two.process.wait(30) == 0
        assert not [process for process in processes if alive(process.pid)]
        assert manage(two.var, "down").stdout == f"nothing runs in {two.var}\n"
    finally:
        two.process.kill()
        two.process.wait()
    assert one.get("WEB_PORT", "/health/ready") == 200

    processes = one.below()
    one.process.kill()
    one.process.wait()
    until(lambda: not [process for process in processes if alive(process.pid)])
    again = up("--only", "web").ready()
    assert again.stop(signal.SIGTERM) == 0


def test_var_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert manage(tmp_path / "var", "check").returncode == 0
    assert (tmp_path / "var").stat().st_mode & 0o777 == 0o700
    secrets = list((tmp_path / "var" / "secrets").iterdir())
    assert [secret.stat().st_mode & 0o777 for secret in secrets] == [0o600] * len(secrets)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").rstrip()


def test_a_taken_port_is_said_in_one_line(tmp_path: Path, taken: int) -> None:
    assert refusal(manage(tmp_path / "var", "up", "--only", "web", WEB_PORT=str(taken))) == (
        f"port {taken} is taken: set WEB_PORT to a free port, or PORTS=auto to have all chosen"
    )


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WEB_PORT": "eighty"}, "WEB_PORT must be a port, not 'eighty': web: admin, management API"),
        ({"DEBUG": "maybe"}, "DEBUG must be a flag, not 'maybe'"),
        ({"WORKER_CONCURRENCY": "-1"}, "WORKER_CONCURRENCY must be a count, not '-1'"),
        (
            {"DATABASE_URL": "postgres://x/y"},
            "DATABASE_URL must start with sqlite:/// or mysql://, not postgres://",
        ),
        (
            {"DATABASE_URL": "sqlite:////nowhere/x.sqlite3"},
            "the database (DATABASE_URL) refused: unable to open",
        ),
        ({"CELERY_BROKER_URL": "filesystem://"}, "CELERY_BROKER_URL lacks the folder"),
        ({"UNKEY_VAR": "/dev/null/var"}, "/dev/null is not a folder (UNKEY_VAR chooses"),
        ({"UNKEY_VAR": "/proc/var"}, "cannot write /proc/var"),
        ({"UNKEY_VAR": "/dev/full/var"}, "/dev/full is not a folder"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said_in_one_line(
    tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    line = refusal(manage(tmp_path / "var", "up", **{"PORTS": "auto", **environ}))
    assert line.startswith(said)


_EXEC = "os.execv(sys.argv[1], sys.argv[1:])"

PROCESSES = {
    "web": ("-m", "gunicorn", "-c", "python:unkey.gunicorn", "unkey.wsgi"),
    "feed": ("-m", "uvicorn", "unkey.asgi:application"),
    "worker": ("-m", "celery", "--quiet", "-A", "unkey", "worker"),
    "beat": ("-m", "celery", "--quiet", "-A", "unkey", "beat", "--pidfile="),
    "edge": ("-m", "edge"),
    "agent": ("-m", "agent"),
    "settings": ("manage.py", "settings"),
}


@pytest.mark.parametrize(
    ("environ", "said", "unconcerned"),
    [
        ({"WEB_PORT": "eighty"}, "WEB_PORT must be a port", set()),
        ({"DATABASE_URL": "postgres://x/y"}, "DATABASE_URL must start with", {"agent"}),
        ({"DATABASE_URL": "mysql://u:hunter2@h/n"}, "pip install -r requirements/mysql.txt", {"agent"}),
        # Web, feed and edge wait for a database that is away.
        (
            {"DATABASE_URL": "sqlite:////nowhere/x.sqlite3"},
            "the database (DATABASE_URL) refused: unable to open database file",
            {"web", "feed", "edge", "agent", "settings"},
        ),
        ({"UNKEY_VAR": "/dev/null/var"}, "/dev/null", set()),
    ],
)
def test_every_process_says_in_one_line_what_keeps_it_from_starting(
    tmp_path: Path, environ: dict[str, str], said: str, unconcerned: set[str]
) -> None:
    driver = tmp_path / "without-driver" / "MySQLdb"
    driver.mkdir(parents=True)
    (driver / "__init__.py").write_text("raise ImportError")
    given = {**ENVIRON, "UNKEY_VAR": str(tmp_path / "var"), "PYTHONPATH": str(driver.parent), **environ}
    running = {
        name: subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, command in PROCESSES.items()
        if name not in unconcerned
    }
    for name, process in running.items():
        line, _ = process.communicate(timeout=240)
        assert process.returncode in {1, 2}, (name, line)
        assert said in line, (name, line)
        assert line.count("\n") == 1, (name, line)
        assert "hunter2" not in line


def test_a_disk_on_which_nothing_can_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    limited = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); {_EXEC}"
    done = subprocess.run(
        [sys.executable, "-c", limited, sys.executable, "manage.py", "up"],
        cwd=ROOT,
        env={**ENVIRON, "UNKEY_VAR": str(tmp_path / "var"), "PORTS": "auto"},
        capture_output=True,
        text=True,
    )
    assert refusal(done) == f"cannot write {tmp_path}/var: File too large (the limit `ulimit -f`)"


def test_a_broken_database_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("this is no database " * 100)
    line = refusal(manage(tmp_path / "var", "up", PORTS="auto", DATABASE_URL=f"sqlite:///{tmp_path}/broken"))
    assert line == "the database (DATABASE_URL) refused: file is not a database"


def test_a_database_server_that_does_not_answer_is_said_in_one_line(tmp_path: Path, taken: int) -> None:
    url = f"mysql://unkey:secret@127.0.0.1:{taken}/unkey?connect_timeout=1"
    line = refusal(manage(tmp_path / "var", "up", PORTS="auto", DATABASE_URL=url))
    assert "DATABASE_URL" in line
    assert "secret" not in line


def test_deployment_check_is_clean_without_debug(tmp_path: Path) -> None:
    done = manage(tmp_path / "var", "check", "--deploy", "--fail-level", "DEBUG", DEBUG="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "System check identified no issues (0 silenced).\n"


def test_settings_are_explained_and_secrets_hidden(tmp_path: Path) -> None:
    given = {"DATABASE_URL": "sqlite:////tmp/x.sqlite3", "AGENT_TOKEN": "hunter2", "WEB_PORT": "21077"}
    done = manage(tmp_path / "var", "settings", "--json", **given)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == [setting.name for setting in SETTINGS]
    assert rows["WEB_PORT"] == {
        "name": "WEB_PORT",
        "type": "port",
        "default": "8080",
        "value": "21077",
        "help": "web: admin, management API",
    }
    assert rows["AGENT_TOKEN"]["value"] == "(set, hidden)"
    explained = manage(tmp_path / "var", "settings", "--explain", **given).stdout
    for setting in SETTINGS:
        assert setting.name in explained
    assert "hunter2" not in done.stdout + explained
    assert "WEB_PORT=21077\n" in manage(tmp_path / "var", "settings", **given).stdout
