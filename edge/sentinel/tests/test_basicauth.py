"""The basicauth policy: bcrypt and argon2, hashed off the loop, remembered for a minute."""

import asyncio
import base64

import argon2
import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sentinel import basicauth
from edge.sentinel.basicauth import BasicAuth, usable_hash
from edge.sentinel.decision import State, Unsupported
from edge.sentinel.tests.test_engine import Call
from unkey.errors import Fault, InvalidPassword, MissingCredentials, UpstreamUnavailable

NOW = 1_800_000_000_000
BCRYPT = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
ARGON2 = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("pässword:2")
BODY = {
    "credentials": [
        {"username": "ali", "passwordHash": BCRYPT},
        {"username": "zoë", "passwordHash": ARGON2},
    ]
}


@pytest.fixture(autouse=True)
def now(monkeypatch):
    moment = [NOW]
    monkeypatch.setattr("unkey.clock.now_ms", lambda: moment[0])
    return moment


def ask(policy, name, password, state=None):
    text = base64.b64encode(f"{name}:{password}".encode())
    return send(policy, b"Basic " + text, state)


def send(policy, header, state=None):
    fields = [] if header is None else [(b"authorization", header)]
    outcome = policy.apply(Call(fields=fields), state or State())
    if outcome is None or isinstance(outcome, Fault):
        return outcome

    async def wait():
        return await outcome

    return asyncio.run(wait())


def test_right_passwords_pass_and_name_the_caller():
    policy, state = BasicAuth(BODY), State()
    assert ask(policy, "ali", "open sesame", state) is None
    assert state.principal == {
        "version": "v1", "subject": "ali", "type": "BASIC", "source": {"basic": {"username": "ali"}},
    }  # fmt: skip
    assert state.request_lines == (
        b'X-Unkey-Principal: {"version":"v1","subject":"ali","type":"BASIC","source":{"basic":{"username":"ali"}}}\r\n'
    )
    assert ask(policy, "zoë", "pässword:2") is None


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ali", "open"),
        ("ali", ""),
        ("zoë", "open sesame"),
        ("nobody", "open sesame"),
        ("ali", "x" * 73),
        ("ali", "a\0b"),
    ],
)
def test_wrong_passwords_are_refused_with_a_challenge(name, password):
    policy = BasicAuth(BODY)
    for _ in range(2):
        fault = ask(policy, name, password)
        assert type(fault) is InvalidPassword
        assert fault.headers == {"WWW-Authenticate": 'Basic realm="restricted", charset="UTF-8"'}


@pytest.mark.parametrize(
    "header",
    [None, b"Bearer abc", b"Basic", b"Basic %%%", b"Basic " + base64.b64encode(b"no colon"), b"Basic /w=="],
)
def test_a_request_without_credentials_is_challenged(header):
    fault = send(BasicAuth(BODY), header)
    assert type(fault) is MissingCredentials
    assert "WWW-Authenticate" in fault.headers


def test_a_password_is_hashed_once_a_minute(monkeypatch, now):
    hashed = []

    def matches(password, known):
        hashed.append(password)
        return True

    monkeypatch.setattr(basicauth, "_matches", matches)
    policy = BasicAuth(BODY)
    for _ in range(3):
        assert ask(policy, "ali", "anything") is None
    assert hashed == ["anything"]
    now[0] += basicauth.REMEMBERED_MS
    assert ask(policy, "ali", "anything") is None
    assert hashed == ["anything", "anything"]


def test_a_flood_of_guesses_is_bounded(monkeypatch):
    monkeypatch.setattr(basicauth, "_tries", basicauth.MOST_TRIES)
    fault = ask(BasicAuth(BODY), "ali", "open sesame")
    assert type(fault) is UpstreamUnavailable
    assert fault.headers == {"Retry-After": "1"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"credentials": []},
        {"credentials": [{"username": "a", "passwordHash": "secret"}]},
        {"credentials": [{"username": "a:b", "passwordHash": BCRYPT}]},
        {"credentials": [{"username": "", "passwordHash": BCRYPT}]},
        {"credentials": [{"username": "a"}]},
        {"credentials": [{"username": "a", "passwordHash": BCRYPT.replace("$04$", "$31$")}]},
    ],
)
def test_what_cannot_be_used_is_said(body):
    with pytest.raises(Unsupported):
        BasicAuth(body)


def test_hashes_that_would_cost_too_much_are_not_taken():
    assert usable_hash(ARGON2)
    assert not usable_hash(ARGON2.replace("m=64", "m=9999999"))
    assert not usable_hash(ARGON2.replace("t=1", "t=99"))


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda raw: b"Basic " + base64.b64encode(raw)))
def test_no_header_breaks_it(value):
    policy = BasicAuth(BODY)
    assert type(send(policy, value)) in (MissingCredentials, InvalidPassword)
