"""The vault process and its client: one behaves as the other does in process."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from apps.vault import services
from apps.vault.client import RemoteVault
from apps.vault.datakeys import DataKeys, master_key
from apps.vault.errors import (
    InvalidKeyring,
    InvalidPlaintext,
    Undecryptable,
    UnknownMasterKey,
    VaultError,
    VaultUnavailable,
)
from apps.vault.server import Application
from apps.vault.services import Vault
from unkey.env import BadSetting, env
from unkey.objects import DirectoryStore

OLD = master_key("aa" * 32, "OLD")
NEW = master_key("bb" * 32, "NEW")


@pytest.fixture
def server(tmp_path: Path) -> httpx.WSGITransport:
    vault = Vault(DataKeys(DirectoryStore(tmp_path / "objects"), OLD))
    return httpx.WSGITransport(Application(vault, "token"))


@pytest.fixture
def remote(server: httpx.WSGITransport) -> RemoteVault:
    return RemoteVault("http://vault/", "token", server)


def test_every_call_does_what_it_does_in_process(remote: RemoteVault, tmp_path: Path) -> None:
    local = Vault(DataKeys(DirectoryStore(tmp_path / "objects"), OLD))
    sealed = remote.encrypt("env_1", "s3crét")
    assert local.decrypt("env_1", sealed) == remote.decrypt("env_1", sealed) == "s3crét"
    many = remote.encrypt_bulk("env_1", {"A": "1", "B": ""})
    assert local.decrypt_bulk("env_1", many) == remote.decrypt_bulk("env_1", many) == {"A": "1", "B": ""}
    assert remote.decrypt("env_1", remote.re_encrypt("env_1", sealed)) == "s3crét"
    assert remote.liveness() == "ok"


def test_errors_are_of_the_same_types(remote: RemoteVault, tmp_path: Path) -> None:
    sealed = remote.encrypt("env_1", "x")
    for call, kind in (
        (lambda: remote.decrypt("env_2", sealed), Undecryptable),
        (lambda: remote.decrypt_bulk("env_1", {"A": sealed, "B": "nonsense"}), Undecryptable),
        (lambda: remote.encrypt("../x", "x"), InvalidKeyring),
        (lambda: remote.encrypt("env_1", "x\ud800"), InvalidPlaintext),
    ):
        with pytest.raises(kind):
            call()
    other = Application(Vault(DataKeys(DirectoryStore(tmp_path / "objects"), NEW)), "token")
    with pytest.raises(UnknownMasterKey):
        RemoteVault("http://vault", "token", httpx.WSGITransport(other)).decrypt("env_1", sealed)


def test_a_wrong_token_opens_nothing(server: httpx.WSGITransport) -> None:
    thief = RemoteVault("http://vault", "guess", server)
    with pytest.raises(VaultError, match="VAULT_TOKEN"):
        thief.encrypt("env_1", "x")
    assert thief.liveness() == "ok"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health/live", "", 200),
        ("GET", "/health/ready", "", 200),
        ("GET", "/vault.v1.VaultService/Encrypt", "", 405),
        ("POST", "/vault.v1.VaultService/Nothing", "{}", 404),
        ("POST", "/vault.v1.VaultService/Encrypt", "{", 400),
        ("POST", "/vault.v1.VaultService/Encrypt", '{"keyring": 1, "data": "x"}', 400),
        ("POST", "/vault.v1.VaultService/EncryptBulk", '{"keyring": "a", "items": {"a": null}}', 400),
    ],
)
def test_malformed_requests_are_refused(
    server: httpx.WSGITransport, method: str, path: str, body: str, status: int
) -> None:
    with httpx.Client(
        transport=server, base_url="http://vault", headers={"Authorization": "Bearer token"}
    ) as client:
        answer = client.request(method, path, content=body)
    assert answer.status_code == status
    assert set(json.loads(answer.content)) == ({"status"} if status == 200 else {"code", "message"})


def test_a_vault_that_is_not_there_is_unavailable() -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for transport in (
        httpx.MockTransport(fail),
        httpx.MockTransport(lambda _: httpx.Response(502, text="x")),
    ):
        with pytest.raises(VaultUnavailable):
            RemoteVault("http://vault", "token", transport).encrypt("env_1", "x")


@pytest.fixture
def fresh_backend() -> Iterator[None]:
    services.backend.cache_clear()
    yield
    services.backend.cache_clear()


@pytest.mark.usefixtures("fresh_backend")
def test_the_setting_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(env._values, "VAULT_URL", "http://127.0.0.1:21600")
    assert isinstance(services.backend(), RemoteVault)
    services.backend.cache_clear()
    monkeypatch.setitem(env._values, "VAULT_URL", "vault")
    with pytest.raises(BadSetting, match="VAULT_URL must be local:"):
        services.backend()
