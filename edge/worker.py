"""What a worker has from its supervisor: listening sockets, a sign of life, and whose work it does."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

PORTS = {
    "api": {"api": "EDGE_API_PORT"},
    "frontline": {"http": "EDGE_HTTP_PORT", "https": "EDGE_HTTPS_PORT"},
}
"""Settings of the ports that workers share, by role and by the listener's name."""

VARIABLE = "EDGE_INHERITED"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Open files of a worker; empty for an edge that nobody supervises.

    Args:
        edge: EDGE_ID of all the workers together; empty: there are none.
        listeners: descriptor of a bound socket by the listener's name.
        life: descriptor of a pipe whose other end only the supervisor has: it ends with it.
    """

    edge: str = ""
    listeners: Mapping[str, int] = field(default_factory=dict)
    life: int = -1

    def write(self) -> dict[str, str]:
        """Return it as part of a worker's environment."""
        return {
            VARIABLE: json.dumps({"edge": self.edge, "listeners": dict(self.listeners), "life": self.life})
        }

    def listener(self, name: str) -> socket.socket | None:
        """Return a socket to listen with, None if the edge has to bind one itself."""
        descriptor = self.listeners.get(name)
        return None if descriptor is None else socket.socket(fileno=descriptor)


def inheritance() -> Inheritance:
    """Read what this process was given, once; its children are not given it."""
    text = os.environ.pop(VARIABLE, "")
    return Inheritance(**json.loads(text)) if text else Inheritance()
