"""Operations on APIs and keys: `apis.*` and `keys.*`."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec

from apps.keys import imports, queries, services, verification
from apps.keys.api.shapes import (
    EXTERNAL_ID,
    IDENTITY,
    KEY_ID,
    META,
    NOTHING,
    PERMISSION,
    RATELIMIT_REQUEST,
    RATELIMIT_RESPONSE,
    ROLE,
    ROLE_NAME,
    SLUG,
    fault,
    limits,
    show_identity,
    show_permissions,
    show_ratelimits,
    show_roles,
)
from apps.keys.models import Api, EncryptedKey, Key, Permission
from apps.keys.values import Credits, Refill
from apps.vault import services as vault
from apps.vault.errors import Undecryptable
from apps.workspaces.services import hash_of
from edge.store.records import KeyName
from edge.verify import steps
from edge.verify.request import BODY as VERIFY_BODY
from unkey import clock, errors
from unkey.partial import present
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import (
    anything,
    array,
    boolean,
    identifier,
    integer,
    moment,
    nullable,
    obj,
    optional,
    string,
)

API_ID = identifier(8)
EXPIRES = moment()
GRACE = nullable(
    moment(about="how long the old key goes on working, in milliseconds; 0: not at all; null: as before")
)

REFILL = obj(
    {
        "interval": string(choices=["daily", "monthly"]),
        "amount": integer(1),
        "refillDay": optional(integer(1, 31)),
    }
)
CREDITS = obj({"remaining": nullable(integer(0)), "refill": optional(REFILL)})
KEY = obj(
    {
        "keyId": KEY_ID,
        "start": string(0, 50, about="empty for an imported key that was not used yet"),
        "enabled": boolean(),
        "name": optional(string(0, 255)),
        "meta": optional(META),
        "createdAt": integer(0),
        "updatedAt": optional(integer(0)),
        "lastUsedAt": optional(integer(0)),
        "expires": optional(integer(0)),
        "permissions": optional(array(string())),
        "roles": optional(array(string())),
        "credits": optional(CREDITS),
        "identity": optional(IDENTITY),
        "plaintext": optional(string(redact=True)),
        "ratelimits": optional(array(RATELIMIT_RESPONSE, most=50)),
    }
)
NEW_KEY = obj({"keyId": string(), "key": string(redact=True)})
VERIFIED = obj(
    {
        "valid": boolean(),
        "code": string(
            choices=[
                "VALID",
                "NOT_FOUND",
                "FORBIDDEN",
                "INSUFFICIENT_PERMISSIONS",
                "USAGE_EXCEEDED",
                "RATE_LIMITED",
                "DISABLED",
                "EXPIRED",
            ]
        ),
        "keyId": optional(string()),
        "keyspaceId": optional(string()),
        "name": optional(string()),
        "meta": optional(anything()),
        "expires": optional(integer()),
        "credits": optional(integer()),
        "enabled": optional(boolean()),
        "permissions": optional(array(string())),
        "roles": optional(array(string())),
        "identity": optional(IDENTITY),
        "ratelimits": optional(
            array(
                obj(
                    {
                        "exceeded": boolean(),
                        "id": string(about="empty for a limit that the request itself gave"),
                        "name": string(1, 255),
                        "limit": integer(0),
                        "duration": integer(1000),
                        "reset": integer(0, about="end of the window, Unix milliseconds"),
                        "remaining": integer(0),
                        "autoApply": boolean(),
                    }
                )
            )
        ),
    }
)


@route(
    "apis.createApi",
    request=obj({"name": string(3, 256)}),
    response=obj({"apiId": API_ID}),
    permission=T("api.*.create_api") | U("keyspaces/*#create_keyspace"),
)
def create_api(call: Call) -> JSON:
    """Make an API: a name for a space of keys."""
    api = services.create_api(call.workspace_id, call.body["name"], actor=call.actor)
    return {"apiId": api.id}


@route(
    "apis.getApi",
    request=obj({"apiId": API_ID}),
    response=obj({"id": API_ID, "name": string(3, 256)}),
    permission=T("api.{api}.read_api") | U("keyspaces/{keyspace}#read_keyspace"),
    errors=[errors.ApiNotFound],
)
def get_api(call: Call) -> JSON:
    """Return an API."""
    api = _api_to(call)
    return {"id": api.id, "name": api.name}


@route(
    "apis.deleteApi",
    request=obj({"apiId": API_ID}),
    response=NOTHING,
    permission=T("api.{api}.delete_api") | U("keyspaces/{keyspace}#delete_keyspace"),
    errors=[errors.ApiNotFound, errors.ProtectedResource],
)
def delete_api(call: Call) -> JSON:
    """Delete an API; its keys stop working."""
    services.delete_api(_api_to(call), actor=call.actor)
    return {}


def _api_to(call: Call) -> Api:
    """Return the API that a request names; who may not is refused whether there is one or not."""
    api = queries.find_api(call.body["apiId"])
    call.authorize(api=call.body["apiId"], keyspace="*" if api is None else api.key_space_id)
    if api is None:
        raise queries.api_not_found(call.body["apiId"])
    return api


READ_LISTED_KEYS = (T("api.{api}.read_key") & T("api.{api}.read_api")) | (
    U("keyspaces/{keyspace}/keys/*#read_key") & U("keyspaces/{keyspace}#read_keyspace")
)
DECRYPT_KEYS = T("api.{api}.decrypt_key") | U("keyspaces/{keyspace}/keys/*#decrypt_key")


@route(
    "apis.listKeys",
    request=obj(
        {
            "apiId": string(1),
            "limit": optional(integer(1, 100), default=100),
            "cursor": optional(string()),
            "externalId": optional(string(1)),
            "decrypt": optional(boolean(), default=False),
            "revalidateKeysCache": optional(boolean(), default=False),
        }
    ),
    response=array(KEY, most=100),
    permission=READ_LISTED_KEYS,
    paginated=True,
    errors=[errors.ApiNotFound, errors.PreconditionFailed],
)
def list_keys(call: Call) -> Page:
    """List the keys of an API, ordered by id."""
    api = queries.get_api(call.body["apiId"])
    about = {"api": api.id, "keyspace": api.key_space_id}
    call.authorize(ids=about, masked=lambda: queries.api_not_found(api.id))
    if call.body["decrypt"]:
        call.authorize(DECRYPT_KEYS, ids=about)
        _expect_recoverable(api.key_space.store_encrypted_keys)
    keys = queries.live_keys().filter(key_space=api.key_space_id)
    if "externalId" in call.body:
        keys = keys.filter(identity__external_id=call.body["externalId"], identity__deleted_at=None)
    return paginate(
        keys.select_related("identity"),
        call.body,
        lambda rows: show_keys(rows, decrypt=call.body["decrypt"]),
    )


CREATE_KEY = T("api.{api}.create_key") | U("keyspaces/{keyspace}#create_key")
ENCRYPT_KEYS = T("api.{api}.encrypt_key") | U("keyspaces/{keyspace}/keys/*#encrypt_key")


@route(
    "keys.createKey",
    request=obj(
        {
            "apiId": KEY_ID,
            "prefix": optional(string(1, 16, pattern=r"^[a-zA-Z0-9_]+$")),
            "name": optional(string(1, 255)),
            "byteLength": optional(integer(16, 255)),
            "externalId": optional(EXTERNAL_ID),
            "meta": optional(META),
            "roles": optional(array(ROLE_NAME, most=100)),
            "permissions": optional(array(SLUG, most=1000)),
            "expires": optional(EXPIRES),
            "credits": optional(CREDITS),
            "ratelimits": optional(array(RATELIMIT_REQUEST, most=50)),
            "enabled": optional(boolean(), default=True),
            "recoverable": optional(boolean(), default=False),
        }
    ),
    response=NEW_KEY,
    permission=CREATE_KEY,
    errors=[errors.ApiNotFound, errors.RoleNotFound, errors.PreconditionFailed],
)
def create_key(call: Call) -> JSON:
    """Make a key and return its text, this once."""
    body = call.body
    api = queries.get_api(body["apiId"])
    about = {"api": api.id, "keyspace": api.key_space_id}
    call.authorize(ids=about, masked=lambda: queries.api_not_found(api.id))
    if body["recoverable"]:
        call.authorize(ENCRYPT_KEYS, ids=about, masked=lambda: queries.api_not_found(api.id))
    given = present(
        body,
        prefix="prefix",
        name="name",
        byte_length="byteLength",
        external_id="externalId",
        meta="meta",
        roles="roles",
        permissions="permissions",
    )
    if "expires" in body:
        given["expires_at"] = clock.from_ms(body["expires"])
    if "credits" in body:
        given["credits"] = _new_credits(body["credits"])
    if "ratelimits" in body:
        given["ratelimits"] = limits(body["ratelimits"])
    key, plaintext = services.create_key(
        api, **given, enabled=body["enabled"], recoverable=body["recoverable"], actor=call.actor
    )
    return {"keyId": key.id, "key": plaintext}


MOST_NAMES = 10_000
IMPORTED_KEY = obj(
    {
        "hash": string(3),
        "name": optional(string(1, 255)),
        "externalId": optional(string(1, 255)),
        "meta": optional(META),
        "roles": optional(array(ROLE_NAME, most=100)),
        "permissions": optional(array(SLUG, most=1000)),
        "expires": optional(EXPIRES),
        "enabled": optional(boolean(), default=True),
        "credits": optional(CREDITS),
        "ratelimits": optional(array(RATELIMIT_REQUEST, most=50)),
    }
)


@route(
    "keys.migrateKeys",
    request=obj({"migrationId": string(3, 255), "apiId": string(3, 255), "keys": array(IMPORTED_KEY, 1)}),
    response=obj({"migrated": array(obj({"hash": string(), "keyId": string()})), "failed": array(string())}),
    permission=CREATE_KEY,
    errors=[errors.MigrationNotFound, errors.ApiNotFound],
)
def migrate_keys(call: Call) -> JSON:
    """Import keys by their hashes; a text that verifies with the migration's name is taken over."""
    body = call.body
    api = queries.get_api(body["apiId"])
    call.authorize(ids={"api": api.id, "keyspace": api.key_space_id})
    migration = imports.get_migration(body["migrationId"])
    for names in ("roles", "permissions"):
        if len({name for one in body["keys"] for name in one.get(names, ())}) > MOST_NAMES:
            raise fault(f"the keys name more than {MOST_NAMES} {names}", "body.keys", "Send them in parts.")
    if len(body["keys"]) > MOST_NAMES:
        raise fault(f"more than {MOST_NAMES} keys are given", "body.keys", "Send them in parts.")
    migrated, failed = imports.import_keys(
        api,
        migration,
        [imported(one, f"body.keys[{index}]") for index, one in enumerate(body["keys"])],
        actor=call.actor,
    )
    return {"migrated": [{"hash": text, "keyId": key_id} for text, key_id in migrated], "failed": failed}


