"""Admin pages of what the dashboard's REST keeps; no hash and no kept answer is shown."""

from django.contrib import admin

from apps.console.models import KeptAnswer, LoginAttempt
from unkey.admin import ReadOnlyAdmin


@admin.register(KeptAnswer)
class KeptAnswerAdmin(ReadOnlyAdmin):
    list_display = ("id", "user", "status", "created_at")
    list_filter = ("status",)
    search_fields = ("user__username",)
    exclude = ("key_hash", "fingerprint", "body", "headers")
    ordering = ("-id",)


@admin.register(LoginAttempt)
class LoginAttemptAdmin(ReadOnlyAdmin):
    list_display = ("id", "remote_ip", "at")
    search_fields = ("remote_ip",)
    exclude = ("name_hash",)
    ordering = ("-id",)
