"""Admin pages of standalone rate limits."""

from django.contrib import admin

from apps.ratelimits.models import Namespace, Override
from unkey.admin import ReadOnlyAdmin, RowsInline


class OverrideInline(RowsInline):
    model = Override
    fields = ("identifier", "limit", "duration_ms", "deleted_at")


@admin.register(Namespace)
class NamespaceAdmin(ReadOnlyAdmin):
    list_display = ("name", "id", "workspace", "deleted_at", "created_at")
    search_fields = ("id", "name", "workspace__slug")
    inlines = (OverrideInline,)


@admin.register(Override)
class OverrideAdmin(ReadOnlyAdmin):
    list_display = ("identifier", "id", "namespace", "limit", "duration_ms", "workspace", "deleted_at")
    search_fields = ("id", "identifier", "namespace__name", "workspace__slug")
