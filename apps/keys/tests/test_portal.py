"""`portal.*`: portals, their sessions, and what a session may do and see."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.keys.models import Api, KeySpace, PortalSession
from unkey import clock
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

LOOK = {"logoUrl": "https://acme.example/logo.svg", "primaryColor": "#1a7f4b"}
ALL = ["keys:read", "keys:reroll", "analytics:read"]


@pytest.fixture(autouse=True)
def portal_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portal sessions begin at this page."""
    monkeypatch.setitem(env._values, "PORTAL_URL", "https://portal.example")


def key_space_of(api_id: str) -> str:
    return str(Api.objects.unscoped("test").get(pk=api_id).key_space_id)


@pytest.fixture
def portal(tenant: Tenant, api_id: str) -> str:
    """A portal for the key space of the API."""
    body = {"slug": "keys", "displayName": "Your keys", "keyspaceId": key_space_of(api_id)}
    return str(tenant("portal.createPortal", body)["portalId"])


def begin(tenant: Tenant, portal: str, user: str = "ada", scopes: list[str] | None = None) -> str:
    body = {"portal": portal, "externalId": user, "scopes": scopes or ALL}
    url = tenant("portal.createSession", body)["url"]
    page, _, code = url.partition("/?code=")
    assert page == "https://portal.example"
    return str(code)


def enter(tenant: Tenant, portal: str, user: str = "ada", scopes: list[str] | None = None) -> Tenant:
    """Return the tenant as a user sees it who has come to the portal."""
    answer = tenant("portal.exchangeCode", {"code": begin(tenant, portal, user, scopes)})
    assert answer["accessToken"].startswith("pat_")
    return replace(tenant, root_key=answer["accessToken"])


def test_a_portal_is_made_shown_changed_and_deleted(tenant: Tenant, api_id: str) -> None:
    space = key_space_of(api_id)
    body = {"slug": "keys", "displayName": "Your keys", "keyspaceId": space}
    made = tenant("portal.createPortal", {**body, **LOOK})["portalId"]
    shown = tenant("portal.getPortal", {"portal": "keys"})
    created = shown.pop("createdAt")
    assert shown == {"id": made, "enabled": True, **body, "branding": LOOK}
    assert tenant("portal.getPortal", {"keyspaceId": space})["id"] == made
    for other in (body, {**body, "slug": "others"}, {**body, "slug": "keys"}):
        assert tenant.refused("portal.createPortal", other, 409)["type"].endswith("/portal_already_exists")

    changed = tenant("portal.updatePortal", {"portal": made, "slug": "our-keys", "logoUrl": None})
    assert (changed["slug"], changed["createdAt"]) == ("our-keys", created)
    assert changed["branding"] == {"primaryColor": "#1a7f4b"}
    tenant.refused("portal.getPortal", {"portal": "keys"}, 404)

    assert tenant("portal.deletePortal", {"portal": "our-keys"}) == {}
    assert tenant.refused("portal.getPortal", {"keyspaceId": space}, 404)["type"].endswith(
        "/portal_not_found"
    )
    tenant("portal.createPortal", body)
    with unscoped("test"):
        events = AuditLog.objects.filter(event__startswith="portal").order_by("time")
        assert list(events.values_list("event", flat=True)) == [
            "portal.create",
            "portal.update",
            "portal.delete",
            "portal.create",
        ]


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("portal.createPortal", {"slug": "abc", "displayName": "a"}),
        ("portal.createPortal", {"slug": "abc", "displayName": "a", "keyspaceId": "ks_1", "appId": "app_1"}),
        ("portal.createPortal", {"slug": "-abc", "displayName": "a", "keyspaceId": "ks_1"}),
        ("portal.createPortal", {"slug": "abc", "displayName": "a", "keyspaceId": "ks_1", "logoUrl": "a"}),
        ("portal.getPortal", {}),
        ("portal.getPortal", {"portal": "abc", "keyspaceId": "ks_1"}),
        ("portal.createSession", {"portal": "abc", "externalId": "a", "scopes": []}),
        ("portal.createSession", {"portal": "abc", "externalId": "a", "scopes": ["keys:delete"]}),
    ],
)
def test_what_makes_no_sense_is_refused(tenant: Tenant, operation: str, body: dict[str, Any]) -> None:
    tenant.refused(operation, body, 400)


