"""Admin pages of routes and sentinels."""

from django.contrib import admin

from apps.routing.models import FrontlineRoute, Sentinel
from unkey.admin import ReadOnlyAdmin


@admin.register(FrontlineRoute)
class FrontlineRouteAdmin(ReadOnlyAdmin):
    list_display = (
        "fqdn",
        "sticky",
        "deployment",
        "environment",
        "version",
        "deleted_at",
    )
    list_filter = ("sticky",)
    search_fields = ("id", "fqdn", "deployment__id", "workspace__slug")


@admin.register(Sentinel)
class SentinelAdmin(ReadOnlyAdmin):
    list_display = (
        "pk",
        "deployment",
        "environment",
        "workspace",
        "upstream_protocol",
        "desired_state",
        "version",
    )
    search_fields = ("deployment__id", "environment__id", "workspace__slug")