def imported(body: dict[str, Any], where: str) -> imports.ImportedKey:
    """Return the key of an entry of `keys.migrateKeys`.

    Raises:
        InvalidInput: its credits or its limits contradict themselves.
    """
    given = present(
        body, name="name", external_id="externalId", meta="meta", roles="roles", permissions="permissions"
    )
    if "expires" in body:
        given["expires_at"] = clock.from_ms(body["expires"])
    if "credits" in body:
        given["credits"] = _new_credits(body["credits"], where)
    if "ratelimits" in body:
        given["ratelimits"] = limits(body["ratelimits"], where)
    return imports.ImportedKey(body["hash"], **given, enabled=body["enabled"])


READ_KEY = T("api.{api}.read_key") | U("keyspaces/{keyspace}/keys/{key}#read_key")
DECRYPT_KEY = T("api.{api}.decrypt_key") | U("keyspaces/{keyspace}/keys/{key}#decrypt_key")


@route(
    "keys.getKey",
    request=obj({"keyId": KEY_ID, "decrypt": optional(boolean(), default=False)}),
    response=KEY,
    permission=READ_KEY,
    errors=[errors.KeyNotFound, errors.PreconditionFailed],
)
def get_key(call: Call) -> JSON:
    """Return a key and what it may do."""
    key = queries.get_key(call.body["keyId"])
    call.authorize(ids=_about(key))
    decrypt = call.body["decrypt"]
    if decrypt:
        call.authorize(DECRYPT_KEY, ids=_about(key))
        _expect_recoverable(key.key_space.store_encrypted_keys)
    return show_keys([key], decrypt=decrypt)[0]