def test_a_user_sees_and_rerolls_only_keys_of_its_own_in_the_portals_key_space(
    tenant: Tenant, stranger: Tenant, portal: str, api_id: str
) -> None:
    own = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada", "name": "own"})
    bobs = tenant("keys.createKey", {"apiId": api_id, "externalId": "bob"})
    other_api = tenant("apis.createApi", {"name": "other"})["apiId"]
    elsewhere = tenant("keys.createKey", {"apiId": other_api, "externalId": "ada"})
    their_api = stranger("apis.createApi", {"name": "theirs"})["apiId"]
    theirs = stranger("keys.createKey", {"apiId": their_api, "externalId": "ada"})
    ada = enter(tenant, portal)

    assert [key["keyId"] for key in ada("portal.listKeys", {})] == [own["keyId"]]
    for key in (bobs, elsewhere, theirs):
        refused = ada.refused("portal.rerollKey", {"keyId": key["keyId"], "expiration": 0}, 404)
        assert refused["type"].endswith("/key_not_found")
        window = {"startTime": clock.now_ms() - 60_000, "endTime": clock.now_ms()}
        ada.refused("portal.getVerifications", {**window, "keyId": key["keyId"]}, 404)
    new = ada("portal.rerollKey", {"keyId": own["keyId"], "expiration": None})
    assert tenant("keys.verifyKey", {"key": new["key"]})["identity"]["externalId"] == "ada"
    assert tenant("keys.verifyKey", {"key": own["key"]})["valid"]
    assert len(ada("portal.listKeys", {"limit": 100})) == 2
    with unscoped("test"):
        row = AuditLog.objects.get(event="key.reroll")
    assert (row.actor_type, row.actor_name) == ("portalEndUser", "ada")
    # The API itself is not for it, nor the portal's operations for a root key.
    ada.refused("apis.getApi", {"apiId": api_id}, 401)
    tenant.refused("portal.listKeys", {}, 401)


def test_a_code_is_exchanged_once_and_in_time(tenant: Tenant, portal: str) -> None:
    code = begin(tenant, portal)
    tenant("portal.exchangeCode", {"code": code})
    for used in (code, "pst_nobody"):
        refused = tenant.refused("portal.exchangeCode", {"code": used}, 401)
        assert refused["type"].endswith("/unkey/authentication/portal_session_not_found")
    late = begin(tenant, portal)
    with clock.shifted(timedelta(minutes=15, seconds=1)):
        tenant.refused("portal.exchangeCode", {"code": late}, 401)
    with unscoped("test"):
        assert not [
            row for row in PortalSession.objects.values_list("code_hash", "token_hash") if code in row
        ]


def test_a_session_ends_after_a_day_or_when_it_is_revoked(tenant: Tenant, portal: str) -> None:
    ada, bob = enter(tenant, portal), enter(tenant, portal, "bob", ["keys:read"])
    pending = begin(tenant, portal)
    listed = tenant("portal.listSessions", {"portal": portal})
    assert [one["externalId"] for one in listed] == ["ada", "bob"]
    assert sorted(session["status"] for session in listed[0]["sessions"]) == ["active", "pending"]
    assert listed[1]["sessions"][0]["scopes"] == ["keys:read"]
    page = tenant.full("portal.listSessions", {"portal": portal, "limit": 1})
    assert page["pagination"] == {"hasMore": True, "cursor": "bob"}
    rest = tenant("portal.listSessions", {"portal": portal, "cursor": "bob"})
    assert [one["externalId"] for one in rest] == ["bob"]
    found = tenant("portal.listSessions", {"portal": portal, "search": "b"})
    assert [one["externalId"] for one in found] == ["bob"]

    user = {"portal": "keys", "externalId": "ada"}
    assert tenant("portal.revokeSession", user) == {"sessionsRevoked": 2}
    assert tenant("portal.revokeSession", user) == {"sessionsRevoked": 0}
    ada.refused("portal.listKeys", {}, 401)
    tenant.refused("portal.exchangeCode", {"code": pending}, 401)
    assert bob("portal.listKeys", {}) == []
    with clock.shifted(timedelta(hours=24, seconds=1)):
        bob.refused("portal.listKeys", {}, 401)


@pytest.mark.parametrize("change", [{"enabled": False}, {"keyspaceId": "other"}])
def test_sessions_end_when_the_portal_is_disabled_or_is_for_something_else(
    tenant: Tenant, portal: str, change: dict[str, Any]
) -> None:
    ada = enter(tenant, portal)
    if "keyspaceId" in change:
        other = tenant("apis.createApi", {"name": "other"})["apiId"]
        change = {"keyspaceId": key_space_of(other)}
    tenant("portal.updatePortal", {"portal": portal, **change})
    ada.refused("portal.listKeys", {}, 401)
    tenant("portal.updatePortal", {"portal": portal, "enabled": True})
    ada.refused("portal.listKeys", {}, 401)
    begin(tenant, portal)


def test_a_disabled_portal_begins_no_sessions_nor_does_one_without_a_page(
    tenant: Tenant, portal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"portal": portal, "externalId": "ada", "scopes": ["keys:read"]}
    tenant("portal.updatePortal", {"portal": portal, "enabled": False})
    assert tenant.refused("portal.createSession", body, 403)["type"].endswith("/authorization/forbidden")
    tenant("portal.updatePortal", {"portal": portal, "enabled": True})
    monkeypatch.setitem(env._values, "PORTAL_URL", "")
    assert tenant.refused("portal.createSession", body, 412)["detail"].endswith("sets PORTAL_URL.")


