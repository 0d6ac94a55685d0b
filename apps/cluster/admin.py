"""Admin pages of streams, regions, agents and edges."""

from django.contrib import admin

from apps.cluster.models import Agent, Edge, Region, Stream
from unkey.admin import ReadOnlyAdmin


@admin.register(Stream)
class StreamAdmin(ReadOnlyAdmin):
    list_display = ("name", "version")
    search_fields = ("name",)
    ordering = ("name",)


@admin.register(Region)
class RegionAdmin(ReadOnlyAdmin):
    list_display = ("name", "can_schedule", "id", "created_at")
    search_fields = ("id", "name")


@admin.register(Agent)
class AgentAdmin(ReadOnlyAdmin):
    list_display = ("id", "region", "url", "applied", "problem_count", "started_at", "last_seen_at")
    search_fields = ("id", "region__name")

    @admin.display(description="problems")
    def problem_count(self, agent: Agent) -> int:
        return len(agent.problems)


@admin.register(Edge)
class EdgeAdmin(ReadOnlyAdmin):
    list_display = ("id", "region_name", "role", "applied", "started_at", "last_seen_at")
    list_filter = ("role", "region_name")
    search_fields = ("id", "region_name")
