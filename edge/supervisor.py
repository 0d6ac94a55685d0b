"""`python -m edge --workers N`: processes that share their ports, replaced when they end, and one by one on SIGHUP.

Each worker has sockets of its own to listen with, among which the kernel spreads connections (SO_REUSEPORT).
The supervisor holds them open all the time: what is connected while a worker is being replaced waits in its
socket for the successor. A successor by hand-over listens on the same sockets before its predecessor stops.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import structlog

from edge.http.limits import Limits
from edge.http.request import Request
from edge.http.server import Server, bound
from edge.worker import Inheritance

_T = TypeVar("_T")
log = structlog.get_logger("edge")

HEALTH = "metrics"
_GENERATIONS = "ab"  # a successor has another name than its predecessor, whose folder is still in use
_FIRST_PAUSE, _HOPELESS_PAUSE, _LONGEST_PAUSE = 0.1, 1.0, 5.0
_BAD_SETTING = 2
_SOUND_SECONDS = 5.0  # a worker that has lived for so long has started well
_READY_SECONDS = 60.0
_ASKED_EVERY = 0.05
_PATIENCE = 2.0
_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_PROMETHEUS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class CannotBind(Exception):
    """A port cannot be bound; the text names it and its setting."""


class Worker:
    """One process, on the sockets of its slot."""

    def __init__(self, slot: "Slot", generation: str) -> None:
        self.slot = slot
        self.generation = generation
        self.process: asyncio.subprocess.Process | None = None
        self.ended = asyncio.Event()
        self.began = time.monotonic()
        self.retiring = False

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and not self.ended.is_set()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process is not None and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Return status and body of its health listener; 0: it does not answer."""
        health = self.slot.health[self.generation].getsockname()
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection(*health[:2])
                try:
                    writer.write(
                        b"GET %b HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n" % path.encode()
                    )
                    text = await reader.read()
                finally:
                    writer.close()
        except OSError:  # TimeoutError is one
            return 0, b""
        head, _, body = text.partition(b"\r\n\r\n")
        return (int(head.split(b" ", 2)[1]), body) if head.startswith(b"HTTP/1.1 ") else (0, b"")


class Slot:
    """The place of a worker: its number and its sockets."""

    def __init__(self, number: int, listeners: dict[str, socket.socket]) -> None:
        self.number = number
        self.listeners = listeners
        # Health is asked of one worker in particular, so that two of a slot do not share it.
        self.health = {generation: bound("127.0.0.1", 0, reuse_port=True) for generation in _GENERATIONS}
        self.worker: Worker | None = None
        self.pause = 0.0

    def sockets(self, generation: str) -> dict[str, socket.socket]:
        """Return what a worker listens with."""
        return {**self.listeners, HEALTH: self.health[generation]}

    def renew(self, bind: Callable[[], dict[str, socket.socket]]) -> None:
        """Bind other sockets; what waits in these is refused."""
        for each in self.listeners.values():
            each.close()
        self.listeners = bind()

    def close(self) -> None:
        """Close the sockets."""
        for each in (*self.listeners.values(), *self.health.values()):
            each.close()


