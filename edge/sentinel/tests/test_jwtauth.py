"""The jwtauth policy: signatures, claims, rotation, and the known attacks on tokens (RFC 8725)."""

import asyncio
import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from edge.sentinel.decision import State, Unsupported
from edge.sentinel.jwtauth import JwtAuth, KeysUnavailable, StaticKeys, read_key_set
from edge.sentinel.tests.test_engine import Call
from unkey.errors import Fault, InvalidToken, KeyLookupUnavailable, MissingCredentials, RequestHeadersTooLarge

NOW = 1_800_000_000_000
SECONDS = NOW // 1000
CLAIMS = {"sub": "user_1", "exp": SECONDS + 60, "iss": "https://issuer.test", "aud": "api"}
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SECRET = b"a shared secret of thirty-two octets and more, for all of the HS algorithms here"


def pem(key):
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def jwk(key, kid, algorithm, **more):
    makers: dict[str, Any] = {
        "R": jwt.algorithms.RSAAlgorithm,
        "P": jwt.algorithms.RSAAlgorithm,
        "E": jwt.algorithms.ECAlgorithm,
        "H": jwt.algorithms.HMACAlgorithm,
    }
    maker: Any = jwt.algorithms.OKPAlgorithm if algorithm == "EdDSA" else makers[algorithm[0]]
    public = key if isinstance(key, bytes) else key.public_key()
    return {**maker.to_jwk(public, as_dict=True), "kid": kid, **more}


@pytest.fixture(autouse=True)
def now(monkeypatch):
    moment = [NOW]
    monkeypatch.setattr("unkey.clock.now_ms", lambda: moment[0])
    return moment


class Published:
    """A key set that may change, and may be out of reach."""

    def __init__(self, *keys):
        self.set = read_key_set({"keys": list(keys)})
        self.next = self.set
        self.looked = 0
        self.gone = False

    def current(self):
        if self.gone:
            raise KeysUnavailable
        return self.set

    def newer(self, than):
        self.looked += 1
        return self._fetch()

    async def _fetch(self):
        self.set = self.next
        return self.set


def policy(body, source=None):
    return JwtAuth(body, lambda url, issuer, cache_ms: source or StaticKeys(()))


def sign(key=RSA, algorithm="RS256", headers=None, **claims):
    wanted = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(wanted, key, algorithm=algorithm, headers=headers)


def send(rule, token, state=None):
    fields = [] if token is None else [(b"authorization", b"Bearer " + token.encode("latin-1"))]
    outcome = rule.apply(Call(fields=fields), state or State())
    if outcome is None or isinstance(outcome, Fault):
        return outcome

    async def wait():
        return await outcome

    return asyncio.run(wait())


def test_a_good_token_passes_and_names_the_caller():
    rule = policy({"publicKeyPem": pem(RSA)})
    for _ in range(2):
        state = State()
        assert send(rule, sign(), state) is None
        assert state.principal == {
            "version": "v1", "subject": "user_1", "type": "JWT",
            "source": {"jwt": {"header": {"alg": "RS256", "typ": "JWT"}, "payload": CLAIMS}},
        }  # fmt: skip
        name, _, value = state.request_lines.partition(b": ")
        assert name == b"X-Unkey-Principal"
        assert json.loads(value) == state.principal


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA, "RS256"),
        (RSA, "RS512"),
        (RSA, "PS384"),
        (EC, "ES256"),
        (ED, "EdDSA"),
        (SECRET, "HS256"),
        (SECRET, "HS512"),
    ],
)
def test_every_family_of_algorithms(key, algorithm):
    rule = policy(
        {"jwksUri": "https://issuer.test/keys", "algorithms": [algorithm]},
        Published(jwk(key, "k1", algorithm)),
    )
    assert send(rule, sign(key, algorithm, {"kid": "k1"})) is None
    assert send(rule, sign(key, algorithm)) is None


def test_claims_are_forwarded_as_the_policy_says():
    state = State()
    rule = policy({"publicKeyPem": pem(RSA), "subjectClaim": "uid", "forwardClaims": ["plan", "missing"]})
    assert send(rule, sign(uid=42, plan="pro"), state) is None
    assert state.principal is not None
    assert state.principal["subject"] == "42"
    assert state.principal["source"]["jwt"]["payload"] == {"plan": "pro"}


