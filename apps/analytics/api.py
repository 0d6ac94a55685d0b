"""Operations on events: `analytics.*`, one SELECT each over its own tables."""

import re
from collections.abc import Mapping, Sequence

from apps.analytics.engines import engine
from apps.analytics.queries import retention_days
from apps.analytics.schema import (
    GATEWAY_SOURCES,
    LONGEST,
    RATELIMIT_SOURCES,
    RUNTIME_SOURCES,
    VERIFICATION_SOURCES,
    Source,
)
from apps.keys.queries import key_spaces_of
from unkey import errors
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import anything, array, obj, string

QUERY = obj({"query": string(1, LONGEST, about="one SELECT in ClickHouse's SQL")})
ROWS = array(anything())
FAULTS = (
    errors.InvalidAnalyticsQuery,
    errors.InvalidAnalyticsQueryType,
    errors.InvalidAnalyticsTable,
    errors.InvalidAnalyticsFunction,
    errors.QueryRangeExceedsRetention,
    errors.AnalyticsNotConfigured,
    errors.QueryExecutionTimeout,
    errors.QueryMemoryLimitExceeded,
    errors.QueryRowsLimitExceeded,
    errors.QueryQuotaExceeded,
    errors.AnalyticsConnectionFailed,
)
_ONE = re.compile(r"(api|ratelimit)\.([A-Za-z0-9_]+)\.read_analytics\Z")


def _answer(call: Call, sources: Mapping[str, Source], only: Sequence[str] | None = None) -> JSON:
    # The parser takes half a second to load: for those who ask, not for every start of web.
    from apps.analytics import gateway

    runs = engine()
    days = retention_days(call.workspace_id)
    scope = gateway.Scope(call.workspace_id, sources, days, only, database=runs.database)
    return runs.run(gateway.confine(call.body["query"], scope), scope.rows)


def _named(call: Call, kind: str) -> list[str]:
    """Return the ids that the caller may read analytics of, where it may not read all."""
    found = (_ONE.match(permission) for permission in call.principal.permissions)
    return sorted(match[2] for match in found if match and match[1] == kind)


@route(
    "analytics.getVerifications",
    request=QUERY,
    response=ROWS,
    permission=T("api.{api}.read_analytics") | U("keyspaces/*#read_analytics"),
    errors=FAULTS,
)
def get_verifications(call: Call) -> JSON:
    """Run a query over the verifications of keys, of all APIs or of those that the caller may read."""
    if call.allows({"api": "*"}):
        return _answer(call, VERIFICATION_SOURCES)
    named = _named(call, "api")
    call.authorize(api=named[0] if named else "*")
    return _answer(call, VERIFICATION_SOURCES, key_spaces_of(named))


@route(
    "analytics.getRatelimits",
    request=QUERY,
    response=ROWS,
    permission=T("ratelimit.{namespace}.read_analytics") | U("ratelimits/namespaces/*#read_analytics"),
    errors=FAULTS,
)
def get_ratelimits(call: Call) -> JSON:
    """Run a query over the decisions of rate limits, of all namespaces or of those that the caller may read."""
    if call.allows({"namespace": "*"}):
        return _answer(call, RATELIMIT_SOURCES)
    named = _named(call, "ratelimit")
    call.authorize(namespace=named[0] if named else "*")
    return _answer(call, RATELIMIT_SOURCES, named)


@route(
    "analytics.getGatewayRequests",
    request=QUERY,
    response=ROWS,
    permission=T("project.*.read_gateway_requests") | U("projects/*#read_gateway_requests"),
    errors=FAULTS,
)
def get_gateway_requests(call: Call) -> JSON:
    """Run a query over the requests to deployed apps."""
    return _answer(call, GATEWAY_SOURCES)


@route(
    "analytics.getRuntimeLogs",
    request=QUERY,
    response=ROWS,
    permission=T("project.*.read_runtime_logs") | U("projects/*#read_runtime_logs"),
    errors=FAULTS,
)
def get_runtime_logs(call: Call) -> JSON:
    """Run a query over the logs of deployed apps."""
    return _answer(call, RUNTIME_SOURCES)
