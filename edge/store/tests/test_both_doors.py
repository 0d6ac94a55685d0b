"""`keys.verifyKey` through both doors: what web answers from its rows, an edge answers from memory.

Each story is told to two keys that are made alike, one at each door; codes are those of the reference
(api.md 2.3 and 2.4), and the answers must be the same to the last field.
"""

import json
from typing import Any

import pytest
from django.db import transaction

from apps.cluster import versions
from apps.keys.models import Identity, Ratelimit
from apps.keys.values import Credits, NamedLimit
from unkey import clock
from unkey.rpc.testing import Tenant
from unkey.tenancy import workspace_scope

pytestmark = pytest.mark.usefixtures("window_start")

MINUTE = 60_000
AUTO = NamedLimit("requests", 3, MINUTE, auto_apply=True)
NAMED = NamedLimit("tokens", 5, MINUTE)
ADHOC = {"name": "adhoc", "limit": 2, "duration": MINUTE}

# What a key is made with, what it is asked, and per question the code (or status) and what remains of limits.
STORIES: dict[str, tuple[dict[str, Any], list[tuple[Any, Any, list[int]]]]] = {
    "nothing is limited": ({}, [({}, "VALID", [])]),
    "an automatic limit counts by itself, a refusal counts nothing": (
        {"ratelimits": [AUTO]},
        [({}, "VALID", [2]), ({}, "VALID", [1]), ({}, "VALID", [0]), ({}, "RATE_LIMITED", [0])],
    ),
    "a limit is asked by name with a cost, zero looks without counting": (
        {"ratelimits": [NAMED]},
        [
            ({}, "VALID", []),
            ({"ratelimits": [{"name": "tokens", "cost": 4}]}, "VALID", [1]),
            ({"ratelimits": [{"name": "tokens", "cost": 0}]}, "VALID", [1]),
            ({"ratelimits": [{"name": "tokens", "cost": 2}]}, "RATE_LIMITED", [0]),
            ({"ratelimits": [{"name": "tokens"}]}, "VALID", [0]),
            ({"ratelimits": [{"name": "tokens", "cost": 0}]}, "VALID", [0]),
        ],
    ),
    "several at once are all or nothing": (
        {"ratelimits": [AUTO, NAMED]},
        [
            ({"ratelimits": [{"name": "tokens", "cost": 5}, ADHOC]}, "VALID", [2, 0, 1]),
            ({"ratelimits": [{"name": "tokens"}, ADHOC]}, "RATE_LIMITED", [2, 0, 1]),
            ({"ratelimits": [ADHOC]}, "VALID", [1, 0]),
            ({"ratelimits": [ADHOC]}, "RATE_LIMITED", [1, 0]),
            ({}, "VALID", [0]),
        ],
    ),
    "an ad-hoc limit stands in for the automatic one of its name": (
        {"ratelimits": [AUTO]},
        [({"ratelimits": [{"name": "requests", "limit": 1, "duration": MINUTE}]}, "VALID", [0])],
    ),
    "a limit of zero refuses whatever costs": (
        {},
        [
            ({"ratelimits": [{**ADHOC, "limit": 0}]}, "RATE_LIMITED", [0]),
            ({"ratelimits": [{**ADHOC, "limit": 0, "cost": 0}]}, "VALID", [0]),
        ],
    ),
    "a name that neither key nor identity has": ({}, [({"ratelimits": [{"name": "ghost"}]}, 412, [])]),
    "permissions come before limits, and limits before credits": (
        {"ratelimits": [AUTO], "credits": Credits(2), "permissions": ["a"]},
        [
            ({"permissions": "b"}, "INSUFFICIENT_PERMISSIONS", []),
            ({"permissions": "a and (b or a)"}, "VALID", [2]),
            ({"credits": {"cost": 5}}, "USAGE_EXCEEDED", [1]),
            ({}, "VALID", [0]),
            ({}, "RATE_LIMITED", [0]),
        ],
    ),
    "credits to the last": (
        {"credits": Credits(3)},
        [
            ({"credits": {"cost": 2}}, "VALID", []),
            ({"credits": {"cost": 2}}, "USAGE_EXCEEDED", []),
            ({"credits": {"cost": 0}}, "VALID", []),
            ({}, "VALID", []),
            ({}, "USAGE_EXCEEDED", []),
            ({"credits": {"cost": 0}}, "VALID", []),
        ],
    ),
    "a disabled key says so before anything else": (
        {"enabled": False, "permissions": ["a"], "ratelimits": [AUTO], "credits": Credits(0)},
        [({"permissions": "b", "ratelimits": [{"name": "ghost"}]}, "DISABLED", [])],
    ),
    "a query that cannot be read": ({}, [({"permissions": "a and"}, 400, [])]),
}


