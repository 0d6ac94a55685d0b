"""The base of every admin page: all workspaces, read-mostly, with links between related rows."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import SimpleTemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from unkey.actors import Actor
from unkey.rpc.client_address import from_headers
from unkey.tenancy import unscoped

admin.site.site_header = "Unkey"
admin.site.site_title = "Unkey"
admin.site.index_title = "Platform"


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows of all workspaces and changes none: changes go through the services.

    Foreign keys in `list_display` are shown as links to their rows.
    """

    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        with unscoped("the admin shows every workspace to staff"):
            return super().get_queryset(request)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row of an address, which has its id as it is, or quoted as Django's own lists do.

        Unquoting every address would lose rows: the `_23` of `ws_23Ji…` reads as a quoted `#`.
        """
        plain = super().get_object(request, quote(object_id), from_field)
        return super().get_object(request, object_id, from_field) if plain is None else plain

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns = super().get_list_display(request)
        return [self._linked(column) for column in columns]

    def get_list_select_related(self, request: HttpRequest) -> list[str]:
        return [name for name in self.list_display if isinstance(name, str) and self._relation(name)]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        hidden = set(self.exclude or ())
        return [field.name for field in self.model._meta.fields if field.name not in hidden]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        with unscoped("the admin shows every workspace to staff"):
            response = super().changeform_view(request, *args, **kwargs)
            # Inlines look for their rows as the page is rendered: within the scope, therefore.
            return response.render() if isinstance(response, SimpleTemplateResponse) else response

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Say who may run actions that change something (those with `permissions=["operate"]`)."""
        return bool(request.user.is_active and request.user.is_superuser)

    def _relation(self, name: str) -> bool:
        try:
            field = self.model._meta.get_field(name)
        except Exception:  # a method or an attribute, not a column
            return False
        return isinstance(field, models.ForeignKey)

    def _linked(self, column: Any) -> Any:
        if not isinstance(column, str) or not self._relation(column):
            return column
        return _link_to(column)


def actor_of(request: HttpRequest) -> Actor:
    """Return the person who clicks as the actor of a change."""
    return Actor(
        type="user",
        id=str(request.user.pk),
        name=request.user.get_username(),
        remote_ip=from_headers(request.META),
        user_agent=request.META.get("HTTP_USER_AGENT", ""),
    )


class RowsInline(admin.TabularInline):
    """Related rows below a row, read-only."""

    extra = 0
    can_delete = False
    max_num = 0

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        with unscoped("the admin shows every workspace to staff"):
            return super().get_queryset(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return list(self.fields or [])  # type: ignore[arg-type]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _link_to(name: str) -> Callable[[Any], SafeString | str]:
    @admin.display(description=name.replace("_", " "), ordering=name)
    def link(row: Any) -> SafeString | str:
        target = getattr(row, name)
        if target is None:
            return "-"
        try:
            url = reverse(
                f"admin:{target._meta.app_label}_{target._meta.model_name}_change", args=[target.pk]
            )
        except NoReverseMatch:
            return str(target)
        return format_html('<a href="{}">{}</a>', url, target)

    return link
