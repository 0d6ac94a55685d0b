"""The steps of a verification on plain records: order, codes, what a refusal consumes, the answer."""

import msgspec
import pytest

from edge.store.records import Api, Identity, KeyRecord, Ratelimit, Role, Workspace
from edge.verify import steps
from edge.verify.limiter import Limiter
from edge.verify.permissions import parse
from edge.verify.steps import Demand, Request, Subject
from unkey.errors import PreconditionFailed

NOW = 1_700_000_040_000 // 60_000 * 60_000
KEY = KeyRecord(
    id="key_1234567",
    hash="h",
    workspace_id="ws_1",
    key_space_id="ks_1",
    api_id="api_1",
    start="sk_abcd",
    name="",
    meta={},
    enabled=True,
    expires_at=None,
    remaining=None,
    credits_epoch=0,
    permissions=(),
    role_ids=(),
    identity_id=None,
    ratelimits=(),
    version=1,
)
WORKSPACE = Workspace("ws_1", True, 1)
API = Api("api_1", "ws_1", "ks_1", (), 1)
change = msgspec.structs.replace


def subject(workspace=WORKSPACE, api=API, identity=None, roles=(), **changes):
    return Subject(change(KEY, **changes), workspace, api, identity, roles)


def verify(who, limiter=None, **request):
    return steps.verify(who, Request(**request), Limiter() if limiter is None else limiter, NOW)


def answer(verdict):
    return msgspec.json.decode(steps.render(verdict))


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (subject(), "VALID"),
        (subject(workspace=change(WORKSPACE, enabled=False), enabled=False), "FORBIDDEN"),
        (subject(deleted=True, enabled=False), "NOT_FOUND"),
        (subject(api=change(API, deleted=True), enabled=False), "NOT_FOUND"),
        (subject(enabled=False, expires_at=1), "DISABLED"),
        (subject(expires_at=NOW - 1), "EXPIRED"),
        (subject(expires_at=NOW), "VALID"),
    ],
)
def test_the_status_on_load_in_the_order_of_the_reference(who, code):
    assert verify(who, query=parse("missing") if code != "VALID" else None).code == code


@pytest.mark.parametrize(
    ("listed", "address", "code"),
    [
        ((), "", "VALID"),
        (("10.0.0.1",), "10.0.0.1", "VALID"),
        (("10.0.0.1",), "10.0.0.2", "FORBIDDEN"),
        (("10.0.0.1",), "", "FORBIDDEN"),
        (("10.1.0.0/16", "2001:db8::/32"), "10.1.255.3", "VALID"),
        (("10.1.0.0/16", "2001:db8::/32"), "2001:db8::1", "VALID"),
        (("10.1.0.0/16",), "::ffff:10.1.2.3", "VALID"),
        (("rubbish",), "10.0.0.1", "FORBIDDEN"),
    ],
)
def test_the_ip_list_takes_addresses_and_ranges(listed, address, code):
    who = subject(api=change(API, ip_whitelist=listed))
    assert verify(who, remote_ip=address, check_ip=True).code == code
    assert verify(who, remote_ip=address).code == "VALID"


def test_permissions_are_direct_ones_and_those_of_roles():
    role = Role("role_1", "ws_1", "editor", ("docs.write",), 1)
    who = subject(permissions=("docs.read",), role_ids=("role_1",), roles=(role,))
    assert verify(who, query=parse("docs.read AND docs.write")).code == "VALID"
    refused = verify(who, query=parse("docs.read AND docs.delete"))
    assert (refused.code, refused.detail) == (
        "INSUFFICIENT_PERMISSIONS",
        "Missing permission: 'docs.delete'",
    )
    assert answer(refused)["permissions"] == ["docs.read", "docs.write"]
    assert answer(refused)["roles"] == ["editor"]


def rl(name, limit, auto=False, id="rl_12345"):
    return Ratelimit(id, name, limit, 60_000, auto)


def test_automatic_limits_apply_by_themselves_and_the_key_overrides_its_identity():
    identity = Identity("id_1", "ws_1", "user-1", {}, (rl("a", 1, True), rl("b", 5, True, "rl_identity")), 1)
    who = subject(identity_id="id_1", identity=identity, ratelimits=(rl("a", 9, True),))
    verdict = verify(who)
    assert [(one.applied.name, one.applied.id, one.remaining) for one in verdict.counted] == [
        ("a", "rl_12345", 8),
        ("b", "rl_identity", 4),
    ]
    assert [one.applied.counter[2] for one in verdict.counted] == ["key_1234567", "id_1"]


