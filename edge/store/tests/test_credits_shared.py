"""Credits among several edges: every one is sold, none twice, whoever holds them and whoever is killed."""

import random

import pytest

from apps.keys import credits as bank
from apps.keys.models import CreditLease, Key
from apps.keys.queries import balances
from apps.keys.values import Credits
from unkey.tenancy import workspace_scope

EDGES = ("edge-a", "edge-b", "edge-c", "edge-d")


def row(key):
    with workspace_scope(key.workspace_id):
        return Key.objects.get(pk=key.pk)


def balance(key):
    with workspace_scope(key.workspace_id):
        return balances([Key.objects.get(pk=key.pk)])[key.pk]


@pytest.fixture
def edges(start):
    """Four edges that know of one another."""
    started = [start(edge_id) for edge_id in EDGES]
    from edge.store import feed

    started[0].eventually(lambda: feed.live_edges() == len(EDGES))
    return started


@pytest.mark.parametrize("total", [1, 7, 230])
def test_the_last_credit_is_sold_by_whichever_edge_is_asked(edges, owner, total):
    key, text = owner.key(credits=Credits(total))
    sold = 0
    for turn in range(total):
        answer = edges[turn % 4].verify(owner.root_key, text)
        assert answer["code"] == "VALID", (turn, answer, balance(key))
        sold += 1
    assert sold == total
    assert [edge.verify(owner.root_key, text)["code"] for edge in edges] == ["USAGE_EXCEEDED"] * 4
    edges[0].eventually(lambda: balance(key) == 0)


def test_an_edge_that_has_many_gives_them_up_for_one_that_is_refused(start, owner):
    key, text = owner.key(credits=Credits(50))
    first = start("edge-a")
    assert first.verify(owner.root_key, text)["credits"] == 49
    assert row(key).remaining == 0  # it was alone, and holds everything
    second = start("edge-b")
    assert second.verify(owner.root_key, text, credits={"cost": 48})["code"] == "VALID"
    assert first.verify(owner.root_key, text)["code"] == "VALID"
    assert second.verify(owner.root_key, text)["code"] == "USAGE_EXCEEDED"
    assert first.store.counters["credits_called_back"] >= 1


def test_what_a_dead_edge_holds_is_waited_for_once_and_then_refused_at_once(start, owner):
    key, text = owner.key(credits=Credits(10))
    first, second = start("edge-a"), start("edge-b")
    assert first.verify(owner.root_key, text)["code"] == "VALID"
    first.eventually(lambda: row(key).remaining is not None)
    while row(key).remaining:
        bank.lease("edge-a", [bank.Wish("lease_more", key.id, 0, least=1, most=10)])
    first.kill()
    version = row(key).version
    assert [second.verify(owner.root_key, text)["code"] for _ in range(20)] == ["USAGE_EXCEEDED"] * 20
    assert row(key).version == version + 1  # it was called back once
    CreditLease.objects.filter(edge_id="edge-a").delete()


def test_four_edges_and_kills_sell_every_credit_once(start, owner):
    chance = random.Random(11)
    made = [owner.key(credits=Credits(total)) for total in (3, 25, 90, 400)]
    edges = {edge_id: start(edge_id) for edge_id in EDGES}
    from edge.store import feed

    edges["edge-a"].eventually(lambda: feed.live_edges() == len(EDGES))
    sold = dict.fromkeys(range(len(made)), 0)
    for turn in range(600):
        number = chance.choices(range(len(made)), weights=(3, 25, 90, 400))[0]
        edge_id = chance.choice(EDGES)
        answer = edges[edge_id].verify(owner.root_key, made[number][1])
        sold[number] += answer["code"] == "VALID"
        if turn in (150, 300, 450):
            edges[edge_id].kill()
            edges[edge_id] = start(edge_id)
    for edge in edges.values():
        edge.stop()
    for number, (key, _) in enumerate(made):
        total = (3, 25, 90, 400)[number]
        assert row(key).remaining == total - sold[number]
    assert not CreditLease.objects.exists()


def test_a_change_of_the_balance_while_leases_are_out_makes_no_credit(edges, owner):
    key, text = owner.key(credits=Credits(400))
    for turn in range(40):
        assert edges[turn % 4].verify(owner.root_key, text)["code"] == "VALID"
    edges[0].eventually(lambda: balance(key) == 360)
    from apps.keys import services
    from unkey.actors import system

    with workspace_scope(key.workspace_id):
        services.update_credits(row(key), "increment", 40, actor=system("test"))
        assert balance(key) == 400
        services.update_credits(row(key), "decrement", 390, actor=system("test"))
    assert balance(key) == 10
    for edge in edges:
        edge.caught_up()
    codes = [edges[turn % 4].verify(owner.root_key, text)["code"] for turn in range(14)]
    assert codes.count("VALID") == 10
    for edge in edges:
        edge.stop()
    assert row(key).remaining == 0
