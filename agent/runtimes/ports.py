"""Hands out the ports of this machine, and no port twice while somebody may still send to who had it before.

An edge knows an instance by its address until it has heard otherwise. Were a dead instance's port given to
another tenant's at once, that one would be sent requests, with their credentials, that were not meant for it.
A port that was given up therefore rests: until the control plane has been heard of ten minutes after. While
the control plane is away no edge hears anything, and no port comes to its rest's end.

All agents of one installation on a machine share the file, and take turns by a lock. From agents of another
one, a port is kept by a claim until its instance is gone: the instance may listen a while later, or never.
"""

import fcntl
import random
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from agent import files
from unkey import clock
from unkey.ports import claim

HOST = "127.0.0.1"
REST_SECONDS = 600.0

log = structlog.get_logger(__name__)


class Lease(msgspec.Struct):
    """Who has a port, or had it.

    Args:
        owner: the instance's folder.
        freed: when it was given up, in Unix seconds; 0: it is held.
    """

    owner: str
    freed: float = 0.0


class NoPort(Exception):
    """Every port is held, rests, or is taken by a stranger."""


class Ports:
    """The ports that instances of this machine listen on.

    Args:
        path: the file that says who has which; a missing or damaged one means that nobody has any.
        ports: those to hand out.
    """

    def __init__(self, path: Path, ports: range) -> None:
        self._path = path
        self._ports = ports
        self._claims: dict[int, socket.socket] = {}
        weakref.finalize(self, _close_all, self._claims)

    def take(self, owner: Path, heard: float) -> int:
        """Give an instance a port of its own; the one that it had before begins to rest.

        Args:
            owner: the instance's folder, which is there as long as the port is held.
            heard: when the control plane was heard of last, in Unix seconds.

        Raises:
            NoPort: there is none.
            OSError: the file cannot be written.
        """
        with self._leases() as leases:
            _free(leases, str(owner))
            for port in [port for port, lease in leases.items() if _is_rested(lease, heard)]:
                del leases[port]
            candidates = [port for port in self._ports if port not in leases]
            for port in random.sample(candidates, len(candidates)):
                if _is_free(port) and (held := claim(port)) is not None:
                    self._claims[port] = held
                    leases[port] = Lease(str(owner))
                    return port
        raise NoPort(f"No port from {self._ports.start} to {self._ports.stop - 1} is free.")

    def adopt(self, owner: Path, port: int) -> None:
        """Note which port an instance has that was started before this file was."""
        with self._leases() as leases:
            leases[port] = Lease(str(owner))

    def release(self, owner: Path) -> None:
        """Let the port of an instance that is gone begin to rest."""
        with self._leases() as leases:
            _free(leases, str(owner))

    @contextmanager
    def _leases(self) -> Iterator[dict[int, Lease]]:
        """Read the file, and write it when the caller has changed it, while no other agent does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._read()
            leases = dict(before)
            for port, lease in before.items():
                if not lease.freed and not Path(lease.owner).exists():
                    leases[port] = Lease(lease.owner, _now())
            yield leases
            if leases != before:
                files.write(self._path, msgspec.json.encode(leases))
            for port in [port for port in self._claims if port not in leases or leases[port].freed]:
                self._claims.pop(port).close()

    def _read(self) -> dict[int, Lease]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[int, Lease])
        except FileNotFoundError:
            return {}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            log.warning("ports_unreadable", path=str(self._path), error=str(error))
            return {}


def _now() -> float:
    return clock.now_ms() / 1000


def _free(leases: dict[int, Lease], owner: str) -> None:
    for port, lease in leases.items():
        if lease.owner == owner and not lease.freed:
            leases[port] = Lease(owner, _now())


def _close_all(claims: dict[int, socket.socket]) -> None:
    for held in claims.values():
        held.close()


def _is_rested(lease: Lease, heard: float) -> bool:
    return lease.freed > 0 and lease.freed + REST_SECONDS <= heard


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
