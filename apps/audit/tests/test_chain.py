"""The audit log's chain: sealing, proof against tampering, retention, the database's own refusal."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from apps.audit import chain, guard
from apps.audit import services as audit
from apps.audit.models import AuditChain, AuditLog
from apps.quota.models import Limits
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.actors import Actor
from unkey.rpc.testing import TESTS, Tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db


def rows_of(tenant: Tenant) -> list[AuditLog]:
    """Return a workspace's rows in the order of the chain."""
    return list(
        AuditLog.objects.unscoped("test")
        .filter(workspace=tenant.workspace)
        .order_by("sequence", "time", "pk")
    )


def write(workspace: Workspace, count: int, *, event: str = "key.update") -> None:
    """Add rows to a workspace's log."""
    with transaction.atomic():
        for number in range(count):
            audit.record(event, actor=TESTS, workspace_id=workspace.id, meta={"number": number})


def tamper(sql: str, *values: Any) -> None:
    """Change the tables as somebody does who has the database, and can move the anchor."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audit_auditchain SET pruned = pruned + 1000000")
        cursor.execute(sql, values)
        cursor.execute("UPDATE audit_auditchain SET pruned = pruned - 1000000")


@pytest.fixture
def sealed(tenant: Tenant) -> list[AuditLog]:
    """Nine rows and those of the workspace's making, sealed."""
    write(tenant.workspace, 9)
    chain.seal()
    return rows_of(tenant)


def test_sealing_gives_every_row_its_place_once(tenant: Tenant, stranger: Tenant) -> None:
    write(tenant.workspace, 3)
    before = chain.verify(tenant.workspace.id)
    sealed = chain.seal()
    rows = rows_of(tenant)
    assert before.pending == len(rows)
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    assert sealed == len(rows) + len(rows_of(stranger))
    assert chain.seal() == 0
    write(tenant.workspace, 1)
    assert chain.seal() == 1
    assert [row.sequence for row in rows_of(tenant)] == list(range(1, len(rows) + 2))
    for one in (tenant, stranger):
        proof = chain.verify(one.workspace.id)
        assert (proof.faults, proof.pending, proof.rows) == ([], 0, len(rows_of(one)))


def test_more_rows_than_a_batch_are_sealed(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "BATCH", 4)
    write(tenant.workspace, 10)
    chain.seal()
    assert chain.verify(tenant.workspace.id).faults == []
    assert chain.verify(tenant.workspace.id).rows == len(rows_of(tenant))


def test_a_row_that_was_changed_is_found(tenant: Tenant, sealed: list[AuditLog]) -> None:
    row = sealed[4]
    tamper("DELETE FROM audit_auditlog WHERE id = %s", row.pk)
    row.actor_name = "somebody else"
    with unscoped("test"):
        row.save(force_insert=True)
    proof = chain.verify(tenant.workspace.id)
    assert proof.faults == [
        f"row {row.pk} at 5 does not fit its hash or the row before it: it was changed",
    ]


def test_a_row_that_was_changed_with_its_hash_is_found_by_the_next(
    tenant: Tenant, sealed: list[AuditLog]
) -> None:
    row = sealed[4]
    tamper("DELETE FROM audit_auditlog WHERE id = %s", row.pk)
    row.meta = {"number": 77}
    row.hash = chain.digest(row, sealed[3].hash)
    with unscoped("test"):
        row.save(force_insert=True)
    assert chain.verify(tenant.workspace.id).faults == [
        f"row {sealed[5].pk} at 6 does not fit its hash or the row before it: it was changed"
    ]


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        ((0,), "row 1 is missing"),
        ((3,), "row 4 is missing"),
        ((3, 4, 5), "rows 4 to 6 are missing"),
        ((-1,), "row {last} is missing"),
    ],
)
def test_a_row_that_was_removed_is_found(
    tenant: Tenant, sealed: list[AuditLog], gone: tuple[int, ...], fault: str
) -> None:
    for place in gone:
        tamper("DELETE FROM audit_auditlog WHERE id = %s", sealed[place].pk)
    assert chain.verify(tenant.workspace.id).faults == [fault.format(last=len(sealed))]


def test_a_chain_that_was_cut_and_shortened_is_found_against_what_was_noted(
    tenant: Tenant, sealed: list[AuditLog]
) -> None:
    slug, last, end = tenant.workspace.slug, sealed[-1], sealed[-2]
    noted = f"{last.sequence}:{last.hash}"
    verify("--workspace", slug, "--head", noted)
    tamper("DELETE FROM audit_auditlog WHERE id = %s", last.pk)
    tamper(
        "UPDATE audit_auditchain SET sequence = %s, hash = %s WHERE workspace_id = %s",
        end.sequence,
        end.hash,
        tenant.workspace.id,
    )
    verify("--workspace", slug)  # nothing within the database tells
    with pytest.raises(CommandError, match="of 1 workspace does not fit"):
        verify("--workspace", slug, "--head", noted)


