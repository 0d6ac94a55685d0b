"""URLs of web."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("unkey.health")),
    path("internal/", include("apps.cluster.api")),
    path("admin/", admin.site.urls),
    path("", include("apps.console.rest.urls")),
    path("", include("unkey.rpc.pages")),
]
