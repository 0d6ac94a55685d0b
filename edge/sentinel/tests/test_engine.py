"""Policies: matching, keyauth, rate limits, firewall, failing closed; decided without any network."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from edge.sentinel.decision import Allow, Refuse
from edge.sentinel.engine import compile_policies
from edge.store.records import Api, Identity, KeyRecord, Ratelimit, Role, Workspace
from edge.verify.limiter import Limiter
from edge.verify.steps import Request, Subject, credit_cost, verify
from unkey.errors import ServiceUnavailable

NOW = 1_800_000_000_000


@dataclass
class Call:
    method: bytes = b"GET"
    path: bytes = b"/"
    query: bytes = b""
    peer: bytes = b"192.0.2.1"
    length: int = 0
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)

    def headers(self, name):
        return [value for key, value in self.fields if key == name]

    def header(self, name):
        return next(iter(self.headers(name)), None)


def make_key(**changes):
    fields = {
        "id": "key_1", "hash": "", "workspace_id": "ws_1", "key_space_id": "ks_1", "api_id": "api_1",
        "start": "", "name": "", "meta": {}, "enabled": True, "expires_at": None, "remaining": None,
        "credits_epoch": 0, "permissions": (), "role_ids": (), "identity_id": None, "ratelimits": (),
        "version": 1,
    }  # fmt: skip
    return KeyRecord(**{**fields, **changes})


def make_subject(identity=None, roles=(), **changes):
    workspace, api = Workspace("ws_1", True, 1), Api("api_1", "ws_1", "ks_1", (), 1)
    return Subject(make_key(**changes), workspace, api, identity, roles)


class Keys:
    """A verifier over a dictionary; `late` makes it answer as one that has to ask the database."""

    epoch = 0

    def __init__(self, subjects, *, late=False, gone=False):
        self.subjects = subjects
        self.late = late
        self.gone = gone
        self.limiter = Limiter()
        self.spent = 0

    def find(self, text):
        return self._later(self.subjects.get(text)) if self.late else self.subjects.get(text)

    async def _later(self, answer):
        if self.gone:
            raise ServiceUnavailable("gone")
        return answer

    def verify(self, subject, *, query=None, demands=(), credits=None):
        verdict = verify(subject, Request(query=query, demands=demands), self.limiter, NOW)
        cost = credit_cost(verdict, credits)
        if cost is not None:
            if self.spent + cost > subject.key.remaining:
                verdict.code = "USAGE_EXCEEDED"
            else:
                self.spent += cost
            verdict.credits = subject.key.remaining - self.spent
        return self._later(verdict) if self.late else verdict


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr("unkey.clock.now_ms", lambda: NOW)


def engine(*policies, keys=None, limiter=None):
    numbered = [
        {"id": f"pol_{number}", "name": f"p{number}", "enabled": True, **policy}
        for number, policy in enumerate(policies)
    ]
    return compile_policies(
        numbered,
        workspace_id="ws_1",
        verifier=keys or Keys({}),
        limiter=Limiter() if limiter is None else limiter,
        open_keys=no_keys,
    )


def no_keys(url, issuer, cache_ms):
    raise AssertionError("no policy here fetches keys")


def decide(engine, call):
    decision = engine.decide(call)
    if isinstance(decision, Allow | Refuse):
        return decision

    async def wait():
        return await decision

    return asyncio.run(wait())


def bearer(text):
    return Call(fields=[(b"authorization", f"Bearer {text}".encode())])


def code(decision):
    return decision.fault.kind.code.removeprefix("err:frontline:")


def lines(block):
    return dict(line.split(": ", 1) for line in block.decode().split("\r\n")[:-1])


KEYAUTH = {"keyauth": {"keyspaces": ["ks_1"]}}
DENY = {"firewall": {"action": "ACTION_DENY"}}


def test_no_policies_allow():
    assert decide(engine(), Call()) == Allow()


def test_a_policy_that_is_not_enabled_is_skipped_even_if_unknown():
    assert decide(engine({**DENY, "enabled": False}, {"magic": {}, "enabled": None}), Call()) == Allow()


@pytest.mark.parametrize(
    "policy",
    [
        {"magic": {}},
        {"jwtauth": {"issuer": "x"}},
        {"openapi": {}},
        {},
        {**KEYAUTH, **DENY},
        {"keyauth": {"keyspaces": []}},
        {"keyauth": {"keyspaces": ["ks_1"], "locations": [{"cookie": {}}]}},
        {"keyauth": {"keyspaces": ["ks_1"], "permissionQuery": "a AND"}},
        {"keyauth": {"keyspaces": ["ks_1"], "credits": -1}},
        {"keyauth": {"keyspaces": ["ks_1"], "ratelimits": [{"cost": 1}]}},
        {"firewall": {"action": "ACTION_SHRUG"}},
        {"ratelimit": {"limit": 1}},
        {"ratelimit": {"limit": 1, "windowMs": 1000, "identifiers": [{"shoeSize": {}}]}},
        {**DENY, "match": [{"path": {"path": {"regex": "("}}}]},
        {**DENY, "match": [{"path": {"path": {"regex": "(?=a)"}}}]},
        {**DENY, "match": [{"path": {"path": {}}}]},
        {**DENY, "match": [{"moon": {"phase": "full"}}]},
        {**DENY, "match": "everything"},
    ],
)
def test_what_cannot_be_evaluated_fails_closed(policy):
    decision = decide(engine(policy), Call())
    assert (code(decision), decision.fault.kind.status) == ("config:invalid_configuration", 422)


def test_each_policy_leaves_a_trace_in_order():
    guarded = engine(
        {**DENY, "match": [path(exact="/never")]},
        KEYAUTH,
        {"firewall": {"action": "ACTION_LOG"}},
        {"ratelimit": {"limit": 1, "windowMs": 60_000, "identifiers": [{"remoteIp": {}}]}},
        DENY,
        DENY,
        keys=Keys({"k": make_subject()}, late=True),
    )
    steps = ["pol_0 firewall skipped", "pol_1 keyauth passed", "pol_2 firewall matched"]
    refused = decide(guarded, bearer("k"))
    assert refused.found.trace == [*steps, "pol_3 ratelimit passed", "pol_4 firewall refused firewall_denied"]
    refused = decide(guarded, bearer("k"))
    assert refused.found.trace == [*steps, "pol_3 ratelimit refused rate_limited"]
    assert refused.found.times is None


def test_how_long_each_policy_took_is_noted_if_asked_for():
    decision = engine({**DENY, "match": [path(exact="/never")]}, DENY).decide(Call(), timed=True)
    assert len(decision.found.times) == 1 + len(decision.found.trace) == 3
    assert decision.found.times == sorted(decision.found.times)


def path(**matcher):
    return {"path": {"path": matcher}}


@pytest.mark.parametrize(
    ("expression", "call", "matches"),
    [
        (path(exact="/a"), Call(path=b"/a"), True),
        (path(exact="/a"), Call(path=b"/A"), False),
        (path(exact="/a", ignoreCase=True), Call(path=b"/A"), True),
        (path(exact="/admin"), Call(path=b"/%61dmin"), True),
        (path(prefix="/a"), Call(path=b"/ab"), True),
        (path(prefix="/a"), Call(path=b"/ba"), False),
        (path(regex="b+$"), Call(path=b"/abb"), True),
        (path(regex="B+$"), Call(path=b"/abb"), False),
        (path(regex="B+$", ignore_case=True), Call(path=b"/abb"), True),
        (path(regex="(a|aa)+$"), Call(path=b"/" + b"a" * 5000 + b"b"), False),
        ({"method": {"methods": ["POST", "put"]}}, Call(method=b"PUT"), True),
        ({"method": {"methods": ["POST"]}}, Call(method=b"GET"), False),
        ({"method": {"methods": []}}, Call(), True),
        ({"header": {"name": "X-A"}}, Call(fields=[(b"x-a", b"")]), True),
        ({"header": {"name": "X-A", "present": True}}, Call(), False),
        ({"header": {"name": "X-A", "present": False}}, Call(), True),
        (
            {"header": {"name": "X-A", "value": {"exact": "2"}}},
            Call(fields=[(b"x-a", b"1"), (b"x-a", b"2")]),
            True,
        ),
        ({"queryParam": {"name": "a"}}, Call(query=b"a="), True),
        ({"query_param": {"name": "a", "value": {"prefix": "x y"}}}, Call(query=b"b=1&a=x+y%7A"), True),
        ({"queryParam": {"name": "a", "present": False}}, Call(query=b"a"), False),
        ({}, Call(), False),
    ],
)
def test_match_expressions(expression, call, matches):
    decision = decide(engine({**DENY, "match": [expression]}), call)
    assert isinstance(decision, Refuse) is matches


def test_every_match_expression_must_hold():
    guarded = engine({**DENY, "match": [path(exact="/a"), {"method": {"methods": ["POST"]}}]})
    assert isinstance(decide(guarded, Call(path=b"/a")), Allow)
    assert code(decide(guarded, Call(path=b"/a", method=b"POST"))) == "client:firewall_denied"


@pytest.mark.parametrize("late", [False, True])
def test_a_valid_key_tells_the_app_who_calls(late):
    limit = Ratelimit("rl_1", "requests", 10, 60_000, True)
    identity = Identity("id_1", "ws_1", "user-1", {"plan": "pro"}, (), 1)
    roles = (Role("role_1", "ws_1", "admin", ("b",), 1),)
    subject = make_subject(
        identity,
        roles,
        name="mine",
        meta={"ü": 1},
        expires_at=NOW + 1,
        permissions=("a",),
        ratelimits=(limit,),
    )
    decision = decide(engine(KEYAUTH, keys=Keys({"k": subject}, late=late)), bearer("k"))

    assert isinstance(decision, Allow)
    assert decision.request_lines.isascii()
    assert json.loads(lines(decision.request_lines)["X-Unkey-Principal"]) == {
        "version": "v1",
        "subject": "user-1",
        "type": "API_KEY",
        "identity": {"externalId": "user-1", "meta": {"plan": "pro"}},
        "source": {
            "key": {
                "keyId": "key_1",
                "keySpaceId": "ks_1",
                "name": "mine",
                "expiresAt": NOW + 1,
                "meta": {"ü": 1},
                "roles": ["admin"],
                "permissions": ["a", "b"],
            }
        },
    }
    assert lines(decision.response_lines) == {
        "X-RateLimit-Limit": "10",
        "X-RateLimit-Remaining": "9",
        "X-RateLimit-Reset": str(NOW // 1000 + 60 - NOW // 1000 % 60),
    }


def test_credits_are_told_and_run_out():
    keys = Keys({"k": make_subject(remaining=3)})
    guarded = engine({"keyauth": {"keyspaces": ["ks_1"], "credits": 2}}, keys=keys)
    principal = json.loads(lines(decide(guarded, bearer("k")).request_lines)["X-Unkey-Principal"])
    assert principal["source"]["key"]["credits"] == 1
    refusal = decide(guarded, bearer("k"))
    assert (code(refusal), refusal.fault.kind.status) == ("client:usage_exceeded", 429)


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (Call(), "client:missing_credentials"),
        (Call(fields=[(b"authorization", b"Basic k")]), "client:missing_credentials"),
        (Call(fields=[(b"authorization", b"Bearer ")]), "client:missing_credentials"),
        (bearer("unknown"), "client:invalid_key"),
        (bearer("elsewhere"), "client:invalid_key"),
        (bearer("disabled"), "client:invalid_key"),
        (bearer("expired"), "client:invalid_key"),
        (bearer("deleted"), "client:invalid_key"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_keys_that_do_not_open(call, refused, late):
    keys = Keys(
        {
            "elsewhere": make_subject(key_space_id="ks_2"),
            "disabled": make_subject(enabled=False),
            "expired": make_subject(expires_at=NOW - 1),
            "deleted": make_subject(deleted=True),
        },
        late=late,
    )
    decision = decide(engine(KEYAUTH, keys=keys), call)
    assert (code(decision), decision.fault.kind.status) == (refused, 401)


@pytest.mark.parametrize(
    ("location", "call", "found"),
    [
        ({"bearer": {}}, Call(fields=[(b"authorization", b"bEARER k")]), True),
        ({"header": {"name": "X-Key"}}, Call(fields=[(b"x-key", b"k")]), True),
        ({"header": {"name": "X-Key", "stripPrefix": "Key "}}, Call(fields=[(b"x-key", b"kEY k")]), True),
        ({"header": {"name": "X-Key", "stripPrefix": "Key "}}, Call(fields=[(b"x-key", b"k")]), False),
        ({"header": {"name": "X-Key", "stripPrefix": "Key "}}, Call(fields=[(b"x-key", b"Key ")]), False),
        ({"queryParam": {"name": "key"}}, Call(query=b"a=b&key=%6B"), True),
        ({"queryParam": {"name": "key"}}, Call(query=b"key="), False),
    ],
)
def test_where_a_key_is_looked_for(location, call, found):
    guarded = engine(
        {"keyauth": {"keyspaces": ["ks_1"], "locations": [location]}}, keys=Keys({"k": make_subject()})
    )
    decision = decide(guarded, call)
    assert isinstance(decision, Allow) is found
    assert found or code(decision) == "client:missing_credentials"


def test_the_first_location_that_has_something_counts():
    locations = [{"header": {"name": "X-Key"}}, {"bearer": {}}]
    guarded = engine(
        {"keyauth": {"keyspaces": ["ks_1"], "locations": locations}}, keys=Keys({"k": make_subject()})
    )
    assert isinstance(decide(guarded, bearer("k")), Allow)
    both = Call(fields=[(b"x-key", b"wrong"), (b"authorization", b"Bearer k")])
    assert code(decide(guarded, both)) == "client:invalid_key"


def test_permissions_are_asked():
    keys = Keys({"k": make_subject(permissions=("a",))})
    asking = engine({"keyauth": {"keyspaces": ["ks_1"], "permissionQuery": "a AND b"}}, keys=keys)
    refusal = decide(asking, bearer("k"))
    assert (code(refusal), refusal.fault.kind.status) == ("client:insufficient_permissions", 403)


def test_a_rate_limit_of_the_key_refuses_and_says_when_to_come_back():
    limit = Ratelimit("rl_1", "requests", 1, 60_000, True)
    guarded = engine(KEYAUTH, keys=Keys({"k": make_subject(ratelimits=(limit,))}))
    assert isinstance(decide(guarded, bearer("k")), Allow)
    refusal = decide(guarded, bearer("k"))
    assert (code(refusal), refusal.fault.kind.status) == ("client:rate_limited", 429)
    told = lines(refusal.response_lines)
    assert told["X-RateLimit-Remaining"] == "0"
    assert int(told["Retry-After"]) == int(told["X-RateLimit-Reset"]) - NOW // 1000


def test_a_demand_that_names_no_limit_is_an_internal_error():
    guarded = engine(
        {"keyauth": {"keyspaces": ["ks_1"], "ratelimits": [{"name": "missing"}]}},
        keys=Keys({"k": make_subject()}),
    )
    assert decide(guarded, bearer("k")).fault.kind.status == 500


def test_a_key_that_cannot_be_looked_up_is_not_called_invalid():
    decision = decide(engine(KEYAUTH, keys=Keys({}, late=True, gone=True)), bearer("k"))
    assert (code(decision), decision.fault.kind.status) == ("platform:key_lookup_unavailable", 503)
    assert decision.fault.headers == {"Retry-After": "1"}


def test_keyauth_policies_are_alternatives_once_one_has_succeeded():
    second = {"keyauth": {"keyspaces": ["ks_2"]}}
    keys = Keys({"k": make_subject()})
    assert isinstance(decide(engine(KEYAUTH, second, keys=keys), bearer("k")), Allow)
    assert code(decide(engine(second, KEYAUTH, keys=keys), bearer("k"))) == "client:invalid_key"


@pytest.mark.parametrize("late", [False, True])
def test_policies_run_in_order_and_the_first_refusal_ends(late):
    limiter = Limiter()
    count = {"ratelimit": {"limit": 5, "windowMs": 60_000, "identifiers": [{"authenticatedSubject": {}}]}}
    guarded = engine(KEYAUTH, count, DENY, keys=Keys({"k": make_subject()}, late=late), limiter=limiter)
    refusal = decide(guarded, bearer("k"))
    assert code(refusal) == "client:firewall_denied"
    assert lines(refusal.response_lines)["X-RateLimit-Remaining"] == "4"
    assert code(decide(guarded, bearer("wrong"))) == "client:invalid_key"
    assert len(limiter) == 1


@pytest.mark.parametrize(
    ("identifiers", "one", "other"),
    [
        ([{"remoteIp": {}}], Call(peer=b"192.0.2.1"), Call(peer=b"192.0.2.2")),
        ([{"path": {}}], Call(path=b"/a"), Call(path=b"/b")),
        ([{"header": {"name": "X-A"}}], Call(fields=[(b"x-a", b"1")]), Call(fields=[(b"x-a", b"2")])),
        (
            [{"header": {"name": "X-A"}}, {"header": {"name": "X-B"}}],
            Call(fields=[(b"x-a", b"1:2"), (b"x-b", b"3")]),
            Call(fields=[(b"x-a", b"1"), (b"x-b", b"2:3")]),
        ),
    ],
)
def test_a_rate_limit_counts_by_its_identifiers(identifiers, one, other):
    limited = engine({"ratelimit": {"limit": 1, "windowMs": 60_000, "identifiers": identifiers}})
    assert isinstance(decide(limited, one), Allow)
    assert code(decide(limited, one)) == "client:rate_limited"
    assert isinstance(decide(limited, other), Allow)


def test_a_rate_limit_without_its_identifier_refuses():
    limited = engine(
        {"ratelimit": {"limit": 1, "windowMs": 60_000, "identifier": {"principalField": {"path": "a.b"}}}}
    )
    assert code(decide(limited, Call())) == "client:rate_limited"


def test_the_tightest_of_several_limits_is_told():
    def limit(count):
        return {"ratelimit": {"limit": count, "windowMs": 60_000, "identifiers": [{"remoteIp": {}}]}}

    decision = decide(engine(limit(9), limit(3), limit(5)), Call())
    assert lines(decision.response_lines)["X-RateLimit-Limit"] == "3"


def test_a_key_passes_again_until_something_about_keys_changes_or_it_expires(monkeypatch):
    keys = Keys({"k": make_subject(expires_at=NOW + 1000)})
    guarded = engine(KEYAUTH, keys=keys)
    first = decide(guarded, bearer("k"))
    keys.subjects = {}
    assert decide(guarded, bearer("k")).request_lines == first.request_lines
    assert code(decide(guarded, bearer("other"))) == "client:invalid_key"
    keys.epoch = 1
    assert code(decide(guarded, bearer("k"))) == "client:invalid_key"
    keys.subjects = {"k": make_subject(expires_at=NOW + 1000)}
    assert isinstance(decide(guarded, bearer("k")), Allow)
    monkeypatch.setattr("unkey.clock.now_ms", lambda: NOW + 1001)
    keys.subjects = {}
    assert code(decide(guarded, bearer("k"))) == "client:invalid_key"
