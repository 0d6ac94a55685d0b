"""Credits: exact with one edge, never oversold with several, given back after a kill."""

import asyncio
import struct
from datetime import timedelta

import pytest
from django.db import transaction

from apps.keys import credits
from apps.keys.models import CreditLease, Key
from apps.keys.queries import balances
from apps.keys.values import Credits
from edge.store.ledger import Ledger, LedgerInUse
from unkey import clock
from unkey.tenancy import workspace_scope


def remaining(key):
    with workspace_scope(key.workspace_id):
        return Key.objects.get(pk=key.pk).remaining


def balance(key):
    with workspace_scope(key.workspace_id):
        return balances([Key.objects.get(pk=key.pk)])[key.pk]


def lease(key_id, epoch, *, edges=1, **numbers):
    """Lease for an edge of the name `edge-x`."""
    (grant,) = credits.lease("edge-x", [credits.Wish("lease_1", key_id, epoch, **numbers)], edges=edges)
    return grant


def codes(edge, owner, text, times, **body):
    return [edge.verify(owner.root_key, text, **body)["code"] for _ in range(times)]


def test_with_one_edge_every_answer_is_exact(start, owner):
    _, text = owner.key(credits=Credits(3))
    edge = start()
    answers = [edge.verify(owner.root_key, text) for _ in range(4)]
    assert [(one["code"], one["credits"]) for one in answers] == [
        ("VALID", 2),
        ("VALID", 1),
        ("VALID", 0),
        ("USAGE_EXCEEDED", 0),
    ]


def test_costs_and_peeks(start, owner):
    _, text = owner.key(credits=Credits(10))
    edge = start()
    assert edge.verify(owner.root_key, text, credits={"cost": 0})["credits"] == 10
    assert edge.verify(owner.root_key, text, credits={"cost": 7})["credits"] == 3
    refused = edge.verify(owner.root_key, text, credits={"cost": 4})
    assert (refused["code"], refused["credits"]) == ("USAGE_EXCEEDED", 3)
    assert edge.verify(owner.root_key, text, credits={"cost": 3})["credits"] == 0
    assert edge.verify(owner.root_key, text, credits={"cost": 0})["code"] == "VALID"


def test_a_refused_verification_spends_nothing(start, owner):
    key, text = owner.key(credits=Credits(5))
    edge = start()
    assert edge.verify(owner.root_key, text, permissions="missing")["code"] == "INSUFFICIENT_PERMISSIONS"
    edge.stop()
    assert remaining(key) == 5


def test_a_cost_beyond_one_batch_is_leased_at_once(start, owner):
    key, text = owner.key(credits=Credits(1_000_000))
    edge = start()
    assert edge.verify(owner.root_key, text, credits={"cost": 250_000})["credits"] == 750_000
    edge.stop()
    assert remaining(key) == 750_000


def test_what_is_shown_counts_what_edges_hold_and_have_spent(start, owner):
    key, text = owner.key(credits=Credits(500))
    edge = start()
    codes(edge, owner, text, 7)
    edge.eventually(lambda: balance(key) == 493)
    assert remaining(key) < 493


def test_two_edges_together_never_sell_more_than_there_is(start, owner):
    key, text = owner.key(credits=Credits(60))
    first, second = start("edge-a"), start("edge-b")
    sold = 0
    for _ in range(50):
        sold += codes(first, owner, text, 1).count("VALID") + codes(second, owner, text, 1).count("VALID")
    assert sold <= 60
    first.stop()
    second.stop()
    assert remaining(key) == 60 - sold


def test_many_callers_at_once_get_exactly_what_there_is(start, owner):
    _, text = owner.key(credits=Credits(25))
    edge = start()

    async def many():
        body = b'{"key":"%b"}' % text.encode()
        headers = {"authorization": f"Bearer {owner.root_key}"}

        async def one():
            answer = edge.verifier.handle_verify_key(headers, body, "")
            return (answer if isinstance(answer, tuple) else await answer)[1]

        return await asyncio.gather(*(one() for _ in range(100)))

    answers = edge._loop.run(many())
    assert sum(b'"code":"VALID"' in answer for answer in answers) == 25
    assert sum(b'"code":"USAGE_EXCEEDED"' in answer for answer in answers) == 75


