"""The vault as another process: the client of `apps/vault/server.py`. Keeps no plaintext, retries nothing."""

from collections.abc import Mapping

import httpx

from apps.vault.errors import BY_NAME, InvalidPlaintext, VaultError, VaultUnavailable

SERVICE = "/vault.v1.VaultService"
_TIMEOUT = httpx.Timeout(5.0, connect=1.0)


class RemoteVault:
    """A vault process.

    Every method raises what the vault itself raises, and `VaultUnavailable` when it does not answer.

    Args:
        url: where it listens, without a path.
        token: its bearer token.
        transport: how it is reached; by default over the network.
    """

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,
        )

    def encrypt(self, keyring: str, plaintext: str) -> str:
        """Encrypt a text."""
        return _text(self._call("Encrypt", {"keyring": keyring, "data": plaintext}), "encrypted")

    def decrypt(self, keyring: str, encrypted: str) -> str:
        """Decrypt a text."""
        return _text(self._call("Decrypt", {"keyring": keyring, "encrypted": encrypted}), "plaintext")

    def encrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """Encrypt several texts, all or none."""
        found = _items(self._call("EncryptBulk", {"keyring": keyring, "items": dict(items)}))
        return {name: _text(item, "encrypted") for name, item in found.items()}

    def decrypt_bulk(self, keyring: str, items: Mapping[str, str]) -> dict[str, str]:
        """Decrypt several texts, all or none."""
        found = _items(self._call("DecryptBulk", {"keyring": keyring, "items": dict(items)}))
        return {name: _text({"text": item}, "text") for name, item in found.items()}

    def re_encrypt(self, keyring: str, encrypted: str) -> str:
        """Encrypt again by the ring's newest data key."""
        return _text(self._call("ReEncrypt", {"keyring": keyring, "encrypted": encrypted}), "encrypted")

    def liveness(self) -> str:
        """Return "ok" when the vault can work."""
        return _text(self._call("Liveness", {}), "status")

    def _call(self, method: str, body: dict[str, object]) -> dict[str, object]:
        try:
            answer = self._client.post(f"{SERVICE}/{method}", json=body)
            content = answer.json()
        except UnicodeEncodeError:
            raise InvalidPlaintext("the text is no valid Unicode") from None
        except (httpx.HTTPError, ValueError) as error:
            raise VaultUnavailable(f"the vault process does not answer: {type(error).__name__}") from None
        if not isinstance(content, dict):
            raise VaultUnavailable("the vault process answers something else")
        if answer.status_code == 200:
            return content
        kind = BY_NAME.get(str(content.get("reason")), VaultError)
        raise kind(str(content.get("message", f"status {answer.status_code}")))


def _text(content: object, field: str) -> str:
    value = content.get(field) if isinstance(content, dict) else None
    if not isinstance(value, str):
        raise VaultUnavailable("the vault process answers something else")
    return value


def _items(content: dict[str, object]) -> dict[str, object]:
    items = content.get("items")
    if not isinstance(items, dict):
        raise VaultUnavailable("the vault process answers something else")
    return items
