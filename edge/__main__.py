"""`python -m edge [--workers N]`: the data plane, until SIGTERM or SIGINT.

One process, or N that share its ports: then each that ends is replaced, and SIGHUP replaces one after the other
by a new one, without a connection lost.

Exit status: 0 after a clean stop, 1 if it could not start or go on, 2 for a setting that cannot be used.
"""

import argparse
import asyncio
import contextlib
import gc
import resource
import signal
import sys

import structlog
import uvloop

from edge.worker import PORTS, Inheritance, inheritance
from unkey import logging
from unkey.database import database
from unkey.env import BadSetting, env

_BAD_SETTING = 2


def _raise_bound_of_files() -> None:
    """Let this process and its workers open as many files, connections among them, as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _stop_on_signal(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def _run(inherited: Inheritance) -> int:
    from edge.frontline.roles import CannotListen, Edge

    log = structlog.get_logger("edge")
    loop = asyncio.get_running_loop()
    stopping = _stop_on_signal(loop)
    gently = asyncio.Event()
    if inherited.edge:
        loop.add_reader(inherited.life, stopping.set)  # its other end is closed: the supervisor has gone

        def retire() -> None:
            gently.set()
            stopping.set()

        loop.add_signal_handler(signal.SIGHUP, retire)
    try:
        edge = Edge(env, inherited)
        await edge.start()
    except (CannotListen, OSError) as error:
        log.error("edge.cannot_start", reason=str(error))
        return 1
    # What start-up made lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    # Requests leave no cycles behind, so that looking for them often only costs time.
    gc.set_threshold(20_000, 50, 50)
    failed = await _first(stopping, edge.store.broken)
    if failed:
        log.error("edge.cannot_go_on", reason="a background task has ended")
    if inherited.edge:
        loop.remove_reader(inherited.life)
    await edge.stop(gently=gently.is_set())
    return 1 if failed else 0


async def _first(stopping: asyncio.Event, failed: asyncio.Event) -> bool:
    """Wait until either happens; return whether it has failed."""
    waiting = [asyncio.create_task(each.wait()) for each in (stopping, failed)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    return not stopping.is_set()


async def _supervise(workers: int) -> int:
    from edge.supervisor import CannotBind, Supervisor

    log = structlog.get_logger("edge")
    loop = asyncio.get_running_loop()
    stopping = _stop_on_signal(loop)
    ports = {
        name: setting
        for role in sorted(env.EDGE_ROLE & PORTS.keys())
        for name, setting in PORTS[role].items()
    }
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(supervisor.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    try:
        supervisor = Supervisor(env, ports, workers)
        loop.add_signal_handler(signal.SIGHUP, reload)
        await supervisor.start()
    except (CannotBind, OSError) as error:
        log.error("edge.cannot_start", reason=str(error))
        return 1
    failed = await _first(stopping, supervisor.failed)
    await supervisor.stop()
    return _BAD_SETTING if failed else 0


def main() -> int:
    """Run the edge; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge", description="The data plane.")
    parser.add_argument(
        "--workers", type=int, help="processes that share its ports; EDGE_WORKERS if not given"
    )
    asked = parser.parse_args().workers
    logging.configure("edge")
    _raise_bound_of_files()
    try:
        env.check()
        # The database may be away; a URL that cannot be one is a mistake.
        database(env.DATABASE_URL)
        if "sentinel" in env.EDGE_ROLE and len(env.EDGE_ROLE) == 1:
            raise BadSetting("EDGE_ROLE: a sentinel runs together with frontline; add it to the list")
        if asked is not None and asked < 0:
            raise BadSetting("--workers must not be negative")
        inherited = inheritance()
        workers = env.EDGE_WORKERS if asked is None else asked
        if workers and not inherited.edge:
            return uvloop.run(_supervise(workers))
        return uvloop.run(_run(inherited))
    except (BadSetting, ValueError) as error:
        structlog.get_logger("edge").error("edge.cannot_start", reason=str(error))
        return _BAD_SETTING


if __name__ == "__main__":
    sys.exit(main())
