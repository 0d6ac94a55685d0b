"""Certificates of the local authority, judged by a real TLS handshake."""

import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from apps.certs import authority, services, tasks
from apps.certs.models import Certificate
from apps.cluster.models import Stream
from apps.vault import services as vault
from unkey import clock, errors
from unkey.env import env


@pytest.fixture(autouse=True)
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(env._values, "UNKEY_VAR", tmp_path)
    monkeypatch.setitem(env._values, "OBJECT_STORE_URL", f"file://{tmp_path}/objects")
    vault.local_vault.cache_clear()
    vault.backend.cache_clear()
    yield tmp_path
    vault.local_vault.cache_clear()
    vault.backend.cache_clear()


def handshake(row: Certificate, name: str, folder: Path) -> None:
    """Complete a TLS handshake in memory; raises ssl.SSLCertVerificationError as a client would."""
    (folder / "chain.pem").write_text(row.chain)
    (folder / "key.pem").write_text(vault.decrypt(row.keyring, row.private_key))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    asking = ssl.create_default_context(cafile=str(services.ensure_local_ca().path))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(up, down, server_side=True)
    client = asking.wrap_bio(down, up, server_hostname=name)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue


@pytest.mark.django_db
def test_the_default_certificates_are_trusted_for_the_domain_and_one_label_below(tmp_path: Path) -> None:
    wildcard, apex = services.ensure_default_certificates()
    assert (wildcard.hostname, apex.hostname) == ("*.unkey.localhost", "unkey.localhost")
    handshake(wildcard, "hello-main.unkey.localhost", tmp_path)
    handshake(apex, "unkey.localhost", tmp_path)
    for row, name in ((wildcard, "a.b.unkey.localhost"), (apex, "x.unkey.localhost")):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(row, name, tmp_path)


@pytest.mark.django_db
def test_a_key_is_kept_encrypted_in_the_certificates_ring(tmp_path: Path) -> None:
    row = services.ensure_certificate("a.example.com")
    assert "PRIVATE KEY" not in row.private_key
    assert row.keyring == "certificates"
    assert vault.decrypt("certificates", row.private_key).startswith("-----BEGIN PRIVATE KEY-----")


@pytest.mark.django_db
def test_asking_again_changes_nothing() -> None:
    first = services.ensure_certificate("a.example.com")
    again = services.ensure_certificate("a.example.com")
    assert (again.pk, again.version, again.chain) == (first.pk, first.version, first.chain)
    assert Stream.objects.get(name="certificates").version == first.version == 1


@pytest.mark.django_db
def test_a_certificate_is_renewed_in_its_last_thirty_days(tmp_path: Path) -> None:
    first = services.ensure_certificate("a.example.com")
    with clock.shifted(timedelta(days=59)):
        assert services.renew_due() == []
    with clock.shifted(timedelta(days=61)):
        (renewed,) = services.renew_due()
        assert services.renew_due() == []
    assert renewed.pk == first.pk
    assert renewed.version == 2
    assert renewed.chain != first.chain
    assert renewed.not_after - first.not_after >= timedelta(days=60)
    assert renewed.updated_at is not None


@pytest.mark.django_db
def test_a_new_authority_reissues(var: Path, tmp_path: Path) -> None:
    first = services.ensure_certificate("a.example.com")
    (var / "ca").rename(var / "gone")
    again = services.ensure_certificate("a.example.com")
    assert again.pk == first.pk
    handshake(again, "a.example.com", tmp_path)


@pytest.mark.django_db
def test_what_another_process_issued_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    issue = authority.LocalAuthority.issue
    raced: list[Certificate] = []

    def racing(self: authority.LocalAuthority, hostname: str) -> authority.Issued:
        if not raced:
            raced.append(Certificate())
            raced[0] = services.ensure_certificate(hostname)
        return issue(self, hostname)

    monkeypatch.setattr(authority.LocalAuthority, "issue", racing)
    row = services.ensure_certificate("a.example.com")
    assert row.chain == raced[0].chain
    assert Certificate.objects.count() == 1
    assert Stream.objects.get(name="certificates").version == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "name",
    ["", "A.example.com", "*", "*.*.com", "a.*.com", "-a.com", "a..b", "a b", "a.com.", "ä.de", "a" * 64],
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidInput):
        services.ensure_certificate(name)
    assert not Certificate.objects.exists()


@pytest.mark.django_db
def test_names_longer_than_a_common_name_may_be(tmp_path: Path) -> None:
    name = f"{'a' * 63}.{'b' * 63}.example.com"
    handshake(services.ensure_certificate(name), name, tmp_path)


def test_the_authority_is_private_and_signs_only_leaves(var: Path) -> None:
    services.ensure_local_ca()
    assert stat.S_IMODE((var / "ca/ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((var / "ca").stat().st_mode) == 0o700
    certificate = x509.load_pem_x509_certificate((var / "ca/ca.pem").read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_processes_that_start_together_use_one_authority(var: Path) -> None:
    gate = threading.Barrier(6)
    seen: set[str] = set()

    def run() -> None:
        gate.wait()
        seen.add(services.ensure_local_ca().pem)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    assert sorted(path.name for path in var.iterdir()) == ["ca"]


def test_a_broken_authority_is_named_and_not_replaced(var: Path) -> None:
    services.ensure_local_ca()
    (var / "ca/ca.key").write_text("broken")
    with pytest.raises(authority.AuthorityUnusable, match="ca holds no usable certificate authority"):
        services.ensure_local_ca()
    assert (var / "ca/ca.key").read_text() == "broken"


@pytest.mark.django_db
def test_the_timer_makes_and_renews() -> None:
    tasks.renew()
    assert sorted(Certificate.objects.values_list("hostname", flat=True)) == [
        "*.unkey.localhost",
        "unkey.localhost",
    ]
    with clock.shifted(timedelta(days=61)):
        tasks.renew()
    assert Stream.objects.get(name="certificates").version == 4