def test_keys_that_come_into_use_at_once_are_leased_in_a_few_transactions(start, owner, monkeypatch):
    made = [owner.key(credits=Credits(total)) for total in range(1, 61)]
    edge = start()
    batches = []
    granted = credits.lease

    def lease_all(edge_id, wishes, **options):
        batches.append(len(wishes))
        return granted(edge_id, wishes, **options)

    monkeypatch.setattr(credits, "lease", lease_all)

    async def one(text):
        body = b'{"key":"%b"}' % text.encode()
        answer = edge.verifier.handle_verify_key({"authorization": f"Bearer {owner.root_key}"}, body, "")
        return (answer if isinstance(answer, tuple) else await answer)[1]

    async def all_of_them():
        return await asyncio.gather(*(one(text) for _, text in made for _ in range(2)))

    answers = edge._loop.run(all_of_them())
    assert sum(b'"code":"VALID"' in answer for answer in answers) == 119  # the first key had one credit
    assert len(batches) <= 12
    assert max(batches) > 20
    edge.stop()
    assert [remaining(key) for key, _ in made] == [0, *range(59)]
    assert not CreditLease.objects.exists()


def test_wishes_are_granted_each_by_its_own_key(owner):
    rich, poor, other = (owner.key(credits=Credits(total))[0] for total in (100, 3, 50))
    unlimited, _ = owner.key()
    wishes = [
        credits.Wish("lease_1", rich.id, 0, least=1, most=40),
        credits.Wish("lease_2", poor.id, 0, least=5, most=40),
        credits.Wish("lease_3", other.id, 1, least=1, most=40),
        credits.Wish("lease_4", unlimited.id, 0, least=1, most=40),
        credits.Wish("lease_5", "key_nobody", 0, least=1, most=40),
    ]
    grants = credits.lease("edge-x", wishes)
    assert [(each.granted, each.remaining) for each in grants] == [
        (40, 60),
        (0, 3),
        (0, 50),
        (0, None),
        (0, 0),
    ]
    assert credits.lease("edge-x", wishes[:1])[0] == credits.Grant(40, 20, 0)
    assert credits.report_spent("edge-x", {"lease_1": 7, "lease_9": 1}) == {"lease_9"}
    row = CreditLease.objects.get(pk="lease_1")
    assert (row.amount, row.spent) == (80, 7)
    assert credits.give_back("edge-x", {"lease_1": 7, "lease_9": 1}) == {rich.id: (0, 93)}
    assert [remaining(key) for key in (rich, poor, other)] == [93, 3, 50]


def test_a_killed_edge_gives_back_at_its_next_start_what_it_had_not_spent(start, owner):
    key, text = owner.key(credits=Credits(40))
    edge = start()
    assert codes(edge, owner, text, 7) == ["VALID"] * 7
    edge.kill()
    assert remaining(key) == 0
    again = start()
    again.eventually(lambda: remaining(key) == 33)
    assert not CreditLease.objects.filter(key=key).exists()
    assert again.verify(owner.root_key, text)["credits"] == 32


def test_leased_credits_go_on_without_the_database_even_after_a_kill_and_then_it_is_honest(
    start, owner, outage
):
    key, text = owner.key(credits=Credits(10))
    edge = start()
    assert codes(edge, owner, text, 2) == ["VALID"] * 2
    edge.eventually(lambda: (edge.store._folder / "snapshot").exists())
    edge.kill()
    with outage():
        again = start()
        assert codes(again, owner, text, 8) == ["VALID"] * 8
        assert codes(again, owner, text, 2) == ["USAGE_EXCEEDED"] * 2
    again.until(lambda store: store.connected)
    again.stop()
    assert remaining(key) == 0
    assert not CreditLease.objects.filter(key=key).exists()


