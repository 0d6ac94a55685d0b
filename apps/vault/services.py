"""Envelope encryption of secrets: needs no database, works the same in every process.

    from apps.vault import services as vault
    ciphertext = vault.encrypt(environment.id, "s3cret")
    vault.decrypt(environment.id, ciphertext)

A key ring is a tenant's name: the workspace id for its keys, the environment id for its variables,
`certificates` for TLS keys. A ciphertext opens only in the ring that it was made in.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from apps.vault import ciphertext
from apps.vault.client import RemoteVault
from apps.vault.datakeys import DataKeys, master_key
from apps.vault.errors import InvalidPlaintext, Undecryptable
from unkey import clock
from unkey.env import BadSetting, env
from unkey.objects import open_store


class Vault:
    """Encrypts and decrypts by the data keys of the key rings.

    Every method raises `VaultUnavailable` when the store does not answer, `UnknownMasterKey` when a
    data key was wrapped by a key-encryption key that is not configured, and `InvalidKeyring`.
    """

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    def encrypt(self, keyring: str, plaintext: str) -> str:
        """Encrypt a text.

        Raises:
            InvalidPlaintext: it has lone surrogates.
        """
        try:
            raw = plaintext.encode()
        except UnicodeEncodeError:
            raise InvalidPlaintext("the text is no valid Unicode") from None
        key = self._keys.latest(keyring)
        sealed = ciphertext.seal(
            key.key, key.id, purpose="data", context=keyring, plaintext=raw, time=clock.now_ms()
        )
        return ciphertext.to_text(sealed)

    def decrypt(self, keyring: str, encrypted: str) -> str:
        """Decrypt what `encrypt` returned for the same ring.

        Raises:
            Undecryptable: it is malformed, was changed, or belongs to another ring.
        """
        sealed = ciphertext.from_text(encrypted)
        key = self._keys.get(keyring, sealed.key_id)
        raw = ciphertext.unseal(key.key, sealed, purpose="data", context=keyring)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Undecryptable("the value holds no text") from None

    def encrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """Encrypt several texts, all or none; names are kept."""
        return {name: self.encrypt(keyring, plaintext) for name, plaintext in items.items()}

    def decrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """Decrypt several texts, all or none; names are kept."""
        return {name: self.decrypt(keyring, encrypted) for name, encrypted in items.items()}

    def re_encrypt(self, keyring: str, encrypted: str) -> str:
        """Encrypt again by the ring's newest data key, looked up anew."""
        plaintext = self.decrypt(keyring, encrypted)
        self._keys.forget_latest(keyring)
        return self.encrypt(keyring, plaintext)

    def rotate(self, keyring: str) -> str:
        """Make a new data key the ring's newest; return its id."""
        return self._keys.rotate(keyring).id

    def roll(self) -> int:
        """Wrap every data key by the current key-encryption key; return how many were not yet."""
        return self._keys.rewrap()

    def liveness(self) -> str:
        """Return "ok" when the store answers."""
        self._keys.check()
        return "ok"


class Backend(Protocol):
    """What keeps secrets for this process: the vault inside it, or a vault process."""

    def encrypt(self, keyring: str, plaintext: str) -> str:
        """See `Vault.encrypt`."""

    def decrypt(self, keyring: str, encrypted: str) -> str:
        """See `Vault.decrypt`."""

    def encrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """See `Vault.encrypt_bulk`."""

    def decrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """See `Vault.decrypt_bulk`."""

    def re_encrypt(self, keyring: str, encrypted: str) -> str:
        """See `Vault.re_encrypt`."""

    def liveness(self) -> str:
        """See `Vault.liveness`."""


@lru_cache(maxsize=1)
def local_vault() -> Vault:
    """Return the vault inside this process, made from the settings.

    Raises:
        BadSetting: a key or a URL cannot be read.
    """
    current = master_key(env.secret("VAULT_MASTER_KEY"), "VAULT_MASTER_KEY")
    previous = [master_key(text, "VAULT_PREVIOUS_MASTER_KEYS") for text in env.VAULT_PREVIOUS_MASTER_KEYS]
    return Vault(DataKeys(open_store(env.OBJECT_STORE_URL), current, previous))


@lru_cache(maxsize=1)
def backend() -> Backend:
    """Return the vault that VAULT_URL names.

    Raises:
        BadSetting: it is neither `local:` nor an HTTP URL.
    """
    url: str = env.VAULT_URL
    if url == "local:":
        return local_vault()
    if url.startswith(("http://", "https://")):
        return RemoteVault(url, env.secret("VAULT_TOKEN"))
    raise BadSetting("VAULT_URL must be local: (the vault inside each process) or an http URL")


def encrypt(keyring: str, plaintext: str) -> str:
    """Encrypt a text in a key ring; see `Vault.encrypt`."""
    return backend().encrypt(keyring, plaintext)


def decrypt(keyring: str, encrypted: str) -> str:
    """Decrypt a text of a key ring; see `Vault.decrypt`."""
    return backend().decrypt(keyring, encrypted)


def encrypt_bulk(keyring: str, items: Mapping[str, str]) -> dict[str, str]:
    """Encrypt several texts, all or none; names are kept."""
    return backend().encrypt_bulk(keyring, items)


def decrypt_bulk(keyring: str, items: Mapping[str, str]) -> dict[str, str]:
    """Decrypt several texts, all or none; names are kept."""
    return backend().decrypt_bulk(keyring, items)


def re_encrypt(keyring: str, encrypted: str) -> str:
    """Encrypt again by the ring's newest data key; see `Vault.re_encrypt`."""
    return backend().re_encrypt(keyring, encrypted)


def rotate(keyring: str) -> str:
    """Give a ring a new data key; works on the object store, whatever VAULT_URL says."""
    return local_vault().rotate(keyring)


def roll() -> int:
    """Wrap every data key by the current key-encryption key; works on the object store."""
    return local_vault().roll()


def liveness() -> str:
    """Say "ok" when the vault can work; see `Vault.liveness`."""
    return backend().liveness()
