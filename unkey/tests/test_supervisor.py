"""The supervisor, with real processes: restarts, order of stopping, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from unkey.env import ROOT
from unkey.supervisor import Log

PATIENCE = 30.0


def until(condition: Callable[[], object]) -> None:
    """Wait for something that must come; the limit only bounds a failing test."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


DRIVER = """
import asyncio, json, os, signal, sys
from pathlib import Path
from unkey.supervisor import Log, Program, StartFailed, Supervisor

folder, start_timeout, programs = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
programs = [
    Program(
        name,
        (sys.executable, "-c", source),
        **{**options, "stop_signal": signal.Signals(options.get("stop_signal", signal.SIGTERM))},
    )
    for name, source, options in programs
]
log = Log([program.name for program in programs], sys.stdout, os.environ)
supervisor = Supervisor(
    programs, run_folder=folder, environ=dict(os.environ), log=log, start_timeout=start_timeout
)
try:
    asyncio.run(supervisor.run(["look here"]))
except StartFailed as error:
    sys.exit(str(error))
"""

Fake = tuple[str, str, dict[str, float]]


def fake(name: str, before: str = "", after: str = "", **options: float) -> Fake:
    """A program that does something, says that it is ready, does something, and sleeps."""
    source = "\n".join(
        (
            "import os, pathlib, signal, subprocess, sys, time",
            before,
            "pathlib.Path(os.environ['UNKEY_READY_FILE']).touch()",
            after,
            "time.sleep(600)",
        )
    )
    return name, source, options


class Run:
    """A supervisor in a process of its own."""

    def __init__(self, folder: Path, programs: list[Fake], start_timeout: float = 30) -> None:
        self.folder = folder
        self.out = folder / "out"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(folder), str(start_timeout), json.dumps(programs)],
                cwd=ROOT,
                env={**os.environ, "FOLDER": str(folder)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.out.read_text()

    def ready(self) -> "Run":
        until(lambda: (self.folder / "ready").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
        return self

    def pid(self, name: str) -> int:
        file = self.folder / f"{name}.pid"
        until(file.exists)
        return int(file.read_text())

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*programs: Fake, **options: float) -> Run:
        runs.append(Run(tmp_path, list(programs), **options))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            for process in run.below():
                process.kill()
            run.process.kill()
            run.process.wait()


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_child_is_started_again_with_growing_delays(start: Callable[..., Run]) -> None:
    run = start(fake("web"), fake("feed")).ready()
    other = run.pid("feed")
    for delay in ("0.25", "0.5", "1"):
        first = run.pid("web")
        os.kill(first, signal.SIGKILL)
        until(partial(lambda before: run.pid("web") != before, first))
        assert f"web ended by SIGKILL; again in {delay} s" in run.said
    assert run.pid("feed") == other
    assert run.stop() == 0


def test_a_disk_on_which_nothing_can_be_written_keeps_no_child_from_being_watched(
    start: Callable[..., Run],
) -> None:
    run = start(fake("web")).ready()
    supervisor = psutil.Process(run.process.pid)
    _, most = supervisor.rlimit(psutil.RLIMIT_FSIZE)
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (0, most))  # pid files and lines of the log fail from now on
    web = run.pid("web")
    for _ in range(2):
        os.kill(web, signal.SIGKILL)
        until(partial(lambda before: [child for child in run.below() if child.pid != before], web))
        web = run.below()[-1].pid
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (most, most))
    os.kill(web, signal.SIGKILL)
    until(partial(lambda before: run.pid("web") != before, web))
    until(lambda: "web ended by SIGKILL; again in 1 s" in run.said)
    assert run.stop() == 0


def test_a_log_on_a_full_disk_is_no_reason_to_stop() -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    log = Log(["web"], full, {})
    log.line("web", "lost")
    log.line("web", "lost, too")
    with suppress(OSError):
        full.close()


def test_lines_carry_the_name_of_who_said_them_and_no_colour_in_a_file(start: Callable[..., Run]) -> None:
    run = start(
        fake("web", after="print(1, flush=True); print(2, end='', flush=True)"), fake("worker")
    ).ready()
    until(lambda: "web    | 1\n" in run.said)
    assert "up     | look here\n" in run.said
    assert run.stop(signal.SIGTERM) == 0
    assert "web    | 2\n" in run.said
    assert "\x1b" not in run.said


