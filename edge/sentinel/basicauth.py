"""The basicauth policy: user name and password (RFC 7617) against bcrypt or argon2 hashes.

Hashing is slow on purpose, so it runs in threads of its own, a bounded number of tries at a time, and
what came of a try is remembered for a minute under a digest keyed with this process's own secret.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import argon2
import bcrypt

from edge.sentinel.decision import Call, State, Unsupported
from edge.sentinel.match import field
from edge.sentinel.principal import principal_line
from unkey import clock
from unkey.errors import Fault, InvalidPassword, MissingCredentials, UpstreamUnavailable

REMEMBERED_MS = 60_000
MOST_TRIES = 64  # waiting or being hashed, in the whole process
_REMEMBERED = 10_000
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="restricted", charset="UTF-8"'}
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}")
_ARGON2 = re.compile(r"\$argon2(?:id|i|d)\$v=\d+\$m=(\d{1,7}),t=(\d{1,2}),p=(\d{1,2})\$[^$]+\$[^$]+")
_ARGON2_MOST_KIB = 256 * 1024

_Principal = tuple[dict[str, Any], bytes]

_threads = ThreadPoolExecutor(2, thread_name_prefix="basicauth")
_secret = secrets.token_bytes(32)
_tries = 0


def usable_hash(text: Any) -> bool:
    """Say whether a text is a password hash that this policy takes: bcrypt up to cost 15, argon2 up to 256 MiB."""
    if not isinstance(text, str):
        return False
    if _BCRYPT.fullmatch(text):
        return True
    found = _ARGON2.fullmatch(text)
    return (
        found is not None and int(found[1]) <= _ARGON2_MOST_KIB and int(found[2]) <= 16 and int(found[3]) <= 8
    )


class BasicAuth:
    """A compiled basicauth policy.

    Args:
        body: `credentials`, a list of `{username, passwordHash}`.

    Raises:
        Unsupported: there are none, or one cannot be used.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        given = body.get("credentials")
        if not isinstance(given, list) or not given:
            raise Unsupported("basicauth has no credentials")
        self._hashes: dict[str, str] = {}
        for each in given:
            name = each.get("username") if isinstance(each, dict) else None
            hashed = field(each, "passwordHash") if isinstance(each, dict) else None
            if not isinstance(name, str) or not name or ":" in name or not usable_hash(hashed):
                raise Unsupported(
                    "a basicauth credential needs a username and a bcrypt or argon2 passwordHash"
                )
            self._hashes[name] = str(hashed)
        self._decoy = next(iter(self._hashes.values()))
        self._known: dict[bytes, tuple[float, _Principal | None]] = {}

    def apply(self, call: Call, state: State) -> Fault | Awaitable[Fault | None] | None:
        """Check the request's password; nothing to do where an earlier policy has established who calls."""
        if state.principal is not None:
            return None
        value = call.header(b"authorization")
        digest = hashlib.blake2b(value or b"", key=_secret, digest_size=16).digest()
        known = self._known.get(digest)
        if known is not None and clock.now_ms() < known[0]:
            return _outcome(known[1], state)
        given = _credentials(value)
        if given is None:
            return MissingCredentials("The request carries no user name and password.", headers=_CHALLENGE)
        return self._check(*given, digest, state)

    async def _check(self, name: str, password: str, digest: bytes, state: State) -> Fault | None:
        global _tries
        if _tries >= MOST_TRIES:
            return UpstreamUnavailable(
                "Too many passwords are being checked at the moment; try again.", headers={"Retry-After": "1"}
            )
        _tries += 1
        try:
            hashed = self._hashes.get(name)
            # A name that is not known costs as much as one that is.
            matches = await asyncio.get_running_loop().run_in_executor(
                _threads, _matches, password, hashed or self._decoy
            )
        finally:
            _tries -= 1
        passed = matches and hashed is not None
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        principal = _principal(name) if passed else None
        self._known[digest] = clock.now_ms() + REMEMBERED_MS, principal
        return _outcome(principal, state)


def _outcome(principal: _Principal | None, state: State) -> Fault | None:
    if principal is None:
        return InvalidPassword("The user name or the password is wrong.", headers=_CHALLENGE)
    state.principal, state.request_lines = principal
    return None


def _principal(name: str) -> _Principal:
    """Return who calls, and the header that tells it to the app."""
    principal = {"version": "v1", "subject": name, "type": "BASIC", "source": {"basic": {"username": name}}}
    return principal, principal_line(principal)


def _credentials(value: bytes | None) -> tuple[str, str] | None:
    """Return user name and password of an Authorization header, None where it holds none (RFC 7617 section 2)."""
    if value is None or value[:6].lower() != b"basic ":
        return None
    try:
        text = base64.b64decode(value[6:].strip(b" \t"), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon and len(password) <= 1024 else None


def _matches(password: str, hashed: str) -> bool:
    if hashed.startswith("$2"):
        given = password.encode()
        # bcrypt hashes 72 octets; a longer password could only match by its beginning.
        return len(given) <= 72 and b"\0" not in given and bcrypt.checkpw(given, hashed.encode())
    try:
        return argon2.PasswordHasher().verify(hashed, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
