"""Typed questions about a workspace's events, the same on every store."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from apps.analytics.embedded import BUCKETS, DAY, HOUR
from apps.analytics.store import Store, store
from apps.quota.models import Limits

VALID = "VALID"


@dataclass
class Uses:
    """Verifications of one key, or of one bucket of time.

    Args:
        outcomes: outcome to how many there were.
        spent: credits.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    spent: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.outcomes.values())

    @property
    def valid(self) -> int:
        """Those that were let pass."""
        return self.outcomes.get(VALID, 0)

    def add(self, outcome: str, count: int, spent: int) -> None:
        """Add what a store counted."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.spent += spent


def retention_days(workspace_id: str) -> int:
    """Return how many days back a workspace may ask about its events."""
    return Limits.objects.only("logs_retention_days").get(pk=workspace_id).logs_retention_days


def bucket_of(start: int, end: int) -> str:
    """Return the bucket that a window of milliseconds is shown in, as the reference has it."""
    if end - start <= 3 * HOUR:
        return "minute"
    return "hour" if end - start <= 4 * DAY else "day"


def bucket_millis(start: int, end: int) -> int:
    """Return how long the buckets are that a window of milliseconds is shown in."""
    return BUCKETS[bucket_of(start, end)]


def usage_by_key(
    workspace_id: str,
    start: int,
    end: int,
    *,
    key_space_ids: Sequence[str] | None = None,
    source: Store | None = None,
) -> dict[str, Uses]:
    """Return what keys were used in a window of time, the most used first.

    Args:
        workspace_id: whose.
        start, end: Unix milliseconds; the end is not included. Whole buckets count.
        key_space_ids: only keys of these; None: of all.
        source: where to ask; None: the store of the settings.
    """
    bucket = bucket_of(start, end)
    only = {} if key_space_ids is None else {"key_space_id": key_space_ids}
    rows = (source or store()).usage_by_key(workspace_id, bucket, start - start % BUCKETS[bucket], end, only)
    found: dict[str, Uses] = {}
    for key_id, outcome, count, spent in rows:
        found.setdefault(key_id, Uses()).add(outcome, count, spent)
    return dict(sorted(found.items(), key=lambda item: (-item[1].total, item[0])))


def verifications(
    workspace_id: str,
    start: int,
    end: int,
    *,
    key_ids: Sequence[str] | None = None,
    external_ids: Sequence[str] | None = None,
    source: Store | None = None,
) -> dict[int, Uses]:
    """Return what happened in each bucket of a window of time, empty ones too, the earliest first.

    Args:
        workspace_id: whose.
        start, end: Unix milliseconds; the end is not included.
        key_ids, external_ids: only of these keys and of these holders; None: of all.
        source: where to ask; None: the store of the settings.
    """
    bucket = bucket_of(start, end)
    size = BUCKETS[bucket]
    first = start - start % size
    found = {time: Uses() for time in range(first, end, size)}
    only = {"key_id": key_ids, "external_id": external_ids}
    asked = {column: values for column, values in only.items() if values is not None}
    for time, outcome, count, spent in (source or store()).verifications(
        workspace_id, bucket, first, end, asked
    ):
        found[time].add(outcome, count, spent)
    return found
