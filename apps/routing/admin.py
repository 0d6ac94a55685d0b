"""Admin pages of routes, sentinels, contracts and barriers."""

from django.contrib import admin

from apps.routing.models import Barrier, Contract, FrontlineRoute, Sentinel
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


@admin.register(Contract)
class ContractAdmin(ReadOnlyAdmin):
    list_display = ("pk", "workspace", "fault", "version")
    search_fields = ("deployment__id", "workspace__slug")


@admin.register(Barrier)
class BarrierAdmin(ReadOnlyAdmin):
    list_display = ("pk", "workspace", "maintenance", "version")
    search_fields = ("environment__id", "workspace__slug")
