"""Admin page of source snapshots."""

from django.contrib import admin

from apps.builds.models import Snapshot
from unkey.admin import ReadOnlyAdmin


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnlyAdmin):
    list_display = ("digest", "size", "files", "workspace", "id", "created_at")
    search_fields = ("id", "digest", "workspace__slug")