def test_programs_stop_stage_by_stage_each_by_its_own_signal(start: Callable[..., Run]) -> None:
    note = """
def end(number, frame):
    with open(os.environ["FOLDER"] + "/order", "a") as file:
        print(os.environ["UNKEY_PROCESS"] + signal.Signals(number).name, file=file)
    sys.exit()
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
"""
    run = start(
        fake("web", note, stage=2),
        fake("agent", note, stage=1, stop_signal=signal.SIGINT),
        fake("edge", note, stage=0),
    ).ready()
    assert run.stop() == 0
    assert (run.folder / "order").read_text().split() == ["edgeSIGTERM", "agentSIGINT", "webSIGTERM"]


def test_what_ignores_the_stop_signal_is_killed_after_its_grace(start: Callable[..., Run]) -> None:
    run = start(fake("web", STUBBORN, grace=0.3)).ready()
    pid = run.pid("web")
    assert run.stop() == 0
    assert not alive(pid)
    assert "web did not stop in 0.3 s: killed" in run.said


def test_a_second_ctrl_c_does_not_wait_for_the_grace(start: Callable[..., Run]) -> None:
    run = start(fake("web", STUBBORN, grace=3600)).ready()
    pid = run.pid("web")
    run.process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in run.said)
    assert run.stop() == 0
    assert not alive(pid)


DETACH = """
with open(os.environ["FOLDER"] + "/instance", "a") as file:
    print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, file=file)
"""


def instances(run: Run) -> list[int]:
    return [int(line) for line in (run.folder / "instance").read_text().split()]


def test_an_instance_survives_the_crash_of_its_agent_and_not_the_end_of_the_supervisor(
    start: Callable[..., Run],
) -> None:
    run = start(fake("agent", DETACH)).ready()
    agent = run.pid("agent")
    os.kill(agent, signal.SIGKILL)
    until(lambda: run.pid("agent") != agent)
    until(lambda: len(instances(run)) == 2)
    first, second = instances(run)
    assert psutil.Process(first).ppid() == run.process.pid

    assert run.stop() == 0
    assert not alive(first)
    assert not alive(second)


def test_an_orphan_that_ends_is_collected(start: Callable[..., Run]) -> None:
    run = start(fake("agent", DETACH)).ready()
    (first,) = instances(run)
    agent = run.pid("agent")
    os.kill(agent, signal.SIGKILL)
    until(lambda: run.pid("agent") != agent)
    os.kill(first, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(first))
    assert run.stop() == 0


def test_what_a_crashed_child_leaves_in_its_group_is_killed_before_it_is_started_again(
    start: Callable[..., Run],
) -> None:
    run = start(fake("web", DETACH.replace(", start_new_session=True", ""))).ready()
    (left,) = instances(run)
    web = run.pid("web")
    os.kill(web, signal.SIGKILL)
    until(lambda: run.pid("web") != web)
    assert not alive(left)
    assert run.stop() == 0


def test_children_do_not_outlive_a_killed_supervisor(start: Callable[..., Run]) -> None:
    run = start(fake("web"), fake("feed")).ready()
    pids = [run.pid("web"), run.pid("feed")]
    run.process.kill()
    run.process.wait()
    until(lambda: not any(map(alive, pids)))


def test_a_program_that_never_gets_healthy_ends_the_start(start: Callable[..., Run]) -> None:
    run = start(fake("web"), fake("feed", "sys.exit(3)"), start_timeout=1.0)
    assert run.process.wait(PATIENCE) == 1
    assert "feed was not healthy within 1 s; it ended" in run.said
    assert "with exit status 3" in run.said
    assert not list(run.folder.glob("*.pid"))


def test_ports_file_is_json_by_setting(tmp_path: Path) -> None:
    from unkey.supervisor import write_ports

    write_ports(tmp_path, {"WEB_PORT": 8080})
    assert json.loads((tmp_path / "ports.json").read_text()) == {"WEB_PORT": 8080}
    assert [file.name for file in tmp_path.iterdir()] == ["ports.json"]
