"""Runtime `process`: instances are process groups on this machine, each in its own folder.

    <root>/snapshots/<digest>.tar.gz     what was fetched
    <root>/environments/<key>/           virtual environments, by what is installed in them
    <root>/instances/<name>/             instance.json, log, app/ (the unpacked snapshot), tmp/
    <root>/../ports.json                 who has which port of the machine; shared by its agents

Instances outlive the agent: each leads its own session, writes its log itself, and is found again by
`instance.json`, which says pid, start time and boot, so a pid that was given to a stranger is never
taken for an instance. (PR_SET_PDEATHSIG would undo this.)

Limits, for what an unprivileged agent can do without a control group:

- memory: the group's resident memory is looked at while it is observed, and a group above its
  `memoryMib` is ended, as the kernel's out-of-memory killer would; RLIMIT_DATA at four times that is a
  hard stop for one process between two looks. (RLIMIT_AS would break runtimes that reserve much and
  use little, such as node and Go.)
- RLIMIT_NOFILE 65536 or the most that is allowed, RLIMIT_CORE 0, nice 5 below the platform's own.
- CPU and disk are not limited by this runtime.
"""

import asyncio
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from agent import files, static
from agent.control_plane import ControlPlane, Refused, Unreachable
from agent.runtimes import processes
from agent.runtimes.base import Observed, Order, StartFailed, Usage
from agent.runtimes.dependencies import Environments, base_path, run
from agent.runtimes.ports import HOST, NoPort, Ports
from agent.runtimes.processes import Identity
from agent.wire import VARIABLE, LogLine
from unkey import clock, snapshots
from unkey.errors import InvalidSnapshot

# Below the kernel's usual range for outgoing connections (32768 and up), so that none takes the port
# between the look and the instance's bind.
PORTS = range(20_000, 32_000)
LOG_BYTES = 10 * 1024 * 1024
LOG_READ_BYTES = 1024 * 1024
LINE_CHARACTERS = 16 * 1024
# What is left of the logs of instances that are gone, such as those of a deployment that failed.
LAST_LOG_BYTES = 256 * 1024
LAST_LOGS, LAST_LOGS_SECONDS = 100, 86_400.0
MEMORY_LOOK_SECONDS = 2.0
NOFILE = 65_536
NICE = 5
AGENT_MARK = "[agent] "
# How a plan asks for Python packages: these go to a virtual environment that is kept, not to the folder.
PIP = ["python", "-m", "pip", "install"]

log = structlog.get_logger(__name__)


class Record(msgspec.Struct):
    """`instance.json`: what is needed to find an instance again; pid 0: about to be started."""

    name: str
    deployment_id: str
    image: str
    port: int
    memory_mib: int
    environment: str = ""
    pid: int = 0
    started: int = 0
    boot: str = ""

    @property
    def process(self) -> Identity | None:
        """The process that leads the instance."""
        return Identity(self.pid, self.started, self.boot) if self.pid else None


@dataclass(slots=True)
class Instance:
    """An instance in memory: its record, how it ended, and when its log had which size."""

    record: Record
    folder: Path
    child: "subprocess.Popen[bytes] | None" = None
    ended: str = ""
    sizes: "deque[tuple[int, int]]" = field(default_factory=lambda: deque(maxlen=5000))

    @property
    def log(self) -> Path:
        """File that standard output and error go to."""
        return self.folder / "log"

    @property
    def logs(self) -> tuple[Path, Path]:
        """What was written, oldest first; one of them need not be there."""
        return self.folder / "log.1", self.log


