"""Admin page of certificates."""

from django.contrib import admin

from apps.certs.models import Certificate
from unkey.admin import ReadOnlyAdmin


@admin.register(Certificate)
class CertificateAdmin(ReadOnlyAdmin):
    list_display = ("hostname", "not_after", "workspace", "version", "id", "created_at")
    search_fields = ("id", "hostname")
    exclude = ("private_key",)
