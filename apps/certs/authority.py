"""The local certificate authority: made on first start, kept in a folder, issues for any host name.

Not name-constrained: it also stands in for ACME when custom domains are tried out on one machine,
and DEFAULT_DOMAIN may change without a new authority. Its certificate may sign leaves only.
"""

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from unkey import clock

AUTHORITY_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=90)
_CLOCK_SKEW = timedelta(hours=1)
_COMMON_NAME_MAX = 64


class AuthorityUnusable(Exception):
    """The authority's files are there but cannot be read."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate.

    Args:
        chain: PEM, the leaf and then the authority.
        private_key: PEM (PKCS #8), not encrypted.
        not_after: when it expires.
    """

    chain: str
    private_key: str
    not_after: datetime

    def __repr__(self) -> str:
        return f"Issued(not_after={self.not_after})"


class LocalAuthority:
    """A certificate authority (ECDSA P-256) in a folder: `ca.pem`, and `ca.key` with mode 0600."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, path: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.path = path

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue(self, hostname: str) -> Issued:
        """Issue a certificate for a host name, which may start with `*.`, valid for 90 days."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = clock.now()
        not_after = min(now + LEAF_LIFETIME, self._certificate.not_valid_after_utc)
        names = (
            [x509.NameAttribute(NameOID.COMMON_NAME, hostname)] if len(hostname) <= _COMMON_NAME_MAX else []
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(names))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=not names)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        leaf = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        return Issued(leaf + self.pem, _pem(key).decode("ascii"), certificate.not_valid_after_utc)


def open_or_make(folder: Path) -> LocalAuthority:
    """Return the authority of a folder, making it if the folder is not there.

    Several processes may call this at once on first start: key and certificate are made in another
    folder that is renamed into place, so one of them wins and all use the same pair.

    Raises:
        AuthorityUnusable: a file is missing or broken.
        OSError: the folder cannot be made or read.
    """
    if not folder.exists():
        _make(folder)
    path = folder / "ca.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise AuthorityUnusable(f"{folder} holds no usable certificate authority: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise AuthorityUnusable(f"{folder}/ca.key is not the key of ca.pem")
    return LocalAuthority(certificate, key, path)


def _make(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Unkey"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Unkey local CA {secrets.token_hex(4)}"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    draft = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
    draft.mkdir(mode=0o700, parents=True)
    try:
        _write(draft / "ca.key", _pem(key), 0o600)
        _write(draft / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
