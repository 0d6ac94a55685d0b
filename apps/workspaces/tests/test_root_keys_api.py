"""`rootKeys.*` and `workspace.*` through HTTP: shapes, escalation, rerolls, what a change does at once."""

import json
from datetime import timedelta

import pytest

from apps.audit.models import AuditLog
from apps.keys.models import Api, Key
from apps.quota.models import Limits, Usage
from apps.workspaces.models import RootKey
from unkey import clock, ids
from unkey.rpc.grants import gives
from unkey.rpc.testing import Tenant

DAY = 86_400_000


def granted(tenant: Tenant, *grants: str) -> Tenant:
    """Return the workspace through a root key that holds these URN grants, given without their workspace."""
    return tenant.holding(*(f"unkey:v1:{tenant.workspace.id}:{grant}" for grant in grants))


def made(tenant: Tenant, *permissions: str, **more: object) -> Tenant:
    """Make a root key through the API and return the workspace through it."""
    key = tenant("rootKeys.createKey", {"permissions": list(permissions), **more})
    return Tenant(tenant.workspace, key["key"])


def id_of(tenant: Tenant) -> str:
    """Return the id of the root key that a tenant speaks with."""
    from apps.workspaces.services import hash_of

    return RootKey.objects.unscoped("test").get(hash=hash_of(tenant.root_key)).pk


def test_a_made_key_works_and_is_listed_without_its_secret(tenant: Tenant) -> None:
    key = tenant(
        "rootKeys.createKey",
        {"name": "ci", "permissions": ["api.*.create_api"], "expires": 4_000_000_000_000},
    )
    assert key["key"].startswith("unkey_")
    fresh = Tenant(tenant.workspace, key["key"])
    listed = {row["keyId"]: row for row in tenant("rootKeys.listKeys", {})}
    assert listed[key["keyId"]] | {"createdAt": 0} == {
        "keyId": key["keyId"],
        "name": "ci",
        "start": key["key"][:10],
        "end": key["key"][-4:],
        "enabled": True,
        "createdAt": 0,
        "lastUsedAt": 0,
        "expires": 4_000_000_000_000,
        "permissions": ["api.*.create_api"],
    }
    assert key["key"] not in json.dumps(listed)
    fresh("apis.createApi", {"name": "abc"})
    fresh.refused("rootKeys.createKey", {"permissions": []}, 403)
    (row,) = [one for one in tenant("rootKeys.listKeys", {}) if one["keyId"] == key["keyId"]]
    assert 0 <= clock.now_ms() - row["lastUsedAt"] < DAY
    audited = AuditLog.objects.unscoped("test").filter(workspace=tenant.workspace)
    assert key["key"] not in repr(list(audited.values()))


def test_a_list_shows_what_the_caller_may_read_and_goes_on_where_it_stopped(tenant: Tenant) -> None:
    keys = sorted(tenant("rootKeys.createKey", {"permissions": []})["keyId"] for _ in range(3))
    deleted = tenant("rootKeys.createKey", {"permissions": []})["keyId"]
    tenant("rootKeys.deleteKey", {"keyId": deleted})
    reader = granted(tenant, *(f"rootKeys/{key}#read" for key in [*keys, deleted]))
    page = reader.full("rootKeys.listKeys", {"limit": 2})
    assert [row["keyId"] for row in page["data"]] == keys[:2]
    rest = reader.full("rootKeys.listKeys", {"limit": 2, "cursor": page["pagination"]["cursor"]})
    assert [row["keyId"] for row in rest["data"]] == keys[2:]
    assert rest["pagination"] == {"hasMore": False}
    assert len(granted(tenant, "rootKeys/*#read")("rootKeys.listKeys", {})) == 6
    for blind in (granted(tenant, "rootKeys/*#write"), tenant.holding()):
        assert blind("rootKeys.listKeys", {}) == []


