"""Limits are changed by superusers in the admin, and hold from then on."""

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission as AuthPermission
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditLog
from apps.cluster.models import Stream
from apps.quota.models import Limits
from unkey.rpc.testing import Tenant

pytestmark = pytest.mark.django_db


def change(browser: Client, tenant: Tenant, **limits: int) -> int:
    """Send the form of a workspace's limits with these changed, and return the status."""
    row = Limits.objects.get(pk=tenant.workspace.pk)
    form = {
        field.name: getattr(row, field.name)
        for field in Limits._meta.fields
        if field.editable and not field.primary_key
    }
    sent = {name: "" if value is None else value for name, value in (form | limits).items()}
    return browser.post(reverse("admin:quota_limits_change", args=[row.pk]), sent).status_code


@pytest.mark.usefixtures("window_start")
def test_a_limit_set_in_the_admin_holds_and_is_audited(admin_client: Client, tenant: Tenant) -> None:
    assert change(admin_client, tenant, api_requests_per_minute=1, replicas_max=2) == 302
    tenant("projects.listProjects")
    tenant.refused("projects.listProjects", {}, 429)
    (row,) = AuditLog.objects.unscoped("test").filter(actor_type="user")
    assert (row.event, row.workspace_id, row.actor_name) == (
        "workspace.update",
        tenant.workspace.id,
        "admin",
    )
    assert row.meta == {"limits": {"api_requests_per_minute": 1, "replicas_max": 2}}


def test_edges_are_told_of_a_limit(admin_client: Client, tenant: Tenant) -> None:
    before = Stream.objects.get(name=tenant.workspace.stream).version
    assert change(admin_client, tenant, api_requests_per_minute=7) == 302
    tenant.workspace.refresh_from_db()
    assert tenant.workspace.version == Stream.objects.get(name=tenant.workspace.stream).version == before + 1


def test_staff_who_may_only_look_change_no_limit(client: Client, tenant: Tenant) -> None:
    reader = get_user_model().objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(AuthPermission.objects.get(codename="view_limits"))
    client.force_login(reader)
    assert change(client, tenant, replicas_max=99) == 403
    assert Limits.objects.get(pk=tenant.workspace.pk).replicas_max == 10
    page = client.get(reverse("admin:quota_limits_change", args=[tenant.workspace.pk]))
    assert page.status_code == 200
