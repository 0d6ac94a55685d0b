"""Admin pages of projects, apps, environments and variables."""

from django.contrib import admin

from apps.projects.models import App, Environment, EnvironmentRegion, EnvironmentVariable, Project
from unkey.admin import ReadOnlyAdmin, RowsInline


class AppInline(RowsInline):
    model = App
    fields = ("slug", "name", "current_deployment", "is_rolled_back")


class EnvironmentInline(RowsInline):
    model = Environment
    fields = ("slug", "kind", "created_at")


class VariableInline(RowsInline):
    model = EnvironmentVariable
    fields = ("key", "kind", "description", "updated_at")


class RegionInline(RowsInline):
    model = EnvironmentRegion
    fields = ("region", "replicas_min", "replicas_max")


@admin.register(Project)
class ProjectAdmin(ReadOnlyAdmin):
    list_display = ("slug", "name", "workspace", "delete_protection", "deleting_at", "id", "created_at")
    search_fields = ("id", "slug", "name", "workspace__slug")
    inlines = (AppInline,)


@admin.register(App)
class AppAdmin(ReadOnlyAdmin):
    list_display = (
        "slug",
        "project",
        "current_deployment",
        "is_rolled_back",
        "workspace",
        "id",
        "created_at",
    )
    list_filter = ("is_rolled_back",)
    search_fields = ("id", "slug", "name", "project__slug", "workspace__slug")
    inlines = (EnvironmentInline,)


@admin.register(Environment)
class EnvironmentAdmin(ReadOnlyAdmin):
    list_display = (
        "slug",
        "kind",
        "app",
        "workspace",
        "port",
        "cpu_millicores",
        "memory_mib",
        "id",
        "created_at",
    )
    list_filter = ("kind",)
    search_fields = ("id", "slug", "app__slug", "workspace__slug")
    inlines = (RegionInline, VariableInline)


@admin.register(EnvironmentRegion)
class EnvironmentRegionAdmin(ReadOnlyAdmin):
    list_display = ("id", "environment", "region", "replicas_min", "replicas_max")
    search_fields = ("environment__id", "region__name")


@admin.register(EnvironmentVariable)
class EnvironmentVariableAdmin(ReadOnlyAdmin):
    list_display = ("key", "environment", "kind", "description", "workspace", "updated_at")
    list_filter = ("kind",)
    search_fields = ("id", "key", "environment__id")
    exclude = ("ciphertext",)
