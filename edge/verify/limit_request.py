"""`ratelimit.limit` and `ratelimit.multiLimit`: their bodies, the limit that counts, and their answers."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from edge.store.records import Override
from edge.telemetry.facts import ratelimit_facts
from edge.verify.limiter import MIN_DURATION_MS, Limit, Outcome
from edge.verify.namespaces import Space
from unkey import errors
from unkey.errors import Fault, InvalidInput, Violation
from unkey.rpc.schema import Checker, Schema, array, integer, obj, optional, string

LONGEST_MS = 2_592_000_000
MOST_LIMITS = 100
# Value of `X-Unkey-Metrics` of clients that want a request not to be counted in analytics.
UNNOTED = "disabled"

LIMIT = obj(
    {
        "namespace": string(1, 512, about="id or name"),
        "identifier": string(1, 512),
        "limit": integer(1),
        "duration": integer(MIN_DURATION_MS, LONGEST_MS, about="milliseconds"),
        "cost": optional(integer(0), default=1),
    }
)
MULTI_LIMIT = array(LIMIT, 1, MOST_LIMITS)

_Text = Annotated[str, Meta(min_length=1, max_length=512)]
_B = TypeVar("_B")


class LimitBody(Struct, forbid_unknown_fields=True, gc=False):
    """The body of `ratelimit.limit`, and an item of that of `ratelimit.multiLimit`."""

    namespace: _Text
    identifier: _Text
    limit: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    duration: Annotated[int, Meta(ge=MIN_DURATION_MS, le=LONGEST_MS)]
    cost: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1


class Reader(Generic[_B]):
    """Reads bodies: at once if they are valid, else explained fault by fault.

    Args:
        schema: what a body must be.
        kind: what it is read as; it takes nothing that the schema refuses.
    """

    def __init__(self, schema: Schema, kind: Any) -> None:
        self._checker = Checker(schema)
        self._kind = kind
        self.decode: Any = msgspec.json.Decoder(kind).decode

    def read(self, body: bytes, faults: tuple[Violation, ...] = ()) -> _B:
        """Read a body.

        Args:
            body: JSON text.
            faults: what was already found wrong with the request, told first.

        Raises:
            InvalidInput: with every fault and its location.
        """
        if not faults:
            try:
                decoded: _B = self.decode(body)
            except NOT_VALID:
                pass
            else:
                return decoded
        found = list(faults)
        value: Any = None
        if not body.strip():
            found.append(Violation("a JSON body is required", "body", "Send at least {}."))
        else:
            try:
                value = msgspec.json.decode(body)
            except NOT_VALID as error:
                found.append(Violation(f"the body is not valid JSON: {error}", "body"))
            else:
                found.extend(self._checker.violations(value))
        if found:
            raise InvalidInput(found[0].message, violations=tuple(found))
        complete: _B = msgspec.convert(self._checker.complete(value), self._kind)
        return complete


NOT_VALID = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
LIMIT_READER: Reader[LimitBody] = Reader(LIMIT, LimitBody)
MULTI_READER: Reader[list[LimitBody]] = Reader(
    MULTI_LIMIT, Annotated[list[LimitBody], Meta(min_length=1, max_length=MOST_LIMITS)]
)


class Asked(Struct, gc=False):
    """A limit that is asked for, and the one that counts.

    Args:
        namespace: as the caller named it.
        override: whose limit and duration count instead of the caller's.
    """

    namespace: str
    namespace_id: str
    workspace_id: str
    identifier: str
    limit: Limit
    override: Override | None


def ask(space: Space, body: LimitBody) -> Asked:
    """Return what is to be asked for a body, whose namespace is known."""
    record = space.record
    assert record is not None
    override = space.resolve(body.identifier)
    limit, duration = body.limit, body.duration
    if override is not None:
        limit, duration = override.limit, override.duration
    return Asked(
        namespace=body.namespace,
        namespace_id=record.id,
        workspace_id=record.workspace_id,
        identifier=body.identifier,
        limit=Limit((record.workspace_id, record.id, body.identifier, duration), limit, body.cost),
        override=override,
    )


def show(asked: Asked, outcome: Outcome) -> dict[str, Any]:
    """Return `data` of the answer of `ratelimit.limit`."""
    shown: dict[str, Any] = {
        "limit": outcome.limit,
        "remaining": outcome.remaining,
        "reset": outcome.reset,
        "success": outcome.passed,
    }
    if asked.override is not None:
        shown["overrideId"] = asked.override.id
    return shown


def show_all(passed: bool, asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return `data` of the answer of `ratelimit.multiLimit`."""
    rows = []
    for one, outcome in zip(asked, outcomes, strict=True):
        row = show(one, outcome)
        row["passed"] = row.pop("success")
        rows.append({"namespace": one.namespace, "identifier": one.identifier, **row})
    return {"passed": passed, "limits": rows}


def needed(namespace_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return, for each namespace, the permissions of which one is needed to use it."""
    return [(USE_ANY, f"ratelimit.{each}.limit") for each in dict.fromkeys(namespace_ids)]


CREATE_NAMESPACE = "ratelimit.*.create_namespace"
USE_ANY = "ratelimit.*.limit"


def gone(name: str) -> Fault:
    """Return the fault for a namespace that was deleted."""
    return errors.RatelimitNamespaceGone(
        f"The namespace {name} was deleted. Use another name, or ask for it to be restored."
    )


class Recorder(Protocol):
    """What decisions are told to: `edge.telemetry.events.Telemetry`."""

    def record_ratelimit(
        self,
        request_id: bytes,
        time: int,
        facts: bytes,
        passed: bool,
        limit: int,
        remaining: int,
        reset_at: int,
        *,
        cost: int = 1,
        latency: float = 0.0,
        override_id: str = "",
    ) -> None:
        """Note a decision."""


def note(
    recorder: Recorder, request_id: bytes, now: int, asked: Asked, outcome: Outcome, seconds: float
) -> None:
    """Tell telemetry of a decision that took so long."""
    recorder.record_ratelimit(
        request_id,
        now,
        ratelimit_facts(asked.workspace_id, asked.namespace_id, asked.identifier),
        outcome.passed,
        outcome.limit,
        outcome.remaining,
        outcome.reset,
        cost=asked.limit.cost,
        latency=seconds * 1000,
        override_id="" if asked.override is None else asked.override.id,
    )
