"""Refill of credits by the calendar: which keys, how much, once a day, and what edges hold meanwhile."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.keys import credits
from apps.keys.models import CreditLease, Key
from apps.quota import refill
from apps.quota.models import RefillDay
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db

DAILY = {"interval": "daily", "amount": 100}


def on(day: str) -> Any:
    """Move the clock to noon of a day."""
    noon = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC) + timedelta(hours=12)
    return clock.shifted(noon - clock.now())


def monthly(day: int) -> dict[str, Any]:
    return {"interval": "monthly", "amount": 100, "refillDay": day}


@pytest.fixture
def api(tenant: Tenant) -> str:
    made: str = tenant("apis.createApi", {"name": "api"})["apiId"]
    return made


def key(tenant: Tenant, api: str, remaining: int, refilled: dict[str, Any] | None) -> str:
    balance = {"remaining": remaining} | ({"refill": refilled} if refilled else {})
    made: str = tenant("keys.createKey", {"apiId": api, "credits": balance})["keyId"]
    return made


def row(key_id: str) -> Key:
    return Key.objects.unscoped("test").get(pk=key_id)


def run(day: str) -> None:
    with on(day):
        refill.start_refills()
        drain()


@pytest.mark.parametrize(
    ("refilled", "day", "expected"),
    [
        (DAILY, "2027-03-10", 100),
        (monthly(10), "2027-03-10", 100),
        (monthly(11), "2027-03-10", 3),
        (monthly(31), "2027-02-28", 100),
        (monthly(29), "2027-02-28", 100),
        (monthly(28), "2027-02-28", 100),
        (monthly(29), "2028-02-28", 3),
        (monthly(31), "2028-02-29", 100),
        (monthly(31), "2027-04-30", 100),
        (monthly(31), "2027-03-30", 3),
        (None, "2027-03-10", 3),
    ],
)
def test_a_key_is_filled_up_on_its_day(
    tenant: Tenant, api: str, refilled: dict[str, Any] | None, day: str, expected: int
) -> None:
    made = key(tenant, api, 3, refilled)
    run(day)
    assert row(made).remaining == expected


def test_more_than_the_amount_an_unlimited_and_a_deleted_key_stay(tenant: Tenant, api: str) -> None:
    rich, unlimited, deleted = (
        key(tenant, api, 500, DAILY),
        key(tenant, api, 3, DAILY),
        key(tenant, api, 3, DAILY),
    )
    Key.objects.unscoped("test").filter(pk=unlimited).update(remaining=None)
    tenant("keys.deleteKey", {"keyId": deleted})
    run("2027-03-10")
    assert [row(rich).remaining, row(unlimited).remaining, row(deleted).remaining] == [500, None, 3]


def test_a_refill_is_audited_and_reaches_the_edges(tenant: Tenant, api: str) -> None:
    made = key(tenant, api, 3, DAILY)
    before = row(made).version
    run("2027-03-10")
    assert row(made).version > before
    with unscoped("test"):
        told = AuditLog.objects.get(actor_id="keyrefill")
    assert (told.event, told.actor_type, told.workspace_id) == ("key.update", "system", tenant.workspace.id)
    assert told.meta == {"refill_amount": 100, "previous_remaining": 3, "new_remaining": 100}


def test_a_day_refills_once_and_the_next_day_again(tenant: Tenant, api: str) -> None:
    made = key(tenant, api, 3, DAILY)
    run("2027-03-10")
    tenant("keys.updateCredits", {"keyId": made, "operation": "set", "value": 7})
    run("2027-03-10")
    assert row(made).remaining == 7
    assert WorkflowRun.objects.count() == 1
    run("2027-03-11")
    assert row(made).remaining == 100


def test_days_on_which_nobody_refilled_are_caught_up(tenant: Tenant, api: str) -> None:
    run("2027-03-08")
    missed = key(tenant, api, 3, monthly(10))
    run("2027-03-12")
    assert row(missed).remaining == 100
    assert [str(day.date) for day in RefillDay.objects.order_by("date")] == [
        "2027-03-08",
        "2027-03-09",
        "2027-03-10",
        "2027-03-11",
        "2027-03-12",
    ]


def test_what_an_edge_has_leased_is_part_of_the_balance_and_stays_leased(tenant: Tenant, api: str) -> None:
    made = key(tenant, api, 60, DAILY)
    with on("2027-03-10"):
        epoch = row(made).credits_epoch
        assert (
            credits.lease("edge-1", [credits.Wish("lease_1", made, epoch, least=1, most=40)])[0].granted == 40
        )
        credits.report_spent("edge-1", {"lease_1": 15})
        refill.start_refills()
        drain()
        # 20 were left, 25 of the lease are unspent: 45 in all, filled up to 100.
        assert (row(made).remaining, row(made).credits_epoch) == (75, epoch)
        assert CreditLease.objects.get().amount == 40
        assert tenant("keys.getKey", {"keyId": made})["credits"]["remaining"] == 100
        assert credits.give_back("edge-1", {"lease_1": 15}) == {made: (epoch, 100)}


def test_batches_are_bounded_and_go_on_where_they_broke_off(
    tenant: Tenant, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key(tenant, api, 3, DAILY) for _ in range(7)]
    monkeypatch.setattr(refill, "BATCH", 3)
    done = refill._fill
    calls: list[str] = []

    def crash(filled: Key, before: int) -> None:
        done(filled, before)
        calls.append(filled.pk)
        if len(calls) == 5:
            raise ConnectionError("the database went away")

    monkeypatch.setattr(refill, "_fill", crash)
    run("2027-03-10")
    assert RefillDay.objects.get().refilled == 3  # the first batch; the second rolled back
    assert sum(row(each).remaining == 100 for each in keys) == 3
    with on("2027-03-10"), clock.shifted(timedelta(minutes=1)):
        drain()
    assert [row(each).remaining for each in keys] == [100] * 7
    assert RefillDay.objects.get().refilled == 7
    with unscoped("test"):
        assert AuditLog.objects.filter(actor_id="keyrefill").count() == 7


def test_keys_of_every_workspace_are_refilled(tenant: Tenant, stranger: Tenant, api: str) -> None:
    theirs = key(stranger, stranger("apis.createApi", {"name": "api"})["apiId"], 3, DAILY)
    ours = key(tenant, api, 3, DAILY)
    run("2027-03-10")
    assert [row(theirs).remaining, row(ours).remaining] == [100, 100]
