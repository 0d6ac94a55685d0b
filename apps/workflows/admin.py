"""Admin pages of workflow runs, their journal, keys and topics."""

from django.contrib import admin

from apps.workflows.models import WorkflowKey, WorkflowRun, WorkflowStep, WorkflowTopic
from unkey.admin import ReadOnlyAdmin, RowsInline


class JournalInline(RowsInline):
    model = WorkflowStep
    fields = ("kind", "name", "attempts", "started_at", "ended_at", "result", "error")
    ordering = ("position", "id")


@admin.register(WorkflowRun)
class WorkflowRunAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "service",
        "state",
        "step",
        "created_at",
        "finished_at",
        "next_at",
        "key",
    )
    list_filter = ("state", "service", "queue")
    search_fields = ("id", "key", "idempotency_key", "workspace_id", "error_code")
    ordering = ("-arrival",)
    inlines = (JournalInline,)

    @admin.display(description="step")
    def step(self, row: WorkflowRun) -> str:
        return row.current_step or "-"


@admin.register(WorkflowStep)
class WorkflowStepAdmin(ReadOnlyAdmin):
    list_display = ("id", "run", "kind", "name", "attempts", "started_at", "ended_at", "error")
    list_filter = ("kind",)
    search_fields = ("run__id", "name", "error")
    ordering = ("-id",)


@admin.register(WorkflowKey)
class WorkflowKeyAdmin(ReadOnlyAdmin):
    list_display = ("key", "holder", "exclusive", "epoch", "lease_expires_at")
    search_fields = ("key", "holder")


@admin.register(WorkflowTopic)
class WorkflowTopicAdmin(ReadOnlyAdmin):
    list_display = ("name", "sequence", "notified_at")
    search_fields = ("name",)
