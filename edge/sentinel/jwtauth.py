"""The jwtauth policy: a JSON Web Token must be signed by a known key and mean this API (RFC 7519, RFC 8725).

Which algorithms may sign is said by the policy, never by the token; and a key verifies only what is
made for keys of its type, so that a public key is never taken for a shared secret.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import jwt
from msgspec import Struct

from edge.sentinel.credentials import compile_locations
from edge.sentinel.decision import Call, State, Unsupported
from edge.sentinel.match import field
from edge.sentinel.principal import principal_line
from unkey import clock
from unkey.errors import (
    Fault,
    InvalidToken,
    KeyLookupUnavailable,
    MissingCredentials,
    RequestHeadersTooLarge,
)

KEY_TYPES = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "OKP",
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
}
MOST_TOKEN_OCTETS = 16 * 1024
MOST_PRINCIPAL_OCTETS = 8 * 1024
DEFAULT_CACHE_MS = 3_600_000
MOST_SKEW_MS = 600_000
_REMEMBERED = 10_000
_REMEMBERED_MS = 60_000
_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048  # RFC 7518 section 3.3

_jws = jwt.PyJWS()


class VerificationKey(Struct, frozen=True):
    """A key that signatures are verified with.

    Args:
        kid: its name in tokens; empty if it has none.
        type: RSA, P-256, P-384, P-521, OKP or oct.
        algorithm: the only algorithm that it is for; empty: any of its type.
        key: as PyJWT takes it.
    """

    kid: str
    type: str
    algorithm: str
    key: Any


Keys = tuple[VerificationKey, ...]


class KeysUnavailable(Exception):
    """The keys of an issuer were never fetched, and cannot be at the moment."""


class KeySource(Protocol):
    """Where the keys of a policy come from."""

    def current(self) -> Keys | Awaitable[Keys]:
        """Return the keys, at once if they are at hand.

        Raises:
            KeysUnavailable: there are none to go by.
        """

    def newer(self, than: Keys) -> Keys | Awaitable[Keys]:
        """Return the keys after another look at their source, for a token that none of these fits."""


OpenKeys = Callable[[str, bool, int], KeySource]
"""Return the source for `(url, is it an issuer, milliseconds that keys are good for)`."""


class StaticKeys:
    """Keys that the policy itself holds."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def current(self) -> Keys:
        """Return the keys."""
        return self._keys

    def newer(self, than: Keys) -> Keys:
        """Return the same keys: there are no others."""
        return self._keys


