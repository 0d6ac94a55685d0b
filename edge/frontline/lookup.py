"""What frontline asks of the store: routes, sentinels, instances and certificates, from memory."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edge.store.records import Barrier, Certificate, Contract, Instance, Route, Sentinel


class Lookup(Protocol):
    """The look-ups of `edge.store.store.Store` that routing needs."""

    def route(self, host: str) -> Route | None:
        """Return the route of a host name (lower case, no port)."""

    def sentinel(self, deployment_id: str) -> Sentinel | None:
        """Return what is enforced in front of a deployment."""

    def contract(self, deployment_id: str) -> Contract | None:
        """Return what requests to a deployment must look like."""

    def barrier(self, environment_id: str) -> Barrier | None:
        """Return what is refused before every deployment of an environment."""

    def instances(self, deployment_id: str) -> tuple[Instance, ...]:
        """Return a deployment's running instances, this region's first."""

    def certificate(self, server_name: str) -> Certificate | None:
        """Return a certificate: exact host name, else a one-label wildcard."""

    def on_change(self, callback: Callable[[str, Sequence[Any]], None]) -> None:
        """Call `callback(stream, records)` after records were applied."""
