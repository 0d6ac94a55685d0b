"""One catalogue of errors: `err:<system>:<category>:<specific>` with HTTP status and title.

    raise errors.KeyNotFound("The requested key does not exist.")

Domain code raises these classes; the transport maps them once. Pure: edge and web share it.
"""

from dataclasses import dataclass
from typing import ClassVar

from unkey.env import env


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of the catalogue.

    Args:
        code: `err:<system>:<category>:<specific>`.
        status: HTTP status code.
        title: short text for people.
    """

    code: str
    status: int
    title: str

    @property
    def url(self) -> str:
        """Where the code is documented; the `type` of an error envelope."""
        return f"{env.DOCS_URL}/errors/{self.code.removeprefix('err:').replace(':', '/')}"


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a request: what is wrong, where (`body.policies[0].name`), and how to mend it."""

    message: str
    location: str
    fix: str = ""


class Fault(Exception):
    """A refusal with a code of the catalogue.

    Args:
        detail: a sentence that a caller may see: what is wrong and what to do.
        violations: faults of a request, each with its location.
        headers: response headers such as `Retry-After`.
    """

    kind: ClassVar[Kind]

    def __init__(
        self, detail: str, *, violations: tuple[Violation, ...] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.violations = violations
        self.headers = headers or {}


CATALOGUE: dict[str, Kind] = {}


def _fault(code: str, status: int, title: str) -> type[Fault]:
    kind = Kind(f"err:{code}", status, title)
    CATALOGUE[kind.code] = kind
    name = "".join(part.capitalize() for part in code.rsplit(":", 1)[1].split("_"))
    return type(name, (Fault,), {"kind": kind, "__doc__": f"`{kind.code}` ({status})."})


def _not_found(what: str) -> type[Fault]:
    return _fault(f"unkey:data:{what}_not_found", 404, "Not Found")


def _conflict(what: str) -> type[Fault]:
    return _fault(f"unkey:data:{what}_already_exists", 409, "Conflicting Resource")


def _precondition(what: str) -> type[Fault]:
    return _fault(f"unkey:application:{what}", 412, "Precondition Failed")


MissingRequiredHeader = _fault("user:bad_request:missing_required_header", 400, "Bad Request")
PermissionsQuerySyntaxError = _fault("user:bad_request:permissions_query_syntax_error", 400, "Bad Request")
InvalidAnalyticsQuery = _fault("user:bad_request:invalid_analytics_query", 400, "Bad Request")
InvalidAnalyticsTable = _fault("user:bad_request:invalid_analytics_table", 400, "Bad Request")
InvalidAnalyticsFunction = _fault("user:bad_request:invalid_analytics_function", 400, "Bad Request")
InvalidAnalyticsQueryType = _fault("user:bad_request:invalid_analytics_query_type", 400, "Bad Request")
QueryRangeExceedsRetention = _fault("user:bad_request:query_range_exceeds_retention", 400, "Bad Request")
QueryExecutionTimeout = _fault(
    "user:unprocessable_entity:query_execution_timeout", 422, "Unprocessable Entity"
)
QueryMemoryLimitExceeded = _fault(
    "user:unprocessable_entity:query_memory_limit_exceeded", 422, "Unprocessable Entity"
)
QueryRowsLimitExceeded = _fault(
    "user:unprocessable_entity:query_rows_limit_exceeded", 422, "Unprocessable Entity"
)
QueryQuotaExceeded = _fault("user:too_many_requests:query_quota_exceeded", 429, "Too Many Requests")
AnalyticsNotConfigured = _fault("unkey:data:analytics_not_configured", 412, "Precondition Failed")
AnalyticsConnectionFailed = _fault("unkey:data:analytics_connection_failed", 503, "Service Unavailable")
RequestBodyTooLarge = _fault("user:bad_request:request_body_too_large", 413, "Payload Too Large")
RequestBodyUnreadable = _fault("user:bad_request:request_body_unreadable", 400, "Bad Request")
RequestTimeout = _fault("user:bad_request:request_timeout", 408, "Request Timeout")
ClientClosedRequest = _fault("user:bad_request:client_closed_request", 499, "Client Closed Request")
WorkspaceRateLimited = _fault("user:too_many_requests:workspace_rate_limited", 429, "Too Many Requests")
MalformedRequest = _fault("user:bad_request:malformed_request", 400, "Bad Request")
RequestHeadersTooLarge = _fault(
    "user:bad_request:request_headers_too_large", 431, "Request Header Fields Too Large"
)
LoginRateLimited = _fault("user:too_many_requests:login_rate_limited", 429, "Too Many Requests")
UnsupportedMediaType = _fault("user:bad_request:unsupported_media_type", 415, "Unsupported Media Type")
RouteNotFound = _fault("user:bad_request:route_not_found", 404, "Not Found")
MethodNotAllowed = _fault("user:bad_request:method_not_allowed", 405, "Method Not Allowed")

AuthenticationMissing = _fault("unkey:authentication:missing", 400, "Bad Request")
AuthenticationMalformed = _fault("unkey:authentication:malformed", 400, "Bad Request")
RootKeyNotFound = _fault("unkey:authentication:key_not_found", 401, "Unauthorized")
PortalTokenMissing = _fault("unkey:authentication:portal_token_missing", 400, "Bad Request")
PortalSessionNotFound = _fault("unkey:authentication:portal_session_not_found", 401, "Unauthorized")
NotSignedIn = _fault("unkey:authentication:not_signed_in", 401, "Unauthorized")
InvalidCredentials = _fault("unkey:authentication:invalid_credentials", 401, "Unauthorized")
CsrfFailed = _fault("unkey:authentication:csrf_failed", 403, "Forbidden")
InsufficientPermissions = _fault(
    "unkey:authorization:insufficient_permissions", 403, "Insufficient Permissions"
)
Forbidden = _fault("unkey:authorization:forbidden", 403, "Forbidden")
KeyDisabled = _fault("unkey:authorization:key_disabled", 403, "Key is disabled")
WorkspaceDisabled = _fault("unkey:authorization:workspace_disabled", 403, "Workspace is disabled")

KeyNotFound = _not_found("key")
WorkspaceNotFound = _not_found("workspace")
ApiNotFound = _not_found("api")
ProjectNotFound = _not_found("project")
AppNotFound = _not_found("app")
EnvironmentNotFound = _not_found("environment")
DeploymentNotFound = _not_found("deployment")
PolicyNotFound = _not_found("policy")
MigrationNotFound = _not_found("migration")
PortalNotFound = _not_found("portal")
KeySpaceNotFound = _not_found("key_space")
PermissionNotFound = _not_found("permission")
RoleNotFound = _not_found("role")
IdentityNotFound = _not_found("identity")
RatelimitNamespaceNotFound = _not_found("ratelimit_namespace")
RatelimitOverrideNotFound = _not_found("ratelimit_override")
RegionNotFound = _not_found("region")
SnapshotNotFound = _not_found("snapshot")
VariableNotFound = _not_found("variable")
MemberNotFound = _not_found("member")
TokenNotFound = _not_found("token")
RunNotFound = _not_found("run")
OpenapiSpecNotFound = _not_found("openapi_spec")

PortalAlreadyExists = _conflict("portal")
WorkspaceAlreadyExists = _conflict("workspace")
ProjectAlreadyExists = _conflict("project")
AppAlreadyExists = _conflict("app")
PermissionAlreadyExists = _conflict("permission")
RoleAlreadyExists = _conflict("role")
IdentityAlreadyExists = _conflict("identity")
RatelimitNamespaceAlreadyExists = _conflict("ratelimit_namespace")
MemberAlreadyExists = _conflict("member")

RatelimitNamespaceGone = _fault("unkey:data:ratelimit_namespace_gone", 410, "Resource Gone")

InvalidInput = _fault("unkey:application:invalid_input", 400, "Bad Request")
InvalidEnvironmentSettings = _fault("unkey:application:invalid_environment_settings", 400, "Bad Request")
InvalidSnapshot = _fault("unkey:application:invalid_snapshot", 400, "Bad Request")
ProtectedResource = _fault("unkey:application:protected_resource", 412, "Resource is protected")
PreconditionFailed = _precondition("precondition_failed")
DeploymentNotReady = _precondition("deployment_not_ready")
DeploymentNotProduction = _precondition("deployment_not_production")
DeploymentNoCurrent = _precondition("deployment_no_current")
DeploymentIsCurrent = _precondition("deployment_is_current")
DeploymentNotRunning = _precondition("deployment_not_running")
DeploymentIsStopping = _precondition("deployment_is_stopping")
DeploymentNotStopped = _precondition("deployment_not_stopped")
DeploymentIsProduction = _precondition("deployment_is_production")
DeploymentBreaksClients = _precondition("deployment_breaks_clients")
OperationUnavailable = _precondition("operation_unavailable")
IdempotencyKeyReused = _fault("unkey:application:idempotency_key_reused", 409, "Conflict")
UnexpectedError = _fault("unkey:application:unexpected_error", 500, "Internal Server Error")
ServiceUnavailable = _fault("unkey:application:service_unavailable", 500, "Internal Server Error")

ConfigNotFound = _fault("frontline:routing:config_not_found", 404, "Not Found")
NoRunningInstances = _fault("frontline:capacity:no_running_instances", 503, "Service Unavailable")
DeploymentOffline = _fault("frontline:capacity:deployment_offline", 503, "Service Unavailable")
DeploymentWaking = _fault("frontline:capacity:deployment_waking", 503, "Service Unavailable")
FrontlineInternalError = _fault("frontline:platform:internal_server_error", 500, "Internal Server Error")
ConfigLoadFailed = _fault("frontline:platform:config_load_failed", 500, "Internal Server Error")
UnderMaintenance = _fault("frontline:capacity:under_maintenance", 503, "Service Unavailable")
KeyLookupUnavailable = _fault("frontline:platform:key_lookup_unavailable", 503, "Service Unavailable")
InvalidConfiguration = _fault("frontline:config:invalid_configuration", 422, "Unprocessable Content")
BadGateway = _fault("frontline:upstream:bad_gateway", 502, "Bad Gateway")
UpstreamUnavailable = _fault("frontline:upstream:service_unavailable", 503, "Service Unavailable")
GatewayTimeout = _fault("frontline:upstream:gateway_timeout", 504, "Gateway Timeout")
MissingCredentials = _fault("frontline:client:missing_credentials", 401, "Unauthorized")
InvalidKey = _fault("frontline:client:invalid_key", 401, "Unauthorized")
GatewayInsufficientPermissions = _fault("frontline:client:insufficient_permissions", 403, "Forbidden")
FirewallDenied = _fault("frontline:client:firewall_denied", 403, "Forbidden")
AddressDenied = _fault("frontline:client:address_denied", 403, "Forbidden")
InvalidToken = _fault("frontline:client:invalid_token", 401, "Unauthorized")
InvalidPassword = _fault("frontline:client:invalid_password", 401, "Unauthorized")
OpenapiValidationFailed = _fault("frontline:client:openapi_validation_failed", 400, "Bad Request")
RateLimited = _fault("frontline:client:rate_limited", 429, "Too Many Requests")
UsageExceeded = _fault("frontline:client:usage_exceeded", 429, "Too Many Requests")
