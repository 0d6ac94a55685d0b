"""`manage.py analytics`: usage of workspaces and keys, from what was noted a moment ago."""

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from apps.analytics import queries
from apps.analytics.embedded import Embedded
from apps.analytics.management.commands import analytics
from apps.quota.models import Usage
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts
from unkey import clock
from unkey.rpc.testing import Tenant

pytestmark = pytest.mark.django_db


@pytest.fixture
def noted(tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three uses of one key and one of another; returns the workspace."""
    store = Embedded(tmp_path)
    for place in ("embedded", "store"):
        monkeypatch.setattr(analytics, place, lambda: store)
    monkeypatch.setattr(queries, "store", lambda: store)
    telemetry = Telemetry(store.spool, region="local")
    workspace = str(tenant.workspace.pk)
    for key, outcome in (
        ("key_a", b"VALID"),
        ("key_b", b"VALID"),
        ("key_b", b"EXPIRED"),
        ("key_b", b"VALID"),
    ):
        facts = key_facts(workspace, "ks", "", "", key)
        telemetry.record_verification(b"req_1", clock.now_ms(), facts, outcome, spent=2)
    telemetry.stop()
    return workspace


def test_keys_and_usage_are_shown(noted: str, tenant: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("analytics", "keys", tenant.workspace.slug, "--json")
    assert json.loads(capsys.readouterr().out) == [
        {"keyId": "key_b", "total": 3, "spentCredits": 6, "outcomes": {"VALID": 2, "EXPIRED": 1}},
        {"keyId": "key_a", "total": 1, "spentCredits": 2, "outcomes": {"VALID": 1}},
    ]
    call_command("analytics", "keys", noted)
    assert capsys.readouterr().out.splitlines() == [
        "key_b  " + "█" * 30 + "        3  EXPIRED 1, VALID 2",
        "key_a  " + "█" * 10 + " " * 20 + "        1  VALID 1",
    ]
    call_command("analytics", "usage")
    assert capsys.readouterr().out == f"{noted}  verifications 3  rate limits 0\n"
    assert Usage.objects.get(workspace_id=noted).verifications == 3
    call_command("analytics", "usage", "--json", "--period", "2020-01")
    assert json.loads(capsys.readouterr().out) == {}
    call_command("analytics", "take")
    assert capsys.readouterr().out == "0 events taken\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "nobody"), "There is no workspace 'nobody'."),
        (("usage", "--period", "November"), "'November' is no month"),
        (("migrate",), "CLICKHOUSE_URL is not set"),
    ],
)
def test_what_cannot_be_done_is_said(noted: str, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("analytics", *arguments)
