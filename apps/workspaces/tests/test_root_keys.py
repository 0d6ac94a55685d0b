"""Workspaces and root keys: services, commands, and what a root key meets at the API's door."""

import base64
import hashlib
import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditLog
from apps.quota.models import Limits
from apps.workspaces import services
from apps.workspaces.models import RootKey, Workspace, shard_of
from apps.workspaces.permissions import everything, fault_of
from unkey import clock, errors
from unkey.rpc.testing import TESTS, Tenant
from unkey.tenancy import unscoped


def run(*arguments: str) -> str:
    """Run a management command and return what it printed."""
    out = StringIO()
    call_command(*arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def root_key_of(tenant: Tenant) -> RootKey:
    """Return the tenant's root key."""
    return RootKey.objects.unscoped("test").get(workspace=tenant.workspace)


def refusal(tenant: Tenant) -> tuple[int, str]:
    """Return status and code of a call that the root key may not make."""
    answer = tenant.send("apis.createApi", {"name": "abc"})
    return answer.status, answer.body["error"]["type"].removeprefix("https://unkey.com/docs/errors/unkey/")


def test_a_workspace_has_limits_a_version_and_an_audit_row(db: None) -> None:
    workspace = services.create_workspace("Acme", "acme", actor=TESTS)
    assert Limits.objects.get(workspace=workspace).replicas_max == 10
    assert workspace.version == 1
    assert workspace.stream == f"keys:{shard_of(workspace.id)}"
    with unscoped("test"):
        assert AuditLog.objects.get(workspace=workspace).event == "workspace.create"


def test_a_slug_is_taken_once(db: None) -> None:
    services.create_workspace("Acme", "acme", actor=TESTS)
    with pytest.raises(errors.WorkspaceAlreadyExists):
        services.create_workspace("Other", "acme", actor=TESTS)
    assert Workspace.objects.count() == 1


def test_only_the_hash_of_a_root_key_is_stored(tenant: Tenant) -> None:
    row = root_key_of(tenant)
    assert tenant.root_key.startswith("unkey_")
    assert row.hash == base64.b64encode(hashlib.sha256(tenant.root_key.encode()).digest()).decode()
    assert row.start == tenant.root_key[:10]
    assert tenant.root_key not in str(vars(row).values())


def test_what_another_process_does_to_a_root_key_is_seen_within_a_second(tenant: Tenant) -> None:
    tenant("apis.createApi", {"name": "abc"})
    RootKey.objects.unscoped("test").filter(workspace=tenant.workspace).update(enabled=False)
    with clock.shifted(timedelta(seconds=1)):
        assert refusal(tenant) == (403, "authorization/key_disabled")
    Workspace.objects.filter(pk=tenant.workspace.pk).update(enabled=False)
    with clock.shifted(timedelta(seconds=2)):
        assert refusal(tenant) == (403, "authorization/workspace_disabled")


def test_a_deleted_root_key_is_unknown(tenant: Tenant) -> None:
    services.delete_root_key(root_key_of(tenant), actor=TESTS)
    assert refusal(tenant) == (401, "authentication/key_not_found")
    with pytest.raises(errors.KeyNotFound):
        services.delete_root_key(root_key_of(tenant), actor=TESTS)


def test_a_disabled_root_key_says_so_until_it_is_enabled(tenant: Tenant) -> None:
    before = root_key_of(tenant).version
    disabled = services.set_root_key_enabled(root_key_of(tenant), False, actor=TESTS)
    assert disabled.version > before
    assert refusal(tenant) == (403, "authorization/key_disabled")
    services.set_root_key_enabled(root_key_of(tenant), True, actor=TESTS)
    tenant("apis.createApi", {"name": "abc"})


def test_a_disabled_workspace_comes_before_a_disabled_key(tenant: Tenant) -> None:
    services.set_root_key_enabled(root_key_of(tenant), False, actor=TESTS)
    services.set_workspace_enabled(tenant.workspace, False, actor=TESTS)
    assert refusal(tenant) == (403, "authorization/workspace_disabled")


def test_an_expired_root_key_is_forbidden(tenant: Tenant) -> None:
    expires = clock.now() + timedelta(hours=1)
    _, plaintext = services.create_root_key(
        tenant.workspace, "short", everything(tenant.workspace.id), actor=TESTS, expires_at=expires
    )
    short = Tenant(tenant.workspace, plaintext)
    short("apis.createApi", {"name": "abc"})
    with clock.shifted(timedelta(hours=1, seconds=1)):
        assert refusal(short) == (403, "authorization/forbidden")


@pytest.mark.parametrize(
    "permission",
    [
        "api.*.create_api",
        "api.api_1.read_key",
        "rbac.*.create_role",
        "unkey:v1:ws_1:**#*",
        "unkey:v1:ws_1:keyspaces/*/keys/key_1#read_key",
        "unkey:v1:ws_1:projects/**#read_project",
    ],
)
def test_permissions_that_a_root_key_can_hold(permission: str) -> None:
    assert fault_of(permission, "ws_1") == ""


@pytest.mark.parametrize(
    ("permission", "fault"),
    [
        ("", "must read"),
        ("api.*", "must read"),
        ("api.*.create_api ", "must read"),
        ("cats.*.pet", "not one of"),
        ("api.*.pet", "not an action of api"),
        ("api.api_1.create_api", "id must be *"),
        ("rbac.role_1.create_role", "id must be *"),
        ("unkey:v1:ws_2:**#*", "another workspace"),
        ("unkey:v1:ws_1:keyspaces/*#*", "needs a path that ends in **"),
        ("unkey:v1:ws_1:**/keys#read_key", "only end"),
        ("unkey:v1:ws_1:keyspaces/ks_*#read_key", "whole segment"),
        ("unkey:v1:ws_1:keyspaces//keys#read_key", "must read"),
        ("unkey:v1:ws_1:keyspaces/ks_1", "must read"),
    ],
)
def test_what_is_no_permission_is_refused(tenant: Tenant, permission: str, fault: str) -> None:
    assert fault in fault_of(permission, "ws_1")
    with pytest.raises(errors.InvalidInput):
        services.create_root_key(tenant.workspace, "bad", ["api.*.create_api", permission], actor=TESTS)
    assert RootKey.objects.unscoped("test").count() == 1


def test_everything_is_valid_and_complete() -> None:
    full = everything("ws_1")
    assert [fault_of(permission, "ws_1") for permission in full] == [""] * len(full)
    assert len(full) == len(set(full)) == 80
    assert {"api.*.create_api", "environment.*.create_deployment", "unkey:v1:ws_1:**#*"} <= set(full)


def test_commands_make_a_workspace_and_a_key_that_works(db: None) -> None:
    made = json.loads(run("create_workspace", "Acme Inc", "--json"))
    assert made["slug"] == "acme-inc"
    key = json.loads(run("create_root_key", "--workspace", "acme-inc", "--name", "ci", "--all", "--json"))
    assert key["workspace_id"] == made["workspace_id"]
    tenant = Tenant(Workspace.objects.get(), key["root_key"])
    assert tenant("apis.createApi", {"name": "abc"})["apiId"].startswith("api_")

    plain = run(
        "create_root_key", "--workspace", made["workspace_id"], "--permission", "api.*.read_api"
    ).strip()
    Tenant(tenant.workspace, plain).refused("apis.createApi", {"name": "abc"}, 403)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("create_workspace", "Acme"), "exists"),
        (("create_workspace", " "), "1 to 256"),
        (("create_workspace", "???"), "--slug"),
        (("create_workspace", "x", "--slug", "a b"), "--slug"),
        (("create_workspace", "x", "--slug", "a" * 65), "64"),
        (("create_root_key", "--workspace", "nobody", "--all"), "no workspace nobody"),
        (("create_root_key", "--workspace", "acme", "--permission", "cats.*.pet"), "cats"),
        (("create_root_key", "--workspace", "acme"), "required"),
        (("create_root_key", "--workspace", "acme", "--all", "--permission", "x"), "not allowed"),
    ],
)
def test_commands_say_what_is_wrong_in_a_line(db: None, arguments: tuple[str, ...], complaint: str) -> None:
    services.create_workspace("Acme", "acme", actor=TESTS)
    with pytest.raises(CommandError, match=complaint.replace("?", r"\?")):
        run(*arguments)
    assert Workspace.objects.count() == 1


