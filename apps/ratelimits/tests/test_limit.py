"""`ratelimit.limit` and `ratelimit.multiLimit`, the same at web and at an edge."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.quota.models import Limits
from apps.quota.services import set_limits
from apps.ratelimits import services
from apps.ratelimits.models import Namespace
from apps.ratelimits.tests.conftest import NOW, Clock, Door
from unkey.actors import system
from unkey.rpc.testing import Tenant, make_tenant
from unkey.tenancy import unscoped, workspace_scope

MINUTE = 60_000
RESET = NOW + MINUTE
TESTS = system("tests")


def namespaces(tenant: Tenant) -> "list[str]":
    """Return the names of a workspace's namespaces."""
    with workspace_scope(tenant.workspace.id):
        return sorted(Namespace.objects.values_list("name", flat=True))


def override(door: Door, identifier: str, limit: int, duration: int = MINUTE) -> str:
    """Set an override in `mails`."""
    body = {"namespace": "mails", "identifier": identifier, "limit": limit, "duration": duration}
    return str(door("ratelimit.setOverride", body)["overrideId"])


def test_a_limit_counts_down_and_then_denies(door: Door) -> None:
    rows = [door.limit(limit=2) for _ in range(3)]
    assert rows == [
        {"limit": 2, "remaining": 1, "reset": RESET, "success": True},
        {"limit": 2, "remaining": 0, "reset": RESET, "success": True},
        {"limit": 2, "remaining": 0, "reset": RESET, "success": False},
    ]


def test_cost_and_duration_are_the_requests_own(door: Door, time: Clock) -> None:
    assert door.limit(limit=10, cost=4)["remaining"] == 6
    assert door.limit(limit=10, cost=0)["remaining"] == 6
    assert door.limit(limit=10, cost=7)["success"] is False
    assert door.limit(limit=10, cost=6)["remaining"] == 0
    # Another duration is another counter; so is another identifier.
    assert door.limit(limit=10, duration=1000) == {
        "limit": 10,
        "remaining": 9,
        "reset": NOW + 1000,
        "success": True,
    }
    assert door.limit("other", limit=10)["remaining"] == 9
    # Half of the minute later half of what was counted weighs.
    time.now = RESET + 30_000
    assert door.limit(limit=10)["remaining"] == 10 - 5 - 1


def test_a_namespace_is_made_at_its_first_use_and_named_by_id_or_name(door: Door) -> None:
    door.limit()
    assert namespaces(door.tenant) == ["mails"]
    with workspace_scope(door.tenant.workspace.id):
        row = Namespace.objects.get()
        audits = list(AuditLog.objects.filter(event="ratelimitNamespace.create"))
    assert [(each.actor_type, each.remote_ip) for each in audits] == [("rootkey", "127.0.0.1")]
    assert door.limit(namespace=row.id)["remaining"] == 1
    assert namespaces(door.tenant) == ["mails"]


def test_a_namespace_is_made_only_by_who_may_use_and_make_it(door: Door) -> None:
    body = {"namespace": "mails", "identifier": "user", "limit": 3, "duration": MINUTE}
    for held, missing in (
        (["ratelimit.*.limit"], "ratelimit.*.create_namespace"),
        (["ratelimit.*.create_namespace"], "ratelimit.*.limit"),
        ([], "ratelimit.*.create_namespace"),
    ):
        error = door.holding(*held).refused("ratelimit.limit", body, 403)
        assert error["type"].endswith("/unkey/authorization/insufficient_permissions")
        assert error["detail"] == f"Missing permission: '{missing}'"
        door.holding(*held).refused("ratelimit.multiLimit", [body], 403)
    assert namespaces(door.tenant) == []
    may = door.holding("ratelimit.*.limit", "ratelimit.*.create_namespace")
    assert may.limit()["remaining"] == 2


