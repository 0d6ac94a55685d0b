"""How keys and identities are packed: what many have in common once, the rest as MessagePack."""

from typing import Any, TypeVar

import msgspec

from edge.store.records import Identity, KeyRecord, Ratelimit

_SAME = 10_000

_V = TypeVar("_V")
_Limits = tuple[tuple[str, int, int, bool], ...]

_encode = msgspec.msgpack.Encoder().encode
# Metadata is JSON within: MessagePack has no integers beyond 64 bits.
_meta = msgspec.json.Encoder().encode
_read_meta = msgspec.json.Decoder(dict[str, Any]).decode
_key_rest = msgspec.msgpack.Decoder(
    tuple[str, str, str, bytes, int | None, int | None, int, str | None, tuple[str, ...], int]
).decode
_identity_rest = msgspec.msgpack.Decoder(tuple[str, bytes, tuple[str, ...], int]).decode


class _Common:
    """Objects that came before, so that equal ones are one object."""

    def __init__(self) -> None:
        self._same: dict[Any, Any] = {}

    def one(self, value: _V) -> _V:
        """Return an equal object that came before, if it is remembered."""
        if len(self._same) > _SAME:
            self._same.clear()
        found: _V = self._same.setdefault(value, value)
        return found


class KeyPacking:
    """Packs keys; one per table."""

    def __init__(self) -> None:
        self._common = _Common()

    def pack(self, record: KeyRecord) -> tuple[Any, bytes]:
        """Return what a key has in common with others, and the rest; its hash is its name."""
        common = (
            *(record.workspace_id, record.key_space_id, record.api_id, record.permissions, record.role_ids),
            *(record.enabled, record.deleted, _limits(record.ratelimits)),
        )
        rest = (
            *(record.id, record.start, record.name, _meta(record.meta), record.expires_at, record.remaining),
            *(record.credits_epoch, record.identity_id, [each.id for each in record.ratelimits]),
            record.version,
        )
        return self._common.one(common), _encode(rest)

    def unpack(self, name: str, common: Any, rest: bytes) -> KeyRecord:
        """Return the key whose hash is `name`."""
        workspace_id, key_space_id, api_id, permissions, role_ids, enabled, deleted, limits = common
        key_id, start, called, meta, expires_at, remaining, epoch, identity_id, ids, version = _key_rest(rest)
        return KeyRecord(
            *(
                key_id,
                name,
                workspace_id,
                key_space_id,
                api_id,
                start,
                called,
                _read_meta(meta),
                enabled,
                expires_at,
            ),
            *(remaining, epoch, permissions, role_ids, identity_id, _ratelimits(ids, limits), version),
            deleted,
        )


class IdentityPacking:
    """Packs identities; one per table."""

    def __init__(self) -> None:
        self._common = _Common()

    def pack(self, record: Identity) -> tuple[Any, bytes]:
        """Return what an identity has in common with others, and the rest; its id is its name."""
        common = (record.workspace_id, record.deleted, _limits(record.ratelimits))
        rest = (
            *(record.external_id, _meta(record.meta), [each.id for each in record.ratelimits]),
            record.version,
        )
        return self._common.one(common), _encode(rest)

    def unpack(self, name: str, common: Any, rest: bytes) -> Identity:
        """Return the identity whose id is `name`."""
        workspace_id, deleted, limits = common
        external_id, meta, ids, version = _identity_rest(rest)
        return Identity(
            name, workspace_id, external_id, _read_meta(meta), _ratelimits(ids, limits), version, deleted
        )


def _limits(ratelimits: tuple[Ratelimit, ...]) -> _Limits:
    return tuple((each.name, each.limit, each.duration, each.auto_apply) for each in ratelimits)


def _ratelimits(ids: tuple[str, ...], limits: _Limits) -> tuple[Ratelimit, ...]:
    if not ids:
        return ()
    return tuple([Ratelimit(each, *limit) for each, limit in zip(ids, limits, strict=True)])
