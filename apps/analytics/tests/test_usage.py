"""Usage from events to the rows that the quota check reads: exact, and the same however often it is written."""

import random
from datetime import timedelta
from pathlib import Path

import pytest

from apps.analytics import last_used, queries, workflows
from apps.analytics import store as stores
from apps.analytics.embedded import Embedded
from apps.quota.models import Usage
from apps.quota.services import write_usage
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts, ratelimit_facts
from unkey import clock
from unkey.rpc.testing import Tenant

pytestmark = pytest.mark.django_db
PERIOD = "2026-11"
MOMENT = clock.from_ms(1_793_500_000_000).replace(year=2026, month=11, day=21, hour=12)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedded:
    made = Embedded(tmp_path / "analytics")
    monkeypatch.setattr(workflows, "store", lambda: made)
    monkeypatch.setattr(queries, "store", lambda: made)
    return made


def usage() -> dict[str, tuple[int, int]]:
    return {
        row.workspace_id: (row.verifications, row.ratelimits) for row in Usage.objects.filter(period=PERIOD)
    }


def test_usage_is_what_was_recorded_whatever_was_interrupted_or_came_twice(
    store: Embedded, tenant: Tenant, stranger: Tenant
) -> None:
    chance = random.Random(7)
    expected = {tenant.workspace.id: [0, 0], stranger.workspace.id: [0, 0]}
    copies: list[tuple[Path, bytes]] = []
    with clock.shifted(MOMENT - clock.now()):
        for _ in range(20):
            telemetry = Telemetry(store.spool, region="local")
            for _ in range(25):
                workspace = chance.choice(list(expected))
                outcome = chance.choice([b"VALID", b"VALID", b"RATE_LIMITED"])
                facts = key_facts(workspace, "ks", "", "", f"key_{chance.randrange(3)}")
                telemetry.record_verification(b"req", clock.now_ms(), facts, outcome)
                expected[workspace][0] += outcome == b"VALID"
                passed = chance.random() < 0.5
                limited = ratelimit_facts(workspace, "rlns", "user")
                telemetry.record_ratelimit(b"req", clock.now_ms(), limited, passed, 1, 0, 0)
                expected[workspace][1] += passed
            telemetry.stop()
            for path in store.spool.folder.glob("*/*.ndjson"):
                copies.append((path, path.read_bytes()))
            for path, content in chance.sample(copies, 2):
                path.write_bytes(content)
            store.take()
            if chance.random() < 0.3:
                workflows.start_usage()
                drain()
    for minutes in (10, 10, 20):  # within a minute it is started once
        with clock.shifted(MOMENT + timedelta(minutes=minutes) - clock.now()):
            workflows.start_usage()
            drain()
    assert usage() == {workspace: tuple(counts) for workspace, counts in expected.items()}


def test_totals_only_grow_and_unknown_workspaces_are_left_out(tenant: Tenant) -> None:
    own = tenant.workspace.id
    assert write_usage(PERIOD, {own: (5, 2), "ws_gone": (1, 1)}) == 1
    assert write_usage(PERIOD, {own: (5, 2)}) == 0
    assert write_usage(PERIOD, {own: (4, 3)}) == 1
    assert usage() == {own: (5, 3)}


def test_in_the_first_days_of_a_month_the_last_one_is_still_counted(store: Embedded, tenant: Tenant) -> None:
    with clock.shifted(MOMENT.replace(month=12, day=2) - clock.now()):
        workflows.start_usage()
    periods = {run.input["period"] for run in WorkflowRun.objects.filter(service="monthly_usage")}
    assert periods == {"2026-11", "2026-12"}


def test_verifications_through_the_api_are_counted_by_key_and_tell_when_it_was_used(
    tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unkey import telemetry

    store = Embedded(tmp_path / "analytics")
    events = Telemetry(store.spool, region="local")
    monkeypatch.setattr("apps.keys.verification.telemetry", lambda: events)
    assert telemetry.telemetry() is not None
    api = tenant("apis.createApi", {"name": "payments"})["apiId"]
    first, second = (tenant("keys.createKey", {"apiId": api}) for _ in range(2))
    for key in (first, first, second):
        assert tenant("keys.verifyKey", {"key": key["key"], "tags": ["path=/a"]})["valid"]
    tenant("keys.updateKey", {"keyId": second["keyId"], "enabled": False})
    assert tenant("keys.verifyKey", {"key": second["key"]})["code"] == "DISABLED"
    assert tenant("keys.verifyKey", {"key": "nobody"})["code"] == "NOT_FOUND"
    events.stop()
    assert store.take() == 5

    now = clock.now_ms()
    found = queries.usage_by_key(tenant.workspace.id, now - 3_600_000, now + 60_000, source=store)
    assert {key: uses.outcomes for key, uses in found.items()} == {
        first["keyId"]: {"VALID": 2},
        second["keyId"]: {"VALID": 1, "DISABLED": 1},
    }
    series = queries.verifications(tenant.workspace.id, now - 3_600_000, now + 60_000, source=store)
    assert sum(uses.total for uses in series.values()) == 5
    assert sum(uses.outcomes.get("NOT_FOUND", 0) for uses in series.values()) == 1
    seen = store.last_used(tenant.workspace.id, [first["keyId"]])[first["keyId"]]
    assert "lastUsedAt" not in tenant("keys.getKey", {"keyId": first["keyId"]})
    assert last_used.sync(now - 60_000, store) == 2
    assert tenant("keys.getKey", {"keyId": first["keyId"]})["lastUsedAt"] == seen - seen % 60_000
    assert last_used.sync(now - 60_000, store) == 0
    assert last_used.sync(now + 60_000, store) == 0
    assert set(store.last_used(tenant.workspace.id, [first["keyId"], second["keyId"]])) == set(found)


def test_the_store_of_the_settings_is_a_folder_of_this_machine() -> None:
    assert isinstance(stores.store(), Embedded)
