"""Admin pages of the API-key product."""

from django.contrib import admin

from apps.keys.models import (
    Api,
    CreditLease,
    EncryptedKey,
    Identity,
    Key,
    KeyImport,
    KeyMigration,
    KeySpace,
    Permission,
    Portal,
    PortalSession,
    Ratelimit,
    Role,
)
from unkey.admin import ReadOnlyAdmin, RowsInline


class RatelimitInline(RowsInline):
    model = Ratelimit
    fields = ("name", "limit", "duration_ms", "auto_apply")


@admin.register(KeySpace)
class KeySpaceAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "workspace",
        "default_prefix",
        "default_bytes",
        "store_encrypted_keys",
        "created_at",
    )
    search_fields = ("id", "workspace__slug")


@admin.register(KeyMigration)
class KeyMigrationAdmin(ReadOnlyAdmin):
    list_display = ("name", "id", "algorithm", "workspace", "created_at")
    search_fields = ("id", "name", "workspace__slug")


@admin.register(KeyImport)
class KeyImportAdmin(ReadOnlyAdmin):
    list_display = ("id", "api", "read", "total", "imported", "rejected", "workspace", "finished_at")
    search_fields = ("id", "api__id", "source", "workspace__slug")


@admin.register(Portal)
class PortalAdmin(ReadOnlyAdmin):
    list_display = ("slug", "display_name", "id", "key_space", "app", "enabled", "workspace", "created_at")
    search_fields = ("id", "slug", "key_space__id", "app__id", "workspace__slug")


@admin.register(PortalSession)
class PortalSessionAdmin(ReadOnlyAdmin):
    list_display = ("external_id", "id", "portal", "workspace", "expires_at", "revoked_at", "created_at")
    search_fields = ("id", "external_id", "portal__slug", "workspace__slug")


@admin.register(Api)
class ApiAdmin(ReadOnlyAdmin):
    list_display = ("name", "id", "key_space", "workspace", "delete_protection", "deleted_at", "created_at")
    search_fields = ("id", "name", "key_space__id", "workspace__slug")


@admin.register(Identity)
class IdentityAdmin(ReadOnlyAdmin):
    list_display = ("external_id", "id", "workspace", "deleted_at", "created_at")
    search_fields = ("id", "external_id", "workspace__slug")
    inlines = (RatelimitInline,)


@admin.register(Permission)
class PermissionAdmin(ReadOnlyAdmin):
    list_display = ("slug", "name", "workspace", "created_at")
    search_fields = ("id", "slug", "name", "workspace__slug")


@admin.register(Role)
class RoleAdmin(ReadOnlyAdmin):
    list_display = ("name", "description", "workspace", "created_at")
    search_fields = ("id", "name", "workspace__slug")


@admin.register(Key)
class KeyAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "start",
        "name",
        "key_space",
        "identity",
        "enabled",
        "remaining",
        "created_at",
        "deleted_at",
    )
    list_filter = ("enabled",)
    search_fields = ("id", "start", "name", "identity__external_id", "workspace__slug")
    inlines = (RatelimitInline,)
    exclude = ("hash",)


@admin.register(EncryptedKey)
class EncryptedKeyAdmin(ReadOnlyAdmin):
    list_display = ("pk", "key", "workspace")
    search_fields = ("key__id", "workspace__slug")
    exclude = ("ciphertext",)


@admin.register(Ratelimit)
class RatelimitAdmin(ReadOnlyAdmin):
    list_display = ("name", "limit", "duration_ms", "auto_apply", "key", "identity", "workspace")
    search_fields = ("id", "name", "key__id", "identity__external_id")


@admin.register(CreditLease)
class CreditLeaseAdmin(ReadOnlyAdmin):
    list_display = ("id", "key", "edge_id", "amount", "spent", "epoch", "expires_at")
    search_fields = ("id", "key__id", "edge_id")