def verify(*arguments: str) -> str:
    """Run `audit verify` and return what it printed."""
    out = StringIO()
    call_command("audit", "verify", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def test_the_command_tells_of_every_workspace_and_fails_when_one_is_broken(
    tenant: Tenant, stranger: Tenant, sealed: list[AuditLog]
) -> None:
    assert len(verify().splitlines()) == 2
    assert f"{tenant.workspace.slug}: whole, {len(sealed)} rows, 0 not sealed yet" in verify()
    tamper("DELETE FROM audit_auditlog WHERE id = %s", sealed[2].pk)
    out = StringIO()
    with pytest.raises(CommandError, match="of 1 workspace does not fit its chain"):
        call_command("audit", "verify", "--json", stdout=out, stderr=StringIO())
    shown = {line["slug"]: line["faults"] for line in map(json.loads, out.getvalue().splitlines())}
    assert shown == {tenant.workspace.slug: ["row 3 is missing"], stranger.workspace.slug: []}


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE audit_auditlog SET event = 'x' WHERE id = %s",
        "UPDATE audit_auditlog SET hash = 'x' WHERE id = %s",
        "UPDATE audit_auditlog SET sequence = NULL WHERE id = %s",
        "DELETE FROM audit_auditlog WHERE id = %s",
    ],
)
def test_the_database_refuses_to_change_or_remove_a_sealed_row(sealed: list[AuditLog], sql: str) -> None:
    assert guard.installed(connection)
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql, [sealed[2].pk])
    assert AuditLog.objects.unscoped("test").get(pk=sealed[2].pk).event == sealed[2].event


def test_the_database_refuses_to_change_a_row_before_it_is_sealed(tenant: Tenant) -> None:
    row = rows_of(tenant)[0]
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE audit_auditlog SET sequence = 1, event = 'x' WHERE id = %s", [row.pk])


def test_retention_cuts_the_beginning_and_leaves_a_chain_that_proves(
    tenant: Tenant, stranger: Tenant, sealed: list[AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "BATCH", 4)
    Limits.objects.filter(pk=tenant.workspace.pk).update(audit_retention_days=7)
    chain.seal()
    old = [row.pk for row in sealed]
    with clock.shifted(timedelta(days=8)):
        write(tenant.workspace, 3)
        chain.seal()
        assert chain.prune() == len(old)
        assert chain.prune() == 0
        kept = rows_of(tenant)
        assert [row.sequence for row in kept] == [len(old) + 1, len(old) + 2, len(old) + 3]
        assert rows_of(stranger) != []  # its own retention is 30 days
        proof = chain.verify(tenant.workspace.id)
        assert (proof.faults, proof.rows) == ([], 3)
        tamper("DELETE FROM audit_auditlog WHERE id = %s", kept[0].pk)
        assert chain.verify(tenant.workspace.id).faults == [f"row {kept[0].sequence} is missing"]


def test_what_is_not_sealed_is_not_pruned(tenant: Tenant) -> None:
    with clock.shifted(timedelta(days=100)):
        assert chain.prune() == 0
        assert rows_of(tenant) != []


def test_a_row_says_what_was_before_and_after_and_never_a_secret(tenant: Tenant) -> None:
    with transaction.atomic():
        row = audit.record(
            "key.update",
            actor=Actor("user", "1", "ada", "192.0.2.1", "curl"),
            workspace_id=tenant.workspace.id,
            before={"name": "a", "enabled": True, "hash": "x"},
            after={"name": "b", "enabled": True, "hash": "y"},
            meta={"nested": [{"password": "p", "port": 1}], "token": "t"},
        )
        other = audit.record("key.update", actor=TESTS, workspace_id=tenant.workspace.id)
    row = AuditLog.objects.unscoped("test").get(pk=row.pk)
    assert row.changes == {
        "name": {"before": "a", "after": "b"},
        "hash": {"before": "[REDACTED]", "after": "[REDACTED]"},
    }
    assert row.meta == {"nested": [{"password": "[REDACTED]", "port": 1}], "token": "[REDACTED]"}
    assert row.correlation_id.startswith("cor_")
    assert row.correlation_id == other.correlation_id
    with transaction.atomic():
        later = audit.record("key.update", actor=TESTS, workspace_id=tenant.workspace.id)
    assert later.correlation_id != row.correlation_id


def test_export_writes_every_row_of_the_workspace_oldest_first(
    tenant: Tenant, stranger: Tenant, sealed: list[AuditLog], tmp_path: Path
) -> None:
    out = tmp_path / "log.ndjson"
    call_command("audit", "export", "--workspace", tenant.workspace.slug, "--out", out, stderr=StringIO())
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted(line["event_id"] for line in lines) == sorted(row.pk for row in sealed)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    first = lines[0]
    assert (first["event"], first["bucket"], first["source"]) == (
        "workspace.create",
        "unkey_mutations",
        "platform",
    )
    assert first["actor"] == {"type": "system", "id": "tests", "name": "tests", "meta": {}}
    assert first["targets"] == [
        {"type": "workspace", "id": tenant.workspace.id, "name": tenant.workspace.slug, "meta": {}}
    ]
    assert {line["sequence"] for line in lines} == set(range(1, len(sealed) + 1))
    call_command(
        "audit",
        "export",
        f"--workspace={tenant.workspace.id}",
        "--event=workspace.*",
        f"--out={out}",
        stderr=StringIO(),
    )
    assert [json.loads(line)["event"] for line in out.read_bytes().splitlines()] == ["workspace.create"]
    with pytest.raises(CommandError, match="no time"):
        call_command("audit", "export", "--workspace", tenant.workspace.slug, "--since", "yesterday")


def test_a_workspace_without_rows_is_whole(db: None) -> None:
    proof = chain.verify("ws_nobody")
    assert (proof.faults, proof.rows, proof.sequence) == ([], 0, 0)
    assert AuditChain.objects.unscoped("test").count() == 0
