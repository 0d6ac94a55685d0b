"""The snapshot on disk: everything that was last known, so that an edge starts without a database.

    "UNKEYEDGE1\\n", SHA-256 of the rest (32 bytes), then frames: length (4 bytes, big endian) and a
    MessagePack array of a record type's name and up to 1000 records; first of all `applied`.

TLS keys are in it as the vault's ciphertext, API keys as hashes.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.store.records import (
    Api,
    Barrier,
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
    SealedCertificate,
    Sentinel,
    Workspace,
)

_MAGIC = b"UNKEYEDGE1\n"
_CHUNK = 1000
_TYPES: tuple[Any, ...] = (
    Route,
    Sentinel,
    Contract,
    Barrier,
    Instance,
    SealedCertificate,
    Workspace,
    RootKey,
    Api,
    Role,
    Namespace,
    Override,
    Identity,
    KeyRecord,
)


def _decoder(kind: Any) -> msgspec.msgpack.Decoder[list[Any]]:
    return msgspec.msgpack.Decoder(list[kind])


_DECODERS = {kind.__name__: _decoder(kind) for kind in _TYPES}
_APPLIED = msgspec.msgpack.Decoder(dict[str, int])
_FRAME = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_encode = msgspec.msgpack.encode


class SnapshotDamaged(ValueError):
    """The file is cut, was changed, or has another format."""


def write(path: Path, applied: dict[str, int], tables: Iterable[Sequence[Record]]) -> None:
    """Write a snapshot and put it in place at once: a crash leaves the old one or the new one.

    Args:
        path: the file; mode 0600.
        applied: version per stream that the records are of.
        tables: lists of records, each of one type.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = hashlib.sha256()
            file.write(_MAGIC + bytes(32))
            for frame in _frames(applied, tables):
                piece = len(frame).to_bytes(4, "big") + frame
                digest.update(piece)
                file.write(piece)
            file.seek(len(_MAGIC))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _frames(applied: dict[str, int], tables: Iterable[Sequence[Record]]) -> Iterator[bytes]:
    yield _encode(("applied", applied))
    for records in tables:
        for start in range(0, len(records), _CHUNK):
            yield _encode((type(records[0]).__name__, records[start : start + _CHUNK]))


def read(path: Path) -> tuple[dict[str, int], list[Record]]:
    """Read a snapshot: the version applied per stream, and the records.

    Raises:
        FileNotFoundError: there is none.
        SnapshotDamaged: it is not whole.
    """
    content = memoryview(path.read_bytes())
    start = len(_MAGIC) + 32
    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise SnapshotDamaged("it is no snapshot of this format")
    if hashlib.sha256(content[start:]).digest() != bytes(content[len(_MAGIC) : start]):
        raise SnapshotDamaged("its checksum does not fit")
    applied: dict[str, int] = {}
    records: list[Record] = []
    try:
        while start < len(content):
            end = start + 4 + int.from_bytes(content[start : start + 4], "big")
            name, raw = _FRAME.decode(content[start + 4 : end])
            if name == "applied":
                applied = _APPLIED.decode(raw)
            else:
                records.extend(_DECODERS[name].decode(raw))
            start = end
    except (msgspec.MsgspecError, KeyError) as error:
        raise SnapshotDamaged(f"{type(error).__name__}: {error}") from error
    return applied, records
