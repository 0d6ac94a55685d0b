"""Admin page of limits."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from apps.quota import services
from apps.quota.models import Limits, QuotaNotice, RefillDay, Usage
from unkey.admin import ReadOnlyAdmin, actor_of


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

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_operate_permission(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["workspace", "created_at", "updated_at"]

    def save_model(self, request: HttpRequest, obj: Limits, form: Any, change: bool) -> None:
        changes = {name: form.cleaned_data[name] for name in form.changed_data}
        services.set_limits(obj.pk, changes, actor=actor_of(request))


@admin.register(Usage)
class UsageAdmin(ReadOnlyAdmin):
    list_display = ("id", "workspace", "period", "verifications", "ratelimits", "updated_at")
    list_filter = ("period",)
    search_fields = ("id", "workspace__id", "workspace__slug")


@admin.register(QuotaNotice)
class QuotaNoticeAdmin(ReadOnlyAdmin):
    list_display = ("id", "workspace", "period", "used", "limit", "created_at")
    list_filter = ("period",)
    search_fields = ("id", "workspace__id", "workspace__slug")


@admin.register(RefillDay)
class RefillDayAdmin(ReadOnlyAdmin):
    list_display = ("date", "refilled", "started_at", "finished_at")
    search_fields = ("date",)
