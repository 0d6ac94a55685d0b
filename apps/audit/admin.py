"""Admin page of the audit log."""

from django.contrib import admin

from apps.audit.models import AuditLog
from unkey.admin import ReadOnlyAdmin


@admin.register(AuditLog)
class AuditLogAdmin(ReadOnlyAdmin):
    list_display = ("time", "event", "actor_type", "actor_name", "targets_text", "workspace", "remote_ip")
    list_filter = ("event", "actor_type")
    search_fields = ("id", "event", "actor_id", "workspace__slug")
    date_hierarchy = "time"
    ordering = ("-time",)

    @admin.display(description="targets")
    def targets_text(self, row: AuditLog) -> str:
        return ", ".join(f"{target['type']} {target['name']}" for target in row.targets)
