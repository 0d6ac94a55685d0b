"""What the edge knows, in memory: look-ups for the hot path, and the rules by which records replace each other.

Touched from the event loop's thread alone, so nothing here locks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from edge.store.held import Table
from edge.store.packing import IdentityPacking, KeyPacking
from edge.store.records import (
    Absence,
    Api,
    Barrier,
    Certificate,
    Contract,
    Identity,
    Instance,
    KeyRecord,
    Namespace,
    Override,
    Record,
    Role,
    RootKey,
    Route,
    Sentinel,
    Workspace,
)
from edge.verify.namespaces import Space

_K = TypeVar("_K")
_V = TypeVar("_V")


class Lru(Generic[_K, _V]):
    """A mapping that forgets what was used least recently once it holds more than `capacity` entries."""

    __slots__ = ("_entries", "capacity", "peek")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[_K, _V] = OrderedDict()
        #: Return an entry without counting it as used.
        self.peek = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _K) -> _V | None:
        """Return an entry and count it as used."""
        entries = self._entries
        entry = entries.get(key)
        if entry is not None:
            entries.move_to_end(key)
        return entry

    def put(self, key: _K, entry: _V) -> _V | None:
        """Set an entry; return the one that had to leave for it."""
        entries = self._entries
        entries[key] = entry
        entries.move_to_end(key)
        if len(entries) > self.capacity:
            return entries.popitem(last=False)[1]
        return None

    def pop(self, key: _K) -> _V | None:
        """Remove and return an entry."""
        return self._entries.pop(key, None)

    def values(self) -> Iterable[_V]:
        """All entries, least recently used first."""
        return self._entries.values()


class State:
    """Tables of records by the names that the hot path has for them.

    Args:
        region: instances of this region come first.
        key_capacity: most keys, and most identities, kept in memory.
        absent_capacity: most unknown key hashes remembered.
    """

    def __init__(self, region: str, key_capacity: int, absent_capacity: int = 100_000) -> None:
        self.region = region
        self.routes: dict[str, Route] = {}
        self.sentinels: dict[str, Sentinel] = {}
        self.contracts: dict[str, Contract] = {}
        self.barriers: dict[str, Barrier] = {}
        self.certificates: dict[str, Certificate] = {}
        self.running: dict[str, tuple[Instance, ...]] = {}
        self.instances: dict[str, Instance] = {}
        self.workspaces: dict[str, Workspace] = {}
        self.root_keys: dict[str, RootKey] = {}
        self.apis: dict[str, Api] = {}
        self.roles: dict[str, Role] = {}
        self.identities: Table[Identity] = Table(key_capacity, IdentityPacking())
        self.keys: Table[KeyRecord] = Table(key_capacity, KeyPacking())
        # Hashes of keys by the hash of their id: the id itself would be another object for each.
        self.hash_of: dict[int, str] = {}
        # A hash may be of no key and yet of a root key.
        self.spaces: dict[str, Space] = {}
        self.space_names: dict[tuple[str, str], Space] = {}
        self.absent_namespaces: Lru[tuple[str, str], float] = Lru(absent_capacity)
        self.absent_keys: Lru[str, float] = Lru(absent_capacity)
        self.absent_root_keys: Lru[str, float] = Lru(absent_capacity)
        self.applied: dict[str, int] = {}

    def certificate(self, server_name: str) -> Certificate | None:
        """Return the certificate for a host name: exact, else the wildcard of its first label."""
        found = self.certificates.get(server_name)
        if found is None:
            _, dot, rest = server_name.partition(".")
            if dot:
                found = self.certificates.get(f"*.{rest}")
        return found

    def key(self, digest: str, now: float) -> KeyRecord | Absence:
        """Return a key by its hash; `now` is the clock (seconds) that negative entries lapse by."""
        record = self.keys.peek(digest)
        if record is not None:
            return Absence.UNKNOWN if record.deleted else record
        return _absence(self.absent_keys, digest, now)

    def root_key(self, digest: str, now: float) -> RootKey | Absence:
        """Return a root key by its hash; `now` as for `key`."""
        record = self.root_keys.get(digest)
        if record is not None:
            return Absence.UNKNOWN if record.deleted else record
        return _absence(self.absent_root_keys, digest, now)

    def namespace(self, workspace_id: str, name: str, now: float) -> Space | Absence:
        """Return a namespace by its id or its name, deleted ones too; an id goes first."""
        found = self.spaces.get(name)
        if found is None or found.record is None or found.record.workspace_id != workspace_id:
            found = self.space_names.get((workspace_id, name))
        if found is not None:
            return found
        lapses = self.absent_namespaces.peek((workspace_id, name))
        return Absence.UNKNOWN if lapses is not None and lapses > now else Absence.NOT_LOADED

    def tables(self) -> list[Sequence[Record]]:
        """Return every record that a snapshot keeps, by type; keys after what they refer to."""
        tables: tuple[Iterable[Record], ...] = (
            self.routes.values(),
            self.sentinels.values(),
            self.contracts.values(),
            self.barriers.values(),
            self.instances.values(),
            self.workspaces.values(),
            self.root_keys.values(),
            self.apis.values(),
            self.roles.values(),
            (space.record for space in self.spaces.values() if space.record is not None),
            (override for space in self.spaces.values() for override in space.overrides),
        )
        return [*(list(table) for table in tables), self.identities.values(), self.keys.values()]

    def forget(self, stream: str, shard_of: Callable[[str], int]) -> None:
        """Drop everything of a stream, because its versions started anew."""
        kind, _, shard = stream.partition(":")
        if kind == "routes":
            self.routes.clear()
        elif kind == "sentinels":
            self.sentinels.clear()
            self.contracts.clear()
            self.barriers.clear()
        elif kind == "instances":
            self.instances.clear()
            self.running.clear()
        elif kind == "certificates":
            self.certificates.clear()
        else:
            self._forget_shard(lambda workspace_id: shard_of(workspace_id) == int(shard))
        self.applied.pop(stream, None)

    def _forget_shard(self, mine: Callable[[str], bool]) -> None:
        for workspace in [one for one in self.workspaces.values() if mine(one.id)]:
            del self.workspaces[workspace.id]
        for table in (self.root_keys, self.apis, self.roles):
            for name in [name for name, one in table.items() if mine(one.workspace_id)]:
                del table[name]
        for namespace_id, space in list(self.spaces.items()):
            owners = [one.workspace_id for one in (space.record, *space.overrides) if one is not None]
            if mine(owners[0]):
                del self.spaces[namespace_id]
        for owner, called in [name for name in self.space_names if mine(name[0])]:
            del self.space_names[owner, called]
        for identity in [one for one in self.identities.values() if mine(one.workspace_id)]:
            self.identities.pop(identity.id)
        for key in [one for one in self.keys.values() if mine(one.workspace_id)]:
            self.keys.pop(key.hash)
            self.hash_of.pop(hash(key.id), None)

    def apply(self, records: Iterable[Record]) -> list[Record]:
        """Take records in; return those that changed something.

        An older version never replaces a newer one, in whatever order they come.
        """
        return [record for record in records if self._appliers[type(record)](self, record)]

    def _apply_route(self, record: Route) -> bool:
        return _newer(self.routes, record.fqdn, record)

    def _apply_sentinel(self, record: Sentinel) -> bool:
        return _newer(self.sentinels, record.deployment_id, record)

    def _apply_contract(self, record: Contract) -> bool:
        return _newer(self.contracts, record.deployment_id, record)

    def _apply_barrier(self, record: Barrier) -> bool:
        return _newer(self.barriers, record.environment_id, record)

    def _apply_certificate(self, record: Certificate) -> bool:
        return _newer(self.certificates, record.hostname, record)

    def _apply_instance(self, record: Instance) -> bool:
        if not _newer(self.instances, record.id, record):
            return False
        others = [one for one in self.running.get(record.deployment_id, ()) if one.id != record.id]
        if record.status == "running" and record.address:
            others.append(record)
        if others:
            others.sort(key=lambda one: (one.region != self.region, one.region, one.id))
            self.running[record.deployment_id] = tuple(others)
        else:
            self.running.pop(record.deployment_id, None)
        return True

    def _apply_workspace(self, record: Workspace) -> bool:
        return _newer(self.workspaces, record.id, record)

    def _apply_root_key(self, record: RootKey) -> bool:
        self.absent_root_keys.pop(record.hash)
        return _newer(self.root_keys, record.hash, record)

    def _apply_api(self, record: Api) -> bool:
        return _newer(self.apis, record.id, record)

    def _apply_role(self, record: Role) -> bool:
        return _newer(self.roles, record.id, record)

    def _apply_namespace(self, record: Namespace) -> bool:
        space = self.spaces.setdefault(record.id, Space())
        before = space.record
        if not space.rename(record):
            return False
        if before is not None and self.space_names.get((before.workspace_id, before.name)) is space:
            del self.space_names[before.workspace_id, before.name]
        self.space_names[record.workspace_id, record.name] = space
        self.absent_namespaces.pop((record.workspace_id, record.name))
        self.absent_namespaces.pop((record.workspace_id, record.id))
        return True

    def _apply_override(self, record: Override) -> bool:
        return self.spaces.setdefault(record.namespace_id, Space()).apply(record)

    def _apply_identity(self, record: Identity) -> bool:
        known = self.identities.peek(record.id)
        if known is not None and known.version >= record.version:
            return False
        self.identities.put(record.id, record)
        return True

    def _apply_key(self, record: KeyRecord) -> bool:
        name = hash(record.id)
        previous_hash = self.hash_of.get(name)
        known = None if previous_hash is None else self.keys.peek(previous_hash)
        if known is not None and known.version >= record.version:
            return False
        if previous_hash is not None and previous_hash != record.hash:
            self.keys.pop(previous_hash)
        self.absent_keys.pop(record.hash)
        if previous_hash != record.hash:
            self.hash_of[name] = record.hash
        for left in self.keys.put(record.hash, record):
            if self.hash_of.get(hash(left.id)) == left.hash:
                del self.hash_of[hash(left.id)]
        return True

    _appliers: dict[type, Callable[["State", Any], bool]] = {
        Route: _apply_route,
        Sentinel: _apply_sentinel,
        Contract: _apply_contract,
        Barrier: _apply_barrier,
        Certificate: _apply_certificate,
        Instance: _apply_instance,
        Workspace: _apply_workspace,
        RootKey: _apply_root_key,
        Api: _apply_api,
        Role: _apply_role,
        Namespace: _apply_namespace,
        Override: _apply_override,
        Identity: _apply_identity,
        KeyRecord: _apply_key,
    }


def _absence(absent: Lru[str, float], digest: str, now: float) -> Absence:
    lapses = absent.peek(digest)
    return Absence.UNKNOWN if lapses is not None and lapses > now else Absence.NOT_LOADED


def _newer(table: dict[str, _V], name: str, record: _V) -> bool:
    known = table.get(name)
    if known is not None and known.version >= record.version:  # type: ignore[attr-defined]
        return False
    table[name] = record
    return True