def test_operators_make_list_stop_and_rotate_root_keys(db: None) -> None:
    workspace = services.create_workspace("Acme", "acme", actor=TESTS)
    made = json.loads(run("rootkeys", "create", "--workspace", "acme", "--all", "--name", "ci", "--json"))
    tenant = Tenant(workspace, made["root_key"])
    tenant("apis.createApi", {"name": "abc"})
    assert "ci" in run("rootkeys", "list", "--workspace", "acme")
    assert made["root_key"] not in run("rootkeys", "list", "--json")
    assert run("rootkeys", "disable", made["key_id"]) == f"{made['key_id']} is disabled\n"
    assert refusal(tenant) == (403, "authorization/key_disabled")
    run("rootkeys", "enable", made["key_id"])
    rotated = json.loads(run("rootkeys", "rotate", made["key_id"], "--grace-hours", "1", "--json"))
    for key in (made["root_key"], rotated["root_key"]):
        Tenant(workspace, key)("apis.createApi", {"name": "abc"})
    with clock.shifted(timedelta(hours=2)):
        assert refusal(tenant) == (403, "authorization/forbidden")
    run("rootkeys", "rotate", made["key_id"], "--grace-hours", "0")
    assert refusal(tenant) == (401, "authentication/key_not_found")
    with pytest.raises(CommandError, match="does not exist"):
        run("rootkeys", "disable", made["key_id"])
    with pytest.raises(CommandError, match="no workspace"):
        run("rootkeys", "list", "--workspace", "nobody")
    short = json.loads(run("rootkeys", "create", "--workspace", "acme", "--all", "--days", "1", "--json"))
    with clock.shifted(timedelta(days=2)):
        assert refusal(Tenant(workspace, short["root_key"])) == (403, "authorization/forbidden")