def test_permissions_are_of_each_namespace(door: Door) -> None:
    door.limit()
    door.limit(namespace="texts")
    with workspace_scope(door.tenant.workspace.id):
        mails = Namespace.objects.get(name="mails").id
    only = door.holding(f"ratelimit.{mails}.limit")
    assert only.limit()["remaining"] == 1
    body = {"namespace": "texts", "identifier": "user", "limit": 3, "duration": MINUTE}
    assert only.refused("ratelimit.limit", body, 403)["detail"].startswith(
        "Missing one of these permissions: "
    )
    both = [{**body, "namespace": "mails"}, body]
    only.refused("ratelimit.multiLimit", both, 403)
    assert door.limit(cost=0)["remaining"] == 1


def test_a_deleted_namespace_is_gone(door: Door) -> None:
    door.limit()
    with workspace_scope(door.tenant.workspace.id):
        services.delete_namespace(Namespace.objects.get(), actor=TESTS)
    if door.edge is not None:
        door.edge.caught_up()
    body = {"namespace": "mails", "identifier": "user", "limit": 3, "duration": MINUTE}
    for operation, asked in (("ratelimit.limit", body), ("ratelimit.multiLimit", [body])):
        error = door.refused(operation, asked, 410)
        assert error["type"].endswith("/unkey/data/ratelimit_namespace_gone")
        assert error["title"] == "Resource Gone"


def test_a_renamed_namespace_goes_on_counting(door: Door) -> None:
    door.limit()
    with workspace_scope(door.tenant.workspace.id):
        services.rename_namespace(Namespace.objects.get(), "letters", actor=TESTS)
    if door.edge is not None:
        door.edge.caught_up()
    assert door.limit(namespace="letters")["remaining"] == 1
    assert door.limit()["remaining"] == 2
    assert namespaces(door.tenant) == ["letters", "mails"]


def test_an_override_replaces_limit_and_duration_from_the_next_request_on(door: Door) -> None:
    door.limit()
    made = override(door, "user", 100, 1000)
    assert door.limit() == {
        "limit": 100,
        "remaining": 99,
        "reset": NOW + 1000,
        "success": True,
        "overrideId": made,
    }
    assert door.limit("other")["limit"] == 3
    door("ratelimit.deleteOverride", {"namespace": "mails", "identifier": "user"})
    assert door.limit() == {"limit": 3, "remaining": 1, "reset": RESET, "success": True}


def test_the_identifiers_own_override_goes_before_patterns_and_the_oldest_pattern_first(door: Door) -> None:
    door.limit()
    override(door, "*_test", 50)
    override(door, "user_*", 40)
    override(door, "user_7_test", 7)
    override(door, "*", 1000)
    limits = {
        name: door.limit(name)["limit"] for name in ("user_7_test", "user_8_test", "user_9", "x", "USER_9")
    }
    assert limits == {"user_7_test": 7, "user_8_test": 50, "user_9": 40, "x": 1000, "USER_9": 1000}


def test_an_override_of_nothing_denies_everything_that_costs(door: Door) -> None:
    door.limit()
    made = override(door, "bad_*", 0)
    denied = {"limit": 0, "remaining": 0, "reset": RESET, "success": False, "overrideId": made}
    assert door.limit("bad_actor") == denied
    assert door.limit("bad_actor", cost=0)["success"] is True
    assert door.limit("user")["success"] is True


