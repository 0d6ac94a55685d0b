"""`ratelimit.setOverride`, `getOverride`, `listOverrides`, `deleteOverride`, and who may."""

from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.ratelimits import queries, services
from apps.ratelimits.models import Namespace, Override
from unkey import errors
from unkey.actors import system
from unkey.rpc.testing import Tenant
from unkey.tenancy import workspace_scope

TESTS = system("tests")
NAME = {"namespace": "mails", "identifier": "user_*"}
SET = {**NAME, "limit": 7, "duration": 60_000}


@pytest.fixture
def mails(tenant: Tenant) -> Namespace:
    """A namespace."""
    with workspace_scope(tenant.workspace.id):
        return services.create_namespace(tenant.workspace.id, "mails", actor=TESTS)


def audited(tenant: Tenant, event: str) -> list[dict[str, Any]]:
    """Return the details of a workspace's audit rows of an event, in some order."""
    with workspace_scope(tenant.workspace.id):
        return sorted(AuditLog.objects.filter(event=event).values_list("meta", flat=True), key=repr)


def test_an_override_is_set_again_under_its_id(tenant: Tenant, mails: Namespace) -> None:
    made = tenant("ratelimit.setOverride", SET)["overrideId"]
    assert made.startswith("rlor_")
    assert tenant("ratelimit.setOverride", {**SET, "namespace": mails.id, "limit": 0}) == {"overrideId": made}
    shown = {"overrideId": made, "identifier": "user_*", "limit": 0, "duration": 60_000}
    assert tenant("ratelimit.getOverride", NAME) == shown
    tenant("ratelimit.deleteOverride", NAME)
    assert tenant("ratelimit.setOverride", SET) == {"overrideId": made}
    seven, nothing = {"limit": 7, "duration": 60_000}, {"limit": 0, "duration": 60_000}
    changes = [
        {"before": {}, "after": seven},
        {"before": seven, "after": nothing},
        {"before": {}, "after": seven},
    ]
    assert audited(tenant, "ratelimit.set_override") == sorted(changes, key=repr)
    assert audited(tenant, "ratelimit.delete_override") == [{"before": nothing, "after": {}}]


def test_get_finds_what_would_count_and_delete_takes_the_very_text(tenant: Tenant, mails: Namespace) -> None:
    made = tenant("ratelimit.setOverride", SET)["overrideId"]
    found = tenant("ratelimit.getOverride", {**NAME, "identifier": "user_7"})
    assert (found["overrideId"], found["identifier"]) == (made, "user_*")
    missing = {**NAME, "identifier": "user_7"}
    error = tenant.refused("ratelimit.deleteOverride", missing, 404)
    assert error["type"].endswith("/unkey/data/ratelimit_override_not_found")
    assert tenant("ratelimit.deleteOverride", NAME) == {}
    tenant.refused("ratelimit.deleteOverride", NAME, 404)
    error = tenant.refused("ratelimit.getOverride", NAME, 404)
    assert error["type"].endswith("/unkey/data/ratelimit_override_not_found")


def test_overrides_are_listed_page_by_page(tenant: Tenant, mails: Namespace) -> None:
    made = sorted(
        tenant("ratelimit.setOverride", {**SET, "identifier": f"user_{number}"})["overrideId"]
        for number in range(12)
    )
    first = tenant.full("ratelimit.listOverrides", {"namespace": "mails"})
    assert [row["overrideId"] for row in first["data"]] == made[:10]
    assert first["pagination"] == {"hasMore": True, "cursor": made[10]}
    body = {"namespace": mails.id, "cursor": made[10], "limit": 100}
    rest = tenant.full("ratelimit.listOverrides", body)
    assert [row["overrideId"] for row in rest["data"]] == made[10:]
    assert rest["pagination"] == {"hasMore": False}