@pytest.mark.parametrize(
    ("body", "claims", "why"),
    [
        ({}, {"exp": SECONDS}, "it has expired"),
        ({}, {"exp": SECONDS - 1}, "it has expired"),
        ({"clockSkewMs": 2000}, {"exp": SECONDS - 1}, ""),
        ({}, {"exp": None}, "it has no claim 'exp'"),
        ({"requiredClaims": []}, {"exp": None}, ""),
        ({"requiredClaims": ["plan"]}, {}, "it has no claim 'plan'"),
        ({}, {"exp": True}, "its claim 'exp' is no time"),
        ({}, {"nbf": SECONDS + 1}, "it is not valid yet"),
        ({"clockSkewMs": 1000}, {"nbf": SECONDS + 1}, ""),
        ({}, {"nbf": "soon"}, "its claim 'nbf' is no time"),
        ({}, {"iat": SECONDS + 100}, "it is not valid yet"),
        ({"issuer": "https://issuer.test"}, {}, ""),
        ({"issuer": "https://issuer.test"}, {"iss": "https://issuer.test/"}, "it is from another issuer"),
        ({"issuer": "https://issuer.test"}, {"iss": None}, "it is from another issuer"),
        ({"audiences": ["api", "web"]}, {}, ""),
        ({"audiences": ["web"]}, {"aud": ["api", "web"]}, ""),
        ({"audiences": ["web"]}, {}, "it is meant for another audience"),
        ({"audiences": ["web"]}, {"aud": None}, "it is meant for another audience"),
        ({}, {"sub": None}, "it has no claim 'sub' that names its subject"),
        ({}, {"sub": ""}, "it has no claim 'sub' that names its subject"),
    ],
)
def test_claims(body, claims, why):
    rule = policy({"publicKeyPem": pem(RSA), **body})
    # PyJWT will not sign some of these claims: they are signed as bytes.
    wanted = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    token = jwt.PyJWS().encode(json.dumps(wanted).encode(), RSA, algorithm="RS256")
    fault = send(rule, token)
    assert (fault.detail if fault else "") == (f"The token is not valid: {why}." if why else "")
    if fault:
        assert type(fault) is InvalidToken
        assert fault.headers == {"WWW-Authenticate": 'Bearer realm="restricted", error="invalid_token"'}


def unsigned(header, payload=CLAIMS, signature=b""):
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_the_token_does_not_choose_its_algorithm():
    rule = policy({"publicKeyPem": pem(RSA)})
    forged = jwt.PyJWS()  # an RSA public key taken for the secret of an HMAC
    forged.unregister_algorithm("HS256")
    forged.register_algorithm(
        "HS256",
        type("Any", (jwt.algorithms.HMACAlgorithm,), {"prepare_key": lambda _, k: k})(
            jwt.algorithms.HMACAlgorithm.SHA256
        ),
    )
    confused = forged.encode(json.dumps(CLAIMS).encode(), pem(RSA).encode(), algorithm="HS256")
    for token in (
        confused,
        unsigned({"alg": "none"}),
        unsigned({"alg": "None"}),
        unsigned({}),
        unsigned({"alg": ["RS256"]}),
    ):
        assert type(send(rule, token)) is InvalidToken
    head, body, _ = sign().split(".")
    assert type(send(rule, f"{head}.{body}.")) is InvalidToken
    assert type(send(rule, sign(OTHER))) is InvalidToken
    assert type(send(rule, sign(headers={"crit": ["b64"], "b64": False}))) is InvalidToken


def test_a_shared_secret_and_a_public_key_do_not_stand_in_for_each_other():
    both = Published(jwk(RSA, "k1", "RS256"), jwk(SECRET, "k1", "HS256"))
    rule = policy({"jwksUri": "https://issuer.test/keys", "algorithms": ["RS256"]}, both)
    assert send(rule, sign(RSA, "RS256", {"kid": "k1"})) is None
    assert type(send(rule, sign(SECRET, "HS256", {"kid": "k1"}))) is InvalidToken


def test_a_key_that_is_for_one_algorithm_verifies_no_other():
    rule = policy(
        {"jwksUri": "https://issuer.test/keys", "algorithms": ["RS256", "PS256"]},
        Published(jwk(RSA, "k1", "RS256", alg="PS256")),
    )
    assert send(rule, sign(RSA, "PS256")) is None
    assert type(send(rule, sign(RSA, "RS256"))) is InvalidToken


