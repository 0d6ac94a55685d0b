"""Verifications answered at once: they say, count and spend what the long way does."""

import json

import msgspec
import pytest

from apps.keys.values import Credits, NamedLimit
from apps.quota.models import Limits
from apps.quota.services import set_limits
from edge.verify.verifier import digest_of
from unkey import clock
from unkey.actors import system

pytestmark = pytest.mark.usefixtures("window_start")


@pytest.fixture
def edge(start, owner, monkeypatch):
    """An edge whose clock stands still."""
    now = clock.now_ms()
    monkeypatch.setattr(clock, "now_ms", lambda: now)
    return start()


def ask_quickly(edge, root_key, text, ip=b"127.0.0.1", **body):
    """Return the whole answer, None if it cannot be given at once."""
    content = msgspec.json.encode({"key": text, **body})
    answer = edge.get(
        lambda store: edge.verifier.quick_verify_key(f"Bearer {root_key}".encode(), ip, content)
    )
    return None if answer is None else json.loads(answer)


def counts(data):
    """Return an answer's credits and its limits' remains, and the rest of it."""
    rest = dict(data)
    credits = rest.pop("credits", None)
    limits = [{**one, "remaining": None} for one in rest.pop("ratelimits", [])]
    return credits, [one["remaining"] for one in data.get("ratelimits", [])], {**rest, "limits": limits}


