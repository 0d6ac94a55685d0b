"""Prepared statements answer as their querysets do, in the scope of each use."""

import pytest
from django.db import transaction

from apps.keys.models import Api, Identity
from apps.keys.services import create_api
from unkey.prepared import Prepared, insert
from unkey.rpc.testing import TESTS, Tenant, make_tenant
from unkey.tenancy import OutsideWorkspace, unscoped, workspace_scope

APIS = Prepared(lambda name: Api.objects.select_related("key_space").filter(name=name))
NAMES = Prepared(lambda: Api.objects.values_list("name", "created_at", "delete_protection"))
LOCKED = Prepared(lambda name: Identity.objects.select_for_update().filter(external_id=name))
ANY = Prepared(lambda name: Api.objects.unscoped("test").filter(name=name))


def api(tenant: Tenant, name: str) -> Api:
    """Make an API."""
    with workspace_scope(tenant.workspace.id):
        return create_api(tenant.workspace.id, name, actor=TESTS)


def test_rows_are_those_of_the_scope_of_each_use(tenant: Tenant, django_assert_num_queries) -> None:
    other = make_tenant("other")
    mine, theirs = api(tenant, "payments"), api(other, "payments")
    for owner, made in ((tenant, mine), (other, theirs)):
        with workspace_scope(owner.workspace.id), django_assert_num_queries(1):
            (found,) = APIS.all("payments")
            assert (found.pk, found.key_space.pk) == (made.pk, made.key_space.pk)
            assert vars(found).keys() >= {"workspace_id", "created_at", "version"}
            assert found.created_at == made.created_at
    with workspace_scope(tenant.workspace.id):
        assert APIS.first("nothing") is None
        assert NAMES.all() == [("payments", mine.created_at, False)]
    assert {row.pk for row in ANY.all("payments")} == {mine.pk, theirs.pk}


def test_rows_of_a_workspace_are_not_read_outside_a_scope(tenant: Tenant) -> None:
    with workspace_scope(tenant.workspace.id):
        APIS.all("payments")
    with pytest.raises(OutsideWorkspace):
        APIS.all("payments")
    with unscoped("test"), pytest.raises(OutsideWorkspace):
        APIS.all("payments")


@pytest.mark.django_db(transaction=True)
def test_rows_are_locked_in_a_transaction_only() -> None:
    tenant = make_tenant()
    with workspace_scope(tenant.workspace.id):
        with transaction.atomic():
            assert LOCKED.first("ada") is None
        with pytest.raises(transaction.TransactionManagementError):
            LOCKED.first("ada")


def test_a_row_is_inserted_as_it_is_saved(tenant: Tenant) -> None:
    made = Identity(workspace=tenant.workspace, external_id="ada", meta={"plan": "pro", "seats": [1, None]})
    with workspace_scope(tenant.workspace.id):
        insert(made)
        found = Identity.objects.get(pk=made.pk)
        assert (found.external_id, found.meta, found.created_at, found.deleted_at) == (
            "ada",
            {"plan": "pro", "seats": [1, None]},
            made.created_at,
            None,
        )
        made.external_id = "bob"
        made.save()  # an update: the row is known to be there
        assert Identity.objects.get().external_id == "bob"
    with workspace_scope(make_tenant("other").workspace.id), pytest.raises(OutsideWorkspace):
        insert(Identity(workspace=tenant.workspace, external_id="eve"))
