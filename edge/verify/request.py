"""The body of `keys.verifyKey`: read at once if it is valid, else explained fault by fault."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edge.verify.limiter import MIN_DURATION_MS
from edge.verify.steps import Demand
from unkey.errors import InvalidInput, Violation
from unkey.rpc.schema import Checker, array, integer, obj, optional, string

BODY = obj(
    {
        "key": string(1, 512, redact=True),
        "tags": optional(array(string(1, 512), most=20)),
        "permissions": optional(string(1, 1000)),
        "credits": optional(obj({"cost": integer(0, 1_000_000_000_000)})),
        "ratelimits": optional(
            array(
                obj(
                    {
                        "name": string(3, 255),
                        "cost": optional(integer(0), default=1),
                        "limit": optional(integer(0)),
                        "duration": optional(integer(0)),
                    }
                )
            )
        ),
        "keyspaces": optional(array(string(1, 255), most=100)),
        "migrationId": optional(string(0, 256)),
    }
)
CHECKER = Checker(BODY)

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class RatelimitBody(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of `ratelimits`."""

    name: Annotated[str, Meta(min_length=3, max_length=255)]
    cost: _Count = 1
    limit: _Count | UnsetType = UNSET
    duration: _Count | UnsetType = UNSET


class CreditsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`credits`."""

    cost: Annotated[int, Meta(ge=0, le=1_000_000_000_000)]


class VerifyBody(Struct, forbid_unknown_fields=True):
    """The whole body."""

    key: Annotated[str, Meta(min_length=1, max_length=512)]
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=20)] = []
    permissions: Annotated[str, Meta(min_length=1, max_length=1000)] | UnsetType = UNSET
    credits: CreditsBody | UnsetType = UNSET
    ratelimits: list[RatelimitBody] = []
    keyspaces: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=255)]], Meta(max_length=100)] | UnsetType
    ) = UNSET
    migration_id: Annotated[str, Meta(max_length=256)] | UnsetType = msgspec.field(
        default=UNSET, name="migrationId"
    )

    @property
    def cost(self) -> int | None:
        """The cost in credits that the request gives."""
        return None if isinstance(self.credits, UnsetType) else self.credits.cost

    @property
    def migration(self) -> str:
        """Under what the key may have been imported; empty: under nothing."""
        return "" if isinstance(self.migration_id, UnsetType) else self.migration_id

    def admits(self, key_space_id: str) -> bool:
        """Say whether a key of a key space may be told of: the request may name those it is for."""
        return isinstance(self.keyspaces, UnsetType) or key_space_id in self.keyspaces

    @property
    def demands(self) -> tuple[Demand, ...]:
        """The rate limits that the request asks for."""
        return tuple(
            Demand(
                one.name,
                one.cost,
                None if isinstance(one.limit, UnsetType) else one.limit,
                None if isinstance(one.duration, UnsetType) else one.duration,
            )
            for one in self.ratelimits
        )


_decoder = msgspec.json.Decoder(VerifyBody)
decode = _decoder.decode
"""Read a body without checking its windows; raises `MsgspecError` and others as `read` catches them."""


def read(body: bytes, faults: tuple[Violation, ...] = ()) -> VerifyBody:
    """Read a body.

    Args:
        body: JSON text.
        faults: what was already found wrong with the request, told first.

    Raises:
        InvalidInput: with every fault and its location.
    """
    try:
        decoded = _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        decoded = _explained(body, faults)
    if faults or decoded.ratelimits:
        found = (*faults, *_windows(decoded))
        if found:
            raise InvalidInput(found[0].message, violations=found)
    return decoded


def _explained(body: bytes, faults: tuple[Violation, ...]) -> VerifyBody:
    found = list(faults)
    value: Any = None
    if not body.strip():
        found.append(Violation("a JSON body is required", "body", "Send at least {}."))
    else:
        try:
            value = msgspec.json.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            found.append(Violation(f"the body is not valid JSON: {error}", "body"))
        else:
            found.extend(CHECKER.violations(value))
    if found:
        raise InvalidInput(found[0].message, violations=tuple(found))
    return msgspec.convert(CHECKER.complete(value), VerifyBody)


def _windows(body: VerifyBody) -> list[Violation]:
    return [
        Violation(
            f"duration must be at least {MIN_DURATION_MS} (milliseconds)",
            f"body.ratelimits[{index}].duration",
        )
        for index, one in enumerate(body.ratelimits)
        if not isinstance(one.limit, UnsetType)
        and not isinstance(one.duration, UnsetType)
        and one.duration < MIN_DURATION_MS
    ]