OPTIONS = [
    {},
    {"name": "50% off", "meta": {"rate": "%d%b"}, "external_id": "u", "permissions": ["a.b"]},
    {"ratelimits": [NamedLimit("requests %", 10, 60_000, auto_apply=True)]},
    {"credits": Credits(100)},
    {"credits": Credits(100), "ratelimits": [NamedLimit("requests", 10, 60_000, auto_apply=True)]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_quick_answer_says_what_the_long_one_says_and_counts_on(edge, owner, options):
    _, text = owner.key(**options)
    edge.caught_up()
    assert ask_quickly(edge, owner.root_key, text) is None  # it was not read before
    slow = [counts(edge.verify(owner.root_key, text)) for _ in range(2)]
    answers = [ask_quickly(edge, owner.root_key, text) for _ in range(2)]
    quick = [counts(answer["data"]) for answer in answers]
    assert len({answer["meta"]["requestId"] for answer in answers}) == 2
    last = counts(edge.verify(owner.root_key, text))
    assert {json.dumps(each[2], sort_keys=True) for each in (*slow, *quick, last)} == {
        json.dumps(last[2], sort_keys=True)
    }
    if "credits" in options:
        assert [each[0] for each in (*slow, *quick, last)] == [99, 98, 97, 96, 95]
    if "ratelimits" in options:
        assert [each[1] for each in (*slow, *quick, last)] == [[9], [8], [7], [6], [5]]


def test_refusals_are_never_quick_and_a_refused_one_costs_nothing(edge, owner):
    key, text = owner.key(
        credits=Credits(100), ratelimits=[NamedLimit("requests", 3, 60_000, auto_apply=True)]
    )
    edge.caught_up()
    assert edge.verify(owner.root_key, text)["code"] == "VALID"
    assert [ask_quickly(edge, owner.root_key, text)["data"]["credits"] for _ in range(2)] == [98, 97]
    assert ask_quickly(edge, owner.root_key, text) is None
    refused = edge.verify(owner.root_key, text)
    assert (refused["code"], refused["credits"]) == ("RATE_LIMITED", 97)
    owner.update(key, enabled=False)
    edge.caught_up()
    assert ask_quickly(edge, owner.root_key, text) is None
    assert edge.verify(owner.root_key, text)["code"] == "DISABLED"


def test_a_quick_answer_is_for_the_same_request_alone(edge, owner):
    _, text = owner.key()
    edge.caught_up()
    edge.verify(owner.root_key, text)
    assert ask_quickly(edge, owner.root_key, text)["data"]["valid"]
    assert ask_quickly(edge, "another", text) is None
    assert ask_quickly(edge, owner.root_key, text, permissions="a") is None
    assert (
        ask_quickly(edge, owner.root_key, text, ratelimits=[{"name": "abc", "limit": 1, "duration": 1000}])
        is None
    )
    assert ask_quickly(edge, owner.root_key, text, tags=["path=/"])["data"]["valid"]
    assert ask_quickly(edge, owner.root_key, text, ip=b"10.0.0.1")["data"]["valid"]


def test_where_there_is_an_ip_list_a_quick_answer_is_for_the_same_address_alone(edge, owner):
    _, text = owner.key()
    owner.changed(owner.api, ip_whitelist="127.0.0.1")
    edge.caught_up()
    assert edge.verify(owner.root_key, text)["code"] == "VALID"
    assert ask_quickly(edge, owner.root_key, text)["data"]["valid"]
    assert ask_quickly(edge, owner.root_key, text, ip=b"10.0.0.1") is None


def test_every_limit_is_counted_and_a_refusal_of_one_counts_none(edge, owner):
    _, text = owner.key(
        ratelimits=[
            NamedLimit("requests", 10, 60_000, auto_apply=True),
            NamedLimit("bursts", 3, 60_000, auto_apply=True),
        ]
    )
    edge.caught_up()
    edge.verify(owner.root_key, text)
    quick = [ask_quickly(edge, owner.root_key, text)["data"]["ratelimits"] for _ in range(2)]
    assert [[one["remaining"] for one in each] for each in quick] == [[1, 8], [0, 7]]
    assert ask_quickly(edge, owner.root_key, text) is None
    refused = edge.verify(owner.root_key, text)
    assert refused["code"] == "RATE_LIMITED"
    assert [(one["name"], one["exceeded"], one["remaining"]) for one in refused["ratelimits"]] == [
        ("bursts", True, 0),
        ("requests", False, 7),
    ]


def test_a_change_of_anything_else_leaves_what_was_joined_as_it_is(edge, owner):
    _, text = owner.key(external_id="ada")
    edge.caught_up()
    edge.verify(owner.root_key, text)
    held = edge.get(lambda store: store.held_key(digest_of(text)))
    joined, plan, epoch = held.joined, held.plan, edge.store.epoch
    owner.key(external_id="carol")
    edge.caught_up()
    assert edge.store.epoch > epoch
    assert ask_quickly(edge, owner.root_key, text)["data"]["valid"]
    assert (held.joined, held.plan) == (joined, plan)


def test_an_expired_key_is_not_answered_quickly(start, owner, monkeypatch):
    now = clock.now()
    _, text = owner.key(expires_at=now.replace(year=now.year + 1))
    edge = start()
    edge.verify(owner.root_key, text)
    assert ask_quickly(edge, owner.root_key, text)["data"]["valid"]
    later = clock.now_ms() + 400 * 86_400_000
    monkeypatch.setattr(clock, "now_ms", lambda: later)
    assert ask_quickly(edge, owner.root_key, text) is None
    assert edge.verify(owner.root_key, text)["code"] == "EXPIRED"


def test_a_workspaces_limit_counts_every_request_and_is_told(edge, owner):
    _, text = owner.key()
    Limits.objects.get_or_create(workspace=owner.workspace)
    set_limits(owner.workspace.id, {"api_requests_per_minute": 2}, actor=system("test"))
    edge.caught_up()

    def post():
        content = msgspec.json.encode({"key": text})

        async def work():
            answer = edge.verifier.handle_verify_key(
                {"authorization": f"Bearer {owner.root_key}"}, content, "127.0.0.1"
            )
            return answer if isinstance(answer, tuple) else await answer

        return edge._loop.run(work())

    answers = [post() for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert [headers["RateLimit-Remaining"] for _, _, headers in answers] == ["1", "0", "0"]
    assert {headers["RateLimit-Limit"] for _, _, headers in answers} == {"2"}
    _, refusal, headers = answers[2]
    assert json.loads(refusal)["error"]["type"].endswith("/user/too_many_requests/workspace_rate_limited")
    assert headers["Retry-After"] == headers["RateLimit-Reset"]
    assert ask_quickly(edge, owner.root_key, text) is None
    set_limits(owner.workspace.id, {"api_requests_per_minute": None}, actor=system("test"))
    edge.caught_up()
    assert post()[2] == {"content-type": "application/json"}
    assert ask_quickly(edge, owner.root_key, text)["data"]["valid"]
