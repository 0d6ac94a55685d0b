"""The vault as a process of its own: `python manage.py vault`, a WSGI application without a database.

Speaks the unary JSON form of Connect (connectrpc.com/docs/protocol), service `vault.v1.VaultService`:
`POST /vault.v1.VaultService/Encrypt {"keyring": …, "data": …}` is answered `{"encrypted": …, "keyId": …}`.
Callers show `Authorization: Bearer VAULT_TOKEN`, but for Liveness and `/health/*`.
"""

import hmac
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import msgspec

from apps.vault import ciphertext
from apps.vault.client import SERVICE
from apps.vault.errors import (
    InvalidKeyring,
    InvalidPlaintext,
    Undecryptable,
    VaultError,
    VaultUnavailable,
)
from apps.vault.services import Vault, local_vault
from unkey.env import env

BODY_MAX = 10 * 1024 * 1024

JSON = dict[str, Any]


class Text(msgspec.Struct, frozen=True):
    """A request to encrypt."""

    keyring: str
    data: str


class Encrypted(msgspec.Struct, frozen=True):
    """A request to decrypt or to encrypt again."""

    keyring: str
    encrypted: str


class Items(msgspec.Struct, frozen=True):
    """A request of several values by name."""

    keyring: str
    items: dict[str, str]


class Refused(Exception):
    """A request that is answered by a Connect error code."""

    def __init__(self, status: int, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.content = {"code": code, "message": message} | ({"reason": reason} if reason else {})


class Application:
    """Answers requests by a vault.

    Args:
        vault: does the work.
        token: what callers must show.
    """

    def __init__(self, vault: Vault, token: str) -> None:
        self._vault = vault
        self._token = f"Bearer {token}".encode()
        self._methods: dict[str, Callable[[bytes], JSON]] = {
            "Encrypt": self._encrypt,
            "Decrypt": self._decrypt,
            "EncryptBulk": self._encrypt_bulk,
            "DecryptBulk": self._decrypt_bulk,
            "ReEncrypt": self._re_encrypt,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            status, content = 200, self._answer(environ)
        except Refused as refused:
            status, content = refused.status, refused.content
        body = msgspec.json.encode(content)
        start_response(
            f"{status} {'OK' if status == 200 else 'Refused'}",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]

    def _answer(self, environ: WSGIEnvironment) -> JSON:
        path = environ["PATH_INFO"]
        if path in {"/health/live", "/health/startup"}:
            return {"status": "ok"}
        if path in {"/health/ready", f"{SERVICE}/Liveness"}:
            return {"status": self._guarded(self._vault.liveness)}
        method = self._methods.get(path.removeprefix(f"{SERVICE}/"))
        if method is None:
            raise Refused(404, "unimplemented", "there is no such method")
        if environ["REQUEST_METHOD"] != "POST":
            raise Refused(405, "unimplemented", "methods are called by POST")
        if not hmac.compare_digest(environ.get("HTTP_AUTHORIZATION", "").encode(), self._token):
            raise Refused(401, "unauthenticated", "show the token of VAULT_TOKEN as a bearer token")
        raw = _read(environ)
        answer: JSON = self._guarded(lambda: method(raw))
        return answer

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except msgspec.MsgspecError as error:
            raise Refused(400, "invalid_argument", f"the request is malformed: {error}") from None
        except (Undecryptable, InvalidKeyring, InvalidPlaintext) as error:
            raise Refused(400, "invalid_argument", str(error), type(error).__name__) from None
        except VaultUnavailable as error:
            raise Refused(503, "unavailable", str(error), type(error).__name__) from None
        except VaultError as error:
            raise Refused(500, "internal", str(error), type(error).__name__) from None

    def _encrypt(self, raw: bytes) -> JSON:
        asked = msgspec.json.decode(raw, type=Text)
        return _shown(self._vault.encrypt(asked.keyring, asked.data))

    def _decrypt(self, raw: bytes) -> JSON:
        asked = msgspec.json.decode(raw, type=Encrypted)
        return {"plaintext": self._vault.decrypt(asked.keyring, asked.encrypted)}

    def _encrypt_bulk(self, raw: bytes) -> JSON:
        asked = msgspec.json.decode(raw, type=Items)
        made = self._vault.encrypt_bulk(asked.keyring, asked.items)
        return {"items": {name: _shown(text) for name, text in made.items()}}

    def _decrypt_bulk(self, raw: bytes) -> JSON:
        asked = msgspec.json.decode(raw, type=Items)
        return {"items": self._vault.decrypt_bulk(asked.keyring, asked.items)}

    def _re_encrypt(self, raw: bytes) -> JSON:
        asked = msgspec.json.decode(raw, type=Encrypted)
        return _shown(self._vault.re_encrypt(asked.keyring, asked.encrypted))


def _shown(encrypted: str) -> JSON:
    return {"encrypted": encrypted, "keyId": ciphertext.from_text(encrypted).key_id}


def _read(environ: WSGIEnvironment) -> bytes:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > BODY_MAX:
        raise Refused(413, "resource_exhausted", f"a request has at most {BODY_MAX} bytes")
    raw: bytes = environ["wsgi.input"].read(int(length))
    return raw


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI entry point: the vault of this process's settings."""
    return Application(local_vault(), env.secret("VAULT_TOKEN"))(environ, start_response)
