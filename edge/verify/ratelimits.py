"""`ratelimit.limit` and `ratelimit.multiLimit` on the edge, answered from memory."""

from collections.abc import Awaitable, Mapping, Sequence
from time import perf_counter
from typing import Any

import msgspec

from edge.store.records import Absence
from edge.telemetry.facts import ratelimit_facts
from edge.verify.limit_request import (
    CREATE_NAMESPACE,
    LIMIT_READER,
    MULTI_READER,
    NOT_VALID,
    UNNOTED,
    USE_ANY,
    LimitBody,
    Reader,
    Recorder,
    ask,
    gone,
    needed,
    note,
    show,
    show_all,
)
from edge.verify.namespaces import Space
from edge.verify.verifier import NO_HEADER, Answer, Caller, Verifier, new_request_id
from unkey import clock, errors
from unkey.actors import Actor
from unkey.errors import Fault


class Ratelimits:
    """Answers both operations from memory; one per edge process.

    Args:
        verifier: knows the callers, and has the process's counters.
        telemetry: is told every decision; None: nobody is.
    """

    def __init__(self, verifier: Verifier, telemetry: Recorder | None = None) -> None:
        self._verifier = verifier
        self._store = verifier.store
        self._limiter = verifier.limiter
        self._telemetry = telemetry

    def quick_limit(self, authorization: bytes, remote_ip: bytes, body: bytes) -> bytes | None:
        """Answer a request of a caller and in a namespace that are known: the JSON body.

        None: nothing was decided or counted; `handle_limit` is to be asked.
        """
        started = perf_counter()
        caller = self._verifier.known_caller(authorization)
        if caller is None:
            return None
        now = clock.now_ms()
        if now > caller.expires_at:
            return None
        try:
            asked: LimitBody = LIMIT_READER.decode(body)
        except NOT_VALID:
            return None
        workspace_id = caller.record.workspace_id
        space = self._store.namespace(workspace_id, asked.namespace)
        if isinstance(space, Absence) or not _may_use(caller, space):
            return None
        # As `ask`, `Limiter.check`, `show` and `note` do, without an object for each.
        namespace_id, identifier = space.id, asked.identifier
        override = space.resolve(identifier)
        if override is None:
            limit, duration, override_id = asked.limit, asked.duration, ""
        else:
            limit, duration, override_id = override.limit, override.duration, override.id
        counter = (workspace_id, namespace_id, identifier, duration)
        remaining, reset = self._limiter.count(counter, limit, asked.cost, now)
        passed = remaining >= 0
        if not passed:
            remaining = 0
        request_id = new_request_id()
        telemetry = self._telemetry
        if telemetry is not None:
            telemetry.record_ratelimit(
                request_id,
                now,
                ratelimit_facts(workspace_id, namespace_id, identifier),
                passed,
                limit,
                remaining,
                reset,
                cost=asked.cost,
                latency=(perf_counter() - started) * 1000,
                override_id=override_id,
            )
        if not override_id:
            return _LIMITED % (request_id, limit, remaining, reset, b"true" if passed else b"false")
        answer = (request_id, limit, remaining, reset, b"true" if passed else b"false")
        return _OVERRIDDEN % (*answer, override_id.encode())

    def handle_limit(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/ratelimit.limit`: status, JSON body, extra headers.

        Args:
            headers: by lower-case name.
            body: the whole request body.
            remote_ip: address of the caller, for the audit of a namespace that is made.
        """
        return self._handle(headers, body, remote_ip, LIMIT_READER)

    def handle_multi_limit(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/ratelimit.multiLimit`; as `handle_limit`."""
        return self._handle(headers, body, remote_ip, MULTI_READER)

    def _handle(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str, reader: Reader[Any]
    ) -> Answer | Awaitable[Answer]:
        started = perf_counter()
        told: dict[str, str] = {}
        request_id = new_request_id()
        try:
            authorization = headers.get("authorization", "")
            asked = reader.read(body) if authorization else reader.read(body, (NO_HEADER,))
            caller = self._verifier.caller(authorization)
            if isinstance(caller, Caller):
                spaces = self._spaces(caller, asked, told)
                if spaces is not None:
                    return self._decided(headers, asked, spaces, told, request_id, started)
            return self._later(headers, asked, caller, remote_ip, told, request_id, started)
        except Fault as fault:
            return self._verifier.failure(headers, fault, told, request_id)

    def _spaces(
        self, caller: Caller, asked: LimitBody | list[LimitBody], told: dict[str, str]
    ) -> list[Space] | None:
        """Return the namespaces of a request that are all in memory, having admitted the caller; else None.

        Raises:
            WorkspaceRateLimited, InsufficientPermissions, RatelimitNamespaceGone: it is refused.
        """
        found = []
        for one in _each(asked):
            space = self._store.namespace(caller.record.workspace_id, one.namespace)
            if isinstance(space, Absence):
                return None
            found.append(space)
        self._verifier.admit(caller, clock.now_ms(), told)
        _authorize(caller, _each(asked), found)
        return found

    async def _later(
        self,
        headers: Mapping[str, str],
        asked: LimitBody | list[LimitBody],
        calling: Caller | Awaitable[Caller],
        remote_ip: str,
        told: dict[str, str],
        request_id: bytes,
        started: float,
    ) -> Answer:
        """Answer a request of a caller or in a namespace that has to be read from the database."""
        try:
            caller = calling if isinstance(calling, Caller) else await calling
            self._verifier.admit(caller, clock.now_ms(), told)
            creator = Actor("rootkey", caller.record.id, "", remote_ip, headers.get("user-agent", "")[:512])
            spaces = await self._opened(caller, asked, creator)
            return self._decided(headers, asked, spaces, told, request_id, started)
        except Fault as fault:
            return self._verifier.failure(headers, fault, told, request_id)

    async def _opened(
        self, caller: Caller, asked: LimitBody | list[LimitBody], creator: Actor
    ) -> list[Space]:
        """Return the namespaces of a request; those that are missing are made, if the caller may do all of it.

        Raises:
            InsufficientPermissions, RatelimitNamespaceGone: nothing was made.
        """
        workspace_id = caller.record.workspace_id
        found: dict[str, Space] = {}
        missing = []
        for name in dict.fromkeys(one.namespace for one in _each(asked)):
            space: Space | Absence | None = self._store.namespace(workspace_id, name)
            if space is Absence.NOT_LOADED:
                space = await self._store.fetch_namespace(workspace_id, name)
            if isinstance(space, Space):
                found[name] = space
            else:
                missing.append(name)
        known = [one for one in _each(asked) if one.namespace in found]
        _authorize(caller, known, [found[one.namespace] for one in known])
        for permission in (CREATE_NAMESPACE, USE_ANY) if missing else ():
            if permission not in caller.permissions:
                raise errors.InsufficientPermissions(f"Missing permission: '{permission}'")
        for name in missing:
            made = await self._store.fetch_namespace(workspace_id, name, creator)
            if made is None:
                raise errors.ServiceUnavailable("The namespace cannot be made at the moment; try again.")
            found[name] = made
        return [found[one.namespace] for one in _each(asked)]

    def _decided(
        self,
        headers: Mapping[str, str],
        asked: LimitBody | list[LimitBody],
        spaces: Sequence[Space],
        told: dict[str, str],
        request_id: bytes,
        started: float,
    ) -> Answer:
        now = clock.now_ms()
        limits = [ask(space, one) for space, one in zip(spaces, _each(asked), strict=True)]
        passed, outcomes = self._limiter.check_all([each.limit for each in limits], now)
        if self._telemetry is not None and headers.get("x-unkey-metrics") != UNNOTED:
            for one, outcome in zip(limits, outcomes, strict=True):
                note(self._telemetry, request_id, now, one, outcome, perf_counter() - started)
        many = isinstance(asked, list)
        data = show_all(passed, limits, outcomes) if many else show(limits[0], outcomes[0])
        return self._verifier.success(msgspec.json.encode(data), told, request_id)


_LIMITED = b'{"meta":{"requestId":"%b"},"data":{"limit":%d,"remaining":%d,"reset":%d,"success":%b}}'
_OVERRIDDEN = (
    b'{"meta":{"requestId":"%b"},'
    b'"data":{"limit":%d,"remaining":%d,"reset":%d,"success":%b,"overrideId":"%b"}}'
)


def _each(asked: LimitBody | list[LimitBody]) -> list[LimitBody]:
    return asked if isinstance(asked, list) else [asked]


def _may_use(caller: Caller, space: Space) -> bool:
    record = space.record
    return (
        record is not None
        and not record.deleted
        and (USE_ANY in caller.permissions or f"ratelimit.{record.id}.limit" in caller.permissions)
    )


def _authorize(caller: Caller, asked: Sequence[LimitBody], spaces: Sequence[Space]) -> None:
    records = [space.record for space in spaces if space.record is not None]
    for either in needed([record.id for record in records]):
        if not caller.permissions.intersection(either):
            raise errors.InsufficientPermissions(
                f"Missing one of these permissions: {either[0]} or {either[1]}"
            )
    for one, record in zip(asked, records, strict=True):
        if record.deleted:
            raise gone(one.namespace)
