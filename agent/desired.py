"""What the agent knows of its region across restarts: what should run, and what has happened to it."""

from pathlib import Path

import msgspec
import structlog

from agent import files
from agent.wire import Topology

log = structlog.get_logger(__name__)


class Past(msgspec.Struct):
    """What has happened to an instance.

    Args:
        restarts: how often it was started again, since it was first started.
        crashes: how often in a row it has ended by itself, or never became well.
        next_try: when it is started again, in Unix seconds; 0: no crash is waited out.
        message: what was reported of it with that.
    """

    restarts: int = 0
    crashes: int = 0
    next_try: float = 0.0
    message: str = ""


class _Saved(msgspec.Struct):
    version: int
    topologies: dict[str, Topology]
    proven: set[str] = set()
    past: dict[str, Past] = {}


class Desired:
    """Topologies by deployment, the version up to which they are applied, what has ever run well, and crashes.

    No secret is among it.

    Args:
        path: `state.json` of the region; a missing or damaged one means version 0, the whole state anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.version = 0
        self.topologies: dict[str, Topology] = {}
        self.proven: set[str] = set()
        self.past: dict[str, Past] = {}
        self._listed: set[str] = set()
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            log.warning("state_unreadable", path=str(path), error=str(error))
            return
        self.version, self.topologies = saved.version, saved.topologies
        self.proven, self.past = saved.proven, saved.past

    @property
    def kept(self) -> set[str]:
        """Deployments whose instances are not strangers: known ones, and those of skipped rows."""
        return {*self.topologies, *self._listed}

    def begin(self) -> None:
        """A new stream begins; remember from here on what it lists."""
        self._listed.clear()

    def apply(self, topology: Topology) -> None:
        """Take over one row."""
        self._listed.add(topology.deployment_id)
        self.topologies[topology.deployment_id] = topology
        self.version = max(self.version, topology.version)

    def skip(self, version: int, deployment_id: str) -> None:
        """Go past a row that cannot be applied; what runs of it is left as it is."""
        self._listed.add(deployment_id)
        self.version = max(self.version, version)

    def synced(self, version: int, *, full: bool) -> list[str]:
        """Take note that the backlog is through; return the deployments that the whole state lacked."""
        self.version = version if full else max(self.version, version)
        if not full:
            return []
        lacking = [each for each in self.topologies if each not in self._listed]
        for deployment_id in lacking:
            del self.topologies[deployment_id]
        return lacking

    def forget(self, deployment_id: str) -> None:
        """Drop a deployment that is stopped and of which nothing is left."""
        self.topologies.pop(deployment_id, None)
        self.proven.discard(deployment_id)

    def save(self) -> None:
        """Write all of it to disk.

        Raises:
            OSError: the folder cannot be written.
        """
        saved = _Saved(self.version, self.topologies, self.proven, self.past)
        files.write(self._path, msgspec.json.encode(saved))