class ProcessRuntime:
    """See the module; implements `agent.runtimes.base.Runtime`.

    Args:
        root: folder of the region, made when it is not there.
        control: where snapshots come from.
        limits: how large a snapshot may be; by default what the settings say.
    """

    def __init__(self, root: Path, control: ControlPlane, limits: snapshots.Limits | None = None) -> None:
        self._root = root
        self._control = control
        self._limits = limits
        self._warming: asyncio.Task[None] | None = None
        self._snapshots = root / "snapshots"
        self._instances = root / "instances"
        self._last_logs = root / "logs"
        for folder in (self._snapshots, self._instances, self._last_logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._environments = Environments(root / "environments")
        self._ports = Ports(root.parent / "ports.json", PORTS)
        self._known: dict[str, Instance] = {}
        self._used: dict[Identity, Usage] = {}
        self._used_at = -MEMORY_LOOK_SECONDS
        self._looking = asyncio.Lock()
        self._fetching: dict[str, asyncio.Lock] = {}

    async def recover(self) -> list[Observed]:
        """See `Runtime.recover`."""
        await asyncio.to_thread(self._drop_unfinished)
        self._warming = asyncio.create_task(self._warm())
        for folder in sorted(self._instances.iterdir()):
            try:
                record = msgspec.json.decode((folder / "instance.json").read_bytes(), type=Record)
            except (OSError, msgspec.DecodeError, ValueError):
                await self._end_all(None, folder.name, signal.SIGKILL, 1.0)
                await self._remove(folder)
                continue
            instance = Instance(record, folder)
            await asyncio.to_thread(self._ports.adopt, folder, record.port)
            process = record.process
            if process is None or not processes.is_alive(process):
                instance.ended = "it ended while no agent was there to see how"
                await self._end_all(process, record.name, signal.SIGKILL, 1.0)
            self._known[record.name] = instance
        return [await self.observe(name) for name in self._known]

    def _drop_unfinished(self) -> None:
        """Remove what an agent that was killed had begun to fetch or to install."""
        for draft in self._snapshots.glob(".*"):
            draft.unlink(missing_ok=True)
        self._environments.drop_unfinished()

    async def _warm(self) -> None:
        """Make the bare environment now, so that the first deployment does not wait for it."""
        try:
            await self._environments.ensure(self._root, "", [], self._root / "environments.log")
        except (StartFailed, OSError) as error:
            # Whoever needs it tries again, and tells the deployment's owner.
            log.warning("environment_not_made", error=str(error))

    async def _take_port(self, folder: Path) -> int:
        try:
            return await asyncio.to_thread(self._ports.take, folder, self._control.heard)
        except NoPort as error:
            raise StartFailed(str(error), again=True) from error
        except OSError as error:
            raise StartFailed(_disk_trouble(error), again=True) from error

    async def start(self, order: Order) -> Observed:
        """See `Runtime.start`."""
        folder = self._instances / order.name
        folder.mkdir(mode=0o700, exist_ok=True)
        previous = self._known.get(order.name)
        if previous is not None:
            await self._end_all(previous.record.process, order.name, signal.SIGKILL, 1.0)
        record = Record(
            name=order.name,
            deployment_id=order.deployment_id,
            image=order.image,
            port=await self._take_port(folder),
            memory_mib=order.settings.memory_mib,
        )
        instance = Instance(record, folder)
        if previous is not None:
            instance.sizes = previous.sizes
        self._known[order.name] = instance
        try:
            app = await self._unpack(order, folder)
            environment = await self._prepare(order, app, instance)
            await self._launch(order, app, environment, instance)
        except StartFailed as error:
            instance.ended = str(error)
            raise
        except OSError as error:
            instance.ended = _disk_trouble(error)
            raise StartFailed(instance.ended, again=True) from error
        return await self.observe(order.name)

    async def observe(self, name: str) -> Observed:
        """See `Runtime.observe`."""
        instance = self._known[name]
        record = instance.record
        self._mark(instance)
        process = record.process
        alive = not instance.ended and process is not None and processes.is_alive(process)
        if alive:
            alive = await self._within_memory(instance)
        if not alive and not instance.ended:
            instance.ended = await _how_it_ended(instance.child)
        return Observed(
            name=name,
            deployment_id=record.deployment_id,
            address=f"{HOST}:{record.port}",
            alive=alive,
            ended=instance.ended,
        )

    async def usage(self) -> dict[str, Usage]:
        """See `Runtime.usage`."""
        running = {
            name: (process, self._marked(name))
            for name, instance in self._known.items()
            if not instance.ended and (process := instance.record.process) is not None
        }
        if not running:
            return {}
        found = await asyncio.to_thread(processes.usage, running)
        usage = {name: Usage(seconds, octets) for name, (seconds, octets) in found.items()}
        # By process, not by name: what was started anew meanwhile must not answer for what ran before.
        self._used = {running[name][0]: used for name, used in usage.items()}
        self._used_at = time.monotonic()
        return usage

    async def connections(self, name: str) -> int:
        """See `Runtime.connections`."""
        instance = self._known.get(name)
        return await asyncio.to_thread(processes.connections, instance.record.port) if instance else 0

    async def stop(self, name: str, signal_name: str, grace_seconds: float) -> None:
        """See `Runtime.stop`."""
        instance = self._known[name]
        number = signal.Signals[signal_name]
        await self._end_all(instance.record.process, name, number, grace_seconds)
        instance.ended = instance.ended or "it was stopped"
        if instance.child is not None:
            await asyncio.to_thread(instance.child.wait)

    async def remove(self, name: str) -> None:
        """See `Runtime.remove`."""
        instance = self._known.pop(name, None)
        if instance is not None:
            await asyncio.to_thread(self._keep_log, instance)
            await self._remove(instance.folder)

    def _keep_log(self, instance: Instance) -> None:
        record = instance.record
        kept = self._last_logs / f"{record.deployment_id}.{record.name}"
        try:
            text = b"".join(path.read_bytes() for path in instance.logs if path.exists())
            if text:
                kept.write_bytes(text[-LAST_LOG_BYTES:])
                written = instance.log.stat().st_mtime
                os.utime(kept, (written, written))
        except OSError as error:  # a full disk
            log.warning("log_dropped", name=record.name, error=str(error))
            kept.unlink(missing_ok=True)

    async def _remove(self, folder: Path) -> None:
        """Remove an instance's folder; from then on its port rests."""
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        try:
            await asyncio.to_thread(self._ports.release, folder)
        except OSError as error:  # a full disk: it begins to rest when the next port is taken
            log.warning("port_not_released", folder=str(folder), error=str(error))

    async def note(self, name: str, text: str) -> None:
        """See `Runtime.note`."""
        instance = self._known.get(name)
        if instance is None:
            return
        try:
            with instance.log.open("ab") as file:
                file.write(f"{AGENT_MARK}{text}\n".encode())
        except OSError as error:
            log.warning("note_not_written", name=name, note=text, error=str(error))

    async def logs(self, name: str, tail: int) -> list[LogLine]:
        """See `Runtime.logs`."""
        instance = self._known.get(name)
        if instance is None or tail <= 0:
            return []
        return await asyncio.to_thread(_read_log, instance, tail)

    async def last_logs(self, deployment_id: str, tail: int) -> list[LogLine]:
        """See `Runtime.last_logs`."""
        return await asyncio.to_thread(self._read_last_logs, deployment_id, tail)

    def _read_last_logs(self, deployment_id: str, tail: int) -> list[LogLine]:
        found: list[LogLine] = []
        for path in self._last_logs.iterdir():
            of, _, name = path.name.partition(".")
            if of == deployment_id:
                found += _lines_of(path, name, [])
        return sorted(found, key=lambda line: line.time)[-tail:] if tail > 0 else []

    async def tidy(self, images: set[str]) -> None:
        """See `Runtime.tidy`."""
        await self._end_strays()
        instances = list(self._known.values())
        await asyncio.to_thread(self._tidy, images, instances)

    async def _end_strays(self) -> None:
        """End processes, and remove folders, of instances that nobody knows.

        Such as those whose folder somebody has removed while no agent was there to see them.
        """
        marked = await asyncio.to_thread(processes.marked, str(self._instances))
        strays = [pid for pid, mark in marked.items() if os.path.basename(mark) not in self._known]
        folders = [folder for folder in self._instances.iterdir() if folder.name not in self._known]
        if strays:
            log.warning("strays_ended", pids=strays)
            processes.end(strays, signal.SIGKILL)
        for folder in folders:
            await self._remove(folder)

    def _tidy(self, images: set[str], instances: list[Instance]) -> None:
        kept = {f"{image.rpartition(':')[2]}.tar.gz" for image in images}
        for path in self._snapshots.iterdir():
            if path.name not in kept and not path.name.startswith("."):
                path.unlink(missing_ok=True)
        logs = sorted(self._last_logs.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for number, path in enumerate(logs):
            if number >= LAST_LOGS or path.stat().st_mtime < time.time() - LAST_LOGS_SECONDS:
                path.unlink(missing_ok=True)
        self._environments.tidy({instance.record.environment for instance in instances}, time.time())

    async def _unpack(self, order: Order, folder: Path) -> Path:
        """Return the program's folder, fresh from its snapshot."""
        try:
            digest = snapshots.parse_reference(order.image)
        except InvalidSnapshot as error:
            raise StartFailed(f"The runtime `process` runs source snapshots only. {error.detail}") from error
        archive = self._snapshots / f"{digest}.tar.gz"
        async with self._fetching.setdefault(digest, asyncio.Lock()):
            if not archive.exists():
                try:
                    await self._control.snapshot(digest, archive)
                except Unreachable as error:
                    raise StartFailed(f"The snapshot cannot be fetched now: {error}", again=True) from error
                except Refused as error:
                    raise StartFailed(f"The snapshot cannot be fetched: {error}") from error
        app = folder / "app"
        await asyncio.to_thread(shutil.rmtree, app, ignore_errors=True)
        try:
            with archive.open("rb") as file:
                await asyncio.to_thread(snapshots.unpack, file, app, self._limits)
        except InvalidSnapshot as error:
            archive.unlink(missing_ok=True)
            raise StartFailed(error.detail) from error
        root = Path(os.path.realpath(app / order.settings.root_directory))
        if not root.is_dir() or not root.is_relative_to(os.path.realpath(app)):
            raise StartFailed(f"There is no folder {order.settings.root_directory!r} in the snapshot.")
        (folder / "tmp").mkdir(exist_ok=True)
        return root

    async def _prepare(self, order: Order, app: Path, instance: Instance) -> Path:
        """Return the instance's virtual environment, with what the program needs installed."""
        install = order.plan.install or []
        python = install[: len(PIP)] == PIP
        try:
            path = await self._environments.ensure(
                app, order.image, install[len(PIP) :] if python else [], instance.log
            )
            if install and not python:
                await run(install, app, instance.log, 600.0, self._variables(order, path, instance))
        except StartFailed as error:
            lines = [line.text for line in _read_log(instance, 20) if line.stream != "agent"]
            raise StartFailed("\n".join([str(error), *lines]), again=error.again) from error
        instance.record.environment = path.name
        return path

    async def _launch(self, order: Order, app: Path, environment: Path, instance: Instance) -> None:
        record = instance.record
        path = instance.folder / "instance.json"
        # Written twice: an agent that dies between the two finds by the name's mark what it had started.
        files.write(path, msgspec.json.encode(record))
        variables = self._variables(order, environment, instance)
        plan = order.plan.command
        command = ["/bin/sh", "-c", plan] if isinstance(plan, str) else _with_port(plan, record.port)
        if order.plan.kind == "static":
            # The platform's server by the platform's Python: the instance's own does not see the package.
            command = [sys.executable, "-I", static.__file__, *command[-1:]]
        program = shutil.which(app / command[0] if "/" in command[0] else command[0], path=variables["PATH"])
        if program is None:
            raise StartFailed(f"The command {command[0]!r} is not installed here.")
        try:
            with instance.log.open("ab", buffering=0) as output:
                # Not asyncio's: its transport kills the process when the agent's loop is closed. And with
                # no await up to the record, no cancellation comes between the two.
                instance.child = subprocess.Popen(
                    _limited([str(program), *command[1:]], record.memory_mib),
                    cwd=app,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(f"The command {command[0]!r} cannot be run: {reason}") from error
        found = processes.identity(instance.child.pid)
        if found is None:
            return
        record.pid, record.started, record.boot = found.pid, found.started, found.boot
        files.write(path, msgspec.json.encode(record))

    def _variables(self, order: Order, environment: Path, instance: Instance) -> dict[str, str]:
        for name, value in order.variables.items():
            if not VARIABLE.fullmatch(name) or "\0" in value:
                raise StartFailed(f"The variable {name!r} cannot be handed to a process: rename or mend it.")
        return {
            "PATH": ":".join([str(environment / "bin"), *base_path()]),
            "VIRTUAL_ENV": str(environment),
            "HOME": str(instance.folder),
            "TMPDIR": str(instance.folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **order.variables,
            "PORT": str(instance.record.port),
            "UNKEY_DEPLOYMENT_ID": order.deployment_id,
            "UNKEY_ENVIRONMENT_ID": order.environment_id,
            "UNKEY_REGION": order.region,
            "UNKEY_INSTANCE_ID": order.name,
            processes.MARK: str(instance.folder),
        }

    async def _within_memory(self, instance: Instance) -> bool:
        record = instance.record
        async with self._looking:
            if time.monotonic() - self._used_at > MEMORY_LOOK_SECONDS:
                await self.usage()  # of all of them at once
        used = self._used.get(record.process) if record.process is not None else None
        if used is None or used.memory_octets <= record.memory_mib * 1024 * 1024:
            return True
        instance.ended = (
            f"it used {used.memory_octets // 1024 // 1024} MiB of memory; {record.memory_mib} MiB are allowed"
        )
        await self._end_all(record.process, record.name, signal.SIGKILL, 1.0)
        return False

    def _marked(self, name: str) -> str:
        """What the environment of an instance's processes says: names are an agent's own, folders the machine's."""
        return str(self._instances / name)

    async def _end_all(
        self, process: Identity | None, name: str, number: signal.Signals, grace_seconds: float
    ) -> None:
        """Signal every process of an instance, wait, then kill until none is left."""
        mark = self._marked(name)
        pids = await asyncio.to_thread(processes.members, process, mark)
        processes.end(pids, number)
        deadline = time.monotonic() + grace_seconds
        pause = 0.01
        while pids:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.2)
            pids = await asyncio.to_thread(processes.members, process, mark)
            if time.monotonic() > deadline or number is signal.SIGKILL:
                processes.end(pids, signal.SIGKILL)

    @staticmethod
    def _mark(instance: Instance) -> None:
        """Remember how long the log is now, which later tells when a line was written."""
        try:
            size = instance.log.stat().st_size
        except FileNotFoundError:
            return
        if size > LOG_BYTES // 2:
            _bound_log(instance)
        elif not instance.sizes or instance.sizes[-1][0] != size:
            instance.sizes.append((size, clock.now_ms()))


def _disk_trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The agent's disk is full: the instance is started as soon as its operator has made room."
    return f"The agent's disk cannot be used ({error.strerror}): its operator must look at it."


def _limited(command: list[str], memory_mib: int) -> list[str]:
    """Return a command that limits itself before it becomes the program, under the same pid.

    The shell does it: limits that are set from outside would come too late for a program that forks at
    once, and code between fork and exec is not safe in a process with threads.
    """
    count = NOFILE
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        count = min(count, most)
    script = f'ulimit -c 0; ulimit -n {count}; ulimit -d {memory_mib * 1024 * 4}; exec nice -n {NICE} "$@"'
    return ["/bin/sh", "-c", script, "sh", *command]


def _with_port(command: list[str], port: int) -> list[str]:
    """Put the port where a command without a shell names it: `$PORT`, `${PORT}` or `$(PORT)`."""
    for form in ("${PORT}", "$(PORT)", "$PORT"):
        command = [part.replace(form, str(port)) for part in command]
    return command


async def _how_it_ended(child: "subprocess.Popen[bytes] | None") -> str:
    if child is None:
        return "it ended; how, no agent saw"
    status = await asyncio.to_thread(child.wait)
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def _bound_log(instance: Instance) -> None:
    """Move the last half of what a log may hold to `log.1`; the file itself stays open for appends."""
    older = instance.folder / "log.1"
    try:
        with instance.log.open("rb") as file, older.open("wb") as out:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES // 2))
            shutil.copyfileobj(file, out)
    except OSError as error:
        # A full disk: these lines go, so that there is room for others.
        log.warning("log_dropped", name=instance.record.name, error=str(error))
        older.unlink(missing_ok=True)
    os.truncate(instance.log, 0)
    instance.sizes.clear()


def _cut(line: str) -> str:
    left = len(line) - LINE_CHARACTERS
    return line if left <= 0 else f"{line[:LINE_CHARACTERS]}… and {left} characters more"


def _read_log(instance: Instance, tail: int) -> list[LogLine]:
    lines: list[LogLine] = []
    for path in instance.logs:
        lines += _lines_of(path, instance.record.name, list(instance.sizes) if path == instance.log else [])
    return lines[-tail:]


def _lines_of(path: Path, name: str, sizes: list[tuple[int, int]]) -> list[LogLine]:
    """Return the last lines of a file.

    Args:
        path: it need not be there.
        name: the instance's.
        sizes: how long the file was when, oldest first.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - LOG_READ_BYTES)
            file.seek(start)
            content = file.read(LOG_READ_BYTES)
            written = int(os.fstat(file.fileno()).st_mtime * 1000)
    except FileNotFoundError:
        return []
    if start:
        start += content.find(b"\n") + 1
        content = content[content.find(b"\n") + 1 :]
    lines: list[LogLine] = []
    offset = start
    for raw in content.split(b"\n"):
        offset += len(raw) + 1
        if not raw and offset > size:
            break
        while sizes and sizes[0][0] < offset - 1:
            sizes.pop(0)
        text = _cut(raw.decode("utf-8", "replace").rstrip("\r"))
        lines.append(
            LogLine(
                time=min(sizes[0][1] if sizes else written, written),
                instance=name,
                stream="agent" if text.startswith(AGENT_MARK) else "output",
                text=text.removeprefix(AGENT_MARK),
            )
        )
    return lines
