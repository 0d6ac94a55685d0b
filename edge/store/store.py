"""The store: every look-up of the data plane, from memory; fed by one background thread."""

from collections.abc import Callable, Sequence

from edge.store.records import Absence, Certificate, Instance, KeyRecord, Record, Route, Sentinel


class Store:
    """Everything that the edge serves from.

    Look-ups are synchronous and touch memory alone; call them from the event loop's thread.

    Attributes:
        ready: a snapshot was loaded from disk, or the database was read once.
        applied: version applied per stream.
        counters: events since start by name, for metrics.
    """

    ready: bool
    applied: dict[str, int]
    counters: dict[str, int]

    async def start(self) -> None:
        """Load the snapshot, then begin to follow the database; returns once something can be served."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Write the snapshot, give credits back, sign off from the cluster."""
        raise NotImplementedError

    def on_change(self, callback: Callable[[str, Sequence[Record]], None]) -> None:
        """Call `callback(stream, records)` in the event loop after records were applied."""
        raise NotImplementedError

    def route(self, host: str) -> Route | None:
        """Return the route of a host name (lower case, no port)."""
        raise NotImplementedError

    def sentinel(self, deployment_id: str) -> Sentinel | None:
        """Return what is enforced in front of a deployment."""
        raise NotImplementedError

    def instances(self, deployment_id: str) -> tuple[Instance, ...]:
        """Return a deployment's running instances, this region's first."""
        raise NotImplementedError

    def certificate(self, server_name: str) -> Certificate | None:
        """Return a certificate: exact host name, else a one-label wildcard."""
        raise NotImplementedError

    def key(self, digest: str) -> KeyRecord | Absence:
        """Return a key by hash, or why it is not in memory."""
        raise NotImplementedError

    async def fetch_key(self, digest: str) -> KeyRecord | None:
        """Read a never-seen key from the database; concurrent callers share one read.

        Raises:
            ServiceUnavailable: the database does not answer.
        """
        raise NotImplementedError
