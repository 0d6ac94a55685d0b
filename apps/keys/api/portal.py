"""Operations on portals and their sessions, and what a session may do: `portal.*`."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Min

from apps.analytics import queries as analytics
from apps.keys import portals, queries, services
from apps.keys.api.keys import (
    CREATE_KEY,
    ENCRYPT_KEYS,
    GRACE,
    KEY,
    NEW_KEY,
    READ_LISTED_KEYS,
    grace,
    show_keys,
)
from apps.keys.api.shapes import KEY_ID, NOTHING, fault
from apps.keys.models import Key, KeySpace, Portal, PortalSession
from unkey import clock, errors
from unkey.partial import present
from unkey.rpc.authorization import Rule, T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import array, boolean, handle, identifier, integer, nullable, obj, optional, string

SLUG = string(3, 64, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
DISPLAY_NAME = string(1, 256)
LOGO_URL = string(9, 500, pattern=r"^https://\S+$")
PRIMARY_COLOR = string(7, 7, pattern=r"^#[0-9a-fA-F]{6}$")
RESOURCES = {"keyspaceId": optional(identifier()), "appId": optional(identifier())}
NAME = {"portal": handle()}
PORTAL = obj(
    {
        "id": string(),
        "slug": string(),
        "displayName": string(),
        "enabled": boolean(),
        "keyspaceId": optional(string()),
        "appId": optional(string()),
        "branding": optional(obj({"logoUrl": optional(string()), "primaryColor": optional(string())})),
        "createdAt": integer(0),
        "updatedAt": optional(integer(0)),
    }
)
_COUNTS = {
    "valid": "VALID",
    "rateLimited": "RATE_LIMITED",
    "insufficientPermissions": "INSUFFICIENT_PERMISSIONS",
    "forbidden": "FORBIDDEN",
    "disabled": "DISABLED",
    "expired": "EXPIRED",
    "usageExceeded": "USAGE_EXCEEDED",
}
_DAY = 86_400_000
MOST_SERIES = 100
LAST_MOMENT = 4_102_444_800_000


@route(
    "portal.createPortal",
    request=obj(
        {
            "slug": SLUG,
            "displayName": DISPLAY_NAME,
            **RESOURCES,
            "enabled": optional(boolean(), default=True),
            "logoUrl": optional(LOGO_URL),
            "primaryColor": optional(PRIMARY_COLOR),
        },
        exactly_one=("keyspaceId", "appId"),
    ),
    response=obj({"portalId": string()}),
    permission=T("portal.*.create_portal") | U("portals/*#create_portal"),
    errors=[errors.KeySpaceNotFound, errors.AppNotFound, errors.PortalAlreadyExists],
)
def create_portal(call: Call) -> JSON:
    """Make a portal, where users of yours look after their keys of one key space or app."""
    portal = portals.create_portal(
        call.workspace_id,
        **_given(call.body),
        **present(call.body, slug="slug", display_name="displayName", enabled="enabled"),
        actor=call.actor,
    )
    return {"portalId": portal.id}


@route(
    "portal.getPortal",
    request=obj({"portal": optional(handle()), **RESOURCES}, exactly_one=("portal", "keyspaceId", "appId")),
    response=PORTAL,
    permission=T("portal.{portal}.read_portal") | U("portals/{portal}#read_portal"),
    errors=[errors.PortalNotFound],
)
def get_portal(call: Call) -> JSON:
    """Return a portal by its id or slug, or by what it is for."""
    body = call.body
    if "portal" in body:
        portal = portals.find_portal(body["portal"])
    else:
        portal = portals.portal_of(key_space_id=body.get("keyspaceId"), app_id=body.get("appId"))
    call.authorize(portal=portal.id, masked=portals.portal_not_found)
    return _shown(portal)


@route(
    "portal.updatePortal",
    request=obj(
        {
            **NAME,
            "slug": optional(SLUG),
            "displayName": optional(DISPLAY_NAME),
            **RESOURCES,
            "enabled": optional(boolean()),
            "logoUrl": optional(nullable(LOGO_URL)),
            "primaryColor": optional(nullable(PRIMARY_COLOR)),
        }
    ),
    response=PORTAL,
    permission=T("portal.{portal}.update_portal") | U("portals/{portal}#update_portal"),
    errors=[
        errors.PortalNotFound,
        errors.KeySpaceNotFound,
        errors.AppNotFound,
        errors.PortalAlreadyExists,
    ],
)
def update_portal(call: Call) -> JSON:
    """Change what is mentioned of a portal; sessions end when it is disabled or is for something else."""
    portal = _named(call)
    if "keyspaceId" in call.body and "appId" in call.body:
        raise fault("a portal is for one thing", "body.appId", "Give keyspaceId or appId, not both.")
    changes = present(call.body, slug="slug", display_name="displayName", enabled="enabled")
    return _shown(portals.update_portal(portal, **_given(call.body), **changes, actor=call.actor))


@route(
    "portal.deletePortal",
    request=obj(NAME),
    response=NOTHING,
    permission=T("portal.{portal}.delete_portal") | U("portals/{portal}#delete_portal"),
    errors=[errors.PortalNotFound],
)
def delete_portal(call: Call) -> JSON:
    """Delete a portal; its sessions end, and what it was for stays."""
    portals.delete_portal(_named(call), actor=call.actor)
    return {}


CREATE_SESSION = T("portal.{portal}.create_portal_session") | U(
    "portals/{portal}/sessions/*#create_portal_session"
)
WRITE_SESSIONS = U("projects/*/portals/{portal}/sessions/*#write")
READ_SESSIONS = U("projects/*/portals/{portal}/sessions/*#read")
READ_ANALYTICS = T("api.{api}.read_analytics")


@route(
    "portal.createSession",
    request=obj(
        {
            **NAME,
            "externalId": string(1, 256),
            "scopes": array(string(choices=portals.SCOPES), 1),
            "returnUrl": optional(string(8, 500, pattern=r"^https?://\S+$")),
        }
    ),
    response=obj({"id": string(), "url": string(redact=True)}),
    permission=CREATE_SESSION,
    errors=[errors.PortalNotFound, errors.Forbidden, errors.PreconditionFailed],
)
def create_session(call: Call) -> JSON:
    """Begin a session of a user of yours; send the user to its address within 15 minutes."""
    portal = _named(call)
    if portals.READ_KEYS not in call.body["scopes"]:
        # The others are reached from the page of keys.
        raise fault(f"{portals.READ_KEYS} is needed beside every other scope", "body.scopes", "Add it.")
    spaces = portals.key_spaces_of(portal)
    for space in spaces:
        about = {"api": space.api.id, "keyspace": space.id}
        for scope in call.body["scopes"]:
            for rule in _equivalents(scope, space):
                call.authorize(rule, ids=about)
    session, url = portals.create_session(
        portal, call.body["externalId"], call.body["scopes"], spaces, actor=call.actor
    )
    return {"id": session.id, "url": url}


@route(
    "portal.listSessions",
    request=obj(
        {
            **NAME,
            "limit": optional(integer(1, 100), default=100),
            "cursor": optional(string(0, 1024)),
            "search": optional(string(0, 256)),
        }
    ),
    response=array(
        obj(
            {
                "externalId": string(),
                "sessions": array(
                    obj(
                        {
                            "id": string(),
                            "status": string(choices=["pending", "active"]),
                            "createdAt": integer(0),
                            "expiresAt": integer(0),
                            "scopes": array(string()),
                        }
                    )
                ),
            }
        )
    ),
    permission=CREATE_SESSION | READ_SESSIONS | WRITE_SESSIONS,
    paginated=True,
    errors=[errors.PortalNotFound],
)
def list_sessions(call: Call) -> Page:
    """List the users who have a session at a portal, with their sessions, ordered by external id."""
    body = call.body
    rows = portals.live_sessions(_named(call))
    holders = rows.filter(external_id__startswith=body.get("search", "")).values("external_id")
    if body.get("cursor"):
        holders = holders.filter(external_id__gte=body["cursor"])
    found = [
        row["external_id"]
        for row in holders.annotate(first=Min("pk")).order_by("external_id")[: body["limit"] + 1]
    ]
    shown: dict[str, list[Any]] = {external_id: [] for external_id in found[: body["limit"]]}
    for session in rows.filter(external_id__in=shown).order_by("pk"):
        shown[session.external_id].append(_shown_session(session))
    items = [{"externalId": external_id, "sessions": sessions} for external_id, sessions in shown.items()]
    return Page(items, found[body["limit"]] if len(found) > body["limit"] else None)


@route(
    "portal.revokeSession",
    request=obj({**NAME, "externalId": string(1, 256)}),
    response=obj({"sessionsRevoked": integer(0)}),
    permission=CREATE_SESSION | WRITE_SESSIONS,
    errors=[errors.PortalNotFound],
)
def revoke_session(call: Call) -> JSON:
    """End every session of a user at a portal, begun or not."""
    ended = portals.revoke_sessions(_named(call), call.body["externalId"], actor=call.actor)
    return {"sessionsRevoked": ended}


@route(
    "portal.exchangeCode",
    request=obj({"code": string(1, 512, redact=True)}),
    response=obj({"accessToken": string(redact=True), "expiresAt": integer(0)}),
    public=True,
    errors=[errors.PortalSessionNotFound],
)
def exchange_code(call: Call) -> JSON:
    """Exchange the code of a session, once, for the access token that its user goes on with for a day."""
    session, token = portals.exchange_code(
        call.body["code"], remote_ip=call.remote_ip, user_agent=call.headers.get("User-Agent", "")
    )
    return {"accessToken": token, "expiresAt": clock.to_ms(session.expires_at)}


@route(
    "portal.listKeys",
    request=obj({"limit": optional(integer(1, 100), default=100), "cursor": optional(string(0, 1024))}),
    response=array(KEY, most=100),
    permission=T(portals.READ_KEYS),
    session=True,
    paginated=True,
)
def list_keys(call: Call) -> Page:
    """List the keys of the session's user, ordered by id."""
    return paginate(_own_keys(call).select_related("identity"), call.body, show_keys)