@pytest.mark.parametrize(
    ("held", "wanted", "given"),
    [
        (["api.*.read_key"], "api.*.read_key", True),
        (["api.*.read_key"], "api.api_1.read_key", True),
        (["api.api_1.read_key"], "api.api_1.read_key", True),
        (["api.api_1.read_key"], "api.*.read_key", False),
        (["api.api_1.read_key"], "api.api_2.read_key", False),
        (["api.*.read_key"], "api.*.update_key", False),
        (["unkey:v1:ws_1:**#*"], "api.*.read_key", False),
        (["unkey:v1:ws_1:**#*"], "unkey:v1:ws_1:**#*", True),
        (["unkey:v1:ws_1:**#*"], "unkey:v1:ws_1:keyspaces/**#read_key", True),
        (["unkey:v1:ws_1:**#read_key"], "unkey:v1:ws_1:**#*", False),
        (["unkey:v1:ws_1:keyspaces/**#*"], "unkey:v1:ws_1:**#*", False),
        (["unkey:v1:ws_1:keyspaces/**#*"], "unkey:v1:ws_1:keyspaces/ks_1/**#*", True),
        (["unkey:v1:ws_1:keyspaces/ks_1/**#*"], "unkey:v1:ws_1:keyspaces/**#*", False),
        (["unkey:v1:ws_1:keyspaces/ks_1/**#*"], "unkey:v1:ws_1:keyspaces/*/**#*", False),
        (["unkey:v1:ws_1:keyspaces/*/**#*"], "unkey:v1:ws_1:keyspaces/ks_1/**#read_key", True),
        (["unkey:v1:ws_1:keyspaces/*/keys/*#read_key"], "unkey:v1:ws_1:keyspaces/ks_1/**#read_key", False),
        (["unkey:v1:ws_1:keyspaces/*#read_key"], "unkey:v1:ws_1:keyspaces/**#read_key", False),
        (["unkey:v1:ws_1:keyspaces/*#read_key"], "unkey:v1:ws_1:keyspaces/*#read_key", True),
        (["unkey:v1:ws_1:keyspaces/ks_1#read_key"], "unkey:v1:ws_1:keyspaces/*#read_key", False),
        (["unkey:v1:ws_2:**#*"], "unkey:v1:ws_1:keyspaces/ks_1#read_key", False),
        (["unkey:v1:ws_2:**#*"], "unkey:v1:ws_1:**#*", False),
        ([], "unkey:v1:ws_1:**#*", False),
    ],
)
def test_what_is_held_decides_what_may_be_given(held: list[str], wanted: str, given: bool) -> None:
    assert gives(held, wanted) is given


def test_a_root_key_gives_only_what_it_holds(tenant: Tenant) -> None:
    scope = f"unkey:v1:{tenant.workspace.id}:"
    maker = tenant.holding(
        f"{scope}rootKeys/**#write",
        f"{scope}rootKeys/**#delete",
        f"{scope}keyspaces/ks_1/**#*",
        "api.*.read_key",
    )
    child = made(maker, f"{scope}keyspaces/ks_1/keys/*#read_key", "api.api_1.read_key")
    before = RootKey.objects.unscoped("test").count()
    for beyond in (
        f"{scope}**#*",
        f"{scope}keyspaces/ks_2/keys/*#read_key",
        f"{scope}keyspaces/*/keys/*#read_key",
        "api.*.update_key",
    ):
        fault = maker.refused("rootKeys.createKey", {"permissions": [beyond]}, 403)
        assert beyond in fault["detail"]
        maker.refused("rootKeys.updateKey", {"keyId": id_of(child), "permissions": [beyond]}, 403)
        maker.refused("rootKeys.updateKey", {"keyId": id_of(maker), "permissions": [beyond]}, 403)
    # The key that may do everything cannot be made anew by one that may not.
    maker.refused("rootKeys.rerollKey", {"keyId": id_of(tenant), "expiration": None}, 403)
    assert RootKey.objects.unscoped("test").count() == before
    stored = {row.pk: row.permissions for row in RootKey.objects.unscoped("test").all()}
    assert stored[id_of(child)] == ["api.api_1.read_key", f"{scope}keyspaces/ks_1/keys/*#read_key"]


def test_a_grant_in_another_workspace_is_no_permission(tenant: Tenant, stranger: Tenant) -> None:
    foreign = f"unkey:v1:{stranger.workspace.id}:**#*"
    fault = tenant.refused("rootKeys.createKey", {"permissions": ["api.*.read_api", foreign]}, 400)
    assert fault["errors"][0]["location"] == "body.permissions[1]"


def test_a_key_that_expires_manages_none_that_lives_longer(tenant: Tenant) -> None:
    soon = clock.now_ms() + DAY
    scope = f"unkey:v1:{tenant.workspace.id}:"
    short = made(tenant, f"{scope}**#*", expires=soon)
    for body in ({}, {"expires": None}, {"expires": soon + 1}):
        short.refused("rootKeys.createKey", {"permissions": [], **body}, 403)
    short.refused("rootKeys.updateKey", {"keyId": id_of(tenant), "enabled": False}, 403)
    child = made(short, f"{scope}usage#read", expires=soon)
    short("rootKeys.updateKey", {"keyId": id_of(child), "enabled": False})
    child.refused("workspace.getUsage", {}, 403)
    fault = tenant.refused("rootKeys.createKey", {"permissions": [], "expires": clock.now_ms() - 1}, 400)
    assert fault["errors"][0]["location"] == "body.expires"