@route(
    "keys.whoami",
    request=obj({"key": string(1, 512, redact=True)}),
    response=KEY,
    permission=READ_KEY,
    errors=[errors.KeyNotFound],
)
def whoami(call: Call) -> JSON:
    """Return the key that a text is, without verifying it or spending anything."""

    def unknown() -> errors.Fault:
        return errors.KeyNotFound("The provided key does not exist.")

    key = queries.key_of_hash(hash_of(call.body["key"]))
    if key is None:
        raise unknown()
    call.authorize(ids=_about(key), masked=unknown)
    return show_keys([key])[0]


UPDATE_KEY = T("api.{api}.update_key") | U("keyspaces/{keyspace}/keys/{key}#update_key")


@route(
    "keys.updateKey",
    request=obj(
        {
            "keyId": KEY_ID,
            "name": optional(nullable(string(1, 255))),
            "externalId": optional(nullable(EXTERNAL_ID)),
            "meta": optional(nullable(META)),
            "expires": optional(nullable(EXPIRES)),
            "credits": optional(
                nullable(
                    obj(
                        {
                            "remaining": optional(nullable(integer(0))),
                            "refill": optional(nullable(REFILL)),
                        }
                    )
                )
            ),
            "ratelimits": optional(nullable(array(RATELIMIT_REQUEST, most=50))),
            "enabled": optional(boolean()),
            "roles": optional(array(ROLE_NAME, most=100)),
            "permissions": optional(array(SLUG, most=1000)),
        }
    ),
    response=NOTHING,
    permission=UPDATE_KEY,
    errors=[errors.KeyNotFound, errors.RoleNotFound],
)
def update_key(call: Call) -> JSON:
    """Change what is mentioned of a key; null clears, lists replace the whole set."""
    body = call.body
    key = queries.get_key(body["keyId"])
    call.authorize(ids=_about(key))
    given = present(
        body,
        name="name",
        external_id="externalId",
        meta="meta",
        enabled="enabled",
        roles="roles",
        permissions="permissions",
    )
    if "expires" in body:
        given["expires_at"] = None if body["expires"] is None else clock.from_ms(body["expires"])
    if "credits" in body:
        given |= _changed_credits(body["credits"])
    if "ratelimits" in body:
        given["ratelimits"] = limits(body["ratelimits"] or [])
    services.update_key(key, **given, actor=call.actor)
    return {}