def test_a_key_without_a_lease_is_refused_while_the_database_is_away_and_counted(start, owner, outage):
    _, text = owner.key(credits=Credits(10))
    edge = start()
    with outage():
        edge.until(lambda store: not store.connected)
        assert codes(edge, owner, text, 2) == ["USAGE_EXCEEDED"] * 2
        assert edge.store.counters["credits_refused_without_database"] >= 1
    edge.until(lambda store: store.connected)
    edge.eventually(lambda: codes(edge, owner, text, 1) == ["VALID"])


def test_a_new_balance_voids_what_was_leased_of_the_old_one(start, owner):
    key, text = owner.key(credits=Credits(10))
    edge = start()
    assert edge.verify(owner.root_key, text)["credits"] == 9
    owner.update(key, remaining=2)
    edge.caught_up()
    answers = [edge.verify(owner.root_key, text) for _ in range(3)]
    assert [(one["code"], one["credits"]) for one in answers] == [
        ("VALID", 1),
        ("VALID", 0),
        ("USAGE_EXCEEDED", 0),
    ]
    owner.update(key, remaining=None)
    edge.caught_up()
    answer = edge.verify(owner.root_key, text)
    assert answer["code"] == "VALID"
    assert "credits" not in answer


def test_the_lease_of_a_lost_machine_lapses_as_spent(owner):
    key, _ = owner.key(credits=Credits(10))
    grant = lease(key.id, 0, least=1, most=4)
    assert (grant.granted, grant.remaining) == (4, 6)
    assert credits.lapse_expired() == 0
    with clock.shifted(timedelta(seconds=credits.LEASE_SECONDS + 1)):
        assert credits.lapse_expired() == 1
    assert remaining(key) == 6
    assert credits.give_back("edge-x", {"lease_1": 0}) == {}
    assert remaining(key) == 6


@pytest.mark.parametrize(("edges", "granted"), [(1, 60), (2, 25), (5, 10)])
def test_of_a_small_balance_one_edge_takes_all_and_several_leave_some(owner, edges, granted):
    key, _ = owner.key(credits=Credits(100))
    grant = lease(key.id, 0, edges=edges, least=1, most=60)
    assert grant.granted == granted


def test_nothing_is_leased_of_another_epoch_or_beyond_the_balance(owner):
    key, _ = owner.key(credits=Credits(5))
    assert lease(key.id, 1, least=1, most=5).granted == 0
    assert lease(key.id, 0, least=6, most=9).granted == 0
    assert lease("key_nobody", 0, least=1, most=9).granted == 0
    with transaction.atomic():
        owner.update(key, remaining=9)
    assert lease(key.id, 0, least=1, most=5).granted == 0
    assert remaining(key) == 9


def test_the_ledger_keeps_leases_grows_and_is_not_shared(tmp_path):
    path = tmp_path / "credits.ledger"
    ledger = Ledger(path)
    slots = [ledger.open(f"lease_{number}", f"key_{number}", 7) for number in range(600)]
    ledger.set_amount(slots[599], 50)
    ledger.set_spent(slots[599], 49)
    for slot in slots[:599]:
        ledger.close_slot(slot)
    with pytest.raises(LedgerInUse):
        Ledger(path, patience=0)
    ledger.close()
    again = Ledger(path)
    (entry,) = again.entries
    assert (entry.lease_id, entry.key_id, entry.epoch, entry.amount, entry.spent) == (
        "lease_599",
        "key_599",
        7,
        50,
        49,
    )
    again.close()


def test_a_ledger_of_an_earlier_boot_is_not_believed(tmp_path):
    path = tmp_path / "credits.ledger"
    ledger = Ledger(path)
    ledger.open("lease_1", "key_1", 0)
    ledger.close()
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("36s", b"another boot"))
    again = Ledger(path)
    assert not again.trusted
    assert again.entries == []
    again.close()
