"""Data keys: one chain per key ring in the object store, each wrapped by the key-encryption key.

`keyring/<ring>/<dek id>` holds a wrapped data key and never changes but for a re-wrap;
`keyring/<ring>/LATEST` holds the id of the one that encrypts. The data key is written before the
pointer, and a ring's first pointer is created only if there is none: of several processes that make
a ring's first key at once, one wins and the others use its key.
"""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from apps.vault import ciphertext
from apps.vault.errors import InvalidKeyring, Undecryptable, UnknownMasterKey, VaultUnavailable
from unkey import clock, ids
from unkey.env import BadSetting
from unkey.objects import ObjectNotFound, ObjectStore, ObjectStoreError

FRESH_MS = 60 * 60 * 1000
STALE_MS = 24 * 60 * 60 * 1000
CACHE_ENTRIES = 10_000
LATEST = "LATEST"

_RING = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_DEK_ID = re.compile(r"dek_[1-9A-HJ-NP-Za-km-z]{16}", re.ASCII)

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key, unwrapped."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.id})"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A key-encryption key; its id is derived from it, so that it needs no file beside it."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        return f"MasterKey({self.id})"


def master_key(text: str, setting: str) -> MasterKey:
    """Read a key-encryption key from a setting.

    Args:
        text: 64 hexadecimal digits.
        setting: its name, for the error.

    Raises:
        BadSetting: it is something else.
    """
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != ciphertext.KEY_BYTES:
        raise BadSetting(f"{setting} must be {ciphertext.KEY_BYTES} bytes in hexadecimal") from None
    return MasterKey(f"kek_{hashlib.sha256(b'unkey master key id' + key).hexdigest()[:16]}", key)