class Supervisor:
    """Keeps N workers running.

    Args:
        env: the settings; workers have them, too, but for EDGE_ID.
        ports: setting of the port by the name of each listener that is shared.
        count: of workers.
        command: what a worker is started by.
    """

    def __init__(
        self,
        env: Any,
        ports: dict[str, str],
        count: int,
        command: tuple[str, ...] = (sys.executable, "-m", "edge"),
    ) -> None:
        self._env = env
        self._command = command
        self._ports = ports
        self._slots: list[Slot] = []
        self._workers: set[Worker] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._reloading = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        self._life = os.pipe()
        self.server = Server("metrics", self._handle, Limits.of(env))
        self.replaced = 0
        self.failed = asyncio.Event()
        try:
            for number in range(1, count + 1):
                self._slots.append(Slot(number, self._listeners()))
        except CannotBind:
            self._close()
            raise

    async def start(self) -> None:
        """Start the workers, and answer for them at EDGE_METRICS_PORT.

        Raises:
            CannotBind: that port is taken.
        """
        try:
            await self.server.start(self._env.BIND, self._env.EDGE_METRICS_PORT)
        except OSError as error:
            self._close()
            raise CannotBind(_refusal(self._env, "EDGE_METRICS_PORT", error)) from None
        for slot in self._slots:
            slot.worker = await self._spawn(slot, _GENERATIONS[0])
        log.info("edge.supervising", workers=len(self._slots))

    async def stop(self) -> None:
        """Let the workers finish their requests, and end."""
        self._stopping = True
        for task in list(self._watching):
            task.cancel()
        workers = list(self._workers)
        for worker in workers:
            worker.tell(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._env.EDGE_DRAIN_SECONDS + _SOUND_SECONDS):
                await asyncio.gather(*(worker.ended.wait() for worker in workers))
        for worker in workers:
            worker.tell(signal.SIGKILL)
        await self.server.stop()
        self._close()

    def _listeners(self) -> dict[str, socket.socket]:
        made: dict[str, socket.socket] = {}
        for name, setting in self._ports.items():
            try:
                made[name] = bound(self._env.BIND, getattr(self._env, setting), reuse_port=True)
            except OSError as error:
                for each in made.values():
                    each.close()
                raise CannotBind(_refusal(self._env, setting, error)) from None
        return made

    def _close(self) -> None:
        for slot in self._slots:
            slot.close()
        for descriptor in self._life:
            os.close(descriptor)

    # -- workers

    async def _spawn(self, slot: Slot, generation: str) -> Worker:
        worker = Worker(slot, generation)
        sockets = slot.sockets(generation)
        given = Inheritance(
            self._env.EDGE_ID, {name: each.fileno() for name, each in sockets.items()}, self._life[0]
        )
        worker.process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, "EDGE_ID": self._name(slot, generation), **given.write()},
            pass_fds=(*given.listeners.values(), given.life),
        )
        self._workers.add(worker)
        task = asyncio.create_task(self._watch(worker))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return worker

    def _name(self, slot: Slot, generation: str) -> str:
        return f"{self._env.EDGE_ID}-{slot.number}{generation}"

    async def _watch(self, worker: Worker) -> None:
        """Wait for a worker's end, and replace it if nobody has asked for that end."""
        if worker.process is None:
            raise RuntimeError("a worker that is watched has a process")
        end = asyncio.ensure_future(worker.process.wait())
        end.add_done_callback(lambda _: self._has_ended(worker))
        status = await asyncio.shield(end)
        slot = worker.slot
        if self._stopping or worker.retiring or slot.worker is not worker:
            return
        if status == _BAD_SETTING:  # which the next one would have, too
            self.failed.set()
            return
        self.replaced += 1
        lived = time.monotonic() - worker.began
        log.error("edge.worker_ended", worker=slot.number, status=status, lived_seconds=round(lived, 1))
        if lived >= _SOUND_SECONDS:
            slot.pause = 0.0
        await asyncio.sleep(slot.pause)
        slot.pause = min(max(slot.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        if slot.pause > _HOPELESS_PAUSE:
            slot.renew(self._listeners)  # nobody will take what waits there: let others have what comes
        slot.worker = await self._spawn(slot, worker.generation)

    def _has_ended(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.ended.set()

    async def reload(self) -> bool:
        """Replace each worker by a new one, without a connection lost; False: the old ones go on."""
        async with self._reloading:
            retired: list[Worker] = []
            for slot in self._slots:
                old = slot.worker
                if self._stopping or old is None or not await self._hand_over(slot, old):
                    break
                retired.append(old)
            # Their names are free for the next successors only then.
            await asyncio.gather(*map(self._see_off, retired))
            if len(retired) < len(self._slots):
                return False
            log.info("edge.reloaded", workers=len(self._slots))
            return True

    async def _hand_over(self, slot: Slot, old: Worker) -> bool:
        generation = _GENERATIONS[1 - _GENERATIONS.index(old.generation)]
        self._lend_snapshot(slot, old.generation, generation)
        new = await self._spawn(slot, generation)
        new.retiring = True  # nobody's place is taken by it yet
        was_ready = await _is_ready(old)
        until = time.monotonic() + _READY_SECONDS
        # Where the old one has nothing to serve from, the new one need not have it either.
        while not await _has_started(new, ready=was_ready):
            if not new.alive or self._stopping or time.monotonic() > until:
                log.error("edge.reload_failed", worker=slot.number, reason="the new worker is not ready")
                new.tell(signal.SIGTERM)
                return False
            await asyncio.sleep(_ASKED_EVERY)
        old.retiring, new.retiring = True, False
        slot.worker = new
        old.tell(signal.SIGHUP)
        return True

    async def _see_off(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(self._env.EDGE_DRAIN_SECONDS + _SOUND_SECONDS):
                await worker.ended.wait()
        except TimeoutError:
            worker.tell(signal.SIGKILL)
            await worker.ended.wait()

    def _lend_snapshot(self, slot: Slot, old: str, new: str) -> None:
        """Let a successor start from what its predecessor has on disk, should the database be away."""
        folder = Path(self._env.UNKEY_VAR) / "edge"
        target = folder / self._name(slot, new) / "snapshot"
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.hardlink_to(folder / self._name(slot, old) / "snapshot")
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("edge.snapshot_not_lent", worker=slot.number, reason=str(error))

    # -- health and metrics of all

    def _handle(self, request: Request) -> None:
        path = request.path
        if path == b"/health/live":
            request.respond(200, _TEXT, b"ok\n")
        elif path in (b"/health/ready", b"/health/startup"):
            self._later(self._tell_ready(request))
        elif path == b"/metrics":
            self._later(self._tell_metrics(request))
        else:
            request.respond(404, _TEXT, b"not found\n")

    def _later(self, answering: Awaitable[None]) -> None:
        task = asyncio.ensure_future(answering)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _tell_ready(self, request: Request) -> None:
        found = await self._of_each(_is_ready)
        ready = sum(answer for _, answer in found)
        text = f"{ready} of {len(self._slots)} workers are ready\n".encode()
        request.respond(200 if ready else 503, _TEXT, text)

    async def _tell_metrics(self, request: Request) -> None:
        async def scrape(worker: Worker) -> str:
            return (await worker.ask("/metrics"))[1].decode()

        texts = [(str(worker.slot.number), text) for worker, text in await self._of_each(scrape)]
        lines = [*merged(texts), *self._own()]
        request.respond(200, _PROMETHEUS, "\n".join([*lines, ""]).encode())

    async def _of_each(self, work: Callable[[Worker], Awaitable[_T]]) -> list[tuple[Worker, _T]]:
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        return list(zip(workers, await asyncio.gather(*map(work, workers)), strict=True))

    def _own(self) -> Iterator[str]:
        alive = sum(slot.worker is not None and slot.worker.alive for slot in self._slots)
        yield "# HELP unkey_edge_workers Processes that run."
        yield "# TYPE unkey_edge_workers gauge"
        yield f"unkey_edge_workers {alive}"
        yield "# HELP unkey_edge_workers_replaced_total Processes that ended unasked."
        yield "# TYPE unkey_edge_workers_replaced_total counter"
        yield f"unkey_edge_workers_replaced_total {self.replaced}"


def merged(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of one Prometheus text from those of several workers.

    Args:
        texts: name of the worker, which becomes the label `worker` of its samples, and its text.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in texts:
        samples: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                heading, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                heading[:] = [line]
            elif line.startswith("# TYPE "):
                families[line.split(" ", 3)[2]][0].append(line)
            elif line:
                samples.append(_labelled(line, worker))
    for heading, samples in families.values():
        yield from heading
        yield from samples


def _labelled(line: str, worker: str) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'


async def _is_ready(worker: Worker) -> bool:
    return (await worker.ask("/health/ready"))[0] == 200


async def _has_started(worker: Worker, *, ready: bool) -> bool:
    status, body = await worker.ask("/health/ready")
    return status == 200 or (not ready and status == 503 and body.startswith(b"nothing"))


def _refusal(env: Any, setting: str, error: OSError) -> str:
    return f"cannot listen on {env.BIND}:{getattr(env, setting)} ({setting}): {error.strerror or error}"