@route(
    "keys.updateCredits",
    request=obj(
        {
            "keyId": string(3, 255),
            "value": optional(nullable(integer(0))),
            "operation": string(choices=["set", "increment", "decrement"]),
        }
    ),
    response=CREDITS,
    permission=UPDATE_KEY,
    errors=[errors.KeyNotFound],
)
def update_credits(call: Call) -> JSON:
    """Set, raise or lower a key's credits."""
    body = call.body
    key = queries.get_key(body["keyId"])
    call.authorize(ids=_about(key))
    if body["operation"] == "set" and "value" not in body:
        raise fault("value is required to set credits", "body.value", "Give a number, or null for unlimited.")
    changed = services.update_credits(key, body["operation"], body.get("value"), actor=call.actor)
    return _show_credits(changed, queries.balances([changed])) or {"remaining": None}


@route(
    "keys.deleteKey",
    request=obj({"keyId": KEY_ID, "permanent": optional(boolean(), default=False)}),
    response=NOTHING,
    permission=T("api.{api}.delete_key") | U("keyspaces/{keyspace}/keys/{key}#delete_key"),
    errors=[errors.KeyNotFound],
)
def delete_key(call: Call) -> JSON:
    """Delete a key; it stops working."""
    key = queries.get_key(call.body["keyId"])
    call.authorize(ids=_about(key))
    services.delete_key(key, permanent=call.body["permanent"], actor=call.actor)
    return {}


