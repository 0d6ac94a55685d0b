"""AES-256-GCM and the form of what it makes: pure functions over keys and bytes.

A ciphertext is standard base64 of a MessagePack array `[1, dek id, milliseconds, nonce, sealed]`,
where `sealed` ends in the 16-byte tag (NIST SP 800-38D, 96-bit random nonces). Purpose, key ring,
data key and time are bound in as associated data: a ciphertext opens only in its own ring, and no
field of it can be changed.

A wrapped data key is the same array, without base64: its key is the key-encryption key.
"""

import base64
import binascii
import os
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from apps.vault.errors import Undecryptable

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16

Purpose = Literal["data", "dek"]


class Sealed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An encrypted value.

    Args:
        version: of this format, 1.
        key_id: which key sealed it.
        time: when, in Unix milliseconds.
        nonce: 12 random bytes.
        sealed: ciphertext with its tag.
    """

    version: Literal[1]
    key_id: str
    time: int
    nonce: bytes
    sealed: bytes


_decoder = msgspec.msgpack.Decoder(Sealed)


def seal(key: bytes, key_id: str, *, purpose: Purpose, context: str, plaintext: bytes, time: int) -> Sealed:
    """Encrypt bytes.

    Args:
        key: 32 bytes.
        key_id: its name, kept in the result.
        purpose: what kind of value this is; bound in.
        context: key ring, and for a data key also its id; bound in.
        plaintext: what to encrypt.
        time: Unix milliseconds; bound in.
    """
    nonce = os.urandom(_NONCE_BYTES)
    bound = _bound(purpose, context, key_id, time)
    return Sealed(1, key_id, time, nonce, AESGCM(key).encrypt(nonce, plaintext, bound))


def unseal(key: bytes, value: Sealed, *, purpose: Purpose, context: str) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        Undecryptable: key, purpose, context or any field differ from when it was sealed.
    """
    bound = _bound(purpose, context, value.key_id, value.time)
    try:
        return AESGCM(key).decrypt(value.nonce, value.sealed, bound)
    except InvalidTag:
        raise Undecryptable("the value was changed, or belongs to another key ring") from None


def to_bytes(value: Sealed) -> bytes:
    """Serialise for the object store."""
    return msgspec.msgpack.encode(value)


def from_bytes(raw: bytes) -> Sealed:
    """Read what `to_bytes` wrote.

    Raises:
        Undecryptable: it is no sealed value.
    """
    try:
        value = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Undecryptable("this is no value of the vault") from None
    if not value.key_id or len(value.nonce) != _NONCE_BYTES or len(value.sealed) < _TAG_BYTES:
        raise Undecryptable("this is no value of the vault")
    return value


def to_text(value: Sealed) -> str:
    """Serialise for a text column."""
    return base64.b64encode(to_bytes(value)).decode("ascii")


def from_text(text: str) -> Sealed:
    """Read what `to_text` wrote.

    Raises:
        Undecryptable: it is no sealed value.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Undecryptable("this is no value of the vault") from None
    return from_bytes(raw)


def _bound(purpose: Purpose, context: str, key_id: str, time: int) -> bytes:
    return msgspec.msgpack.encode(("unkey vault", 1, purpose, context, key_id, time))
