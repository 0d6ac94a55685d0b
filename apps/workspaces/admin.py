"""Admin pages of workspaces, members and root keys."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.deployments import teardown
from apps.workspaces import members, services
from apps.workspaces.models import Membership, PersonalToken, RootKey, Workspace
from unkey.admin import ReadOnlyAdmin, RowsInline, actor_of
from unkey.tenancy import workspace_scope


class MembershipInline(RowsInline):
    model = Membership
    fields = ("user", "role", "created_at")


class RootKeyInline(RowsInline):
    model = RootKey
    fields = ("name", "start", "enabled", "created_at")


@admin.register(Workspace)
class WorkspaceAdmin(ReadOnlyAdmin):
    list_display = ("slug", "name", "enabled", "suspended_at", "id", "created_at")
    list_filter = ("enabled",)
    search_fields = ("id", "slug", "name")
    inlines = (MembershipInline, RootKeyInline)
    actions = ("enable", "disable", "suspend", "resume")

    @admin.action(description="Suspend: stop what it runs, start nothing", permissions=["operate"])
    def suspend(self, request: HttpRequest, chosen: QuerySet[Workspace]) -> None:
        for workspace in chosen:
            teardown.suspend(workspace, actor=actor_of(request))

    @admin.action(description="Resume: start what was live", permissions=["operate"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Workspace]) -> None:
        for workspace in chosen:
            teardown.resume(workspace, actor=actor_of(request))

    @admin.action(description="Enable: its keys and root keys work", permissions=["operate"])
    def enable(self, request: HttpRequest, chosen: QuerySet[Workspace]) -> None:
        for workspace in chosen:
            services.set_workspace_enabled(workspace, True, actor=actor_of(request))

    @admin.action(description="Disable: none of its keys and root keys work", permissions=["operate"])
    def disable(self, request: HttpRequest, chosen: QuerySet[Workspace]) -> None:
        for workspace in chosen:
            services.set_workspace_enabled(workspace, False, actor=actor_of(request))


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
    actions = ("enable", "disable", "delete")

    @admin.action(description="Enable", permissions=["operate"])
    def enable(self, request: HttpRequest, chosen: QuerySet[RootKey]) -> None:
        for root_key in chosen.filter(deleted_at=None):
            services.set_root_key_enabled(root_key, True, actor=actor_of(request))

    @admin.action(description="Disable", permissions=["operate"])
    def disable(self, request: HttpRequest, chosen: QuerySet[RootKey]) -> None:
        for root_key in chosen.filter(deleted_at=None):
            services.set_root_key_enabled(root_key, False, actor=actor_of(request))

    @admin.action(description="Delete for good", permissions=["operate"])
    def delete(self, request: HttpRequest, chosen: QuerySet[RootKey]) -> None:
        for root_key in chosen.filter(deleted_at=None):
            services.delete_root_key(root_key, actor=actor_of(request))


@admin.register(PersonalToken)
class PersonalTokenAdmin(ReadOnlyAdmin):
    list_display = ("name", "start", "user", "workspace", "role", "expires_at", "revoked_at", "last_used_at")
    list_display_links = ("name", "start")
    list_filter = ("role",)
    search_fields = ("id", "name", "start", "user__username", "workspace__slug")
    exclude = ("hash",)
    actions = ("revoke",)

    @admin.action(description="Revoke for good", permissions=["operate"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[PersonalToken]) -> None:
        for token in chosen.filter(revoked_at=None):
            with workspace_scope(token.workspace_id):
                members.revoke_token(
                    token.pk, user=token.user, by=Membership.Role.OWNER, actor=actor_of(request)
                )
