"""Admin pages of workflow runs: a timeline of each, and what an operator may do; their journal, keys, topics."""

import json
from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from apps.workflows import history
from apps.workflows.definition import workflows
from apps.workflows.intake import cancel
from apps.workflows.models import ACTIVE, ENDED, State, WorkflowKey, WorkflowRun, WorkflowStep, WorkflowTopic
from apps.workflows.timeline import duration, timeline
from unkey import clock
from unkey.admin import ReadOnlyAdmin, actor_of

WORKSPACES_SHOWN = 30


def _cancel(run_id: str, *, by: str) -> str:
    if not cancel(run_id):
        raise history.Refused(f"{run_id} has ended, or is already being undone: nothing to cancel")
    return f"{run_id} stops at its next boundary, and what it did is undone"


def _retry(run_id: str, *, by: str) -> str:
    return f"{run_id} is tried again as {history.retry(run_id, by=by).id}"


def _resume(run_id: str, *, by: str) -> str:
    history.resume(run_id, by=by)
    return f"{run_id} goes on"


def _give_up(run_id: str, *, by: str) -> str:
    history.give_up(run_id, by=by)
    return f"{run_id} has ended; its key is free"


OPERATIONS: dict[str, tuple[str, Callable[..., str]]] = {
    "retry": ("Retry", _retry),
    "resume": ("Resume", _resume),
    "cancel": ("Cancel", _cancel),
    "give_up": ("Give up", _give_up),
}


def possible(run: WorkflowRun) -> list[str]:
    """Return the operations that make sense in the run's state."""
    if run.state in (State.FAILED, State.CANCELLED):
        return ["retry"]
    if run.state == State.NEEDS_ATTENTION:
        return ["resume", "give_up"]
    if run.state in ACTIVE:
        undoing = run.undo is not None or run.cancel_requested_at is not None
        return (["resume"] if run.state == State.WAITING else []) + ([] if undoing else ["cancel"])
    return []


class ServiceFilter(admin.SimpleListFilter):
    """Services of the running code: known without asking the database."""

    title = parameter_name = "service"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in sorted(workflows())]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(service=self.value()) if self.value() else queryset


class WorkspaceFilter(admin.SimpleListFilter):
    """Workspaces that have runs, the first ones; any other by `?workspace=ws_…`."""

    title = parameter_name = "workspace"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        rows = WorkflowRun.objects.filter(workspace_id__isnull=False).order_by("workspace_id")
        found = list(rows.values_list("workspace_id", flat=True).distinct()[:WORKSPACES_SHOWN])
        if self.value() and self.value() not in found:
            found.append(self.value())
        return [(str(name), str(name)) for name in found]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(workspace_id=self.value()) if self.value() else queryset


@admin.register(WorkflowRun)
class WorkflowRunAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "shown_state",
        "service",
        "step",
        "workspace_id",
        "created_at",
        "took",
        "error",
    )
    list_filter = ("state", ServiceFilter, WorkspaceFilter, "created_at", "queue")
    search_fields = ("id", "key", "idempotency_key", "workspace_id", "parent_id", "error_code")
    search_help_text = "run, key, idempotency key, workspace, parent or error code"
    ordering = ("-arrival",)
    actions = ("retry_runs", "resume_runs", "cancel_runs", "give_up_runs")
    change_form_template = "admin/workflows/timeline.html"

    @admin.display(description="state", ordering="state")
    def shown_state(self, row: WorkflowRun) -> SafeString:
        return format_html('<span class="wf-state wf-{}">{}</span>', row.state, row.get_state_display())

    @admin.display(description="step")
    def step(self, row: WorkflowRun) -> str:
        return row.current_step if row.state not in ENDED and row.current_step else "-"

    @admin.display(description="took")
    def took(self, row: WorkflowRun) -> str:
        return duration(((row.finished_at or clock.now()) - row.created_at).total_seconds())

    @admin.display(description="error", ordering="error_code")
    def error(self, row: WorkflowRun) -> SafeString | str:
        return (
            format_html('<span title="{}">{}</span>', row.error_message, row.error_code)
            if row.error_code
            else "-"
        )

    @admin.action(description="Retry: start their input anew", permissions=["operate"])
    def retry_runs(self, request: HttpRequest, chosen: QuerySet[WorkflowRun]) -> None:
        self._each(request, chosen, "retry")

    @admin.action(description="Resume: let them go on where they stopped", permissions=["operate"])
    def resume_runs(self, request: HttpRequest, chosen: QuerySet[WorkflowRun]) -> None:
        self._each(request, chosen, "resume")

    @admin.action(description="Cancel: stop at the next boundary and undo", permissions=["operate"])
    def cancel_runs(self, request: HttpRequest, chosen: QuerySet[WorkflowRun]) -> None:
        self._each(request, chosen, "cancel")

    @admin.action(description="Give up: end as failed, undo no more", permissions=["operate"])
    def give_up_runs(self, request: HttpRequest, chosen: QuerySet[WorkflowRun]) -> None:
        self._each(request, chosen, "give_up")

    def _each(self, request: HttpRequest, chosen: QuerySet[WorkflowRun], operation: str) -> None:
        for run in chosen:
            self._operate(request, run, operation)

    def _operate(self, request: HttpRequest, run: WorkflowRun, operation: str) -> None:
        """Do it, and say what was done or why not; the admin's own log keeps who did it."""
        name, do = OPERATIONS[operation]
        try:
            said = do(run.id, by=actor_of(request).name)
        except history.Refused as refused:
            self.message_user(request, str(refused), messages.ERROR)
        else:
            self.log_change(request, run, f"{name}: {said}")
            self.message_user(request, said, messages.SUCCESS)

    def get_urls(self) -> list[Any]:
        """Add the address that the buttons of a timeline post to."""
        one = path(
            "<path:run_id>/operate/<str:operation>/",
            self.admin_site.admin_view(require_POST(self.operate_view)),
            name="workflows_workflowrun_operate",
        )
        return [one, *super().get_urls()]

    def operate_view(self, request: HttpRequest, run_id: str, operation: str) -> HttpResponse:
        """Do one operation on one run, and show its timeline again.

        Raises:
            PermissionDenied: the person may only look.
            Http404: there is no such run or operation.
        """
        if not self.has_operate_permission(request):
            raise PermissionDenied
        run = WorkflowRun.objects.filter(id=run_id).first()
        if run is None or operation not in OPERATIONS:
            raise Http404
        self._operate(request, run, operation)
        return redirect(reverse("admin:workflows_workflowrun_change", args=[run_id]))

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show the timeline of a run."""
        run = self.get_object(request, object_id)
        extra: dict[str, Any] = {"title": "Workflow run", "subtitle": None}
        if run is not None:
            entries = timeline(run)
            may = self.has_operate_permission(request)
            extra |= {
                "run": run,
                "entries": entries,
                "took": duration(((run.finished_at or clock.now()) - run.created_at).total_seconds()),
                "operations": [(name, OPERATIONS[name][0]) for name in possible(run)] if may else [],
                "input_text": json.dumps(run.input, indent=2, ensure_ascii=False),
                "left": run.step_names[run.step_index :] if run.undo is None else [],
            }
        return super().change_view(request, object_id, form_url, {**extra, **(extra_context or {})})


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
