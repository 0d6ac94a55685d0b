"""Where events are kept and asked for: one interface, embedded or in ClickHouse, as the settings say."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from apps.analytics.embedded import Embedded
from edge.telemetry.clickhouse import Server
from unkey.env import env


class Store(Protocol):
    """What the rest of the system asks of the events."""

    def usage(self, period: str) -> dict[str, tuple[int, int]]:
        """Return what each workspace has used in a month (`YYYY-MM`, UTC) that is billed.

        Verifications that were valid and not by the gateway, and rate limits that let pass.
        """

    def verifications(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[int, str, int, int]]:
        """Return (time, outcome, count, credits spent) per bucket, the earliest first.

        Args:
            workspace_id: whose.
            bucket: `minute`, `hour` or `day`.
            start, end: Unix milliseconds; the end is not included.
            only: column (`key_id`, `key_space_id`, `identity_id`, `external_id`) to the values that count.
        """

    def usage_by_key(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str, int, int]]:
        """Return (key, outcome, count, credits spent); arguments as of `verifications`."""

    def last_used(self, workspace_id: str, key_ids: Sequence[str]) -> dict[str, int]:
        """Return when keys were last verified, in Unix milliseconds; those that never were are left out."""

    def used_since(self, since: int) -> dict[str, int]:
        """Return when keys of all workspaces were last verified, of those that were since a moment (ms)."""


def embedded() -> Embedded:
    """Return the store on this machine."""
    return Embedded(env.UNKEY_VAR / "analytics")


@cache
def store() -> Store:
    """Return the store that the settings name."""
    if env.CLICKHOUSE_URL:
        from apps.analytics.clickhouse import ClickHouse

        return ClickHouse(Server(env.CLICKHOUSE_URL))
    return embedded()
