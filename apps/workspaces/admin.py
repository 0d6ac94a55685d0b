"""Admin pages of workspaces, members and root keys."""

from django.contrib import admin

from apps.workspaces.models import Membership, RootKey, Workspace
from unkey.admin import ReadOnlyAdmin, RowsInline


class MembershipInline(RowsInline):
    model = Membership
    fields = ("user", "role", "created_at")


class RootKeyInline(RowsInline):
    model = RootKey
    fields = ("name", "start", "enabled", "created_at")


@admin.register(Workspace)
class WorkspaceAdmin(ReadOnlyAdmin):
    list_display = ("slug", "name", "enabled", "id", "created_at")
    list_filter = ("enabled",)
    search_fields = ("id", "slug", "name")
    inlines = (MembershipInline, RootKeyInline)


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    list_display = ("id", "user", "workspace", "role", "created_at")
    list_filter = ("role",)
    search_fields = ("id", "user__username", "workspace__slug")


@admin.register(RootKey)
class RootKeyAdmin(ReadOnlyAdmin):
    list_display = ("name", "start", "workspace", "enabled", "expires_at", "deleted_at", "created_at")
    list_display_links = ("name", "start")
    list_filter = ("enabled",)
    search_fields = ("id", "name", "start", "workspace__slug")
    exclude = ("hash",)
