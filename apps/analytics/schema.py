"""What customers may ask about: the public names of tables, their columns, and where each is really kept."""

from dataclasses import dataclass

from edge.telemetry.tables import BY_NAME, GATEWAY_REQUESTS, RATELIMITS, VERIFICATIONS

DATABASE = "default"
LONGEST = 16 * 1024
"""Most bytes of a query."""


@dataclass(frozen=True, slots=True)
class Source:
    """A table under its public name.

    Args:
        alias: what queries call it.
        table: what the database calls it.
        columns: those that may be read.
        time: how its `time` is kept: `ms` (Int64), `datetime` or `date`.
        scope: the column that a caller with limited permissions is held to; empty: there is none.
    """

    alias: str
    table: str
    columns: tuple[str, ...]
    time: str
    scope: str


RUNTIME_LOGS = "runtime_logs_raw_v1"
RUNTIME_LOG_COLUMNS = {
    "time": "Int64",
    "log_id": "String",
    "inserted_at": "Int64",
    "severity": "LowCardinality(String)",
    "message": "String",
    "workspace_id": "String",
    "project_id": "String",
    "environment_id": "String",
    "app_id": "String",
    "deployment_id": "String",
    "region": "LowCardinality(String)",
    "attributes_text": "String",
}
# Columns that describe our machines and not the customer's requests.
_HIDDEN = {"event_id", "frontline_id", "instance_address", "platform"}


def _raw(alias: str, table: str, scope: str) -> Source:
    columns = tuple(name for name in BY_NAME[table].columns if name not in _HIDDEN)
    return Source(alias, table, columns, "ms", scope)


@dataclass(frozen=True, slots=True)
class Rollup:
    """Counts per bucket of a raw table.

    Args:
        raw: the table that is counted.
        dimensions: columns to group by, besides workspace and time.
        measures: column to the aggregate that a raw table gives it.
        version: suffix of the names in the database.
        buckets: name of a bucket to the days that it is kept.
    """

    raw: str
    family: str
    dimensions: tuple[str, ...]
    measures: dict[str, str]
    version: str
    buckets: dict[str, int]

    def table(self, bucket: str) -> str:
        """Return the database's name of a bucket's table."""
        return f"{self.family}_per_{bucket}_{self.version}"


VERIFICATION_ROLLUP = Rollup(
    VERIFICATIONS.name,
    "key_verifications",
    ("key_space_id", "identity_id", "external_id", "key_id", "outcome", "tags", "source", "app_id"),
    {"count": "count()", "spent_credits": "sum(spent_credits)"},
    "v3",
    {"minute": 90, "hour": 90, "day": 365, "month": 3 * 365},
)
RATELIMIT_ROLLUP = Rollup(
    RATELIMITS.name,
    "ratelimits",
    ("namespace_id", "identifier"),
    {
        "passed": "countIf(passed)",
        "total": "count()",
        "passed_tokens": "sumIf(tokens, passed)",
        "total_tokens": "sum(tokens)",
    },
    "v2",
    {"minute": 7, "hour": 30, "day": 100, "month": 3 * 365},
)
ROLLUPS = (VERIFICATION_ROLLUP, RATELIMIT_ROLLUP)
START_OF = {
    "minute": "toStartOfMinute({})",
    "hour": "toStartOfHour({})",
    "day": "toDate({})",
    "month": "toStartOfMonth({})",
}


def _family(raw: Source, rollup: Rollup) -> dict[str, Source]:
    found = {raw.alias: raw}
    for bucket in rollup.buckets:
        alias = f"{rollup.family}_per_{bucket}_v1"
        columns = ("time", "workspace_id", *rollup.dimensions, *rollup.measures)
        time = "datetime" if bucket in ("minute", "hour") else "date"
        found[alias] = Source(alias, rollup.table(bucket), columns, time, raw.scope)
    return found


VERIFICATION_SOURCES = _family(
    _raw("key_verifications_v1", VERIFICATIONS.name, "key_space_id"), VERIFICATION_ROLLUP
)
RATELIMIT_SOURCES = _family(_raw("ratelimits_v1", RATELIMITS.name, "namespace_id"), RATELIMIT_ROLLUP)
GATEWAY_SOURCES = {"gateway_requests_v1": _raw("gateway_requests_v1", GATEWAY_REQUESTS.name, "")}
RUNTIME_SOURCES = {
    "runtime_logs_v1": Source("runtime_logs_v1", RUNTIME_LOGS, tuple(RUNTIME_LOG_COLUMNS), "ms", "")
}
SOURCES = {**VERIFICATION_SOURCES, **RATELIMIT_SOURCES, **GATEWAY_SOURCES, **RUNTIME_SOURCES}


def rollup_select(rollup: Rollup, bucket: str, source: str) -> str:
    """Return the SELECT that counts a raw table by a bucket.

    Args:
        rollup: what is counted.
        bucket: `minute`, `hour`, `day` or `month`.
        source: the raw table as the database calls it.
    """
    # `time` of a row would be meant by its new value otherwise: ClickHouse puts aliases before columns.
    start = START_OF[bucket].format("toDateTime(intDiv(event.time, 1000), 'UTC')")
    keys = ", ".join(("workspace_id", *rollup.dimensions))
    measures = ", ".join(
        f"{aggregate.replace('(', '(event.') if '()' not in aggregate else aggregate} AS {name}"
        for name, aggregate in rollup.measures.items()
    ).replace("event.tokens, passed", "event.tokens, event.passed")
    return f"SELECT {start} AS time, {keys}, {measures} FROM {source} AS event GROUP BY time, {keys}"  # noqa: S608