def test_an_update_changes_what_is_mentioned_at_once(tenant: Tenant) -> None:
    key = tenant("rootKeys.createKey", {"name": "a", "permissions": ["api.*.create_api"]})
    fresh, named = Tenant(tenant.workspace, key["key"]), {"keyId": key["keyId"]}
    version = RootKey.objects.unscoped("test").get(pk=key["keyId"]).version
    fresh("apis.createApi", {"name": "abc"})
    tenant("rootKeys.updateKey", {**named, "permissions": ["api.*.read_api"]})
    fresh.refused("apis.createApi", {"name": "abc"}, 403)
    tenant("rootKeys.updateKey", {**named, "permissions": ["api.*.create_api"], "name": None})
    fresh("apis.createApi", {"name": "abc"})
    tenant("rootKeys.updateKey", {**named, "enabled": False})
    assert fresh.refused("apis.createApi", {"name": "abc"}, 403)["title"] == "Key is disabled"
    row = RootKey.objects.unscoped("test").get(pk=key["keyId"])
    assert (row.name, row.enabled, row.version > version) == ("", False, True)
    changes = (
        AuditLog.objects.unscoped("test").filter(event="key.update").order_by("time").values_list("changes")
    )
    assert [change for (change,) in changes] == [
        {"permissions": {"before": ["api.*.create_api"], "after": ["api.*.read_api"]}},
        {
            "name": {"before": "a", "after": ""},
            "permissions": {"before": ["api.*.read_api"], "after": ["api.*.create_api"]},
        },
        {"enabled": {"before": True, "after": False}},
    ]


def test_a_reroll_keeps_all_but_the_text_and_ends_the_old_key_as_told(tenant: Tenant) -> None:
    body = {"name": "ci", "permissions": ["api.*.create_api"]}
    old = tenant("rootKeys.createKey", body)
    kept = tenant("rootKeys.rerollKey", {"keyId": old["keyId"], "expiration": None})
    listed = {row["keyId"]: row for row in tenant("rootKeys.listKeys", {})}
    assert listed[old["keyId"]]["expires"] is None
    with clock.shifted(timedelta(days=3650)):
        for key in (old, kept):
            Tenant(tenant.workspace, key["key"])("apis.createApi", {"name": "abc"})
    graced = tenant("rootKeys.rerollKey", {"keyId": old["keyId"], "expiration": 3_600_000})
    for key in (old, kept, graced):
        Tenant(tenant.workspace, key["key"])("apis.createApi", {"name": "abc"})
    with clock.shifted(timedelta(hours=1, seconds=1)):
        assert Tenant(tenant.workspace, old["key"]).send("apis.createApi", {"name": "abc"}).status == 403
        Tenant(tenant.workspace, graced["key"])("apis.createApi", {"name": "abc"})
    # An expiration is never extended.
    tenant("rootKeys.rerollKey", {"keyId": old["keyId"], "expiration": 30 * DAY})
    listed = {row["keyId"]: row for row in tenant("rootKeys.listKeys", {})}
    assert listed[old["keyId"]]["expires"] < clock.now_ms() + DAY
    last = tenant("rootKeys.rerollKey", {"keyId": kept["keyId"], "expiration": 0})
    assert Tenant(tenant.workspace, kept["key"]).send("apis.createApi", {"name": "abc"}).status == 401
    listed = {row["keyId"]: row for row in tenant("rootKeys.listKeys", {})}
    assert kept["keyId"] not in listed
    assert {
        listed[last["keyId"]][name] == listed[old["keyId"]][name] for name in ("name", "permissions")
    } == {True}


def test_a_reroll_that_ends_the_old_key_needs_the_permission_to_delete_it(tenant: Tenant) -> None:
    key = tenant("rootKeys.createKey", {"permissions": []})["keyId"]
    writer = granted(tenant, f"rootKeys/{key}#write")
    writer.refused("rootKeys.rerollKey", {"keyId": key, "expiration": 0}, 403)
    writer.refused("rootKeys.deleteKey", {"keyId": key}, 403)
    writer("rootKeys.rerollKey", {"keyId": key, "expiration": None})


