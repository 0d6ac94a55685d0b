"""What each code of the catalogue means and what to do about it, for the pages at `/docs/errors/…`."""

from dataclasses import dataclass

from unkey.errors import CATALOGUE, Kind
from unkey.rpc.openapi import faults_of
from unkey.rpc.routes import routes


@dataclass(frozen=True, slots=True)
class Page:
    """A page about one code.

    Args:
        kind: the entry of the catalogue.
        meaning: what happened.
        remedy: what to do.
        operations: names of the operations of `/v2` that may answer with it.
    """

    kind: Kind
    meaning: str
    remedy: str
    operations: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path below `/docs/errors/`."""
        return self.kind.code.removeprefix("err:").replace(":", "/")


def page_of(path: str) -> Page | None:
    """Return the page at `<system>/<category>/<specific>`, None if the catalogue has no such code."""
    kind = CATALOGUE.get(f"err:{path.replace('/', ':')}")
    if kind is None:
        return None
    names = tuple(
        name for name, route in routes().items() if any(fault.kind is kind for fault in faults_of(route))
    )
    return Page(kind, *text_of(kind), names)


def pages() -> list[Page]:
    """Return the pages of the whole catalogue, in its order, without their operations."""
    return [Page(kind, *text_of(kind)) for kind in CATALOGUE.values()]


def text_of(kind: Kind) -> tuple[str, str]:
    """Return what a code means and what to do about it."""
    specific = kind.code.rpartition(":")[2]
    if kind.code in _TEXTS:
        return _TEXTS[kind.code]
    for ending, (meaning, remedy) in _ENDINGS.items():
        if specific.endswith(ending):
            what = specific.removesuffix(ending).replace("_", " ")
            return meaning.format(what), remedy.format(what)
    return f"{kind.title}.", "The detail of the error says what to do."


_ENDINGS = {
    "_not_found": (
        "There is no such {}, it was deleted, or it belongs to another workspace: these are told alike, so "
        "that nobody learns what others have. Some operations also answer so when the root key may not "
        "see it.",
        "Check the id or name, and that the root key is of the right workspace and may read it.",
    ),
    "_already_exists": (
        "There is a {} of this name in the workspace already.",
        "Take another name, or use the one that exists.",
    ),
    "_gone": ("The {} was deleted; its name is not given out again.", "Take another name."),
}
_AGAIN = "Try again in a moment; if it goes on, tell us the request id of the answer."
_DETAIL = "The detail of the error names it. Mend it and try again."
_TEXTS: dict[str, tuple[str, str]] = {
    "err:user:bad_request:missing_required_header": (
        "A header that the operation needs is not there.",
        "Send the header that the detail names.",
    ),
    "err:user:bad_request:permissions_query_syntax_error": (
        "The permission query cannot be read. It consists of permissions, AND, OR and parentheses.",
        "The detail gives the position of the first character that does not fit, counted from 0.",
    ),
    "err:user:bad_request:request_body_too_large": (
        "The body is larger than the operation takes.",
        "Send it in parts, or keep what is large elsewhere.",
    ),
    "err:user:bad_request:request_body_unreadable": (
        "The body ended before its announced length, or came in broken chunks.",
        "Send it again; look for a proxy in between that cuts connections.",
    ),
    "err:user:bad_request:request_timeout": (
        "The request did not arrive, or was not answered, within a minute.",
        "Send it again, and whole bodies at once.",
    ),
    "err:user:bad_request:client_closed_request": (
        "The caller hung up before the answer was there.",
        "Wait longer for answers. What was asked may have been done.",
    ),
    "err:user:bad_request:malformed_request": (
        "The bytes that arrived are not an HTTP request.",
        "Check the client, and whether HTTPS is spoken to a port for HTTP.",
    ),
    "err:user:bad_request:request_headers_too_large": (
        "The headers of the request are larger than the gateway takes.",
        "Send fewer or shorter cookies and headers.",
    ),
    "err:user:bad_request:unsupported_media_type": (
        "The body is not of a type that the operation takes.",
        "Send JSON with Content-Type: application/json, unless the operation says otherwise.",
    ),
    "err:user:bad_request:route_not_found": (
        "There is no operation at this address.",
        "Look for its name at /docs/api: operations are /v2/<group>.<operation>.",
    ),
    "err:user:bad_request:method_not_allowed": (
        "The operation is called by another HTTP method.",
        "Use the one that the Allow header names; nearly all operations are POST.",
    ),
    "err:user:bad_request:invalid_analytics_query": ("The SQL cannot be read.", _DETAIL),
    "err:user:bad_request:invalid_analytics_table": (
        "The query reads a table that is not there, or not for this operation.",
        "The detail names the tables that may be read.",
    ),
    "err:user:bad_request:invalid_analytics_function": (
        "The query calls a function that may not be called.",
        "Do without it; arithmetic, aggregates, dates and texts are allowed.",
    ),
    "err:user:bad_request:invalid_analytics_query_type": (
        "The query is not a single SELECT.",
        "Send one SELECT; nothing can be written.",
    ),
    "err:user:bad_request:query_range_exceeds_retention": (
        "The query asks for a time whose events are no longer kept.",
        "Ask for a later start.",
    ),
    "err:user:unprocessable_entity:query_execution_timeout": (
        "The query took longer than it may.",
        "Ask for a shorter time, or group more coarsely.",
    ),
    "err:user:unprocessable_entity:query_memory_limit_exceeded": (
        "The query needs more memory than it may have.",
        "Ask for a shorter time, or group by fewer columns.",
    ),
    "err:user:unprocessable_entity:query_rows_limit_exceeded": (
        "The query reads or returns more rows than it may.",
        "Ask for a shorter time, or add a LIMIT.",
    ),
    "err:user:too_many_requests:query_quota_exceeded": (
        "The workspace has used up its analytics quota.",
        "Wait until the quota is renewed; the detail says when.",
    ),
    "err:user:too_many_requests:workspace_rate_limited": (
        "The workspace makes more requests a minute than its plan allows.",
        "Wait as long as Retry-After says; RateLimit-Remaining tells how many are left.",
    ),
    "err:user:too_many_requests:login_rate_limited": (
        "There were too many failed logins from this address or for this name.",
        "Wait as long as Retry-After says.",
    ),
    "err:unkey:authentication:missing": (
        "There is no Authorization header.",
        "Send Authorization: Bearer <root key>.",
    ),
    "err:unkey:authentication:malformed": (
        "The Authorization header is not a bearer token.",
        "Send Authorization: Bearer <root key>.",
    ),
    "err:unkey:authentication:key_not_found": (
        "The root key does not exist, or was deleted.",
        "Check that the whole root key was sent, and that it is a root key and not a customer's key.",
    ),
    "err:unkey:authentication:portal_token_missing": (
        "The portal's session cookie was not sent.",
        "Exchange a code by portal.exchangeCode and send the access token as the cookie portal_session.",
    ),
    "err:unkey:authentication:portal_session_not_found": (
        "The portal session or code does not exist, was used, was revoked, or has expired.",
        "Make a new session by portal.createSession.",
    ),
    "err:unkey:authentication:not_signed_in": ("Nobody is signed in.", "Sign in, or send a personal token."),
    "err:unkey:authentication:invalid_credentials": (
        "Name and password do not belong together.",
        "Try again; an operator can set a new password.",
    ),
    "err:unkey:authentication:csrf_failed": (
        "The request did not carry the token that shows that it comes from the dashboard's own pages.",
        "Reload the page and try again.",
    ),
    "err:unkey:authorization:insufficient_permissions": (
        "The root key or the member lacks a permission.",
        "The detail names what is missing; one of the alternatives is enough.",
    ),
    "err:unkey:authorization:forbidden": (
        "Who asks may not do this: the root key has expired, or the thing is closed to it.",
        "The detail says which. Make a new root key if the old one has expired.",
    ),
    "err:unkey:authorization:key_disabled": ("The root key is disabled.", "Enable it, or use another one."),
    "err:unkey:authorization:workspace_disabled": (
        "The workspace of the root key is suspended.",
        "Ask the operator of this installation.",
    ),
    "err:unkey:data:analytics_not_configured": (
        "This installation keeps no analytics that can be queried.",
        "Ask its operator to set analytics up.",
    ),
    "err:unkey:data:analytics_connection_failed": ("Analytics does not answer at the moment.", _AGAIN),
    "err:unkey:limits:custom_domain_limit_exceeded": (
        "The workspace has as many custom domains as it may have.",
        "Delete one, or ask for a higher limit.",
    ),
    "err:unkey:application:invalid_input": (
        "The request does not have the form that the operation needs.",
        "errors lists every fault with its location and how to mend it.",
    ),
    "err:unkey:application:invalid_environment_settings": (
        "A setting of the environment cannot be what was sent.",
        "errors lists every fault with its location.",
    ),
    "err:unkey:application:invalid_snapshot": (
        "The upload is not a packed source folder, or is not whole.",
        "Pack the folder again; unkey deploy does it for you.",
    ),
    "err:unkey:application:protected_resource": (
        "It is protected from deletion.",
        "Lift the protection first, if you are sure.",
    ),
    "err:unkey:application:precondition_failed": ("Something that this needs is not so.", _DETAIL),
    "err:unkey:application:deployment_not_ready": (
        "The deployment is not ready.",
        "Wait until its status is ready; deployments.listSteps says what it is doing.",
    ),
    "err:unkey:application:deployment_not_production": (
        "The deployment is not of the production environment.",
        "Choose one of production; others are reached by their own host names.",
    ),
    "err:unkey:application:deployment_no_current": (
        "The app has no live deployment.",
        "Deploy to production first.",
    ),
    "err:unkey:application:deployment_is_current": (
        "The deployment is live already.",
        "There is nothing to do; to stop or roll back from it, promote another one.",
    ),
    "err:unkey:application:deployment_not_running": (
        "The deployment does not run.",
        "Start it, or choose one that runs.",
    ),
    "err:unkey:application:deployment_is_stopping": (
        "The deployment is being stopped.",
        "Wait until it is stopped, then start it.",
    ),
    "err:unkey:application:deployment_not_stopped": (
        "The deployment is not stopped.",
        "There is nothing to start.",
    ),
    "err:unkey:application:deployment_is_production": (
        "Deployments of production are not started and stopped one by one.",
        "Promote or roll back instead.",
    ),
    "err:unkey:application:deployment_breaks_clients": (
        "The deployment's OpenAPI document breaks clients of the live one.",
        "deployments.getOpenapiDiff says where; mend it, or turn refuseBreakingChanges off.",
    ),
    "err:unkey:application:operation_unavailable": (
        "The operation is part of the published API, but this installation has nothing to do it with.",
        "The detail says what to use instead.",
    ),
    "err:unkey:application:idempotency_key_reused": (
        "The idempotency key was used before, for another request.",
        "Take a new key for each request; send the same key only with the same body.",
    ),
    "err:unkey:application:unexpected_error": ("Something went wrong on our side.", _AGAIN),
    "err:unkey:application:service_unavailable": (
        "A part that is needed for this does not answer at the moment.",
        _AGAIN,
    ),
    "err:frontline:routing:config_not_found": (
        "No deployment has this host name.",
        "Check the host name, and that the deployment is ready and has it.",
    ),
    "err:frontline:capacity:no_running_instances": (
        "No instance of the deployment is healthy.",
        "Look at its logs and its health check.",
    ),
    "err:frontline:capacity:deployment_offline": (
        "The deployment is stopped.",
        "If it is yours, start it, or deploy again. If not, ask its owner: no request wakes it.",
    ),
    "err:frontline:capacity:deployment_waking": (
        "The deployment was asleep and is not awake yet.",
        "Try again as Retry-After says.",
    ),
    "err:frontline:platform:internal_server_error": ("Something went wrong at the gateway.", _AGAIN),
    "err:frontline:platform:config_load_failed": (
        "The gateway cannot read what it knows of this host name.",
        _AGAIN,
    ),
    "err:frontline:platform:key_lookup_unavailable": (
        "The gateway does not know this key yet and cannot look it up at the moment.",
        _AGAIN,
    ),
    "err:frontline:config:invalid_configuration": (
        "A policy of the deployment cannot be evaluated, so nothing is let through.",
        "Set the policies again by gateway.setPolicies; the detail names the one that is wrong.",
    ),
    "err:frontline:upstream:bad_gateway": (
        "The program behind the gateway closed the connection or answered nonsense.",
        "Look at its logs.",
    ),
    "err:frontline:upstream:service_unavailable": (
        "The program behind the gateway does not take connections.",
        "Look at its logs, and whether it listens on the port that PORT names.",
    ),
    "err:frontline:upstream:gateway_timeout": (
        "The program behind the gateway did not answer in time.",
        "Look at what it is doing, or let long work go on in the background.",
    ),
    "err:frontline:client:missing_credentials": (
        "The request has no key or token, and a policy asks for one.",
        "Send it where the API's owner says: mostly as Authorization: Bearer.",
    ),
    "err:frontline:capacity:under_maintenance": (
        "The app's owner has put this environment into maintenance mode.",
        "Come back later; Retry-After may say when. The owner ends it by gateway.setBarrier.",
    ),
    "err:frontline:client:invalid_key": (
        "The key does not exist, is disabled, or has expired.",
        "Check the key, or ask the API's owner for a new one.",
    ),
    "err:frontline:client:insufficient_permissions": (
        "The key lacks a permission that this route asks for.",
        "Ask the API's owner for it.",
    ),
    "err:frontline:client:firewall_denied": (
        "A rule of the API's firewall refuses this request.",
        "Ask the API's owner.",
    ),
    "err:frontline:client:address_denied": (
        "Requests from this address are not let through.",
        "Ask the API's owner to let the address in.",
    ),
    "err:frontline:client:invalid_token": (
        "The token's signature, issuer, audience or time is not right.",
        "Get a new token; check the clock of who made it.",
    ),
    "err:frontline:client:invalid_password": (
        "Name and password do not belong together.",
        "Check them, or ask the API's owner.",
    ),
    "err:frontline:client:openapi_validation_failed": (
        "The request does not fit the API's own OpenAPI document.",
        "errors lists every fault with its location.",
    ),
    "err:frontline:client:rate_limited": (
        "The key or caller has made more requests than it may.",
        "Wait as long as Retry-After says.",
    ),
    "err:frontline:client:usage_exceeded": (
        "The key has no credits left.",
        "Wait for its refill, or ask the API's owner for more.",
    ),
}
