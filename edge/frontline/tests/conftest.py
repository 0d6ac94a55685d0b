"""Fixtures: a store of plain records, and frontline on real sockets in front of real upstreams."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from edge.frontline.frontline import Frontline
from edge.http.tests.conftest import rig
from edge.http.tests.rig import Origin
from edge.store.records import Barrier, Certificate, Contract, Instance, Route, Sentinel
from edge.verify.limiter import Limiter

__all__ = ["rig"]


class Records:
    """The look-ups of a store, over what a test puts in."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.sentinels: dict[str, Sentinel] = {}
        self.contracts: dict[str, Contract] = {}
        self.barriers: dict[str, Barrier] = {}
        self.running: dict[str, tuple[Instance, ...]] = {}
        self.certificates: dict[str, Certificate] = {}
        self.listeners: list[Callable[[str, Sequence[Any]], None]] = []

    def route(self, host):
        return self.routes.get(host)

    def sentinel(self, deployment_id):
        return self.sentinels.get(deployment_id)

    def contract(self, deployment_id):
        return self.contracts.get(deployment_id)

    def barrier(self, environment_id):
        return self.barriers.get(environment_id)

    def instances(self, deployment_id):
        return self.running.get(deployment_id, ())

    def certificate(self, name):
        return self.certificates.get(name) or self.certificates.get("*." + name.partition(".")[2])

    def on_change(self, callback):
        self.listeners.append(callback)

    def switch(self, host: str, deployment_id: str) -> None:
        self.routes[host] = Route(host, deployment_id, "env_1", "ws_1", "p_1", "app_1", 1)
        self._tell("routes", self.routes[host])

    def guard(self, deployment_id: str, *policies, desired: str = "running", protocol: str = "http1") -> None:
        row = Sentinel(deployment_id, "ws_1", "env_1", list(policies), protocol, desired, 1)
        self.sentinels[deployment_id] = row
        self._tell("sentinels", row)

    def promise(self, deployment_id: str, plan: bytes = b"", fault: str = "") -> None:
        row = self.contracts[deployment_id] = Contract(deployment_id, plan, fault, 1)
        self._tell("sentinels", row)

    def bar(
        self, *blocked: str, maintenance: bool = False, message: str = "", exempt=(), retry_after=None
    ) -> None:
        row = Barrier("env_1", blocked, maintenance, message, retry_after, tuple(exempt), 1)
        self.barriers["env_1"] = row
        self._tell("sentinels", row)

    def run(self, deployment_id: str, *origins: Origin | str, region: str = "local") -> None:
        rows = tuple(
            Instance(
                f"i_{number}",
                deployment_id,
                region,
                origin if isinstance(origin, str) else origin.address,
                "running",
                1,
            )
            for number, origin in enumerate(origins)
        )
        changed = rows or self.running.get(deployment_id, ())
        self.running[deployment_id] = rows
        self._tell("instances", *changed)

    def _tell(self, stream, *rows) -> None:
        for callback in self.listeners:
            callback(stream, rows)


class NoKeys:
    """A verifier that knows no key."""

    epoch = 0

    def find(self, text):
        return None

    def verify(self, subject, *, query=None, demands=(), credits=None):
        raise NotImplementedError


@pytest.fixture
def records() -> Records:
    """An empty store."""
    return Records()


@pytest.fixture
def frontline(rig, records):
    """Start frontline; keyword arguments reach it."""

    def start(verifier=None, tls=None, observe=None, **options):
        role = Frontline(
            records,
            verifier or NoKeys(),
            Limiter(),
            rig.pool,
            edge_id="edge-1",
            region="local",
            **options,
        )
        return rig.serve(role.handle, tls=tls, observe=observe)

    return start