def test_a_demand_by_name_sets_the_cost_and_one_with_numbers_replaces():
    who = subject(ratelimits=(rl("a", 9, True), rl("b", 5)))
    limiter = Limiter()
    verdict = verify(
        who,
        limiter,
        demands=(Demand("b", cost=2), Demand("a", limit=2, duration=1000), Demand("c", 1, 4, 1000)),
    )
    assert answer(verdict)["ratelimits"] == [
        {
            "id": "",
            "name": "a",
            "limit": 2,
            "duration": 1000,
            "autoApply": False,
            "exceeded": False,
            "remaining": 1,
            "reset": NOW + 1000,
        },
        {
            "id": "rl_12345",
            "name": "b",
            "limit": 5,
            "duration": 60_000,
            "autoApply": False,
            "exceeded": False,
            "remaining": 3,
            "reset": NOW + 60_000,
        },
        {
            "id": "",
            "name": "c",
            "limit": 4,
            "duration": 1000,
            "autoApply": False,
            "exceeded": False,
            "remaining": 3,
            "reset": NOW + 1000,
        },
    ]


def test_an_unknown_limit_is_a_precondition_that_failed_and_consumes_nothing():
    limiter = Limiter()
    who = subject(ratelimits=(rl("a", 1, True),))
    with pytest.raises(PreconditionFailed) as refused:
        verify(who, limiter, demands=(Demand("x"),))
    assert refused.value.detail == "The rate limit 'x' was asked for but does not exist on key 'key_1234567'."
    assert verify(who, limiter).code == "VALID"


def test_an_earlier_refusal_does_not_reach_the_limits():
    limiter = Limiter()
    who = subject(ratelimits=(rl("a", 1, True),))
    assert verify(who, limiter, query=parse("x"), demands=(Demand("unknown"),)).counted == ()
    assert verify(who, limiter).code == "VALID"
    refused = verify(who, limiter)
    assert refused.code == "RATE_LIMITED"
    assert [one.exceeded for one in refused.counted] == [True]


@pytest.mark.parametrize(
    ("remaining", "asked", "cost"), [(None, None, None), (None, 5, None), (3, None, 1), (3, 0, 0), (3, 7, 7)]
)
def test_what_a_verification_costs(remaining, asked, cost):
    assert steps.credit_cost(verify(subject(remaining=remaining)), asked) == cost


def test_a_refused_verification_costs_nothing():
    assert steps.credit_cost(verify(subject(remaining=3, enabled=False)), 1) is None


def test_the_answer_leaves_out_what_the_key_does_not_have():
    assert answer(verify(subject())) == {
        "valid": True,
        "code": "VALID",
        "keyId": "key_1234567",
        "keyspaceId": "ks_1",
        "enabled": True,
        "permissions": [],
        "roles": [],
    }


def test_the_answer_has_everything_that_the_key_has_even_if_it_is_refused():
    identity = Identity("id_1", "ws_1", "user-1", {"plan": "pro"}, (rl("b", 5, False, "rl_identity"),), 1)
    who = subject(
        name='Zoë\'s "key"',
        meta={"a": [1, {"b": None}]},
        expires_at=NOW - 1,
        remaining=7,
        identity_id="id_1",
        identity=identity,
    )
    assert answer(verify(who)) == {
        "valid": False,
        "code": "EXPIRED",
        "keyId": "key_1234567",
        "keyspaceId": "ks_1",
        "name": 'Zoë\'s "key"',
        "meta": {"a": [1, {"b": None}]},
        "expires": NOW - 1,
        "enabled": True,
        "credits": 7,
        "permissions": [],
        "roles": [],
        "identity": {
            "id": "id_1",
            "externalId": "user-1",
            "meta": {"plan": "pro"},
            "ratelimits": [
                {"id": "rl_identity", "name": "b", "limit": 5, "duration": 60_000, "autoApply": False}
            ],
        },
    }


def test_what_events_say_of_a_key_is_the_same_with_and_without_what_its_holder_keeps():
    identity = Identity("id_1", "ws_1", 'user "1"', {}, (), 1)
    holder = steps.Holder(identity)
    for key_id, space in (("key_a", "ks_1"), ("key_b", "ks_1"), ("key_c", "ks_2")):
        key = change(KEY, id=key_id, key_space_id=space, identity_id="id_1")
        who = Subject(key, WORKSPACE, API, identity, (), holder=holder)
        assert msgspec.json.decode(b"[%b]" % who.facts) == ["ws_1", space, "id_1", 'user "1"', key_id]
    assert msgspec.json.decode(b"[%b]" % subject().facts) == ["ws_1", "ks_1", "", "", "key_1234567"]
