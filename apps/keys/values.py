"""Plain values that services of keys take."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Refill:
    """When and up to what a key's credits are topped up.

    Args:
        interval: `daily` or `monthly`.
        amount: credits after a refill.
        day: day of the month, 1 to 31, for `monthly`; None for `daily`.
    """

    interval: Literal["daily", "monthly"]
    amount: int
    day: int | None = None


@dataclass(frozen=True, slots=True)
class Credits:
    """A key's balance; `remaining` None: unlimited."""

    remaining: int | None
    refill: Refill | None = None


@dataclass(frozen=True, slots=True)
class NamedLimit:
    """A rate limit of a key or an identity: `limit` per `duration_ms`."""

    name: str
    limit: int
    duration_ms: int
    auto_apply: bool = False
