"""The vault: what it promises about tenants, rotation, races and outages."""

import base64
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.vault import ciphertext, services
from apps.vault.datakeys import Cache, DataKeys, MasterKey, master_key
from apps.vault.errors import (
    InvalidKeyring,
    InvalidPlaintext,
    Undecryptable,
    UnknownMasterKey,
    VaultUnavailable,
)
from apps.vault.services import Vault
from unkey import clock
from unkey.env import BadSetting
from unkey.objects import DirectoryStore, ObjectStore, StoreUnavailable

OLD = master_key("aa" * 32, "OLD")
NEW = master_key("bb" * 32, "NEW")


class Outage(DirectoryStore):
    """A store that can be switched off."""

    down = False

    def read(self, key: str) -> bytes:
        if self.down:
            raise StoreUnavailable("object store: down")
        return super().read(key)


@pytest.fixture
def store(tmp_path: Path) -> Outage:
    return Outage(tmp_path / "objects")


@pytest.fixture
def vault(store: Outage) -> Vault:
    return Vault(DataKeys(store, OLD))


def fresh(store: ObjectStore, current: MasterKey = OLD, *previous: MasterKey) -> Vault:
    return Vault(DataKeys(store, current, previous))


@given(text=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_every_text_comes_back(vault: Vault, text: str) -> None:
    try:
        sealed = vault.encrypt("env_1", text)
    except InvalidPlaintext:
        with pytest.raises(UnicodeEncodeError):
            text.encode()
        return
    assert vault.decrypt("env_1", sealed) == text


def test_another_process_reads_it(vault: Vault, store: Outage) -> None:
    sealed = vault.encrypt("env_1", "s3cret")
    assert fresh(store).decrypt("env_1", sealed) == "s3cret"
    assert store.keys("keyring/env_1")[0] == "keyring/env_1/LATEST"
    assert len(store.keys("keyring/env_1")) == 2


def test_two_encryptions_of_one_text_differ(vault: Vault) -> None:
    assert vault.encrypt("env_1", "x") != vault.encrypt("env_1", "x")


def test_a_ciphertext_opens_in_no_other_ring_even_with_its_data_key_copied(
    vault: Vault, store: Outage
) -> None:
    sealed = vault.encrypt("env_1", "s3cret")
    vault.encrypt("env_2", "other")
    with pytest.raises(Undecryptable):
        vault.decrypt("env_2", sealed)
    key_id = ciphertext.from_text(sealed).key_id
    store.put(f"keyring/env_2/{key_id}", store.read(f"keyring/env_1/{key_id}"))
    with pytest.raises(Undecryptable):
        fresh(store).decrypt("env_2", sealed)


def test_every_changed_bit_is_refused(vault: Vault) -> None:
    raw = base64.b64decode(vault.encrypt("env_1", "s3cret"))
    for position in range(len(raw)):
        for bit in (0, 7):
            forged = bytearray(raw)
            forged[position] ^= 1 << bit
            with pytest.raises(Undecryptable):
                vault.decrypt("env_1", base64.b64encode(forged).decode())


@given(st.text() | st.binary().map(lambda raw: base64.b64encode(raw).decode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100)
def test_garbage_is_refused_and_nothing_else_raised(vault: Vault, text: str) -> None:
    with pytest.raises(Undecryptable):
        vault.decrypt("env_1", text)


@pytest.mark.parametrize("ring", ["", "..", "a/b", "a b", "é", "a" * 129, "x\n"])
def test_bad_ring_names_are_refused(vault: Vault, ring: str) -> None:
    sealed = vault.encrypt("env_1", "x")
    with pytest.raises(InvalidKeyring):
        vault.encrypt(ring, "x")
    with pytest.raises(InvalidKeyring):
        vault.decrypt(ring, sealed)


def test_a_rotated_ring_encrypts_by_the_new_key_and_still_reads_the_old(vault: Vault, store: Outage) -> None:
    before = vault.encrypt("env_1", "x")
    assert vault.rotate("env_1") != ciphertext.from_text(before).key_id
    after = vault.re_encrypt("env_1", before)
    assert ciphertext.from_text(after).key_id != ciphertext.from_text(before).key_id
    assert fresh(store).decrypt("env_1", before) == fresh(store).decrypt("env_1", after) == "x"


def test_re_encrypt_sees_the_rotation_of_another_process(vault: Vault, store: Outage) -> None:
    before = vault.encrypt("env_1", "x")
    rotated = fresh(store).rotate("env_1")
    assert ciphertext.from_text(vault.encrypt("env_1", "y")).key_id != rotated
    assert ciphertext.from_text(vault.re_encrypt("env_1", before)).key_id == rotated


def test_master_keys_roll_and_the_old_one_is_then_not_needed(vault: Vault, store: Outage) -> None:
    sealed = {ring: vault.encrypt(ring, ring) for ring in ("env_1", "env_2", "ws_1")}
    with pytest.raises(UnknownMasterKey, match="VAULT_PREVIOUS_MASTER_KEYS"):
        fresh(store, NEW).decrypt("env_1", sealed["env_1"])
    assert fresh(store, NEW, OLD).decrypt("env_1", sealed["env_1"]) == "env_1"
    assert fresh(store, NEW, OLD).roll() == 3
    assert fresh(store, NEW, OLD).roll() == 0
    for ring, value in sealed.items():
        assert fresh(store, NEW).decrypt(ring, value) == ring
    with pytest.raises(UnknownMasterKey):
        fresh(store, OLD).decrypt("env_1", sealed["env_1"])


def test_a_ring_made_by_two_at_once_keeps_one_key_that_both_use(store: Outage) -> None:
    first, second = fresh(store), fresh(store)
    other: list[str] = []

    class Racing(DirectoryStore):
        """Lets the other process finish between this one's look and its write."""

        def put_new(self, key: str, content: object) -> bool:
            if not other:
                other.append(second.encrypt("env_1", "second"))
            return super().put_new(key, content)  # type: ignore[arg-type]

    first = Vault(DataKeys(Racing(store._root), OLD))
    mine = first.encrypt("env_1", "first")
    assert len(store.keys("keyring/env_1")) == 2
    for reader in (first, second, fresh(store)):
        assert reader.decrypt("env_1", mine) == "first"
        assert reader.decrypt("env_1", other[0]) == "second"


def test_processes_that_start_together_read_one_another(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from apps.vault.datakeys import DataKeys, master_key\n"
        "from apps.vault.services import Vault\n"
        "from unkey.objects import DirectoryStore\n"
        "vault = Vault(DataKeys(DirectoryStore(Path(sys.argv[1])), master_key('cc' * 32, 'K')))\n"
        "sys.stdin.read(1)\n"
        "print(vault.encrypt('env_1', sys.argv[2]))\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "three")
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    sealed = [process.communicate()[0].strip() for process in running]
    vault = fresh(DirectoryStore(tmp_path), master_key("cc" * 32, "K"))
    assert [vault.decrypt("env_1", value) for value in sealed] == ["one", "two", "three"]
    assert len(DirectoryStore(tmp_path).keys("keyring/env_1")) == 2


def test_known_keys_outlive_an_outage_of_the_store_for_a_day(vault: Vault, store: Outage) -> None:
    sealed = vault.encrypt("env_1", "x")
    store.down = True
    for hours in (0.5, 2, 23):
        with clock.shifted(timedelta(hours=hours)):
            assert vault.decrypt("env_1", sealed) == "x"
            assert vault.decrypt("env_1", vault.encrypt("env_1", "y")) == "y"
    with clock.shifted(timedelta(hours=25)), pytest.raises(VaultUnavailable):
        vault.decrypt("env_1", sealed)
    with pytest.raises(VaultUnavailable):
        vault.encrypt("env_2", "x")


def test_the_cache_is_bounded_and_drops_what_was_not_used() -> None:
    cache: Cache[int] = Cache(entries=3)
    for name in ("a", "b", "c"):
        cache.get(name, lambda: 1)
    cache.get("a", lambda: 2)
    cache.get("d", lambda: 3)
    assert len(cache) == 3
    assert cache.get("a", lambda: 4) == 1
    assert cache.get("b", lambda: 5) == 5


def test_errors_and_logs_hold_no_plaintext_and_no_key(
    vault: Vault, store: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        sealed = vault.encrypt("env_1", "s3cret-plaintext")
        vault.decrypt("env_1", sealed)
        with pytest.raises(InvalidPlaintext) as refused:
            vault.encrypt("env_1", "s3cret-plaintext\ud800")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__suppress_context__
    assert "s3cret" not in caplog.text
    assert "aa" * 8 not in repr(OLD)
    assert b"s3cret" not in b"".join(store.read(key) for key in store.keys("keyring"))


@pytest.mark.parametrize("text", ["", "zz", "aa" * 31, "aa" * 33])
def test_a_malformed_master_key_is_named(text: str) -> None:
    with pytest.raises(BadSetting, match="VAULT_MASTER_KEY must be 32 bytes in hexadecimal"):
        master_key(text, "VAULT_MASTER_KEY")


@pytest.fixture
def process_vault() -> Iterator[None]:
    services.local_vault.cache_clear()
    services.backend.cache_clear()
    yield
    services.local_vault.cache_clear()
    services.backend.cache_clear()


@pytest.mark.usefixtures("process_vault")
def test_the_settings_vault_works_without_a_database() -> None:
    sealed = services.encrypt_bulk("env_bulk", {"A": "1", "B": ""})
    assert services.decrypt_bulk("env_bulk", sealed) == {"A": "1", "B": ""}
    assert services.decrypt("env_bulk", services.encrypt("env_bulk", "x")) == "x"
    services.rotate("env_bulk")
    assert services.decrypt("env_bulk", services.re_encrypt("env_bulk", sealed["A"])) == "1"
    assert services.roll() == 0
    assert services.liveness() == "ok"
    with pytest.raises(Undecryptable):
        services.decrypt_bulk("env_bulk", {**sealed, "C": "nonsense"})