@route(
    "keys.rerollKey",
    request=obj({"keyId": KEY_ID, "expiration": GRACE}),
    response=NEW_KEY,
    permission=CREATE_KEY,
    errors=[errors.KeyNotFound],
)
def reroll_key(call: Call) -> JSON:
    """Replace a key by a new one of the same settings; the old one expires after a grace."""
    key = queries.shown(queries.live_keys()).filter(pk=call.body["keyId"]).first()
    if key is None:
        raise queries.key_not_found(call.body["keyId"])
    about = {"api": key.key_space.api.id, "keyspace": key.key_space_id}
    call.authorize(ids=about)
    if hasattr(key, "encrypted"):
        call.authorize(ENCRYPT_KEYS, ids=about)
    new, plaintext = services.reroll_key(key, grace(call.body["expiration"]), actor=call.actor)
    return {"keyId": new.id, "key": plaintext}


def grace(milliseconds: int | None) -> timedelta | None:
    """Return how long a rerolled key goes on working; None: as long as before."""
    return None if milliseconds is None else timedelta(milliseconds=milliseconds)


@route(
    "keys.verifyKey",
    request=VERIFY_BODY,
    response=VERIFIED,
    permission=T("api.{api}.verify_key") | U("keyspaces/{keyspace}/keys/{key}#verify_key"),
    errors=[errors.PermissionsQuerySyntaxError, errors.PreconditionFailed],
)
def verify_key(call: Call) -> Any:
    """Say whether a key may be used, and spend what the use costs."""
    started = time.perf_counter()
    key = verification.find_key(call.body["key"])
    migration = call.body.get("migrationId")
    if key is None and migration and _taken_over(call, migration):
        key = verification.find_key(call.body["key"])
    about = _about(key) if key else {"api": "*", "keyspace": "*", "key": "*"}
    named = key is not None and key.key_space_id in call.body.get("keyspaces", (key.key_space_id,))
    if not call.allows(about) or key is None or not named:
        verification.note(call, None, started)
        return msgspec.Raw(steps.BARE_NOT_FOUND)
    verdict = verification.verify(key, call.body, call.remote_ip)
    verification.note(call, verdict, started)
    return msgspec.Raw(steps.render(verdict))


def _taken_over(call: Call, migration: str) -> bool:
    def may(key: KeyName) -> bool:
        return call.allows({"api": key.api_id, "keyspace": key.key_space_id, "key": key.id})

    return imports.take_over(call.workspace_id, migration, call.body["key"], may)


CREATE_PERMISSION = U("rbac/permissions/*#create_permission") | T("rbac.*.create_permission")
KEY_AND_SLUGS = obj({"keyId": KEY_ID, "permissions": array(SLUG, 1, 1000)})
KEY_AND_ROLES = obj({"keyId": KEY_ID, "roles": array(ROLE_NAME, 1, 100)})
UPDATE_THIS_KEY = U("keyspaces/{keyspace}/keys/{key}#update_key")
UPDATE_KEY_OF_API = T("api.{api}.update_key")