def test_of_several_limits_all_are_counted_or_none(door: Door) -> None:
    asked: list[dict[str, Any]] = [
        {"namespace": "mails", "identifier": "user", "limit": 5, "duration": MINUTE, "cost": 2},
        {"namespace": "texts", "identifier": "user", "limit": 1, "duration": MINUTE},
    ]
    passed = {"passed": True, "reset": RESET, "identifier": "user"}
    assert door("ratelimit.multiLimit", asked) == {
        "passed": True,
        "limits": [
            {"namespace": "mails", "limit": 5, "remaining": 3, **passed},
            {"namespace": "texts", "limit": 1, "remaining": 0, **passed},
        ],
    }
    assert door("ratelimit.multiLimit", asked) == {
        "passed": False,
        "limits": [
            {"namespace": "mails", "limit": 5, "remaining": 3, **passed},
            {"namespace": "texts", "limit": 1, "remaining": 0, **passed, "passed": False},
        ],
    }
    assert door.limit(limit=5, cost=0)["remaining"] == 3
    made = override(door, "user", 9)
    again = door("ratelimit.multiLimit", [asked[0], asked[0]])
    assert [(one["remaining"], one["overrideId"]) for one in again["limits"]] == [(3, made), (3, made)]


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"limit": 0}, "body.limit"),
        ({"duration": 999}, "body.duration"),
        ({"duration": 2_592_000_001}, "body.duration"),
        ({"cost": -1}, "body.cost"),
        ({"cost": 1.5}, "body.cost"),
        ({"identifier": ""}, "body.identifier"),
        ({"identifier": "x" * 513}, "body.identifier"),
        ({"namespace": ""}, "body.namespace"),
        ({"more": 1}, "body.more"),
    ],
)
def test_every_fault_is_told_with_its_place(time: Clock, wrong: dict[str, Any], where: str) -> None:
    """What both doors read bodies by; no database is asked."""
    import msgspec

    from edge.verify.limit_request import LIMIT_READER, MULTI_READER
    from unkey.errors import InvalidInput

    body = {"namespace": "mails", "identifier": "user", "limit": 3, "duration": MINUTE, **wrong}
    with pytest.raises(InvalidInput) as told:
        LIMIT_READER.read(msgspec.json.encode(body))
    assert [fault.location for fault in told.value.violations] == [where]
    with pytest.raises(InvalidInput) as told:
        MULTI_READER.read(msgspec.json.encode([{**body, **wrong}]))
    assert [fault.location for fault in told.value.violations] == [where.replace("body", "body[0]")]


def test_whole_numbers_may_be_written_as_floats_and_other_bodies_are_refused(door: Door) -> None:
    floats: dict[str, Any] = {"limit": 3.0, "cost": 2.0}
    assert door.limit(**floats) == {"limit": 3, "remaining": 1, "reset": RESET, "success": True}
    for operation, body in (
        ("ratelimit.limit", []),
        ("ratelimit.multiLimit", []),
        ("ratelimit.multiLimit", {}),
    ):
        assert door.refused(operation, body, 400)["type"].endswith("/unkey/application/invalid_input")
    one = {"namespace": "mails", "identifier": "user", "limit": 3, "duration": MINUTE}
    door.refused("ratelimit.multiLimit", [one] * 101, 400)
    assert len(door("ratelimit.multiLimit", [{**one, "cost": 0}] * 100)["limits"]) == 100


def test_the_workspaces_own_limit_counts_and_is_told(door: Door) -> None:
    door.limit()
    Limits.objects.get_or_create(workspace=door.tenant.workspace)
    set_limits(door.tenant.workspace.id, {"api_requests_per_minute": 2}, actor=TESTS)
    if door.edge is not None:
        door.edge.caught_up()
    body = {"namespace": "mails", "identifier": "user", "limit": 9, "duration": MINUTE}
    answers = [door.send("ratelimit.limit", body) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].headers["Retry-After"] == "60"
    assert answers[1].body["data"]["remaining"] == 9 - 3


def test_another_workspaces_namespace_is_a_name_like_any_other(door: Door) -> None:
    door.limit(limit=9)
    with unscoped("test"):
        theirs = Namespace.objects.get().id
    stranger = make_tenant("stranger")
    if door.edge is not None:
        door.edge.caught_up()
    ours = Door(stranger, door.edge, door.limits)
    assert ours.limit(namespace=theirs, limit=9)["remaining"] == 8
    assert namespaces(stranger) == [theirs]
    assert door.limit(namespace=theirs, limit=9)["remaining"] == 7
    for operation in ("setOverride", "getOverride", "deleteOverride"):
        body: dict[str, Any] = {"namespace": "mails", "identifier": "user"}
        more = {"limit": 1, "duration": 1000} if operation == "setOverride" else {}
        ours.refused(f"ratelimit.{operation}", body | more, 404)
