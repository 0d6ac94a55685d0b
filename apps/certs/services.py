"""Writes certificates: issued by the local authority, their keys encrypted by the vault."""

import re
from datetime import timedelta

from django.db import IntegrityError, transaction

from apps.certs.authority import LocalAuthority, open_or_make
from apps.certs.models import Certificate
from apps.cluster import versions
from apps.vault import services as vault
from unkey import clock, errors
from unkey.env import env

KEYRING = "certificates"
RENEW_BEFORE = timedelta(days=30)

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOSTNAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII)


def ensure_local_ca() -> LocalAuthority:
    """Return this installation's certificate authority, made in `var/ca` on first use.

    Raises:
        apps.certs.authority.AuthorityUnusable: its files are there but broken.
    """
    return open_or_make(env.UNKEY_VAR / "ca")


def ensure_default_certificates() -> list[Certificate]:
    """Return valid certificates of the default domain: one for every name under it, one for itself."""
    return [ensure_certificate(f"*.{env.DEFAULT_DOMAIN}"), ensure_certificate(env.DEFAULT_DOMAIN)]


def ensure_certificate(hostname: str) -> Certificate:
    """Return a certificate that is valid for at least 30 days, issuing it when there is none.

    Safe to call from several processes at once: one of them issues what is kept.

    Args:
        hostname: in lower case; may start with `*.`, which stands for one label.

    Raises:
        errors.InvalidInput: it is no host name.
        apps.vault.errors.VaultError: the key cannot be encrypted.
    """
    if len(hostname) > 253 or not _HOSTNAME.fullmatch(hostname):
        raise errors.InvalidInput(f"{hostname[:253]!r} is not a host name.")
    authority = ensure_local_ca()
    found = Certificate.objects.filter(hostname=hostname).first()
    if found is not None and _is_good(found, authority):
        return found
    issued = authority.issue(hostname)
    private_key = vault.encrypt(KEYRING, issued.private_key)
    try:
        with transaction.atomic():
            row = Certificate.objects.select_for_update().filter(hostname=hostname).first()
            if row is not None and _is_good(row, authority):
                return row
            if row is None:
                row = Certificate(hostname=hostname)
            else:
                row.updated_at = clock.now()
            row.chain = issued.chain
            row.private_key = private_key
            row.keyring = KEYRING
            row.not_after = issued.not_after
            versions.stamp(row)
            row.save()
            return row
    except IntegrityError:
        # Another process inserted the row between this one's look and its insert.
        return Certificate.objects.get(hostname=hostname)


def renew_due() -> list[Certificate]:
    """Renew every certificate that expires within 30 days; return the renewed ones."""
    due = Certificate.objects.filter(not_after__lt=clock.now() + RENEW_BEFORE).order_by("not_after")
    return [ensure_certificate(row.hostname) for row in due]


def _is_good(row: Certificate, authority: LocalAuthority) -> bool:
    return row.not_after >= clock.now() + RENEW_BEFORE and row.chain.endswith(authority.pem)
