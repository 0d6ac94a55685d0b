"""The interface of runtimes: start, observe, stop and find again the instances of one region.

A runtime knows no deployments' desired state, health or back-off: that is the reconciler's, and the
same for all. `agent/tests/test_runtimes.py` is the conformance test that every runtime passes.
"""

from dataclasses import dataclass, field
from typing import Protocol

from agent.wire import LogLine, Plan, Settings


class StartFailed(Exception):
    """An instance could not be started; the message is for the deployment's owner.

    Args:
        message: what failed, with the last lines of its output where there are any.
        again: whether another attempt may help (the control plane or a disk was away).
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, slots=True)
class Order:
    """One instance to start.

    Args:
        name: the instance's own name, unique in the region, kept when it is started again.
        deployment_id: whose instance.
        environment_id: environment of the deployment.
        region: where.
        image: reference of what to run.
        plan: what to run of it.
        settings: the deployment's frozen settings.
        variables: decrypted; never written to a disk or a log.
    """

    name: str
    deployment_id: str
    environment_id: str
    region: str
    image: str
    plan: Plan
    settings: Settings
    variables: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a runtime sees of an instance.

    Args:
        name: the instance's name.
        deployment_id: whose instance.
        address: `host:port` where it listens, or will.
        alive: whether it runs.
        ended: how it ended, in words, where it does not run.
    """

    name: str
    deployment_id: str
    address: str
    alive: bool
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an instance has used.

    Args:
        cpu_seconds: of all its processes, since it was started.
        memory_octets: that they hold now.
    """

    cpu_seconds: float
    memory_octets: int


class Runtime(Protocol):
    """What every runtime does."""

    async def recover(self) -> list[Observed]:
        """Find the instances of an earlier agent again, dead or alive; called once, first.

        What was started but never recorded is stopped here.
        """

    async def start(self, order: Order) -> Observed:
        """Start an instance, replacing a dead one of the same name; it need not listen yet.

        Raises:
            StartFailed: it could not be started; nothing of it runs.
        """

    async def observe(self, name: str) -> Observed:
        """Say whether an instance runs.

        Raises:
            KeyError: there is no instance of that name.
        """

    async def usage(self) -> dict[str, Usage]:
        """Return what every instance that runs has used, by its name."""

    async def connections(self, name: str) -> int:
        """Return how many connections to an instance are open; 0 where that cannot be told."""

    async def stop(self, name: str, signal: str, grace_seconds: float) -> None:
        """Ask an instance to end, then make it; when this returns, no process of it is left.

        Nothing happens when it does not run.
        """

    async def remove(self, name: str) -> None:
        """Forget a stopped instance and all that it wrote."""

    async def note(self, name: str, text: str) -> None:
        """Add a line of the agent's own to an instance's log."""

    async def logs(self, name: str, tail: int) -> list[LogLine]:
        """Return the last lines of an instance's log, oldest first; none if there is no such instance."""

    async def last_logs(self, deployment_id: str, tail: int) -> list[LogLine]:
        """Return the last lines of a deployment's instances that were removed lately, oldest first."""

    async def tidy(self, images: set[str]) -> None:
        """Called every minute: end what no instance is, and drop what is cached of other images than these."""
