"""`keys.verifyKey` answered by web: the edge's steps on rows of the database.

The edge answers the same operation from memory; this is what a caller gets who asks web directly.
"""

import time
from typing import Any

import msgspec
from django.db.models import F

from apps.keys.models import Key, Ratelimit
from apps.keys.queries import balances, shown
from apps.workspaces.services import hash_of
from edge.store import records
from edge.telemetry.facts import key_facts
from edge.verify import permissions, steps
from unkey import clock
from unkey.rpc.call import Call
from unkey.rpc.limiter import process_limiter
from unkey.telemetry import telemetry


def find_key(plaintext: str) -> Key | None:
    """Return this workspace's live key with everything that its verification needs, or None."""
    return (
        shown(Key.objects.filter(hash=hash_of(plaintext), deleted_at=None, key_space__api__deleted_at=None))
        .select_related("key_space__api", "identity", "workspace")
        .first()
    )


def verify(key: Key, body: dict[str, Any], remote_ip: str) -> steps.Verdict:
    """Verify a key as a request asks, and spend its credits.

    Args:
        key: as `find_key` returned it.
        body: a valid body of `keys.verifyKey`.
        remote_ip: for the API's IP list.

    Raises:
        PermissionsQuerySyntaxError: the permission query cannot be read.
        PreconditionFailed: a named rate limit does not exist.
    """
    request = steps.Request(
        query=permissions.parse(body["permissions"]) if "permissions" in body else None,
        demands=tuple(
            steps.Demand(one["name"], one["cost"], one.get("limit"), one.get("duration"))
            for one in body.get("ratelimits", ())
        ),
        remote_ip=remote_ip,
        check_ip=True,
    )
    subject = _subject(key)
    verdict = steps.verify(subject, request, process_limiter(), clock.now_ms())
    cost = steps.credit_cost(verdict, body.get("credits", {}).get("cost"))
    if cost is not None:
        _spend(key, cost, verdict)
    return verdict


def note(call: Call, verdict: steps.Verdict | None, started: float) -> None:
    """Tell telemetry of a verification.

    Args:
        call: the request.
        verdict: None: the key was not found, or the caller must not know of it.
        started: `time.perf_counter()` before the key was looked up.
    """
    events = telemetry()
    if events is None:
        return
    events.record_verification(
        call.request_id.encode(),
        clock.now_ms(),
        key_facts(call.workspace_id, "") if verdict is None else verdict.subject.facts,
        b"NOT_FOUND" if verdict is None else verdict.code.encode(),
        spent=0 if verdict is None else verdict.spent,
        latency=(time.perf_counter() - started) * 1000,
        tags=msgspec.json.encode(call.body.get("tags", [])),
    )


def _spend(key: Key, cost: int, verdict: steps.Verdict) -> None:
    """Take credits from what no edge has leased, in one conditional update."""
    spent = not cost or Key.objects.filter(pk=key.pk, remaining__gte=cost).update(
        remaining=F("remaining") - cost
    )
    key.refresh_from_db(fields=["remaining", "credits_epoch"])
    verdict.credits = balances([key]).get(key.pk)
    # A balance of None: the key was made unlimited a moment ago.
    if spent or verdict.credits is None:
        verdict.spent = cost
    else:
        verdict.code = steps.USAGE_EXCEEDED


def _subject(key: Key) -> steps.Subject:
    workspace, api, identity = key.workspace, key.key_space.api, key.identity
    return steps.Subject(
        records.KeyRecord(
            id=key.id,
            hash=key.hash,
            workspace_id=key.workspace_id,
            key_space_id=key.key_space_id,
            api_id=api.id,
            start=key.start,
            name=key.name,
            meta=key.meta,
            enabled=key.enabled,
            expires_at=clock.to_ms(key.expires_at) if key.expires_at else None,
            remaining=balances([key]).get(key.pk),
            credits_epoch=key.credits_epoch,
            permissions=tuple(permission.slug for permission in key.permissions.all()),
            role_ids=tuple(role.id for role in key.roles.all()),
            identity_id=identity.id if identity else None,
            ratelimits=_ratelimits(key),
            version=key.version,
        ),
        records.Workspace(workspace.id, workspace.enabled, workspace.version),
        records.Api(
            id=api.id,
            workspace_id=api.workspace_id,
            key_space_id=api.key_space_id,
            ip_whitelist=tuple(part.strip() for part in api.ip_whitelist.split(",") if part.strip()),
            version=api.version,
        ),
        records.Identity(
            id=identity.id,
            workspace_id=identity.workspace_id,
            external_id=identity.external_id,
            meta=identity.meta,
            ratelimits=_ratelimits(identity),
            version=identity.version,
        )
        if identity and not identity.deleted_at
        else None,
        [
            records.Role(
                id=role.id,
                workspace_id=role.workspace_id,
                name=role.name,
                permissions=tuple(permission.slug for permission in role.permissions.all()),
                version=role.version,
            )
            for role in key.roles.all()
        ],
    )


def _ratelimits(holder: Any) -> tuple[records.Ratelimit, ...]:
    rows: list[Ratelimit] = holder.ratelimits.all()
    return tuple(
        records.Ratelimit(row.id, row.name, row.limit, row.duration_ms, row.auto_apply) for row in rows
    )