@route(
    "keys.addPermissions",
    request=KEY_AND_SLUGS,
    response=array(PERMISSION),
    permission=UPDATE_THIS_KEY | (UPDATE_KEY_OF_API & T("rbac.*.add_permission_to_key")),
    errors=[errors.KeyNotFound],
)
def add_permissions(call: Call) -> JSON:
    """Give a key permissions; those that do not exist are made."""
    key = _key_to_update(call)
    _authorize_new_permissions(call, call.body["permissions"])
    services.add_permissions(key, call.body["permissions"], actor=call.actor)
    return show_permissions(key.permissions.order_by("slug"))


@route(
    "keys.removePermissions",
    request=KEY_AND_SLUGS,
    response=array(PERMISSION),
    permission=UPDATE_THIS_KEY | (UPDATE_KEY_OF_API & T("rbac.*.remove_permission_from_key")),
    errors=[errors.KeyNotFound, errors.PermissionNotFound],
)
def remove_permissions(call: Call) -> JSON:
    """Take permissions from a key."""
    key = _key_to_update(call)
    services.remove_permissions(key, call.body["permissions"], actor=call.actor)
    return show_permissions(key.permissions.order_by("slug"))


@route(
    "keys.setPermissions",
    request=obj({"keyId": KEY_ID, "permissions": array(SLUG, most=1000)}),
    response=array(PERMISSION),
    permission=UPDATE_THIS_KEY
    | (UPDATE_KEY_OF_API & T("rbac.*.add_permission_to_key") & T("rbac.*.remove_permission_from_key")),
    errors=[errors.KeyNotFound],
)
def set_permissions(call: Call) -> JSON:
    """Give a key exactly these permissions; those that do not exist are made."""
    key = _key_to_update(call)
    _authorize_new_permissions(call, call.body["permissions"])
    services.set_permissions(key, call.body["permissions"], actor=call.actor)
    return show_permissions(key.permissions.order_by("slug"))


@route(
    "keys.addRoles",
    request=KEY_AND_ROLES,
    response=array(ROLE),
    permission=UPDATE_THIS_KEY | (UPDATE_KEY_OF_API & T("rbac.*.add_role_to_key")),
    errors=[errors.KeyNotFound, errors.RoleNotFound],
)
def add_roles(call: Call) -> JSON:
    """Give a key roles by name."""
    key = _key_to_update(call)
    services.add_roles(key, call.body["roles"], actor=call.actor)
    return show_roles(key.roles.order_by("name"))


@route(
    "keys.removeRoles",
    request=KEY_AND_ROLES,
    response=array(ROLE),
    permission=UPDATE_KEY,
    errors=[errors.KeyNotFound, errors.RoleNotFound],
)
def remove_roles(call: Call) -> JSON:
    """Take roles from a key."""
    key = _key_to_update(call)
    services.remove_roles(key, call.body["roles"], actor=call.actor)
    return show_roles(key.roles.order_by("name"))


@route(
    "keys.setRoles",
    request=obj({"keyId": KEY_ID, "roles": array(ROLE_NAME, most=100)}),
    response=array(ROLE),
    permission=UPDATE_KEY,
    errors=[errors.KeyNotFound, errors.RoleNotFound],
)
def set_roles(call: Call) -> JSON:
    """Give a key exactly these roles."""
    key = _key_to_update(call)
    services.set_roles(key, call.body["roles"], actor=call.actor)
    return show_roles(key.roles.order_by("name"))


def _about(key: Key) -> dict[str, str]:
    """Return the ids that permissions on a key are written with."""
    return {"api": key.key_space.api.id, "keyspace": key.key_space_id, "key": key.id}


def _key_to_update(call: Call) -> Key:
    key = queries.get_key(call.body["keyId"])
    call.authorize(ids=_about(key))
    return key


def _authorize_new_permissions(call: Call, slugs: Sequence[str]) -> None:
    wanted = set(slugs)
    if wanted.difference(Permission.objects.filter(slug__in=wanted).values_list("slug", flat=True)):
        call.authorize(CREATE_PERMISSION)


