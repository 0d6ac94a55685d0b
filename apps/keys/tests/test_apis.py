"""`apis.*` through HTTP."""

from apps.audit.models import AuditLog
from apps.keys.models import Api
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped


def test_an_api_is_created_read_and_deleted(tenant: Tenant) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    assert tenant("apis.getApi", {"apiId": api_id}) == {"id": api_id, "name": "payments"}

    assert tenant("apis.deleteApi", {"apiId": api_id}) == {}

    for operation in ("apis.getApi", "apis.deleteApi"):
        error = tenant.refused(operation, {"apiId": api_id}, 404)
        assert error == {
            "title": "Not Found",
            "detail": f"The API {api_id} does not exist.",
            "status": 404,
            "type": "https://unkey.com/docs/errors/unkey/data/api_not_found",
        }
    with unscoped("test"):
        events = AuditLog.objects.filter(workspace=tenant.workspace).order_by("time")
        assert [event.event for event in events][-2:] == ["api.create", "api.delete"]
        assert {(event.actor_type, event.remote_ip) for event in list(events)[-2:]} == {
            ("rootkey", "127.0.0.1")
        }
        kinds = [[target["type"] for target in event.targets] for event in list(events)[-2:]]
        assert kinds == [["api", "keySpace"], ["api"]]


def test_names_of_apis_need_not_be_unique(tenant: Tenant) -> None:
    first = tenant("apis.createApi", {"name": "payments"})
    second = tenant("apis.createApi", {"name": "payments"})
    assert first["apiId"] != second["apiId"]


def test_a_protected_api_is_not_deleted(tenant: Tenant) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    Api.objects.unscoped("test").filter(pk=api_id).update(delete_protection=True)

    error = tenant.refused("apis.deleteApi", {"apiId": api_id}, 412)

    assert error["title"] == "Resource is protected"
    assert error["type"].endswith("/unkey/application/protected_resource")
    assert tenant("apis.getApi", {"apiId": api_id})["id"] == api_id


def test_deleting_an_api_ends_its_keys(tenant: Tenant) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    made = tenant("keys.createKey", {"apiId": api_id})
    assert tenant("keys.verifyKey", {"key": made["key"]})["valid"]

    tenant("apis.deleteApi", {"apiId": api_id})

    assert tenant("keys.verifyKey", {"key": made["key"]}) == {"valid": False, "code": "NOT_FOUND"}
    tenant.refused("keys.getKey", {"keyId": made["keyId"]}, 404)
    tenant.refused("keys.updateKey", {"keyId": made["keyId"], "enabled": False}, 404)


def test_keys_are_listed_in_pages_ordered_by_id(tenant: Tenant) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    other = tenant("apis.createApi", {"name": "other"})["apiId"]
    tenant("keys.createKey", {"apiId": other})
    made = sorted(tenant("keys.createKey", {"apiId": api_id})["keyId"] for _ in range(5))

    seen: list[str] = []
    body: dict[str, object] = {"apiId": api_id, "limit": 2}
    while True:
        page = tenant.full("apis.listKeys", body)
        assert len(page["data"]) <= 2
        seen += [key["keyId"] for key in page["data"]]
        if not page["pagination"]["hasMore"]:
            assert page["pagination"] == {"hasMore": False}
            break
        body["cursor"] = page["pagination"]["cursor"]

    assert seen == made


def test_listing_leaves_deleted_keys_out_and_filters_by_external_id(tenant: Tenant) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    gone = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})["keyId"]
    kept = tenant("keys.createKey", {"apiId": api_id, "externalId": "ada"})["keyId"]
    tenant("keys.createKey", {"apiId": api_id, "externalId": "grace"})
    tenant("keys.deleteKey", {"keyId": gone})

    listed = tenant("apis.listKeys", {"apiId": api_id, "externalId": "ada"})
    assert [key["keyId"] for key in listed] == [kept]
    assert listed[0]["identity"]["externalId"] == "ada"
    assert tenant("apis.listKeys", {"apiId": api_id, "externalId": "nobody"}) == []


def test_listing_costs_the_same_queries_for_one_key_as_for_many(
    tenant: Tenant, django_assert_max_num_queries: object
) -> None:
    api_id = tenant("apis.createApi", {"name": "payments"})["apiId"]
    for number in range(10):
        tenant(
            "keys.createKey",
            {
                "apiId": api_id,
                "permissions": ["a", "b"],
                "externalId": f"user_{number}",
                "credits": {"remaining": 3},
                "ratelimits": [{"name": "tokens", "limit": 5, "duration": 1000}],
            },
        )
    with django_assert_max_num_queries(12):  # type: ignore[operator]
        assert len(tenant("apis.listKeys", {"apiId": api_id})) == 10
