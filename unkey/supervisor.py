"""Runs the processes of one machine as their parent: starts, watches, restarts and stops them.

What holds, whatever happens:

- Each child leads a process group. When it ends, what is left of its group is killed before it is
  started again, so that no orphan keeps its port.
- The supervisor is the subreaper of everything below it. An instance whose agent has died becomes its
  child, lives on, and is found again by the agent's successor. When the supervisor has stopped its
  children, whatever still descends from it is swept away: nothing is left behind.
- Should the supervisor itself be killed (`kill -9`), the kernel sends each child its stop signal.

No Django here: `manage.py up` brings the list of programs.
"""

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

from unkey.env import ROOT

FIRST_DELAY = 0.25
LONGEST_DELAY = 15.0
# A child that lived this long had started well: its next crash is a first one.
STEADY_AFTER = 10.0
POLL = 0.1
SWEEP_GRACE = 2.0
LONGEST_LINE = 64 * 1024
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

MARK = "UNKEY_SUPERVISED_VAR"
"""Environment variable by which a process that outlived its supervisor is known."""

COLOURS = (36, 32, 33, 35, 34, 96, 92, 93)


class StartFailed(RuntimeError):
    """A program did not become healthy in time."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running.

    Args:
        name: short; prefix of its log lines, name of its pid file.
        command: what to execute.
        health: address and port that answer `GET /health/ready`; None: the program touches the file
            that UNKEY_READY_FILE names.
        stage: programs of lower stages are stopped first; those of one stage together.
        stop_signal: asks the program to stop.
        grace: seconds from there to SIGKILL.
        after: programs that must be healthy before this one is started for the first time.
        environ: what its environment says otherwise than the others'.
    """

    name: str
    command: tuple[str, ...]
    health: tuple[str, int] | None = None
    stage: int = 0
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 10.0
    after: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class Log:
    """Writes lines, each with the name of who said it; in colours on a terminal, unless NO_COLOR is set."""

    def __init__(self, names: Sequence[str], stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._width = max(map(len, names), default=0)
        self._coloured = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._colour = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}

    def line(self, name: str, text: str) -> None:
        """Write one line; a reader that has gone away or a full disk is no reason to stop."""
        prefix = f"{name:<{self._width}} |"
        if self._coloured:
            prefix = f"\x1b[{self._colour.get(name, 1)}m{prefix}\x1b[0m"
        try:
            self._stream.write(f"{prefix} {text}\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115
        except OSError:
            # A full disk: what runs matters more than what is said of it; later lines may fit again.
            return


class Child:
    """A program's process, of which there is at most one at a time."""

    def __init__(self, program: Program, run_folder: Path, environ: Mapping[str, str], log: Log) -> None:
        self.program = program
        self.starts = 0
        self.last_end = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._pid_file = run_folder / f"{program.name}.pid"
        self._ready_file = run_folder / f"{program.name}.ready"
        self._environ = {
            **environ,
            **program.environ,
            "UNKEY_PROCESS": program.name,
            "UNKEY_READY_FILE": str(self._ready_file),
        }
        self._log = log
        self._rest = b""

    async def run_once(self) -> None:
        """Start the process, pass on what it says, and return when it and its group are gone."""
        loop = asyncio.get_running_loop()
        self._ready_file.unlink(missing_ok=True)
        self.starts += 1
        program = self.program
        self.process = process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(ROOT / "unkey" / "launch.py")),
                *(str(int(program.stop_signal)), str(os.getpid())),
                *program.command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environ,
            cwd=ROOT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            write_whole(self._pid_file, f"{process.pid}\n")
        except OSError as error:
            self._log.line("up", f"cannot write {self._pid_file}: {error.strerror}")
        output, ended = process.stdout.fileno(), asyncio.Event()
        os.set_blocking(output, False)
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(output, self._read, output)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self.kill_group()
            process.wait()
            self.last_end = _ending(process.returncode)
            self._read(output)
            loop.remove_reader(output)
            process.stdout.close()
            if self._rest:
                self._log.line(program.name, self._rest.decode(errors="replace"))
                self._rest = b""
            self.process = None
            self._ready_file.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)

    def kill_group(self) -> None:
        """End whatever is left of the process group, at once."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def ask_to_stop(self) -> None:
        """Send the stop signal."""
        if self.process is not None:
            try:
                os.kill(self.process.pid, self.program.stop_signal)
            except ProcessLookupError:
                return

    async def healthy(self) -> bool:
        """Say whether the process is ready to do its work."""
        if self.process is None:
            return False
        if self.program.health is None:
            return self._ready_file.exists()
        return await answers(*self.program.health)

    def _read(self, output: int) -> None:
        while True:
            try:
                read = os.read(output, 65_536)
            except BlockingIOError:
                return
            if not read:
                asyncio.get_running_loop().remove_reader(output)
                return
            *lines, self._rest = (self._rest + read).split(b"\n")
            if len(self._rest) > LONGEST_LINE:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                self._log.line(self.program.name, line.decode(errors="replace"))


class Supervisor:
    """Keeps programs running until it is told to stop.

    Args:
        programs: what to run; all start at once.
        run_folder: where pid files go; exists.
        environ: environment of all programs.
        log: where lines go.
        start_timeout: seconds in which all programs must become healthy.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        run_folder: Path,
        environ: Mapping[str, str],
        log: Log,
        start_timeout: float = 120,
    ) -> None:
        self._children = [Child(program, run_folder, environ, log) for program in programs]
        self._ready_file = run_folder / "ready"
        self._log = log
        self._start_timeout = start_timeout
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, ready_lines: Sequence[str] = ()) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP; a second signal stops without grace.

        While everything has become healthy, the file `ready` in the run folder holds this process's pid.

        Args:
            ready_lines: said when everything is healthy for the first time.

        Raises:
            StartFailed: a program did not become healthy; everything is stopped by then.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        become_subreaper()
        keepers = {child: asyncio.create_task(self._keep(child)) for child in self._children}
        reaper = asyncio.create_task(self._reap_adopted())
        try:
            await self._become_ready(ready_lines)
            await self._stopping.wait()
        finally:
            self._stopping.set()
            self._ready_file.unlink(missing_ok=True)
            for stage in sorted({child.program.stage for child in keepers}):
                of_stage = [child for child in keepers if child.program.stage == stage]
                await asyncio.gather(*(self._end(child, keepers[child]) for child in of_stage))
            await self._sweep()
            reaper.cancel()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
        for keeper in keepers.values():
            keeper.result()

    def stop(self) -> None:
        """Begin to stop; called again: stop without grace."""
        if not self._stopping.is_set():
            self._log.line("up", "stopping (once more: at once)")
            self._stopping.set()
        elif not self._hurry.is_set():
            self._hurry.set()

    async def _become_ready(self, ready_lines: Sequence[str]) -> None:
        started = time.monotonic()
        waiting = list(self._children)
        while waiting and not self._stopping.is_set():
            for child in list(waiting):
                if await child.healthy():
                    waiting.remove(child)
            if waiting and time.monotonic() - started > self._start_timeout:
                child = waiting[0]
                ends = f"; it ended {child.starts} times, last {child.last_end}" if child.last_end else ""
                raise StartFailed(
                    f"{child.program.name} was not healthy within {self._start_timeout:g} s{ends}"
                )
            if waiting:
                await _wait(self._stopping, POLL)
        if not waiting:
            write_whole(self._ready_file, f"{os.getpid()}\n")
            self._log.line("up", f"ready in {time.monotonic() - started:.1f} s")
            for line in ready_lines:
                self._log.line("up", line)

    async def _keep(self, child: Child) -> None:
        awaited = [other for other in self._children if other.program.name in child.program.after]
        while not self._stopping.is_set() and not all([await other.healthy() for other in awaited]):
            await _wait(self._stopping, POLL)
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await child.run_once()
            except OSError as error:  # no process or memory is left for it at the moment
                child.last_end = f"before it began: {error.strerror}"
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STEADY_AFTER:
                delay = FIRST_DELAY
            self._log.line("up", f"{child.program.name} ended {child.last_end}; again in {delay:g} s")
            await _wait(self._stopping, delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _end(self, child: Child, keeper: "asyncio.Task[None]") -> None:
        child.ask_to_stop()
        hurry = asyncio.create_task(self._hurry.wait())
        done, _ = await asyncio.wait(
            {keeper, hurry}, timeout=child.program.grace, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if keeper not in done:
            if not self._hurry.is_set():
                self._log.line(
                    "up", f"{child.program.name} did not stop in {child.program.grace:g} s: killed"
                )
            child.kill_group()
        # What went wrong with one child must not keep the others from being stopped.
        await asyncio.wait({keeper})

    async def _sweep(self) -> None:
        """End every process that still descends from this one: instances that their agent left."""
        deadline = time.monotonic() + SWEEP_GRACE
        asked: set[int] = set()
        while remaining := descendants():
            late = self._hurry.is_set() or time.monotonic() > deadline
            for process in remaining:
                if not late and process.pid in asked:
                    continue
                asked.add(process.pid)
                try:
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
                except psutil.NoSuchProcess:
                    continue
            await asyncio.sleep(POLL / 2)

    async def _reap_adopted(self) -> None:
        """Collect orphans that ended; children of our own are collected where they are waited for."""
        while True:
            reap_adopted({child.process.pid for child in self._children if child.process})
            await asyncio.sleep(POLL)


def become_subreaper() -> None:
    """Make this process the parent of every orphan below it (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def reap_adopted(own: set[int]) -> None:
    """Collect ended children other than `own`."""
    for process in psutil.Process().children():
        try:
            if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue


def descendants() -> list[psutil.Process]:
    """Return all living processes below this one."""
    living = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
        except psutil.NoSuchProcess:
            continue
    return living


async def answers(address: str, port: int) -> bool:
    """Say whether `GET /health/ready` answers 200 within two seconds."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return status[1:2] == [b"200"]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_ports(run_folder: Path, ports: Mapping[str, int]) -> None:
    """Write `ports.json`: port by the name of its setting."""
    write_whole(run_folder / "ports.json", json.dumps(dict(ports), indent=2) + "\n")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _ending(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"by signal {-returncode}"
    return f"with exit status {returncode}"
