"""Admin pages of source snapshots and build slots."""

from django.contrib import admin

from apps.builds.models import BuildSlot, Snapshot
from unkey.admin import ReadOnlyAdmin


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnlyAdmin):
    list_display = ("digest", "size", "files", "workspace", "id", "created_at")
    search_fields = ("id", "digest", "workspace__slug")


@admin.register(BuildSlot)
class BuildSlotAdmin(ReadOnlyAdmin):
    list_display = (
        "pk",
        "deployment",
        "workspace",
        "production",
        "asked_at",
        "granted_at",
        "lease_expires_at",
    )
    list_filter = ("production",)
    search_fields = ("deployment__id", "workspace__slug", "run_id")
