"""`python -m agent`: SIGTERM leaves the instances running, SIGINT stops them first."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

import structlog
import uvloop

from agent.agent import Agent
from agent.control_plane import ControlPlane
from agent.reconciler import Timing
from agent.runtimes.process import ProcessRuntime
from agent.server import Server
from unkey import logging
from unkey.env import BadSetting, env

log = structlog.get_logger("agent")


async def serve() -> int:
    """Run the agent until a signal comes; return the exit status."""
    env.check()
    if env.AGENT_RUNTIME != "process":
        raise BadSetting(f"AGENT_RUNTIME {env.AGENT_RUNTIME} is not there yet: use process")
    root = env.UNKEY_VAR / "agent" / env.REGION
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.access(root, os.W_OK):
        raise BadSetting(f"{root} cannot be written (UNKEY_VAR chooses another folder)")
    control = ControlPlane(
        web_url=env.web_url,
        feed_url=env.feed_url,
        token=env.secret("AGENT_TOKEN"),
        agent=env.AGENT_ID or f"{env.REGION}-{socket.gethostname()}"[:64],
        region=env.REGION,
    )
    timing = Timing(
        start_deadline=env.AGENT_START_DEADLINE_SECONDS,
        drain=env.AGENT_DRAIN_SECONDS,
        scale=max(env.AGENT_SCALE_SECONDS, 0.1),
        calm=env.AGENT_SCALE_DOWN_SECONDS,
    )
    url = env.AGENT_URL.rstrip("/") or f"http://{env.BIND}:{env.AGENT_PORT}"
    agent = Agent(root=root, runtime=ProcessRuntime(root, control), control=control, url=url, timing=timing)
    server = Server(
        agent.reconciler, env.secret("AGENT_TOKEN"), lambda: agent.is_ready, env.AGENT_PREVIOUS_TOKENS
    )
    try:
        await server.listen(env.BIND, env.AGENT_PORT)
    except OSError as error:
        raise BadSetting(f"AGENT_PORT {env.AGENT_PORT} cannot be listened on: {error.strerror}") from error
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if not stopping.done():
            stopping.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    working = loop.create_task(agent.run())
    both: set[asyncio.Future[Any]] = {working, stopping}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await working
        return 1
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    if stopping.result() is signal.SIGINT:
        log.info("stopping_instances")
        await agent.reconciler.stop_all()
    await server.close()
    await control.close()
    return 0


def main() -> int:
    """Run the agent; say in one line what keeps it from running."""
    try:
        logging.configure("agent")
        return uvloop.run(serve())
    except (BadSetting, OSError) as error:
        print(f"agent: {error}", file=sys.stderr)  # noqa: T201  (the log may be what fails)
        return 1


sys.exit(main())
