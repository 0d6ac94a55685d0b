"""The processes of one machine: how each is started, known to be well, and stopped."""

import signal
import sys
from collections.abc import Mapping

from unkey.env import env
from unkey.supervisor import Program

PORTS = {
    "web": ("WEB_PORT",),
    "feed": ("FEED_PORT",),
    "worker": (),
    "beat": (),
    "agent": ("AGENT_PORT",),
    "edge": ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT"),
}
"""Every process, and the settings that name its ports; the last one answers `/health/ready`."""


def program(name: str, ports: Mapping[str, int]) -> Program:
    """Return how a process is run.

    They stop stage by stage: edge (no more requests), beat and worker (no more steps), agent and its
    instances, then web and feed, which the agent reports to until its end.

    Args:
        name: a key of PORTS.
        ports: port by the name of its setting.
    """
    python = sys.executable
    celery = (python, "-m", "celery", "--quiet", "-A", "unkey")
    health = (env.local_address.strip("[]"), ports[PORTS[name][-1]]) if PORTS[name] else None
    command: tuple[str, ...]
    match name:
        case "web":
            command = (python, "-m", "gunicorn", "-c", "python:unkey.gunicorn", "unkey.wsgi")
            return Program(name, command, health=health, stage=3)
        case "feed":
            command = (
                *(python, "-m", "uvicorn", "unkey.asgi:application"),
                *("--host", str(env.BIND), "--port", str(ports["FEED_PORT"])),
                *("--loop", "uvloop", "--http", "unkey.streaming:Protocol", "--no-access-log"),
                *("--timeout-graceful-shutdown", "3"),
            )
            return Program(name, command, health=health, stage=3)
        case "worker":
            command = (
                *(*celery, "worker", "-Q", "workflows,builds,default"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            )
            return Program(name, command, stage=1)
        case "beat":
            return Program(name, (*celery, "beat", "--pidfile="), stage=1)
        case "agent":
            # SIGINT: stop the instances, then exit. SIGTERM would leave them running for a successor.
            return Program(
                name,
                (python, "-m", "agent"),
                health=health,
                stage=2,
                stop_signal=signal.SIGINT,
                grace=40,
                # It would only log that it cannot reach them yet.
                after=("web", "feed"),
            )
        case "edge":
            return Program(name, (python, "-m", "edge"), health=health, stage=0, grace=20)
    raise ValueError(name)
