"""The hash chain of each workspace's audit log: seals new rows, proves old ones, cuts what may go.

    hash of a row = SHA-256(hash of the row before it, newline, the row as canonical JSON)

Rows are sealed shortly after they were written, by one job that holds the workspace's chain, in the order
in which it finds them; no writer ever waits for it, and none takes a lock that all of a workspace share.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Max, Min

from apps.audit import guard
from apps.audit.models import AuditChain, AuditLog
from apps.quota.models import Limits
from unkey import clock
from unkey.tenancy import unscoped

BATCH = 1000
_FIELDS = (
    "id",
    "workspace_id",
    "event",
    "description",
    "actor_type",
    "actor_id",
    "actor_name",
    "targets",
    "changes",
    "meta",
    "remote_ip",
    "user_agent",
    "correlation_id",
)


@dataclass(slots=True)
class Proof:
    """What a walk along a workspace's chain found.

    Args:
        workspace_id: whose.
        rows: sealed rows that were read.
        sequence: of the last sealed row, as the chain has it.
        hash: of that row.
        pending: rows that are not sealed yet.
        faults: what is wrong, a sentence each; empty: nothing.
    """

    workspace_id: str
    rows: int = 0
    sequence: int = 0
    hash: str = ""
    pending: int = 0
    faults: list[str] = field(default_factory=list)


def digest(row: AuditLog, previous: str) -> str:
    """Return the hash of a row in the chain.

    Args:
        row: as the database has it.
        previous: hash of the row before it, in hexadecimal; empty for the first.
    """
    content = {name: getattr(row, name) for name in _FIELDS}
    content["time"] = (row.time - clock.EPOCH) // timedelta(microseconds=1)
    content["sequence"] = row.sequence
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def seal() -> int:
    """Give every row that has none its place in its workspace's chain; return how many were given one."""
    sealed = 0
    while True:
        waiting = list(
            AuditLog.objects.unscoped("every workspace's chain is kept by the platform")
            .filter(sequence=None)
            .order_by("workspace_id")
            .values_list("workspace_id", flat=True)
            .distinct()[:BATCH]
        )
        found = sum(seal_workspace(workspace_id) for workspace_id in waiting)
        sealed += found
        if not found:
            return sealed


def seal_workspace(workspace_id: str) -> int:
    """Seal up to `BATCH` rows of a workspace; return how many."""
    with unscoped("every workspace's chain is kept by the platform"), transaction.atomic():
        chain = _locked(workspace_id)
        rows = list(
            AuditLog.objects.filter(workspace_id=workspace_id, sequence=None).order_by("time", "pk")[:BATCH]
        )
        if not rows:
            return 0
        places = []
        for row in rows:
            row.sequence = chain.sequence + 1
            chain.hash = digest(row, chain.hash)
            chain.sequence = row.sequence
            places.append((row.sequence, chain.hash, row.pk))
        with connection.cursor() as cursor:
            cursor.executemany(f"UPDATE {guard.TABLE} SET sequence = %s, hash = %s WHERE id = %s", places)  # noqa: S608
        chain.sealed_at = clock.now()
        chain.save(update_fields=["sequence", "hash", "sealed_at"])
    return len(rows)


