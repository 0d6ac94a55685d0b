"""Operations on identities: `identities.*`."""

import json
from typing import Any

from apps.keys import identities, queries
from apps.keys.api.shapes import (
    EXTERNAL_ID,
    IDENTITY,
    META,
    RATELIMIT_REQUEST,
    fault,
    limits,
    show_identity,
)
from unkey import errors
from unkey.partial import present
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import array, integer, obj, optional, string
from unkey.search import containing

MOST_META_OCTETS = 1024 * 1024

NAME = {"identity": string(1, 512, about="id or external id")}
READ = T("identity.{identity}.read_identity") | U("projects/*/identities/*#read_identity")
LIMITS = optional(array(RATELIMIT_REQUEST, most=50))


@route(
    "identities.createIdentity",
    request=obj({"externalId": EXTERNAL_ID, "meta": optional(META), "ratelimits": LIMITS}),
    response=obj({"identityId": string()}),
    permission=T("identity.*.create_identity") | U("projects/*/identities/*#create_identity"),
    errors=[errors.IdentityAlreadyExists],
)
def create_identity(call: Call) -> JSON:
    """Make an identity: a user of yours, who may hold several keys and share limits among them."""
    body = call.body
    identity = identities.create_identity(
        call.workspace_id,
        body["externalId"],
        meta=_meta(body),
        ratelimits=limits(body.get("ratelimits", [])),
        actor=call.actor,
    )
    return {"identityId": identity.id}


@route(
    "identities.getIdentity",
    request=obj(NAME),
    response=IDENTITY,
    permission=READ,
    errors=[errors.IdentityNotFound],
)
def get_identity(call: Call) -> JSON:
    """Return an identity by its id or external id."""
    identity = queries.get_identity(call.body["identity"])
    call.authorize(identity=identity.id)
    return show_identity(identity)


@route(
    "identities.listIdentities",
    request=obj(
        {
            "limit": optional(integer(1, 100), default=100),
            "cursor": optional(string(0, 1024)),
            "search": optional(string(0, 256)),
        }
    ),
    response=array(IDENTITY, most=100),
    permission=READ,
    paginated=True,
)
def list_identities(call: Call) -> Page:
    """List the identities, ordered by id; the caller must be allowed to read each one of the page."""
    rows = queries.live_identities()
    if search := call.body.get("search"):
        rows = rows.filter(containing(search, "id", "external_id"))

    def show(page: list[Any]) -> list[Any]:
        for identity in page:
            call.authorize(identity=identity.id)
        return [show_identity(identity) for identity in page]

    found = paginate(rows, call.body, show)
    if not found.items:
        call.authorize(identity="*")
    return found


@route(
    "identities.updateIdentity",
    request=obj({**NAME, "meta": optional(META), "ratelimits": LIMITS}),
    response=IDENTITY,
    permission=T("identity.*.update_identity") | U("projects/*/identities/*#update_identity"),
    errors=[errors.IdentityNotFound],
)
def update_identity(call: Call) -> JSON:
    """Change what is mentioned of an identity; meta and limits replace what was there."""
    call.authorize()
    body = call.body
    given = present(body, meta="meta")
    _meta(body)
    if "ratelimits" in body:
        given["ratelimits"] = limits(body["ratelimits"])
    identity = queries.get_identity(body["identity"])
    identities.update_identity(identity, **given, actor=call.actor)
    return show_identity(queries.get_identity(identity.id))


@route(
    "identities.deleteIdentity",
    request=obj(NAME),
    response=None,
    permission=T("identity.*.delete_identity") | U("projects/*/identities/*#delete_identity"),
    errors=[errors.IdentityNotFound],
)
def delete_identity(call: Call) -> JSON:
    """Delete an identity; its keys go on working without it."""
    call.authorize()
    identities.delete_identity(queries.get_identity(call.body["identity"]), actor=call.actor)
    return {}


def _meta(body: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = body.get("meta", {})
    if len(json.dumps(meta, separators=(",", ":"), ensure_ascii=False).encode()) > MOST_META_OCTETS:
        raise fault("meta has more than 1 MiB", "body.meta", "Keep what is large elsewhere, and its id here.")
    return meta
