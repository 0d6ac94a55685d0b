"""Every table has an admin page that opens, searches and shows rows."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import models
from django.test import Client
from django.urls import reverse

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
def test_pages_of_rows_show_no_hash_and_no_ciphertext(staff: Client) -> None:
    for model in OURS:
        page = admin.site._registry[model]
        shown = page.get_readonly_fields(None)  # type: ignore[arg-type]
        secret = {"hash", "ciphertext", "private_key", "variables"} & set(shown)
        assert not secret, f"{model._meta.label} shows {secret}"