def verify(workspace_id: str) -> Proof:
    """Walk along a workspace's chain, from its anchor to its end, and tell all that does not fit.

    What an attacker who rewrites every later row and the chain's end as well has done is seen only against
    an earlier export or a hash that was noted elsewhere.
    """
    with unscoped("every workspace's chain is kept by the platform"):
        chain = AuditChain.objects.filter(pk=workspace_id).first() or AuditChain(pk=workspace_id)
        pending = AuditLog.objects.filter(workspace_id=workspace_id, sequence=None).count()
        proof = Proof(workspace_id, sequence=chain.sequence, hash=chain.hash, pending=pending)
        previous: str | None = chain.anchor
        expected = chain.pruned + 1
        for row in sealed_rows(workspace_id, chain.pruned, chain.sequence):
            proof.rows += 1
            sequence = row.sequence or 0
            if sequence != expected:
                proof.faults.append(_missing(expected, sequence - 1))
                previous = None
            if previous is not None and digest(row, previous) != row.hash:
                proof.faults.append(
                    f"row {row.id} at {sequence} does not fit its hash or the row before it: it was changed"
                )
            previous, expected = row.hash, sequence + 1
        if expected <= chain.sequence:
            proof.faults.append(_missing(expected, chain.sequence))
        elif previous is not None and previous != chain.hash:
            proof.faults.append(f"the chain ends with another hash than its last row, at {chain.sequence}")
        beyond = AuditLog.objects.filter(workspace_id=workspace_id, sequence__gt=chain.sequence).count()
        if beyond:
            proof.faults.append(f"{beyond} sealed rows stand behind the end of the chain at {chain.sequence}")
        before = AuditLog.objects.filter(workspace_id=workspace_id, sequence__lte=chain.pruned).count()
        if before:
            proof.faults.append(f"{before} rows stand before the anchor at {chain.pruned}")
    return proof


def sealed_rows(workspace_id: str, after: int, until: int) -> Iterator[AuditLog]:
    """Yield sealed rows in the order of the chain, a batch in memory at a time."""
    while True:
        with unscoped("every workspace's chain is kept by the platform"):
            rows = list(
                AuditLog.objects.filter(
                    workspace_id=workspace_id, sequence__gt=after, sequence__lte=until
                ).order_by("sequence")[:BATCH]
            )
        yield from rows
        if len(rows) < BATCH:
            return
        after = rows[-1].sequence or 0


def ends(workspace_id: str) -> AuditChain | None:
    """Return both ends of a workspace's chain; None while nothing of it is sealed."""
    return (
        AuditChain.objects.unscoped("every workspace's chain is kept by the platform")
        .filter(pk=workspace_id)
        .first()
    )


def prune(*, now: datetime | None = None) -> int:
    """Remove what is older than each workspace's retention, from its chain's beginning; return how much.

    The chain stays provable: the hash of the last row that went is its anchor.
    """
    now = now or clock.now()
    removed = 0
    with unscoped("every workspace's chain is kept by the platform"):
        retention = dict(Limits.objects.values_list("workspace_id", "audit_retention_days"))
        chains = list(AuditChain.objects.values_list("workspace_id", flat=True))
    for workspace_id in chains:
        days = retention.get(workspace_id)
        if days is not None:
            while count := _prune_workspace(workspace_id, now - timedelta(days=days)):
                removed += count
    return removed


def _prune_workspace(workspace_id: str, oldest: datetime) -> int:
    with unscoped("every workspace's chain is kept by the platform"), transaction.atomic():
        chain = _locked(workspace_id)
        rows = AuditLog.objects.filter(workspace_id=workspace_id)
        # Rows stand in the order of sealing: what goes ends before the first that is young enough to stay.
        ahead = rows.filter(sequence__gt=chain.pruned, sequence__lte=chain.pruned + BATCH)
        kept = ahead.filter(time__gte=oldest).aggregate(first=Min("sequence"))["first"]
        going = ahead if kept is None else ahead.filter(sequence__lt=kept)
        last = going.aggregate(last=Max("sequence"))["last"]
        if last is None:
            return 0
        chain.anchor = rows.get(sequence=last).hash
        chain.pruned = last
        chain.save(update_fields=["pruned", "anchor"])
        # In one statement, without asking what refers to the rows: nothing does.
        return int(going._raw_delete(going.db))


def _locked(workspace_id: str) -> AuditChain:
    chains = AuditChain.objects.select_for_update()
    found = chains.filter(pk=workspace_id).first()
    if found is None:
        AuditChain.objects.bulk_create([AuditChain(workspace_id=workspace_id)], ignore_conflicts=True)
        found = chains.get(pk=workspace_id)
    return found


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
