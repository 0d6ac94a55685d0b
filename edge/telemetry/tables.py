"""The event tables: their columns, in the order in which segments hold them, and how long rows are kept.

Names and types are the reference's (api.md 8.1); every row begins with an id of its own, by which
duplicates are removed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of event.

    Args:
        name: in segment folders, and of the table that holds the rows.
        columns: name to ClickHouse type, in the order of a row.
        order: what rows are sorted by in the database, after the workspace.
        days: how long rows are kept.
    """

    name: str
    columns: dict[str, str]
    order: tuple[str, ...]
    days: int


_ID = {"event_id": "String", "request_id": "String", "time": "Int64", "workspace_id": "String"}
_LOW = "LowCardinality(String)"

VERIFICATIONS = Table(
    "key_verifications_raw_v2",
    {
        **_ID,
        "key_space_id": "String",
        "identity_id": "String",
        "external_id": "String",
        "key_id": "String",
        "region": _LOW,
        "source": _LOW,
        "app_id": _LOW,
        "outcome": _LOW,
        "tags": "Array(String)",
        "spent_credits": "Int64",
        "latency": "Float64",
    },
    ("time", "key_space_id", "outcome"),
    90,
)
RATELIMITS = Table(
    "ratelimits_raw_v2",
    {
        **_ID,
        "namespace_id": "String",
        "identifier": "String",
        "passed": "Bool",
        "latency": "Float64",
        "override_id": "String",
        "limit": "UInt64",
        "remaining": "UInt64",
        "reset_at": "Int64",
        "tokens": "UInt64",
    },
    ("time", "namespace_id"),
    # Past the end of the month that they are billed in.
    40,
)
API_REQUESTS = Table(
    "api_requests_raw_v2",
    {
        **_ID,
        "host": "String",
        "method": _LOW,
        "path": "String",
        "response_status": "Int32",
        "error": "String",
        "service_latency": "Int64",
        "user_agent": "String",
        "ip_address": "String",
        "region": _LOW,
    },
    ("time", "request_id"),
    30,
)
GATEWAY_REQUESTS = Table(
    "frontline_requests_raw_v1",
    {
        **_ID,
        "project_id": "String",
        "app_id": "String",
        "environment_id": "String",
        "deployment_id": "String",
        "frontline_id": "String",
        "region": _LOW,
        "method": _LOW,
        "host": "String",
        "path": "String",
        "query_string": "String",
        "response_status": "Int32",
        "user_agent": "String",
        "ip_address": "String",
        "total_latency": "Int64",
        "policies": "Array(String)",
        "request_headers": "Array(String)",
        "request_body": "String",
        "response_headers": "Array(String)",
        "response_body": "String",
    },
    ("project_id", "app_id", "environment_id", "time", "deployment_id"),
    7,
)
TABLES = (VERIFICATIONS, RATELIMITS, API_REQUESTS, GATEWAY_REQUESTS)
BY_NAME = {table.name: table for table in TABLES}
