"""The processes of one machine: how each is started, known to be well, and stopped.

Normally one of each kind. `REGIONS` and `EDGE_REGIONS` ask for several agents and edges, each with a region,
ports and folders of its own; they are then called `agent-<region>` and `edge-<region>`.
"""

import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from unkey.env import BadSetting, Env, env
from unkey.supervisor import Program

PORTS = {
    "web": ("WEB_PORT",),
    "feed": ("FEED_PORT",),
    "worker": (),
    "beat": (),
    "agent": ("AGENT_PORT",),
    "edge": ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT"),
}
"""Every kind of process, and the settings that name its ports; the last one answers `/health/ready`."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process that `up` runs.

    Args:
        name: the kind's name, with the region where there are several of a kind.
        kind: a key of PORTS.
        number: 0 for the first of its kind.
        environ: what its environment says otherwise than the others'.
    """

    name: str
    kind: str
    number: int = 0
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def ports(self) -> dict[str, str]:
        """The settings of its ports by their names in `ports.json`: the setting, `@` and the process."""
        return {(f"{name}@{self.name}" if self.number else name): name for name in PORTS[self.kind]}


def processes(settings: Env = env) -> list[Process]:
    """Return what the settings ask for.

    Raises:
        BadSetting: a region is mentioned twice in REGIONS, or a setting for one agent meets several.
    """
    found = [Process(kind, kind) for kind in PORTS if kind not in ("agent", "edge")]
    regions: Sequence[str] = settings.REGIONS or (settings.REGION,)
    if len(set(regions)) < len(regions):
        raise BadSetting("REGIONS names a region twice: one agent runs all of a region on a machine")
    if len(regions) > 1 and settings.AGENT_URL:
        raise BadSetting("AGENT_URL is of one agent, and REGIONS asks for several: leave it empty")
    found += _several("agent", regions, _agent_id, settings)
    return found + _several("edge", settings.EDGE_REGIONS or regions, _edge_id, settings)


def home_region(settings: Env = env) -> str:
    """Return the region that new apps run in: REGION, if an agent for it runs here, else the first of REGIONS."""
    regions: Sequence[str] = settings.REGIONS or (settings.REGION,)
    return str(settings.REGION if settings.REGION in regions else regions[0])


def _several(
    kind: str, regions: Sequence[str], identity: Callable[[str, Env], dict[str, str]], settings: Env
) -> list[Process]:
    if len(regions) == 1:
        return [Process(kind, kind, environ={"REGION": regions[0]})]
    found: list[Process] = []
    mentioned: Counter[str] = Counter()
    for number, region in enumerate(regions):
        mentioned[region] += 1
        name = f"{kind}-{region}" + (f"-{mentioned[region]}" if mentioned[region] > 1 else "")
        found.append(Process(name, kind, number, {"REGION": region, **identity(name, settings)}))
    return found


def _agent_id(name: str, settings: Env) -> dict[str, str]:
    return {"AGENT_ID": f"{settings.AGENT_ID or name}-{socket.gethostname()}"[:64]}


def _edge_id(name: str, settings: Env) -> dict[str, str]:
    return {"EDGE_ID": f"{settings.EDGE_ID}-{name}"[:64] if settings.is_set("EDGE_ID") else name}


def program(process: Process, ports: Mapping[str, int]) -> Program:
    """Return how a process is run.

    They stop stage by stage: edges (no more requests), beat and worker (no more steps), agents and their
    instances, then web and feed, which agents report to until their end.

    Args:
        process: which.
        ports: port by its name in `ports.json`.
    """
    python = sys.executable
    celery = (python, "-m", "celery", "--quiet", "-A", "unkey")
    own = {setting: ports[name] for name, setting in process.ports.items()}
    health = (env.local_address.strip("[]"), list(own.values())[-1]) if own else None
    environ = {**process.environ, **{setting: str(port) for setting, port in own.items()}}
    name = process.name
    command: tuple[str, ...]
    match process.kind:
        case "web":
            command = (python, "-m", "gunicorn", "-c", "python:unkey.gunicorn", "unkey.wsgi")
            return Program(name, command, health=health, stage=3, environ=environ)
        case "feed":
            command = (
                *(python, "-m", "uvicorn", "unkey.asgi:application"),
                *("--host", str(env.BIND), "--port", str(own["FEED_PORT"])),
                *("--loop", "uvloop", "--http", "unkey.streaming:Protocol", "--no-access-log"),
                *("--timeout-graceful-shutdown", "3"),
            )
            return Program(name, command, health=health, stage=3, environ=environ)
        case "worker":
            command = (
                *(*celery, "worker", "-Q", "workflows,builds,default"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            )
            return Program(name, command, stage=1, environ=environ)
        case "beat":
            return Program(name, (*celery, "beat", "--pidfile="), stage=1, environ=environ)
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
                environ=environ,
            )
        case "edge":
            return Program(name, (python, "-m", "edge"), health=health, stage=0, grace=20, environ=environ)
    raise ValueError(process.kind)
