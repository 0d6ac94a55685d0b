"""Reads of the audit log: what the dashboard lists, and the form in which rows leave the platform."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from django.db.models import Q, QuerySet

from apps.audit.models import AuditLog
from unkey import clock
from unkey.search import containing

BUCKET = "unkey_mutations"
_AT_ONCE = 1000


def matching(wanted: Mapping[str, Any]) -> QuerySet[AuditLog]:
    """Return the rows of the workspace in scope that fit every filter, in no order.

    Args:
        wanted: any of `events` (a trailing `*` stands for any ending), `actor` and `target` (an id),
            `since` and `until` (datetimes; the latter excluded), `search` (in names and ids).
    """
    rows = AuditLog.objects.all()
    if wanted.get("events"):
        events = Q()
        for event in wanted["events"]:
            events |= Q(event__startswith=event[:-1]) if event.endswith("*") else Q(event=event)
        rows = rows.filter(events)
    if wanted.get("actor"):
        rows = rows.filter(actor_id=wanted["actor"])
    if wanted.get("target"):
        # Within the text of the list: ids have nothing that JSON would write otherwise.
        rows = rows.filter(targets__icontains=json.dumps(wanted["target"]))
    if wanted.get("since"):
        rows = rows.filter(time__gte=wanted["since"])
    if wanted.get("until"):
        rows = rows.filter(time__lt=wanted["until"])
    if wanted.get("search"):
        rows = rows.filter(containing(wanted["search"], "event", "actor_id", "actor_name", "description"))
    return rows


def oldest_first(rows: QuerySet[AuditLog]) -> Iterator[AuditLog]:
    """Yield rows from the oldest on, a thousand in memory at a time."""
    place: tuple[Any, str] | None = None
    while True:
        after = Q() if place is None else Q(time__gt=place[0]) | Q(time=place[0], pk__gt=place[1])
        page = list(rows.filter(after).order_by("time", "pk")[:_AT_ONCE])
        yield from page
        if len(page) < _AT_ONCE:
            return
        place = (page[-1].time, page[-1].pk)


def event_of(row: AuditLog) -> dict[str, Any]:
    """Return a row as exports hold it (reference, api.md 9.1), with its place in the chain."""
    return {
        "event_id": row.id,
        "time": clock.to_ms(row.time),
        "workspace_id": row.workspace_id,
        "bucket": BUCKET,
        "source": "platform",
        "event": row.event,
        "description": row.description,
        "actor": {"type": row.actor_type, "id": row.actor_id, "name": row.actor_name, "meta": {}},
        "remote_ip": row.remote_ip,
        "user_agent": row.user_agent,
        "changes": row.changes,
        "meta": row.meta,
        "targets": [{**target, "meta": {}} for target in row.targets],
        "correlation_id": row.correlation_id,
        "sequence": row.sequence,
        "hash": row.hash,
    }


def ndjson(rows: QuerySet[AuditLog]) -> Iterator[bytes]:
    """Yield rows as lines of JSON, from the oldest on."""
    for row in oldest_first(rows):
        yield json.dumps(event_of(row), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
