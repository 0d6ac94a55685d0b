"""Admin page of limits."""

from django.contrib import admin

from apps.quota.models import Limits
from unkey.admin import ReadOnlyAdmin


@admin.register(Limits)
class LimitsAdmin(ReadOnlyAdmin):
    list_display = (
        "pk",
        "workspace",
        "api_requests_per_minute",
        "builds_concurrent_max",
        "cpu_millicores_max",
        "memory_mib_max",
        "replicas_max",
    )
    search_fields = ("workspace__id", "workspace__slug")