@route(
    "portal.rerollKey",
    request=obj({"keyId": KEY_ID, "expiration": GRACE}),
    response=NEW_KEY,
    permission=T(portals.REROLL_KEYS),
    session=True,
    errors=[errors.KeyNotFound],
)
def reroll_key(call: Call) -> JSON:
    """Replace a key of the session's user by a new one of the same settings."""
    new, plaintext = services.reroll_key(
        _own_key(call, call.body["keyId"]), grace(call.body["expiration"]), actor=call.actor
    )
    return {"keyId": new.id, "key": plaintext}


_MOMENT = integer(0, LAST_MOMENT)
_POINT = obj({"time": integer(), "total": integer(0), **{name: integer(0) for name in _COUNTS}})


@route(
    "portal.getVerifications",
    request=obj({"startTime": _MOMENT, "endTime": _MOMENT, "keyId": optional(KEY_ID)}),
    response=obj(
        {
            "bucketMillis": integer(0),
            "keys": array(obj({"keyId": string(), "data": array(_POINT)})),
        }
    ),
    permission=T(portals.READ_ANALYTICS),
    session=True,
    wrapped=False,
    errors=[errors.KeyNotFound],
)
def get_verifications(call: Call) -> JSON:
    """Return what became of the verifications of the user's keys, in buckets of a minute, an hour or a day."""
    body = call.body
    start, end = body["startTime"], body["endTime"]
    if end <= start:
        raise fault("endTime must be after startTime", "body.endTime", "Give a later time.")
    days = analytics.retention_days(call.workspace_id)
    if end - start > days * _DAY:
        raise fault(f"the window is longer than {days} days", "body.startTime", "Ask for a shorter time.")
    session = _session(call)
    if "keyId" in body:
        keys = [_own_key(call, body["keyId"]).pk]
    else:
        used = analytics.usage_by_key(call.workspace_id, start, end, key_space_ids=session.key_spaces)
        own = set(_own_keys(call).filter(pk__in=list(used)).values_list("pk", flat=True)) if used else set()
        keys = sorted(own)[:MOST_SERIES]
    series = [
        analytics.verifications(
            call.workspace_id, start, end, key_ids=[key], external_ids=[session.external_id]
        )
        for key in keys
    ]
    return {
        "bucketMillis": analytics.bucket_millis(start, end),
        "keys": [
            {"keyId": key, "data": [_point(time, uses.total, uses.outcomes) for time, uses in each.items()]}
            for key, each in zip(keys, series, strict=True)
        ],
    }


