"""Ports of this machine: which are free, and a clear word about those that are not."""

import atexit
import errno
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_000


class PortUnusable(RuntimeError):
    """A port that a process needs cannot be listened on."""


def choose(address: str, names: Iterable[str]) -> dict[str, int]:
    """Return a free port for each name.

    They lie below the range from which the kernel takes ports of outgoing connections, so that none
    is taken away by accident between now and the moment when its process (re)starts. Nor is one chosen
    twice: each is claimed until this process ends.

    Raises:
        PortUnusable: none is left.
    """
    ceiling = 32_768
    if EPHEMERAL.exists():
        ceiling = max(int(EPHEMERAL.read_text().split()[0]), LOWEST + 1000)
    candidates = iter(random.SystemRandom().sample(range(LOWEST, ceiling), ceiling - LOWEST))
    chosen: dict[str, int] = {}
    for name in names:
        for port in candidates:
            if _refusal(address, port) is None and (held := claim(port)) is not None:
                atexit.register(held.close)
                chosen[name] = port
                break
        else:
            raise PortUnusable(f"no free port is left on {address}")
    return chosen


def claim(port: int) -> socket.socket | None:
    """Keep every other process of this machine that asks here from choosing a port that nobody listens on yet.

    Returns:
        What holds the claim until it is closed, or this process ends: the name of an abstract socket (unix(7)).
        None: somebody else holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0unkey port {port}")
    except OSError:
        held.close()
        return None
    return held


def require(address: str, ports: Mapping[str, int]) -> None:
    """Check that every port can be listened on.

    Args:
        address: what the processes bind to.
        ports: port by the name of its setting.

    Raises:
        PortUnusable: names the first port that cannot, and its setting.
    """
    owner: dict[int, str] = {}
    for name, port in ports.items():
        if port in owner:
            raise PortUnusable(f"{owner[port]} and {name} are both {port}: give one of them another port")
        owner[port] = name
        refusal = _refusal(address, port)
        if refusal is None:
            continue
        if refusal.errno == errno.EADDRINUSE:
            raise PortUnusable(
                f"port {port} is taken: set {name} to a free port, or PORTS=auto to have all chosen"
            )
        if refusal.errno in {errno.EACCES, errno.EPERM}:
            raise PortUnusable(f"port {port} may not be opened by this user: set {name} to one above 1023")
        raise PortUnusable(f"cannot listen on {address} (BIND), port {port} ({name}): {refusal.strerror}")


def _refusal(address: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None
