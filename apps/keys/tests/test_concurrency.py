"""Writers at the same time, each with a connection of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection

from apps.keys.models import Identity, Key, Permission
from unkey.rpc.testing import Tenant, make_tenant

pytestmark = pytest.mark.django_db(transaction=True)
AT_ONCE = 6


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Run a function in several threads that start together."""
    barrier = Barrier(AT_ONCE)

    def run(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, range(AT_ONCE)))


@pytest.fixture
def shared() -> tuple[Tenant, str]:
    """A tenant whose rows every connection sees, and an API of it."""
    tenant = make_tenant()
    return tenant, tenant("apis.createApi", {"name": "payments"})["apiId"]


def test_what_keys_share_is_made_once(shared: tuple[Tenant, str]) -> None:
    tenant, api_id = shared
    body = {"apiId": api_id, "externalId": "ada", "permissions": ["a", "b"]}
    answers = at_once(lambda _: tenant.send("keys.createKey", body).status)
    assert answers == [200] * AT_ONCE
    assert Identity.objects.unscoped("test").count() == 1
    assert Permission.objects.unscoped("test").count() == 2
    versions = list(Key.objects.unscoped("test").values_list("version", flat=True))
    assert len(set(versions)) == AT_ONCE


def test_credits_are_never_spent_twice(shared: tuple[Tenant, str]) -> None:
    tenant, api_id = shared
    made = tenant("keys.createKey", {"apiId": api_id, "credits": {"remaining": 10}})
    codes = [
        code
        for some in at_once(
            lambda _: [tenant("keys.verifyKey", {"key": made["key"]})["code"] for _ in range(3)]
        )
        for code in some
    ]
    assert sorted(codes) == ["USAGE_EXCEEDED"] * 8 + ["VALID"] * 10


def test_no_raise_of_credits_is_lost(shared: tuple[Tenant, str]) -> None:
    tenant, api_id = shared
    about = {"keyId": tenant("keys.createKey", {"apiId": api_id, "credits": {"remaining": 0}})["keyId"]}
    at_once(lambda _: tenant("keys.updateCredits", {**about, "operation": "increment", "value": 5}))
    assert tenant("keys.getKey", about)["credits"] == {"remaining": 5 * AT_ONCE}


def test_a_key_is_deleted_by_one_of_many(shared: tuple[Tenant, str]) -> None:
    tenant, api_id = shared
    about = {"keyId": tenant("keys.createKey", {"apiId": api_id})["keyId"]}
    answers = at_once(lambda _: tenant.send("keys.deleteKey", about).status)
    assert sorted(answers) == [200] + [404] * (AT_ONCE - 1)