def test_a_deleted_key_is_unknown_and_what_is_unknown_is_not_found(tenant: Tenant, stranger: Tenant) -> None:
    key = tenant("rootKeys.createKey", {"permissions": []})
    tenant("rootKeys.deleteKey", {"keyId": key["keyId"]})
    Tenant(tenant.workspace, key["key"]).refused("apis.createApi", {"name": "abc"}, 401)
    for unknown in (key["keyId"], ids.new("key"), id_of(stranger)):
        for operation, more in (
            ("deleteKey", {}),
            ("updateKey", {"enabled": False}),
            ("rerollKey", {"expiration": 0}),
        ):
            fault = tenant.refused(f"rootKeys.{operation}", {"keyId": unknown, **more}, 404)
            assert fault["type"].endswith("/key_not_found")
    assert stranger("rootKeys.listKeys", {})[0]["enabled"] is True


def test_limits_say_what_is_taken(tenant: Tenant) -> None:
    Usage.objects.create(
        workspace=tenant.workspace, period=f"{clock.now():%Y-%m}", verifications=5, ratelimits=2
    )
    Limits.objects.filter(pk=tenant.workspace.pk).update(
        billable_operations_per_month=150_000, api_requests_per_minute=100
    )
    limits = tenant("workspace.getLimits", {})
    assert limits["apiBillableOperationsCountMaxPerMonth"] == {"limit": 150_000, "current": 7}
    assert limits["apiRequestsCountMaxPerMinute"] == {"limit": 100}
    assert limits["logsAuditRetentionDaysMax"] == {"limit": 30}
    assert limits["cpuCoresMax"] == {"limit": 64, "current": 0}
    tenant.holding("api.*.read_api").refused("workspace.getLimits", {}, 403)
    granted(tenant, "limits#read")("workspace.getLimits", {})


def test_usage_is_that_of_the_month_that_is_asked_for(tenant: Tenant) -> None:
    now = clock.now()
    Usage.objects.create(workspace=tenant.workspace, period=f"{now:%Y-%m}", verifications=5, ratelimits=2)
    usage = granted(tenant, "usage#read")("workspace.getUsage", {})
    assert usage["totals"]["api"] == {"verifications": 5, "ratelimits": 2}
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert usage["period"]["start"] == clock.to_ms(start)
    earlier = start - timedelta(days=1)
    past = tenant("workspace.getUsage", {"period": {"year": earlier.year, "month": earlier.month}})
    assert past["totals"]["api"] == {"verifications": 0, "ratelimits": 0}
    assert past["period"]["end"] == clock.to_ms(start)
    for when in (now + timedelta(days=40), now - timedelta(days=130)):
        body = {"period": {"year": when.year, "month": when.month}}
        assert tenant.refused("workspace.getUsage", body, 400)["errors"][0]["location"] == "body.period"


def test_a_root_key_can_be_held_to_one_key_space(tenant: Tenant) -> None:
    mine, other = (tenant("apis.createApi", {"name": name})["apiId"] for name in ("mine", "other"))
    spaces = dict(Api.objects.unscoped("test").values_list("pk", "key_space_id"))
    theirs = tenant("keys.createKey", {"apiId": other})["keyId"]
    space = spaces[mine]
    limited = granted(tenant, f"keyspaces/{space}#create_key", f"keyspaces/{space}/**#*")
    key = limited("keys.createKey", {"apiId": mine})["keyId"]
    limited("keys.updateKey", {"keyId": key, "name": "first"})
    assert limited("keys.getKey", {"keyId": key})["name"] == "first"
    assert limited.send("keys.createKey", {"apiId": other}).status == 404
    for operation in ("keys.getKey", "keys.deleteKey"):
        assert limited.send(operation, {"keyId": theirs}).status in (403, 404)
    assert Key.objects.unscoped("test").get(pk=theirs).deleted_at is None


def test_a_root_key_can_be_held_to_one_project(tenant: Tenant) -> None:
    projects = [
        tenant("projects.createProject", {"name": slug, "slug": slug})["id"] for slug in ("mine", "other")
    ]
    grant = f"unkey:v1:{tenant.workspace.id}:projects/{projects[0]}/**#*"
    limited = tenant.holding(f"project.{projects[0]}.read_project", grant)
    assert limited("projects.getProject", {"project": "mine"})["id"] == projects[0]
    limited("apps.createApp", {"project": "mine", "name": "Web", "slug": "web"})
    assert limited.send("projects.getProject", {"project": "other"}).status in (403, 404)
    assert limited.send("apps.createApp", {"project": "other", "name": "Web", "slug": "web"}).status in (
        403,
        404,
    )