def test_a_new_key_is_looked_for_once_and_a_revoked_one_ends_at_once():
    source = Published(jwk(RSA, "k1", "RS256"))
    rule = policy({"jwksUri": "https://issuer.test/keys"}, source)
    old = sign(headers={"kid": "k1"})
    assert send(rule, old) is None
    source.next = read_key_set({"keys": [jwk(OTHER, "k2", "RS256")]})
    assert send(rule, sign(OTHER, headers={"kid": "k2"})) is None
    assert source.looked == 1
    assert type(send(rule, old)) is InvalidToken


def test_without_any_keys_nobody_passes():
    source = Published(jwk(RSA, "k1", "RS256"))
    source.gone = True
    fault = send(policy({"jwksUri": "https://issuer.test/keys"}, source), sign())
    assert type(fault) is KeyLookupUnavailable
    assert fault.headers == {"Retry-After": "1"}


def test_a_remembered_token_ends_with_its_time(now):
    rule = policy({"publicKeyPem": pem(RSA)})
    token = sign(exp=SECONDS + 5)
    assert send(rule, token) is None
    now[0] += 4_999
    assert send(rule, token) is None
    now[0] += 1
    assert type(send(rule, token)) is InvalidToken


def test_requests_without_a_token():
    fault = send(policy({"publicKeyPem": pem(RSA)}), None)
    assert type(fault) is MissingCredentials
    assert fault.headers == {"WWW-Authenticate": 'Bearer realm="restricted"'}
    lenient = policy({"publicKeyPem": pem(RSA), "allowAnonymous": True})
    state = State()
    assert send(lenient, None, state) is None
    assert state.principal is None
    assert type(send(lenient, "not a token")) is InvalidToken


def test_a_token_elsewhere():
    rule = policy({"publicKeyPem": pem(RSA), "locations": [{"queryParam": {"name": "token"}}]})
    assert rule.apply(Call(query=b"token=" + sign().encode()), State()) is None
    assert type(send(rule, sign())) is MissingCredentials


def test_what_is_too_large_is_refused():
    rule = policy({"publicKeyPem": pem(RSA)})
    assert type(send(rule, "x" * 20_000)) is InvalidToken
    assert type(send(rule, sign(padding="x" * 8_000))) is RequestHeadersTooLarge


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"jwksUri": "https://a", "oidcIssuer": "https://b"},
        {"publicKeyPem": "no key"},
        {"publicKeyPem": pem(rsa.generate_private_key(65537, 1024))},
        {"publicKeyPem": pem(RSA), "algorithms": ["ES256"]},
        {"publicKeyPem": pem(RSA), "algorithms": ["none"]},
        {"jwksUri": "https://a", "algorithms": ["HS256", "RS256"]},
        {"publicKeyPem": pem(RSA), "clockSkewMs": -1},
        {"publicKeyPem": pem(RSA), "audiences": "api"},
        {"publicKeyPem": pem(RSA), "issuer": 5},
    ],
)
def test_what_cannot_be_evaluated_is_said(body):
    with pytest.raises(Unsupported):
        policy(body)


def test_only_usable_keys_are_taken_from_a_set():
    private = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True), "kid": "private"}
    small = jwk(rsa.generate_private_key(65537, 1024), "small", "RS256")
    sets = [
        private, small, jwk(RSA, "enc", "RS256", use="enc"), jwk(RSA, "ops", "RS256", key_ops=["encrypt"]),
        jwk(RSA, "alg", "RS256", alg="ES256"), {"kty": "RSA"}, {"kty": "??"}, 5, None, jwk(RSA, "good", "RS256"),
    ]  # fmt: skip
    assert [key.kid for key in read_key_set({"keys": sets})] == ["good"]
    sets_that_are_none: list[Any] = [None, [], {}, {"keys": {}}]
    for broken in sets_that_are_none:
        with pytest.raises(ValueError, match="no key set"):
            read_key_set(broken)


TEXT = st.text(st.characters(max_codepoint=255), max_size=80)


@given(
    st.one_of(
        TEXT,
        st.builds(lambda *parts: ".".join(parts), TEXT, TEXT, TEXT),
        st.binary().map(lambda raw: unsigned({"alg": "RS256"}, {}, raw)),
    )
)
def test_no_text_breaks_it(token):
    assert type(send(policy({"publicKeyPem": PEM}), token)) in (InvalidToken, MissingCredentials)


PEM = pem(RSA)