@pytest.mark.parametrize(
    ("scope", "needed"),
    [
        ("keys:read", ["api.*.read_key", "api.*.read_api"]),
        ("keys:reroll", ["api.*.read_key", "api.*.read_api", "api.*.create_key", "api.*.encrypt_key"]),
        ("analytics:read", ["api.*.read_key", "api.*.read_api", "api.*.read_analytics"]),
    ],
)
def test_a_session_is_given_no_more_than_the_root_key_has(
    tenant: Tenant, portal: str, scope: str, needed: list[str]
) -> None:
    KeySpace.objects.unscoped("test").update(store_encrypted_keys=True)
    body = {"portal": portal, "externalId": "ada", "scopes": ["keys:read", scope]}
    mint = f"portal.{portal}.create_portal_session"
    tenant.holding(*needed).refused("portal.createSession", body, 404)
    for missing in needed:
        limited = tenant.holding(mint, *[one for one in needed if one != missing])
        limited.refused("portal.createSession", body, 403)
    tenant.holding(mint, *needed)("portal.createSession", body)


def test_a_session_does_only_what_its_scopes_say(tenant: Tenant, portal: str, api_id: str) -> None:
    key = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})["keyId"]
    calls = {
        "keys:read": ("portal.listKeys", {}),
        "keys:reroll": ("portal.rerollKey", {"keyId": key, "expiration": 0}),
        "analytics:read": ("portal.getVerifications", {"startTime": 0, "endTime": 60_000}),
    }
    for scope in calls:
        ada = enter(tenant, portal, scopes=["keys:read", scope])
        for needed, (operation, body) in calls.items():
            if needed in ("keys:read", scope):
                ada(operation, body)
            else:
                error = ada.refused(operation, body, 403)
                assert error["detail"] == f"Missing permission: '{needed}'"


@pytest.mark.parametrize("scopes", [["keys:reroll"], ["analytics:read"], ["keys:reroll", "analytics:read"]])
def test_what_is_reached_from_the_page_of_keys_needs_to_read_them(
    tenant: Tenant, portal: str, scopes: list[str]
) -> None:
    body = {"portal": portal, "externalId": "ada", "scopes": scopes}
    error = tenant.refused("portal.createSession", body, 400)
    assert error["errors"] == [
        {
            "message": "keys:read is needed beside every other scope",
            "location": "body.scopes",
            "fix": "Add it.",
        }
    ]


def test_the_token_is_a_cookie_of_requests_with_a_type(tenant: Tenant, portal: str) -> None:
    cookie = {"Authorization": "", "Cookie": f"portal_session={enter(tenant, portal).root_key}"}
    assert tenant.send("portal.listKeys", {}, **cookie).status == 200
    refused = tenant.client.generic("POST", "/v2/portal.listKeys", b"{}", content_type="", headers=cookie)
    assert json.loads(refused.content)["error"]["errors"][0]["location"] == "header.Content-Type"
    nobody = tenant.send("portal.listKeys", {}, Authorization="")
    assert nobody.status == 400
    assert nobody.body["error"]["type"].endswith("/unkey/authentication/portal_token_missing")


def test_windows_of_verifications_are_bounded(tenant: Tenant, portal: str, api_id: str) -> None:
    ada = enter(tenant, portal)
    now = clock.now_ms()
    key = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})["keyId"]
    for start, end in ((now, now), (now, now - 1), (0, now)):
        ada.refused("portal.getVerifications", {"startTime": start, "endTime": end}, 400)
    hour = {"startTime": 3_600_000, "endTime": 7_200_000, "keyId": key}
    answer = ada.full("portal.getVerifications", hour)
    assert answer["bucketMillis"] == 60_000
    (series,) = answer["keys"]
    assert (series["keyId"], len(series["data"])) == (key, 60)
    assert series["data"][0] == {
        **dict.fromkeys(("total", "valid", "rateLimited", "insufficientPermissions", "forbidden"), 0),
        **dict.fromkeys(("disabled", "expired", "usageExceeded"), 0),
        "time": 3_600_000,
    }


def test_a_portal_of_an_app_is_for_the_key_spaces_that_guard_its_live_deployment(
    tenant: Tenant, api_id: str
) -> None:
    from django.apps import apps

    space = key_space_of(api_id)
    project = tenant("projects.createProject", {"name": "Shop", "slug": "shop"})["id"]
    app = tenant("apps.createApp", {"project": project, "name": "Web", "slug": "web"})
    app_id = app.get("id") or app["appId"]
    tenant("portal.createPortal", {"slug": "shop", "displayName": "Shop", "appId": app_id})
    tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})
    assert enter(tenant, "shop")("portal.listKeys", {}) == []

    with unscoped("test"):
        row = apps.get_model("projects", "App").objects.get(pk=app_id)
        environment = apps.get_model("projects", "Environment").objects.get(app=row, kind="production")
        row.current_deployment = apps.get_model("deployments", "Deployment").objects.create(
            settings={},
            regions=[],
            workspace=tenant.workspace,
            environment=environment,
            app=row,
            project=row.project,
            policies=[{"name": "keys", "enabled": True, "keyauth": {"keyspaces": [space]}}],
        )
        row.save()
    assert len(enter(tenant, "shop")("portal.listKeys", {})) == 1
    assert tenant("portal.getPortal", {"appId": app_id})["appId"] == app_id