def _expect_recoverable(store_encrypted_keys: bool) -> None:
    if not store_encrypted_keys:
        raise errors.PreconditionFailed("This API does not keep keys in a recoverable form.")


def _refill(body: dict[str, Any], where: str = "body") -> Refill:
    interval, day = body["interval"], body.get("refillDay")
    if interval == "monthly" and day is None:
        raise fault(
            "refillDay is required for a monthly refill",
            f"{where}.credits.refill.refillDay",
            "Give a day, 1 to 31.",
        )
    return Refill(interval, body["amount"], day)


def _new_credits(body: dict[str, Any], where: str = "body") -> Credits:
    if "refill" not in body:
        return Credits(body["remaining"])
    if body["remaining"] is None:
        raise fault(
            "a refill needs a finite balance", f"{where}.credits.remaining", "Give a number of credits."
        )
    return Credits(body["remaining"], _refill(body["refill"], where))


def _changed_credits(body: dict[str, Any] | None) -> dict[str, Any]:
    if body is None:
        return {"remaining": None}
    changed = present(body, remaining="remaining")
    if "refill" in body:
        refill = body["refill"]
        if refill is not None and refill["interval"] == "daily" and "refillDay" in refill:
            raise fault("a daily refill has no refillDay", "body.credits.refill.refillDay", "Leave it out.")
        changed["refill"] = None if refill is None else _refill(refill)
    return changed


def show_keys(keys: Iterable[Key], *, decrypt: bool = False) -> list[dict[str, Any]]:
    """Return keys as answers hold them.

    Args:
        keys: with their identities at hand.
        decrypt: with the texts of those that are recoverable.
    """
    rows = list(keys)
    balances = queries.balances(rows)
    held = queries.belongings(rows)
    texts: dict[str, str] = _plaintexts(rows) if decrypt else {}
    return [_shown(key, balances, held[key.pk], texts.get(key.pk)) for key in rows]


def _shown(
    key: Key, balances: dict[str, int], held: queries.Belongings, plaintext: str | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "keyId": key.id,
        "start": key.start,
        "enabled": key.enabled,
        "createdAt": clock.to_ms(key.created_at),
    }
    if key.name:
        shown["name"] = key.name
    if key.meta:
        shown["meta"] = key.meta
    if key.updated_at:
        shown["updatedAt"] = clock.to_ms(key.updated_at)
    if key.last_used_at:
        shown["lastUsedAt"] = clock.to_ms(key.last_used_at)
    if key.expires_at:
        shown["expires"] = clock.to_ms(key.expires_at)
    if held.slugs:
        shown["permissions"] = sorted(held.slugs)
    if held.roles:
        shown["roles"] = sorted(held.roles)
    if credits := _show_credits(key, balances):
        shown["credits"] = credits
    if key.identity and not key.identity.deleted_at:
        shown["identity"] = show_identity(key.identity, held.shared_limits)
    if ratelimits := show_ratelimits(held.limits):
        shown["ratelimits"] = ratelimits
    if plaintext is not None:
        shown["plaintext"] = plaintext
    return shown


def _plaintexts(keys: Iterable[Key]) -> dict[str, str]:
    """Return the texts of those keys that are recoverable, by key id."""
    found = {}
    for row in EncryptedKey.objects.filter(key__in=keys):
        with suppress(Undecryptable):
            found[row.key_id] = vault.decrypt(row.workspace_id, row.ciphertext)
    return found


def _show_credits(key: Key, balances: dict[str, int]) -> dict[str, Any] | None:
    if key.remaining is None and not key.refill_interval:
        return None
    shown: dict[str, Any] = {"remaining": balances.get(key.pk)}
    if key.refill_interval:
        refill: dict[str, Any] = {"interval": key.refill_interval, "amount": key.refill_amount}
        if key.refill_day:
            refill["refillDay"] = key.refill_day
        shown["refill"] = refill
    return shown