def _point(time: int, total: int, outcomes: Mapping[str, int]) -> dict[str, int]:
    return {"time": time, "total": total} | {name: outcomes.get(code, 0) for name, code in _COUNTS.items()}


def _named(call: Call) -> Portal:
    portal = portals.find_portal(call.body["portal"])
    call.authorize(portal=portal.id, masked=portals.portal_not_found)
    return portal


def _equivalents(scope: str, space: KeySpace) -> list[Rule]:
    """Return what a root key must hold itself to give a scope on a key space."""
    if scope == portals.READ_KEYS:
        return [READ_LISTED_KEYS]
    if scope == portals.READ_ANALYTICS:
        return [READ_ANALYTICS]
    return [CREATE_KEY, ENCRYPT_KEYS] if space.store_encrypted_keys else [CREATE_KEY]


def _session(call: Call) -> PortalSession:
    return PortalSession.objects.get(pk=call.principal.id)


def _own_keys(call: Call) -> Any:
    session = _session(call)
    return queries.live_keys().filter(
        key_space__in=session.key_spaces,
        identity__external_id=session.external_id,
        identity__deleted_at=None,
    )


def _own_key(call: Call, key_id: str) -> Key:
    key: Key | None = _own_keys(call).filter(pk=key_id).first()
    if key is None:
        raise queries.key_not_found(key_id)
    return key


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a portal is for and how it looks, as its services take it."""
    return present(
        body, key_space_id="keyspaceId", app_id="appId", logo_url="logoUrl", primary_color="primaryColor"
    )


def _shown(portal: Portal) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": portal.id,
        "slug": portal.slug,
        "displayName": portal.display_name,
        "enabled": portal.enabled,
        "createdAt": clock.to_ms(portal.created_at),
    }
    if portal.key_space_id:
        shown["keyspaceId"] = portal.key_space_id
    else:
        shown["appId"] = portal.app_id
    branding = {"logoUrl": portal.logo_url, "primaryColor": portal.primary_color}
    if any(branding.values()):
        shown["branding"] = {name: value for name, value in branding.items() if value}
    if portal.updated_at:
        shown["updatedAt"] = clock.to_ms(portal.updated_at)
    return shown


def _shown_session(session: PortalSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "status": "active" if session.token_hash else "pending",
        "createdAt": clock.to_ms(session.created_at),
        "expiresAt": clock.to_ms(session.expires_at),
        "scopes": session.scopes,
    }
