"""What the agent and the control plane say to each other, decoded strictly: nothing is taken on trust."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec

from agent.autoscale import Policy

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Status(StrEnum):
    """What an instance is reported as; one that is not in a report is gone."""

    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    DRAINING = "draining"


class Healthcheck(msgspec.Struct, frozen=True, rename="camel"):
    """How an instance says that it is well; times in seconds."""

    path: Annotated[str, msgspec.Meta(pattern="^/[!-~]*$", max_length=512)]
    method: Literal["GET", "POST"] = "GET"
    interval_seconds: Annotated[int, msgspec.Meta(ge=1)] = 10
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1)] = 5
    failure_threshold: Annotated[int, msgspec.Meta(ge=1)] = 3
    initial_delay_seconds: Annotated[int, msgspec.Meta(ge=0)] = 0


class Settings(msgspec.Struct, frozen=True, rename="camel"):
    """The part of a deployment's frozen settings that concerns an agent."""

    cpu_millicores: Annotated[int, msgspec.Meta(ge=1)] = 250
    memory_mib: Annotated[int, msgspec.Meta(ge=1)] = 256
    healthcheck: Healthcheck | None = None
    shutdown_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL"] = "SIGTERM"
    upstream_protocol: Literal["http1", "h2c"] = "http1"
    root_directory: str = "."


class Plan(msgspec.Struct, frozen=True):
    """What the build found to run.

    Args:
        command: program and arguments, or a line for the shell.
        install: what fetches its dependencies; None: nothing to fetch.
        kind: how it was recognised.
    """

    command: str | list[str]
    install: list[str] | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.command or "\0" in "".join(self.command):
            raise ValueError("the command is empty or holds a NUL")


class Topology(msgspec.Struct, frozen=True, rename="camel", tag="topology", tag_field="type"):
    """What should run of a deployment in this region: from `replicas` to `replicas_max` instances."""

    version: Annotated[int, msgspec.Meta(ge=0)]
    deployment_id: Id
    environment_id: str
    workspace_id: str
    desired: Literal["running", "stopped"]
    replicas: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    image: str
    plan: Plan | None
    settings: Settings
    variables: list[str] = []
    replicas_max: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    threshold_cpu: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 80
    threshold_memory: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None

    @property
    def policy(self) -> Policy:
        """How many instances there may be, and what load decides it."""
        most = max(self.replicas, self.replicas_max)
        return Policy(self.replicas, most, self.threshold_cpu, self.threshold_memory)


class Synced(msgspec.Struct, frozen=True, tag="synced", tag_field="type"):
    """The backlog has been sent; `full`: it was the whole state, what it lacked should not run.

    `reason` says why it had to be the whole state: `new`, `unknown_version` or `compacted`.
    """

    version: Annotated[int, msgspec.Meta(ge=0)]
    full: bool = False
    reason: str = ""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", tag_field="type"):
    """The stream lives."""

    version: Annotated[int, msgspec.Meta(ge=0)]


Event = Topology | Synced | Heartbeat


class BadRow(ValueError):
    """A line of the stream that cannot be applied.

    Args:
        message: why.
        version: the row's version, 0 where not even that can be read.
        row: the deployment that it is of, empty where that cannot be read.
    """

    def __init__(self, message: str, version: int, row: str) -> None:
        super().__init__(message)
        self.version = version
        self.row = row


_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def decode(line: bytes) -> Event:
    """Read one line of the watch stream.

    Raises:
        BadRow: it is not what a line may be.
    """
    try:
        return _events.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        message = str(error)
    raise BadRow(message, *_origin(line))


def _origin(line: bytes) -> tuple[int, str]:
    try:
        row: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0, ""
    if not isinstance(row, dict):
        return 0, ""
    version, deployment = row.get("version"), row.get("deploymentId")
    return (
        version if type(version) is int and 0 <= version < 2**63 else 0,
        deployment[:64] if isinstance(deployment, str) else "",
    )


class InstanceState(msgspec.Struct, frozen=True):
    """One instance in a report."""

    name: str
    address: str
    status: Status
    message: str = ""
    restarts: int = 0


class LogLine(msgspec.Struct, frozen=True):
    """One line that an instance, or the agent about it, wrote.

    Args:
        time: Unix milliseconds when the agent saw it.
        instance: its name.
        stream: `output` (standard output and error in one) or `agent`.
        text: without the line's end.
    """

    time: int
    instance: str
    stream: str
    text: str