@pytest.fixture
def doors(start, owner, monkeypatch):
    """Two ways to ask, whose clock stands still: each takes a body and returns status and answer."""
    now = clock.now_ms()
    monkeypatch.setattr(clock, "now_ms", lambda: now)
    edge = start()
    tenant = Tenant(owner.workspace, owner.root_key)

    def at_web(body):
        answer = tenant.send("keys.verifyKey", body)
        return answer.status, answer.body

    def at_edge(body):
        edge.caught_up()
        return edge.post(owner.root_key, body)

    return {"web": at_web, "edge": at_edge}


def told(answer, names):
    """Return an answer's `data` or error with the ids that differ between two keys replaced."""
    shown = dict(answer)
    shown.pop("meta")
    text = json.dumps(shown, sort_keys=True)
    for name in names:
        text = text.replace(name, "…")
    return json.loads(text)


@pytest.mark.parametrize("story", STORIES)
def test_both_doors_tell_the_same(doors, owner, story):
    options, questions = STORIES[story]
    answers: dict[str, list[Any]] = {}
    for door, ask in doors.items():
        key, text = owner.key(name="mine", meta={"plan": "pro"}, **options)
        with workspace_scope(owner.workspace.id):
            names = [key.id, *Ratelimit.objects.filter(key=key).values_list("pk", flat=True)]
        answers[door] = []
        for body, code, remains in questions:
            status, answer = ask({"key": text, **body})
            told_code = answer["data"]["code"] if status == 200 else status
            limits = answer["data"].get("ratelimits", []) if status == 200 else []
            assert (told_code, [limit["remaining"] for limit in limits]) == (code, remains), (door, body)
            answers[door].append(told(answer, names))
    assert answers["web"] == answers["edge"]


def test_limits_of_an_identity_are_shared_by_its_keys_and_a_keys_own_goes_first(doors, owner):
    for door, ask in doors.items():
        _, first = owner.key(external_id=f"ada-{door}")
        _, second = owner.key(external_id=f"ada-{door}")
        _, own = owner.key(
            external_id=f"ada-{door}", ratelimits=[NamedLimit("shared", 9, MINUTE, auto_apply=True)]
        )
        with workspace_scope(owner.workspace.id), transaction.atomic():
            identity = Identity.objects.get(external_id=f"ada-{door}")
            Ratelimit.objects.create(
                workspace=owner.workspace,
                identity=identity,
                name="shared",
                limit=2,
                duration_ms=MINUTE,
                auto_apply=True,
            )
            versions.stamp(identity)
            identity.save()
        codes = [ask({"key": text})[1]["data"]["code"] for text in (first, second, first)]
        assert codes == ["VALID", "VALID", "RATE_LIMITED"], door
        (limit,) = ask({"key": own})[1]["data"]["ratelimits"]
        assert (limit["limit"], limit["remaining"]) == (9, 8), door


def test_the_ip_list_is_asked_before_permissions(doors, owner):
    _, text = owner.key()
    for listed, code in (("10.0.0.0/8", "FORBIDDEN"), ("127.0.0.0/8", "INSUFFICIENT_PERMISSIONS")):
        owner.changed(owner.api, ip_whitelist=listed)
        for door, ask in doors.items():
            assert ask({"key": text, "permissions": "missing"})[1]["data"]["code"] == code, door


def test_a_key_nobody_has_and_one_that_must_not_be_seen_are_bare_at_both_doors(doors, owner):
    for door, ask in doors.items():
        status, answer = ask({"key": "nobody"})
        assert (status, answer["data"]) == (200, {"valid": False, "code": "NOT_FOUND"}), door
