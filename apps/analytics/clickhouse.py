"""ClickHouse as the store: its tables and what feeds them, typed questions, and confined SQL.

server = Server("http://unkey:secret@clickhouse:8123/default")
migrate(server)
ClickHouse(server).usage("2026-11")
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apps.analytics.engines import Rows, limits, read_rows, refusal
from apps.analytics.schema import (
    RATELIMIT_ROLLUP,
    ROLLUPS,
    RUNTIME_LOG_COLUMNS,
    RUNTIME_LOGS,
    START_OF,
    VERIFICATION_ROLLUP,
    Rollup,
    rollup_select,
)
from edge.telemetry.clickhouse import Refused, Server, Unreachable
from edge.telemetry.tables import GATEWAY_REQUESTS, TABLES, VERIFICATIONS
from unkey import errors

# Segments are sent again when an answer is lost; so many of a table are remembered.
_ONCE = "non_replicated_deduplication_window = 10000"
_TIMES = {"minute": "DateTime('UTC')", "hour": "DateTime('UTC')", "day": "Date", "month": "Date"}
_ONLY = frozenset({"key_id", "key_space_id", "identity_id", "external_id"})


def statements() -> Iterator[tuple[str, str]]:
    """Yield every migration, in order: its name, and what it runs. Names are never given another meaning."""
    for table in TABLES:
        columns = ", ".join(f"`{name}` {kind}" for name, kind in table.columns.items())
        order = ", ".join(("workspace_id", *table.order))
        yield (
            table.name,
            f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}) ENGINE = MergeTree ORDER BY ({order}) "
            f"TTL toDateTime(intDiv(time, 1000)) + INTERVAL {table.days} DAY SETTINGS {_ONCE}",
        )
    details = ("policies", "request_headers", "request_body", "response_headers", "response_body")
    yield (
        "gateway_requests_with_details",
        f"ALTER TABLE {GATEWAY_REQUESTS.name} "
        + ", ".join(f"ADD COLUMN IF NOT EXISTS {name} {GATEWAY_REQUESTS.columns[name]}" for name in details),
    )
    logs = ", ".join(f"{name} {kind}" for name, kind in RUNTIME_LOG_COLUMNS.items())
    yield (
        RUNTIME_LOGS,
        f"CREATE TABLE IF NOT EXISTS {RUNTIME_LOGS} ({logs}) ENGINE = MergeTree "
        "ORDER BY (workspace_id, project_id, environment_id, app_id, time, deployment_id, log_id) "
        f"TTL toDateTime(intDiv(time, 1000)) + INTERVAL 7 DAY SETTINGS {_ONCE}",
    )
    for rollup in ROLLUPS:
        yield from _rollup(rollup)
    yield from _billable(VERIFICATION_ROLLUP, "count", "WHERE outcome = 'VALID' AND source != 'gateway'")
    yield from _billable(RATELIMIT_ROLLUP, "passed", "")
    yield (
        "key_last_used_v1",
        "CREATE TABLE IF NOT EXISTS key_last_used_v1 (workspace_id String, key_space_id String, key_id String, "
        "time SimpleAggregateFunction(max, Int64)) ENGINE = AggregatingMergeTree "
        f"ORDER BY (workspace_id, key_space_id, key_id) SETTINGS {_ONCE}",
    )
    yield (
        "key_last_used_mv_v1",
        "CREATE MATERIALIZED VIEW IF NOT EXISTS key_last_used_mv_v1 TO key_last_used_v1 AS "  # noqa: S608
        f"SELECT workspace_id, key_space_id, key_id, max(event.time) AS time FROM {VERIFICATIONS.name} AS event "
        "WHERE key_id != '' GROUP BY workspace_id, key_space_id, key_id",
    )


def _rollup(rollup: Rollup) -> Iterator[tuple[str, str]]:
    """Yield a family's tables, each fed from the one before it."""
    raw = next(table for table in TABLES if table.name == rollup.raw)
    dimensions = ", ".join(f"{name} {raw.columns[name]}" for name in rollup.dimensions)
    measures = ", ".join(f"{name} Int64" for name in rollup.measures)
    source = rollup.raw
    for bucket, days in rollup.buckets.items():
        table = rollup.table(bucket)
        keys = ", ".join(("workspace_id", *rollup.dimensions))
        yield (
            table,
            f"CREATE TABLE IF NOT EXISTS {table} (time {_TIMES[bucket]}, workspace_id String, {dimensions}, "
            f"{measures}) ENGINE = SummingMergeTree(({', '.join(rollup.measures)})) "
            f"ORDER BY (workspace_id, time, {', '.join(rollup.dimensions)}) "
            f"TTL time + INTERVAL {days} DAY SETTINGS {_ONCE}",
        )
        if source == rollup.raw:
            select = rollup_select(rollup, bucket, source)
        else:
            start = START_OF[bucket].format("event.time")
            sums = ", ".join(f"sum(event.{name}) AS {name}" for name in rollup.measures)
            select = f"SELECT {start} AS time, {keys}, {sums} FROM {source} AS event GROUP BY time, {keys}"  # noqa: S608
        view = f"{rollup.family}_per_{bucket}_mv_{rollup.version}"
        yield view, f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view} TO {table} AS {select}"
        source = table