class Cache(Generic[_V]):
    """A bounded cache, least recently used out first: fresh entries are answered at once, older ones
    are loaded again, and while the store fails they still serve until they are too old.

    Safe for use by several threads.

    Args:
        entries: how many are kept.
        fresh_ms: age up to which an entry is answered without looking.
        stale_ms: age up to which an entry may stand in for a store that fails.
    """

    def __init__(
        self, entries: int = CACHE_ENTRIES, fresh_ms: int = FRESH_MS, stale_ms: int = STALE_MS
    ) -> None:
        self._entries = entries
        self._fresh_ms = fresh_ms
        self._stale_ms = stale_ms
        self._values: OrderedDict[str, tuple[int, _V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, load: Callable[[], _V]) -> _V:
        """Return an entry, by `load` when there is no fresh one.

        Raises:
            VaultUnavailable: `load` raised it and no entry may stand in.
        """
        now = clock.now_ms()
        with self._lock:
            found = self._values.get(name)
            if found is not None:
                self._values.move_to_end(name)
        if found is not None and now - found[0] < self._fresh_ms:
            return found[1]
        try:
            value = load()
        except VaultUnavailable:
            if found is not None and now - found[0] < self._stale_ms:
                return found[1]
            raise
        self.put(name, value)
        return value

    def put(self, name: str, value: _V) -> None:
        """Keep a value as fresh from now on."""
        with self._lock:
            self._values[name] = (clock.now_ms(), value)
            self._values.move_to_end(name)
            while len(self._values) > self._entries:
                self._values.popitem(last=False)

    def forget(self, name: str) -> None:
        """Drop an entry."""
        with self._lock:
            self._values.pop(name, None)

    def __len__(self) -> int:
        return len(self._values)


class DataKeys:
    """The data keys of all key rings.

    Args:
        store: where they are kept.
        current: wraps new data keys.
        previous: unwrap what they once wrapped.
    """

    def __init__(self, store: ObjectStore, current: MasterKey, previous: Sequence[MasterKey] = ()) -> None:
        self._store = store
        self._current = current
        self._masters = {master.id: master for master in (*previous, current)}
        self._keys: Cache[DataKey] = Cache()
        self._latest: Cache[str] = Cache()

    def latest(self, ring: str) -> DataKey:
        """Return the key that encrypts in a ring, making the ring's first one if need be.

        Raises:
            InvalidKeyring, UnknownMasterKey, VaultUnavailable
        """
        _check_ring(ring)
        return self.get(ring, self._latest.get(ring, lambda: self._read_latest(ring)))

    def get(self, ring: str, key_id: str) -> DataKey:
        """Return a key of a ring by its id.

        Raises:
            Undecryptable: the ring has no such key.
            InvalidKeyring, UnknownMasterKey, VaultUnavailable
        """
        _check_ring(ring)
        if not _DEK_ID.fullmatch(key_id):
            raise Undecryptable("this is no value of the vault")
        return self._keys.get(f"{ring}/{key_id}", lambda: self._read(ring, key_id))

    def rotate(self, ring: str) -> DataKey:
        """Make a new key the one that encrypts in a ring; older ones still decrypt.

        Other processes go over to it when their cached pointer is no longer fresh.
        """
        _check_ring(ring)
        made = self._make(ring)
        with _reachable():
            self._store.put(_object(ring, LATEST), made.id.encode())
        self._latest.put(ring, made.id)
        return made

    def rewrap(self) -> int:
        """Wrap every data key of every ring by the current key-encryption key.

        Safe to repeat and to interrupt. Afterwards older key-encryption keys are no longer needed.

        Returns:
            How many were wrapped by another one.
        """
        changed = 0
        with _reachable():
            names = self._store.keys("keyring")
        for name in names:
            _, ring, key_id = name.split("/")
            if key_id == LATEST:
                continue
            with _reachable():
                wrapped = ciphertext.from_bytes(self._store.read(name))
            if wrapped.key_id == self._current.id:
                continue
            key = DataKey(key_id, self._unwrap(ring, key_id, wrapped))
            with _reachable():
                self._store.put(name, self._wrap(ring, key))
            changed += 1
        return changed

    def forget_latest(self, ring: str) -> None:
        """Look the pointer up again when a ring encrypts next."""
        self._latest.forget(ring)

    def check(self) -> None:
        """Ask the store whether it answers.

        Raises:
            VaultUnavailable: it does not.
        """
        with _reachable():
            self._store.exists(f"keyring/{LATEST}")

    def _read_latest(self, ring: str) -> str:
        pointer = _object(ring, LATEST)
        with _reachable():
            try:
                return self._store.read(pointer).decode("ascii")
            except ObjectNotFound:
                made = self._make(ring)
                if self._store.put_new(pointer, made.id.encode()):
                    return made.id
                self._store.delete(_object(ring, made.id))
                self._keys.forget(f"{ring}/{made.id}")
                return self._store.read(pointer).decode("ascii")

    def _make(self, ring: str) -> DataKey:
        made = DataKey(ids.new("dek"), os.urandom(ciphertext.KEY_BYTES))
        with _reachable():
            self._store.put(_object(ring, made.id), self._wrap(ring, made))
        self._keys.put(f"{ring}/{made.id}", made)
        return made

    def _read(self, ring: str, key_id: str) -> DataKey:
        with _reachable():
            try:
                raw = self._store.read(_object(ring, key_id))
            except ObjectNotFound:
                raise Undecryptable("the key ring has no such data key") from None
        return DataKey(key_id, self._unwrap(ring, key_id, ciphertext.from_bytes(raw)))

    def _wrap(self, ring: str, key: DataKey) -> bytes:
        sealed = ciphertext.seal(
            self._current.key,
            self._current.id,
            purpose="dek",
            context=f"{ring}/{key.id}",
            plaintext=key.key,
            time=clock.now_ms(),
        )
        return ciphertext.to_bytes(sealed)

    def _unwrap(self, ring: str, key_id: str, wrapped: ciphertext.Sealed) -> bytes:
        master = self._masters.get(wrapped.key_id)
        if master is None:
            raise UnknownMasterKey(
                f"data key {key_id} of ring {ring} is wrapped by {wrapped.key_id}, which is neither "
                "VAULT_MASTER_KEY nor one of VAULT_PREVIOUS_MASTER_KEYS"
            )
        return ciphertext.unseal(master.key, wrapped, purpose="dek", context=f"{ring}/{key_id}")


def _object(ring: str, name: str) -> str:
    return f"keyring/{ring}/{name}"


def _check_ring(ring: str) -> None:
    if not _RING.fullmatch(ring):
        raise InvalidKeyring(f"{ring[:64]!r} cannot name a key ring")


@contextmanager
def _reachable() -> Iterator[None]:
    """Turn the store's failures into the vault's."""
    try:
        yield
    except ObjectStoreError as error:
        raise VaultUnavailable(str(error)) from error
