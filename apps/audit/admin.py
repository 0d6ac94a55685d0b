"""Admin page of the audit log."""

from django.contrib import admin

from apps.audit.models import AuditChain, AuditLog
from unkey.admin import ReadOnlyAdmin


@admin.register(AuditLog)
class AuditLogAdmin(ReadOnlyAdmin):
    list_display = (
        "time",
        "event",
        "actor_type",
        "actor_name",
        "targets_text",
        "workspace",
        "remote_ip",
        "sequence",
    )
    list_filter = ("actor_type", "event")
    search_fields = ("id", "event", "actor_id", "correlation_id", "workspace__slug")
    date_hierarchy = "time"
    ordering = ("-time",)
    exclude = ("hash",)

    @admin.display(description="targets")
    def targets_text(self, row: AuditLog) -> str:
        return ", ".join(f"{target['type']} {target['name']}" for target in row.targets)


@admin.register(AuditChain)
class AuditChainAdmin(ReadOnlyAdmin):
    list_display = ("workspace", "sequence", "pruned", "sealed_at")
    exclude = ("hash", "anchor")
    search_fields = ("workspace__slug", "workspace__id")