@pytest.mark.parametrize(
    ("operation", "more"),
    [
        ("setOverride", {"limit": 7, "duration": 60_000}),
        ("getOverride", {}),
        ("deleteOverride", {}),
        ("listOverrides", None),
    ],
)
def test_in_a_namespace_that_is_not_there_nothing_is_found(
    tenant: Tenant, mails: Namespace, operation: str, more: dict[str, Any] | None
) -> None:
    def refused(namespace: str) -> str:
        body: dict[str, Any] = {"namespace": namespace}
        if more is not None:
            body |= {"identifier": "user", **more}
        return str(tenant.refused(f"ratelimit.{operation}", body, 404)["type"])

    assert refused("letters").endswith("/unkey/data/ratelimit_namespace_not_found")
    with workspace_scope(tenant.workspace.id):
        services.delete_namespace(mails, actor=TESTS)
    assert refused("mails").endswith("/unkey/data/ratelimit_namespace_not_found")


def test_each_operation_asks_for_its_permission_of_the_namespace(tenant: Tenant, mails: Namespace) -> None:
    made = tenant("ratelimit.setOverride", SET)["overrideId"]
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "set_override": ("ratelimit.setOverride", SET),
        "read_override": ("ratelimit.getOverride", NAME),
        "delete_override": ("ratelimit.deleteOverride", NAME),
    }
    for action, (operation, body) in calls.items():
        others = [f"ratelimit.*.{other}" for other in calls if other != action]
        status = 404 if action == "read_override" else 403
        wrong = tenant.holding(*others, f"ratelimit.rlns_other.{action}")
        wrong.refused(operation, body, status)
        tenant.holding(f"ratelimit.{mails.id}.{action}")(operation, body)
    tenant("ratelimit.setOverride", SET)
    listing = {"namespace": "mails"}
    tenant.holding("ratelimit.*.limit").refused("ratelimit.listOverrides", listing, 403)
    assert len(tenant.holding("ratelimit.*.read_override")("ratelimit.listOverrides", listing)) == 1
    path = f"unkey:v1:{tenant.workspace.id}:ratelimits/namespaces/{mails.id}/overrides"
    for grant in (f"{path}/{made}#read_override", f"{path}/*#read_override"):
        assert tenant.holding(grant)("ratelimit.getOverride", NAME)["overrideId"] == made
    tenant.holding(f"{path}/rlor_other#read_override").refused("ratelimit.getOverride", NAME, 404)


def test_a_name_is_one_namespaces_and_stays_taken(tenant: Tenant, mails: Namespace) -> None:
    with workspace_scope(tenant.workspace.id):
        with pytest.raises(errors.RatelimitNamespaceAlreadyExists):
            services.create_namespace(tenant.workspace.id, "mails", actor=TESTS)
        assert services.ensure_namespace(tenant.workspace.id, "mails", actor=TESTS) == mails
        texts = services.create_namespace(tenant.workspace.id, "texts", actor=TESTS)
        with pytest.raises(errors.RatelimitNamespaceAlreadyExists):
            services.rename_namespace(texts, "mails", actor=TESTS)
        services.delete_namespace(mails, actor=TESTS)
        with pytest.raises(errors.RatelimitNamespaceNotFound):
            services.set_override(mails, "user", limit=1, duration_ms=1000, actor=TESTS)
        with pytest.raises(errors.RatelimitNamespaceAlreadyExists):
            services.create_namespace(tenant.workspace.id, "mails", actor=TESTS)
        assert services.ensure_namespace(tenant.workspace.id, "mails", actor=TESTS).deleted_at is not None
        assert [row.name for row in queries.live_namespaces()] == ["texts"]
        assert Override.objects.count() == 0


def test_limits_take_a_fixed_number_of_queries(tenant: Tenant, django_assert_max_num_queries: Any) -> None:
    limit = {"identifier": "user", "limit": 9, "duration": 60_000}
    body = [{**limit, "namespace": f"space-{number}"} for number in range(20)]
    tenant("ratelimit.multiLimit", body)
    with django_assert_max_num_queries(4):
        tenant("ratelimit.multiLimit", body)
