"""`ratelimit.limit` and `multiLimit` answered by web: the edge's parts on rows of the database."""

import time
from collections.abc import Mapping, Sequence

from apps.ratelimits import queries, services
from apps.ratelimits.models import Namespace, Override
from edge.store import records
from edge.verify.limit_request import (
    CREATE_NAMESPACE,
    UNNOTED,
    USE_ANY,
    Asked,
    LimitBody,
    ask,
    gone,
    needed,
    note,
)
from edge.verify.limiter import Outcome
from edge.verify.namespaces import Space
from unkey import clock, errors
from unkey.actors import Principal
from unkey.rpc.call import Call
from unkey.rpc.limiter import process_limiter
from unkey.telemetry import telemetry


def limit(call: Call, bodies: Sequence[LimitBody]) -> tuple[bool, list[Asked], list[Outcome]]:
    """Ask limits, all or nothing; namespaces that do not exist are made, if the caller may do all of it.

    It checks the permission of the call, for each namespace.

    Returns:
        Whether all passed, what was asked, and each one's outcome.

    Raises:
        InsufficientPermissions, RatelimitNamespaceGone: nothing was counted or made.
    """
    started = time.perf_counter()
    principal = call.principal
    call.authorized = True
    names = list(dict.fromkeys(body.namespace for body in bodies))
    found = queries.find_namespaces(names)
    _authorize(principal, found)
    if len(found) < len(names):
        _may_create(principal)
    for name in names:
        if name not in found:
            found[name] = services.ensure_namespace(principal.workspace_id, name, actor=call.actor)
            if found[name].deleted_at is not None:
                raise gone(name)
    spaces = _spaces({row.pk: row for row in found.values()}, [body.identifier for body in bodies])
    asked = [ask(spaces[found[body.namespace].pk], body) for body in bodies]
    now = clock.now_ms()
    passed, outcomes = process_limiter().check_all([each.limit for each in asked], now)
    events = telemetry()
    if events is not None and call.headers.get("X-Unkey-Metrics") != UNNOTED:
        for one, outcome in zip(asked, outcomes, strict=True):
            note(events, call.request_id.encode(), now, one, outcome, time.perf_counter() - started)
    return passed, asked, outcomes


def space_of(namespace: Namespace, identifier: str) -> Space:
    """Return a namespace with the overrides that may apply to an identifier."""
    return _spaces({namespace.pk: namespace}, [identifier])[namespace.pk]


def _authorize(principal: Principal, found: Mapping[str, Namespace]) -> None:
    for either in needed([namespace.pk for namespace in found.values()]):
        if not principal.permissions.intersection(either):
            raise errors.InsufficientPermissions(
                f"Missing one of these permissions: {either[0]} or {either[1]}"
            )
    for name, namespace in found.items():
        if namespace.deleted_at is not None:
            raise gone(name)


def _may_create(principal: Principal) -> None:
    for permission in (CREATE_NAMESPACE, USE_ANY):
        if permission not in principal.permissions:
            raise errors.InsufficientPermissions(f"Missing permission: '{permission}'")


def _spaces(namespaces: Mapping[str, Namespace], identifiers: Sequence[str]) -> dict[str, Space]:
    spaces = {
        row.pk: Space(records.Namespace(row.pk, row.workspace_id, row.name, row.version))
        for row in namespaces.values()
    }
    for override in queries.candidates(namespaces, identifiers):
        spaces[override.namespace_id].apply(_record(override))
    return spaces


def _record(row: Override) -> records.Override:
    return records.Override(
        id=row.pk,
        workspace_id=row.workspace_id,
        namespace_id=row.namespace_id,
        identifier=row.identifier,
        limit=row.limit,
        duration=row.duration_ms,
        made_at=clock.to_ms(row.created_at),
        version=row.version,
    )