def _billable(rollup: Rollup, measure: str, where: str) -> Iterator[tuple[str, str]]:
    table = f"billable_{rollup.family.removeprefix('key_')}_per_month_v2"
    view = table.replace("_v2", "_mv_v2")
    yield (
        table,
        f"CREATE TABLE IF NOT EXISTS {table} (year Int16, month Int8, workspace_id String, count Int64) "
        f"ENGINE = SummingMergeTree(count) ORDER BY (workspace_id, year, month) SETTINGS {_ONCE}",
    )
    yield (
        view,
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view} TO {table} AS "  # noqa: S608
        f"SELECT toYear(time) AS year, toMonth(time) AS month, workspace_id, sum({measure}) AS count "
        f"FROM {rollup.table('month')} {where} GROUP BY year, month, workspace_id",
    )


def migrate(server: Server) -> list[str]:
    """Make the tables and views that are not there yet; return their names.

    Raises:
        Refused, Unreachable: what was made before stays, and the next call goes on from there.
    """
    server.run(
        "CREATE TABLE IF NOT EXISTS unkey_migrations (name String, at DateTime DEFAULT now()) "
        "ENGINE = MergeTree ORDER BY name"
    )
    done = set(server.run("SELECT name FROM unkey_migrations FORMAT TabSeparated").decode().split())
    made = []
    for name, statement in statements():
        if name not in done:
            server.run(statement)
            server.run(f"INSERT INTO unkey_migrations (name) VALUES ('{name}')")  # noqa: S608
            made.append(name)
    return made


class ClickHouse:
    """The store of events, and the engine of confined SQL, on a server.

    Args:
        server: whose tables `migrate` has made.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.database = server.database

    def run(self, sql: str, rows: int) -> Rows:
        """See `apps.analytics.engines.Engine`."""
        settings = ", ".join(f"{name} = '{value}'" for name, value in limits(rows).items())
        try:
            answer = self._server.run(f"{sql} SETTINGS {settings}, readonly = 1 FORMAT JSONEachRow")
        except Refused as refused:
            raise refusal(refused.code, str(refused)) from None
        except Unreachable:
            raise errors.AnalyticsConnectionFailed(
                "Analytics does not answer at the moment. Try again."
            ) from None
        return read_rows(answer.decode())

    def usage(self, period: str) -> dict[str, tuple[int, int]]:
        """See `apps.analytics.store.Store`."""
        year, month = (int(part) for part in period.split("-"))
        found: dict[str, list[int]] = {}
        for place, kind in enumerate(("verifications", "ratelimits")):
            for row in self._rows(
                f"SELECT workspace_id, sum(count) AS n FROM billable_{kind}_per_month_v2 "  # noqa: S608
                f"WHERE year = {year} AND month = {month} GROUP BY workspace_id"
            ):
                found.setdefault(row["workspace_id"], [0, 0])[place] = row["n"]
        return {
            workspace: (verifications, ratelimits) for workspace, (verifications, ratelimits) in found.items()
        }

    def verifications(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[int, str, int, int]]:
        """See `apps.analytics.store.Store`."""
        return self._counted(
            "toUnixTimestamp(toDateTime(event.time, 'UTC')) * 1000", workspace_id, bucket, start, end, only
        )

    def usage_by_key(
        self, workspace_id: str, bucket: str, start: int, end: int, only: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str, int, int]]:
        """See `apps.analytics.store.Store`."""
        return self._counted("key_id", workspace_id, bucket, start, end, only, " AND key_id != ''")

    def _counted(
        self,
        group: str,
        workspace_id: str,
        bucket: str,
        start: int,
        end: int,
        only: Mapping[str, Sequence[str]],
        more: str = "",
    ) -> list[Any]:
        if not all(only.values()):
            return []
        for column, values in only.items():
            if column not in _ONLY:
                raise ValueError(column)
            more += f" AND {column} IN ({', '.join(_quoted(value) for value in values)})"
        # Buckets begin at whole seconds: one that begins within the last second before `end` counts.
        moments = [f"toDateTime({-(-moment // 1000)}, 'UTC')" for moment in (start, end)]
        return [
            (row["g"], row["outcome"], row["n"], row["spent"])
            for row in self._rows(
                f"SELECT {group} AS g, outcome, sum(count) AS n, sum(spent_credits) AS spent "  # noqa: S608
                f"FROM {VERIFICATION_ROLLUP.table(bucket)} AS event WHERE workspace_id = {_quoted(workspace_id)} "
                f"AND event.time >= {moments[0]} AND event.time < {moments[1]}{more} "
                "GROUP BY g, outcome ORDER BY g, outcome"
            )
        ]

    def last_used(self, workspace_id: str, key_ids: Sequence[str]) -> dict[str, int]:
        """See `apps.analytics.store.Store`."""
        if not key_ids:
            return {}
        rows = self._rows(
            f"SELECT key_id, max(event.time) AS used FROM key_last_used_v1 AS event "  # noqa: S608
            f"WHERE workspace_id = {_quoted(workspace_id)} "
            f"AND key_id IN ({', '.join(_quoted(key_id) for key_id in key_ids)}) GROUP BY key_id"
        )
        return {row["key_id"]: row["used"] for row in rows}

    def used_since(self, since: int) -> dict[str, int]:
        """See `apps.analytics.store.Store`."""
        rows = self._rows(
            "SELECT key_id, max(event.time) AS used FROM key_last_used_v1 AS event "  # noqa: S608
            f"WHERE event.time >= {since:d} GROUP BY key_id"
        )
        return {row["key_id"]: row["used"] for row in rows}

    def _rows(self, select: str) -> Rows:
        settings = "output_format_json_quote_64bit_integers = 0"
        return read_rows(self._server.run(f"{select} SETTINGS {settings} FORMAT JSONEachRow").decode())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
