"""Every table has an admin page that opens, searches and shows rows."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission as AuthPermission
from django.db import models
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditLog
from apps.workspaces.models import RootKey, Workspace
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

OURS = [model for model in apps.get_models() if model.__module__.startswith("apps.")]


@pytest.fixture
def staff(admin_client: Client) -> Client:
    return admin_client


@pytest.mark.django_db
@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.label)
def test_list_page_opens_and_searches(model: type[models.Model], staff: Client) -> None:
    assert model in admin.site._registry, f"{model._meta.label} has no admin page"
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    assert staff.get(url).status_code == 200
    assert admin.site._registry[model].search_fields, f"{model._meta.label} cannot be searched"
    assert staff.get(url, {"q": "something"}).status_code == 200
    assert (
        staff.get(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")).status_code == 403
    )


@pytest.mark.django_db
def test_the_page_of_a_row_opens_with_the_rows_that_belong_to_it(staff: Client, tenant: Tenant) -> None:
    tenant("projects.createProject", {"name": "Shop", "slug": "shop"})
    tenant("apps.createApp", {"project": "shop", "name": "Web", "slug": "web"})
    api = tenant("apis.createApi", {"name": "payments"})["apiId"]
    tenant("permissions.createRole", {"name": "reader", "permissions": ["read"]})
    tenant("keys.createKey", {"apiId": api, "externalId": "ada", "roles": ["reader"]})
    opened = set()
    for model in OURS:
        with unscoped("test"):
            row = model._default_manager.first()
        if row is not None:
            url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk])
            assert staff.get(url).status_code == 200, model._meta.label
            opened.add(model._meta.model_name)
    assert {"workspace", "project", "app", "environment", "api", "key", "role", "identity"} <= opened


@pytest.mark.django_db
def test_the_page_of_a_row_opens_by_its_plain_and_by_its_quoted_id(staff: Client, tenant: Tenant) -> None:
    workspace = Workspace.objects.create(id="ws_23JiWBCSrJ1dCMoz", name="Fresh", slug="fresh")
    listed = staff.get(reverse("admin:workspaces_workspace_changelist")).content.decode()
    for address in (quote(workspace.pk), workspace.pk):
        url = reverse("admin:workspaces_workspace_change", args=[address])
        assert "ws_23JiWBCSrJ1dCMoz" in staff.get(url).content.decode(), url
    assert reverse("admin:workspaces_workspace_change", args=[quote(workspace.pk)]) in listed


@pytest.mark.django_db
def test_pages_of_rows_show_no_hash_and_no_ciphertext(staff: Client) -> None:
    for model in OURS:
        page = admin.site._registry[model]
        shown = page.get_readonly_fields(None)  # type: ignore[arg-type]
        secret = {"hash", "ciphertext", "private_key", "variables"} & set(shown)
        assert not secret, f"{model._meta.label} shows {secret}"


def act(browser: Client, row: models.Model, action: str) -> None:
    """Choose a row of a list page and run an action on it."""
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_changelist")
    browser.post(url, {"action": action, ACTION_CHECKBOX_NAME: [row.pk]})


@pytest.mark.django_db
def test_a_workspace_and_its_root_keys_are_stopped_from_the_admin(staff: Client, tenant: Tenant) -> None:
    root_key = RootKey.objects.unscoped("test").get(workspace=tenant.workspace)

    act(staff, tenant.workspace, "disable")
    assert tenant.refused("projects.listProjects", {}, 403)["detail"] == "The workspace is disabled."
    act(staff, tenant.workspace, "enable")
    assert tenant("projects.listProjects") == []

    act(staff, root_key, "disable")
    assert tenant.refused("projects.listProjects", {}, 403)["detail"] == "The root key is disabled."
    act(staff, root_key, "enable")
    act(staff, root_key, "delete")
    tenant.refused("projects.listProjects", {}, 401)
    log = AuditLog.objects.unscoped("test").filter(workspace=tenant.workspace, actor_type="user")
    assert [(row.event, row.actor_name) for row in log.order_by("time")] == [
        ("workspace.update", "admin"),
        ("workspace.update", "admin"),
        ("key.update", "admin"),
        ("key.update", "admin"),
        ("key.delete", "admin"),
    ]


@pytest.mark.django_db
def test_staff_who_may_only_look_change_nothing(client: Client, tenant: Tenant) -> None:
    reader = get_user_model().objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(AuthPermission.objects.get(codename="view_workspace"))
    client.force_login(reader)
    assert client.get(reverse("admin:workspaces_workspace_changelist")).status_code == 200
    act(client, tenant.workspace, "disable")
    assert tenant("projects.listProjects") == []
