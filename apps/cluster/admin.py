"""Admin pages of streams, regions, agents and edges."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.cluster import status
from apps.cluster.models import Agent, Edge, Region, Stream, Token
from unkey.admin import ReadOnlyAdmin


@admin.register(Stream)
class StreamAdmin(ReadOnlyAdmin):
    list_display = ("name", "version", "compacted")
    search_fields = ("name",)
    ordering = ("name",)


@admin.register(Region)
class RegionAdmin(ReadOnlyAdmin):
    list_display = ("name", "can_schedule", "id", "created_at")
    search_fields = ("id", "name")


class SatelliteAdmin(ReadOnlyAdmin):
    """Shows what `manage.py cluster status` shows."""

    kind = ""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        self._satellites = {row.id: row for row in status.satellites() if row.kind == self.kind}
        return super().get_queryset(request)

    @admin.display(description="state")
    def state(self, row: Agent | Edge) -> str:
        found = self._satellites.get(row.pk)
        return found.state if found else "-"

    @admin.display(description="behind")
    def behind(self, row: Agent | Edge) -> str:
        found = self._satellites.get(row.pk)
        if found is None or not found.behind:
            return "-"
        return ", ".join(f"{count} of {stream}" for stream, count in found.behind.items())


@admin.register(Agent)
class AgentAdmin(SatelliteAdmin):
    kind = "agent"
    list_display = (
        "id",
        "region",
        "state",
        "behind",
        "problem_count",
        "software",
        "url",
        "token",
        "started_at",
        "last_seen_at",
    )
    search_fields = ("id", "region__name")

    @admin.display(description="problems")
    def problem_count(self, agent: Agent) -> int:
        return len(agent.problems)


@admin.register(Edge)
class EdgeAdmin(SatelliteAdmin):
    kind = "edge"
    list_display = ("id", "region_name", "state", "behind", "role", "software", "started_at", "last_seen_at")
    list_filter = ("role", "region_name")
    search_fields = ("id", "region_name")


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    list_display = ("id", "kind", "name", "region", "expires_at", "last_used_at", "created_at")
    list_filter = ("kind",)
    search_fields = ("id", "name")
    exclude = ("digest",)
