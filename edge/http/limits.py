"""Limits: how much and how long a client or an upstream may keep the edge busy."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener; times in seconds, sizes in bytes.

    Args:
        head_bytes: request line and headers together.
        header_count: headers of one request or response.
        body_bytes: body of one request; 0: any.
        body_bytes_of: the same for single hosts, or `*.` and a domain, where it differs.
        connections: of all clients together; 0: any.
        address_connections: of one address, unless it is a trusted proxy; 0: any.
        header_seconds: from the first byte of a head to its end.
        idle_seconds: silence between two requests of a connection.
        body_seconds: silence within a body.
        send_seconds: how long a client may take nothing of what waits for it; it is the time, too, in which a slow
            one must take what `buffer_bytes` hold.
        request_seconds: from a request's head to the end of its response; upgrades are exempt.
        connect_seconds: to open one upstream connection.
        upstream_idle_seconds: age at which an idle upstream connection is not used again; below the
            shortest keep-alive of common servers (gunicorn: 2), so that they do not close it first.
        upstream_idle_count: idle connections that are kept per instance.
        buffer_bytes: what is held back for a slow reader before its writer is paused.
        streams: requests that are under way at once on a connection of HTTP/2.
        upgrade_idle_seconds: silence of both sides of a WebSocket, or of another protocol that was upgraded to.
        drain_seconds: how long requests in flight may take after a SIGTERM.
    """

    head_bytes: int = 32 * 1024
    header_count: int = 100
    body_bytes: int = 100 * 1024 * 1024
    body_bytes_of: Mapping[str, int] = field(default_factory=dict)
    connections: int = 0
    address_connections: int = 0
    header_seconds: float = 10
    body_seconds: float = 60
    send_seconds: float = 60
    idle_seconds: float = 75
    request_seconds: float = 900
    connect_seconds: float = 2
    upstream_idle_seconds: float = 1.5
    upstream_idle_count: int = 128
    buffer_bytes: int = 64 * 1024
    streams: int = 128
    upgrade_idle_seconds: float = 3600
    drain_seconds: float = 30

    @classmethod
    def of(cls, env: Any) -> "Limits":
        """Read the limits from the settings `EDGE_…`."""
        return cls(
            head_bytes=env.EDGE_MAX_HEADER_BYTES,
            header_count=env.EDGE_MAX_HEADERS,
            body_bytes=env.EDGE_MAX_BODY_BYTES,
            body_bytes_of=env.EDGE_BODY_BYTES_OF_HOSTS,
            connections=env.EDGE_MAX_CONNECTIONS or resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3,
            address_connections=env.EDGE_MAX_CONNECTIONS_PER_ADDRESS,
            body_seconds=env.EDGE_BODY_TIMEOUT_SECONDS,
            send_seconds=env.EDGE_SEND_TIMEOUT_SECONDS,
            header_seconds=env.EDGE_HEADER_TIMEOUT_SECONDS,
            idle_seconds=env.EDGE_IDLE_TIMEOUT_SECONDS,
            request_seconds=env.EDGE_REQUEST_TIMEOUT_SECONDS,
            connect_seconds=env.EDGE_CONNECT_TIMEOUT_SECONDS,
            drain_seconds=env.EDGE_DRAIN_SECONDS,
            upgrade_idle_seconds=env.EDGE_UPGRADE_IDLE_TIMEOUT_SECONDS,
        )

    def most_body(self, host: str) -> int:
        """Return how many bytes the body of a request to a host may have; 0: any."""
        table = self.body_bytes_of
        if not table:
            return self.body_bytes
        return table.get(host, table.get(f"*.{host.partition('.')[2]}", self.body_bytes))