def read_key_set(document: Any) -> Keys:
    """Return the usable keys of a JSON Web Key Set (RFC 7517 section 5); others are left out.

    Raises:
        ValueError: it is no key set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no key set: it has no list of keys")
    return tuple(key for each in listed[:_MOST_KEYS] if (key := _read_key(each)) is not None)


def _read_key(body: Any) -> VerificationKey | None:
    if not isinstance(body, dict) or body.get("use", "sig") != "sig" or "d" in body:
        return None  # not for signatures; or a private key, which whoever reads the set could sign with
    operations = body.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return None
    kind = body.get("crv") if body.get("kty") == "EC" else body.get("kty")
    fitting = [name for name, key_type in KEY_TYPES.items() if key_type == kind]
    algorithm = body.get("alg") or ""
    if not fitting or (algorithm and algorithm not in fitting):
        return None
    try:
        key = jwt.PyJWK(body, algorithm=algorithm or fitting[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "OKP" and body.get("crv") not in ("Ed25519", "Ed448"):
        return None
    if kind == "RSA" and key.key_size < _LEAST_RSA_BITS:
        return None
    return VerificationKey(str(body.get("kid") or ""), str(kind), algorithm, key)


def read_pem(text: str) -> VerificationKey:
    """Return a public key in PEM form.

    Raises:
        ValueError: it is no public key, or of a type that signs no tokens.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    key = serialization.load_pem_public_key(text.encode())
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS:
        return VerificationKey("", "RSA", "", key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        curves = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
        if key.curve.name in curves:
            return VerificationKey("", curves[key.curve.name], "", key)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return VerificationKey("", "OKP", "", key)
    raise ValueError("a key of this type or size verifies no tokens")


class JwtAuth:
    """A compiled jwtauth policy.

    Args:
        body: exactly one of `jwksUri`, `oidcIssuer` and `publicKeyPem`; `issuer`, `audiences`,
            `algorithms`, `subjectClaim`, `requiredClaims`, `forwardClaims`, `allowAnonymous`,
            `clockSkewMs`, `jwksCacheMs`, `locations`.
        open_keys: where key sets are fetched.

    Raises:
        Unsupported: the policy cannot be evaluated.
    """

    def __init__(self, body: Mapping[str, Any], open_keys: OpenKeys) -> None:
        self._source, types = _source(body, open_keys)
        self._issuer = _text(body, "issuer") or _text(body, "oidcIssuer")
        self._audiences = frozenset(_texts(body, "audiences"))
        self._algorithms = _algorithms(_texts(body, "algorithms"), types)
        self._subject = _text(body, "subjectClaim") or "sub"
        required = field(body, "requiredClaims")
        self._required = ("exp",) if required is None else _texts(body, "requiredClaims")
        self._forward = _texts(body, "forwardClaims")
        self._anonymous = field(body, "allowAnonymous") is True
        self._skew_ms = _whole(body, "clockSkewMs", 0, MOST_SKEW_MS)
        self._locations = compile_locations(body.get("locations"))
        self._known: dict[bytes, tuple[Keys, float, dict[str, Any], bytes]] = {}

    def apply(self, call: Call, state: State) -> Fault | Awaitable[Fault | None] | None:
        """Verify the request's token; nothing to do where an earlier policy has established who calls."""
        if state.principal is not None:
            return None
        token = next((text for location in self._locations if (text := location(call))), None)
        if token is None:
            if self._anonymous:
                return None
            return MissingCredentials("The request carries no token.", headers=_challenge(""))
        if len(token) > MOST_TOKEN_OCTETS:
            return _refused(f"it has more than {MOST_TOKEN_OCTETS} octets")
        try:
            keys = self._source.current()
        except KeysUnavailable:
            return _unavailable()
        if not isinstance(keys, tuple):
            return self._verify_later(keys, token, state)
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None and known[0] is keys and clock.now_ms() < known[1]:
            state.principal, state.request_lines = known[2], known[3]
            return None
        return self._verify(token, digest, keys, state, look_again=True)

    async def _verify_later(self, waiting: Awaitable[Keys], token: str, state: State) -> Fault | None:
        try:
            keys = await waiting
        except KeysUnavailable:
            return _unavailable()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        outcome = self._verify(token, digest, keys, state, look_again=False)
        return outcome if outcome is None or isinstance(outcome, Fault) else await outcome

    def _verify(
        self, token: str, digest: bytes, keys: Keys, state: State, *, look_again: bool
    ) -> Fault | Awaitable[Fault | None] | None:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return _refused("it is no JSON Web Token")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            return _refused("its algorithm is not one of those that the policy allows")
        if "crit" in header:
            return _refused("it demands an extension that is not known here")
        kid = header.get("kid")
        fitting = [
            key
            for key in keys
            if key.type == KEY_TYPES[algorithm]
            and key.algorithm in ("", algorithm)
            and (not kid or not key.kid or key.kid == kid)
        ]
        if not fitting and look_again:
            try:
                newer = self._source.newer(keys)
            except KeysUnavailable:
                return _refused("it is signed by a key that is not known")
            if not isinstance(newer, tuple):
                return self._verify_later(newer, token, state)
            if newer is not keys:
                return self._verify(token, digest, newer, state, look_again=False)
        for key in fitting:
            try:
                found = _jws.decode_complete(token, key.key, algorithms=[algorithm])
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                continue
            return self._admit(found, digest, keys, state)
        return _refused(
            "its signature is not by a key that is known" if fitting else "no key that is known fits it"
        )

    def _admit(self, found: dict[str, Any], digest: bytes, keys: Keys, state: State) -> Fault | None:
        try:
            claims = json.loads(found["payload"])
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            return _refused("its claims are no JSON object")
        now = clock.now_ms()
        wrong = self._wrong(claims, now)
        if wrong:
            return _refused(wrong)
        subject = claims.get(self._subject)
        if not isinstance(subject, str | int) or isinstance(subject, bool) or subject == "":
            return _refused(f"it has no claim {self._subject!r} that names its subject")
        forwarded = (
            {name: claims[name] for name in self._forward if name in claims} if self._forward else claims
        )
        source = {"header": found["header"], "payload": forwarded}
        principal = {"version": "v1", "subject": str(subject), "type": "JWT", "source": {"jwt": source}}
        line = principal_line(principal)
        if len(line) > MOST_PRINCIPAL_OCTETS:
            return RequestHeadersTooLarge(
                "The token's claims are too large to be passed to the app; name those it needs in forwardClaims."
            )
        until: float = now + _REMEMBERED_MS
        if isinstance(claims.get("exp"), int | float):
            until = min(until, claims["exp"] * 1000 + self._skew_ms)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[digest] = keys, until, principal, line
        state.principal, state.request_lines = principal, line
        return None

    def _wrong(self, claims: dict[str, Any], now: float) -> str:
        """Return what is wrong with the claims (RFC 7519 section 4.1); empty if nothing is."""
        for name in self._required:
            if claims.get(name) is None:
                return f"it has no claim {name!r}"
        for name in ("exp", "nbf", "iat"):
            moment = claims.get(name)
            if moment is None:
                continue
            if isinstance(moment, bool) or not isinstance(moment, int | float) or not abs(moment) < 1e12:
                return f"its claim {name!r} is no time"
            if name == "exp" and now >= moment * 1000 + self._skew_ms:
                return "it has expired"
            if name != "exp" and now < moment * 1000 - self._skew_ms:
                return "it is not valid yet"
        if self._issuer and claims.get("iss") != self._issuer:
            return "it is from another issuer"
        if self._audiences:
            audience = claims.get("aud")
            meant = audience if isinstance(audience, list) else [audience]
            if not any(isinstance(each, str) and each in self._audiences for each in meant):
                return "it is meant for another audience"
        return ""


def _challenge(error: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="restricted"{error}'}  # RFC 6750 section 3


def _refused(why: str) -> Fault:
    return InvalidToken(f"The token is not valid: {why}.", headers=_challenge(', error="invalid_token"'))


def _unavailable() -> Fault:
    return KeyLookupUnavailable(
        "The keys that tokens are verified with cannot be fetched at the moment; try again.",
        headers={"Retry-After": "1"},
    )


def _source(body: Mapping[str, Any], open_keys: OpenKeys) -> tuple[KeySource, frozenset[str]]:
    """Return where the keys come from, and which types they may have (empty: any but a shared secret)."""
    given = [name for name in ("jwksUri", "oidcIssuer", "publicKeyPem") if field(body, name)]
    if len(given) != 1:
        raise Unsupported("jwtauth needs exactly one of jwksUri, oidcIssuer and publicKeyPem")
    text = _text(body, given[0])
    if given[0] == "publicKeyPem":
        try:
            key = read_pem(text)
        except ValueError as error:
            raise Unsupported(f"publicKeyPem is no public key: {error}") from None
        return StaticKeys((key,)), frozenset((key.type,))
    cache_ms = _whole(body, "jwksCacheMs", DEFAULT_CACHE_MS, 7 * 86_400_000)
    return open_keys(text, given[0] == "oidcIssuer", cache_ms), frozenset()


def _algorithms(named: Sequence[str], types: frozenset[str]) -> frozenset[str]:
    unknown = [name for name in named if name not in KEY_TYPES]
    if unknown:
        raise Unsupported(f"the algorithm {unknown[0]!r} is not known")
    if types:
        fitting = {name for name, key_type in KEY_TYPES.items() if key_type in types}
        if named and not fitting.intersection(named):
            raise Unsupported("none of the algorithms is one for keys of this type")
        return frozenset(fitting.intersection(named) if named else fitting)
    kinds = {KEY_TYPES[name] for name in named}
    if "oct" in kinds and len(kinds) > 1:
        raise Unsupported("shared secrets (HS…) and public keys cannot be mixed in one policy")
    return frozenset(named or ("RS256",))


def _text(body: Mapping[str, Any], name: str) -> str:
    value = field(body, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unsupported(f"jwtauth {name} is not a text")
    return value


def _texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = field(body, name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise Unsupported(f"jwtauth {name} is not a list of texts")
    return tuple(value)


def _whole(body: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = field(body, name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Unsupported(f"jwtauth {name} is not a number of milliseconds up to {most}")
    return value
