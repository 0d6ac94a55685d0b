"""Admin pages of deployments, their steps, topologies and instances."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.deployments import gates, services
from apps.deployments.models import (
    Deployment,
    DeploymentStep,
    Instance,
    OpenapiSpec,
    ScheduledChange,
    Suspension,
    Topology,
)
from unkey.actors import Actor
from unkey.admin import ReadOnlyAdmin, RowsInline, actor_of
from unkey.errors import Fault
from unkey.tenancy import workspace_scope


class StepInline(RowsInline):
    model = DeploymentStep
    fields = ("step", "started_at", "ended_at", "message", "error")


class TopologyInline(RowsInline):
    model = Topology
    fields = (
        "region",
        "desired_status",
        "replicas_min",
        "replicas_max",
        "threshold_cpu",
        "threshold_memory",
        "version",
    )


class InstanceInline(RowsInline):
    model = Instance
    fields = ("name", "region", "address", "status", "restarts", "message")


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "status",
        "project",
        "environment",
        "desired_state",
        "trigger",
        "created_at",
    )
    list_filter = ("status", "desired_state", "trigger")
    search_fields = ("id", "image", "app__slug", "project__slug", "workspace__slug")
    ordering = ("-created_at",)
    inlines = (StepInline, TopologyInline, InstanceInline)
    exclude = ("variables",)
    actions = ("rollback", "promote", "stop", "start", "cancel", "approve", "redeploy")

    @admin.action(description="Roll the app back to it", permissions=["operate"])
    def rollback(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.rollback)

    @admin.action(description="Promote: make it the live one", permissions=["operate"])
    def promote(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.promote)

    @admin.action(description="Stop (previews)", permissions=["operate"])
    def stop(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.stop)

    @admin.action(description="Start again (previews)", permissions=["operate"])
    def start(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.start_again)

    @admin.action(description="Cancel: end what is not ready yet", permissions=["operate"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, _cancel)

    @admin.action(description="Approve: let it begin", permissions=["operate"])
    def approve(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.approve)

    @admin.action(description="Deploy once more, with today's settings", permissions=["operate"])
    def redeploy(self, request: HttpRequest, chosen: QuerySet[Deployment]) -> None:
        self._each(request, chosen, services.redeploy)

    def _each(self, request: HttpRequest, chosen: QuerySet[Deployment], do: Callable[..., Any]) -> None:
        """Do it to each deployment for itself, and say what was accepted and what was refused and why."""
        for deployment in chosen:
            try:
                with workspace_scope(deployment.workspace_id):
                    do(deployment, actor=actor_of(request))
            except Fault as fault:
                self.message_user(request, f"{deployment.id}: {fault.detail}", messages.ERROR)
            else:
                self.message_user(request, f"{deployment.id}: accepted", messages.SUCCESS)


def _cancel(deployment: Deployment, *, actor: Actor) -> None:
    gates.check_cancel(deployment)
    services.cancel(deployment, actor=actor)


@admin.register(DeploymentStep)
class DeploymentStepAdmin(ReadOnlyAdmin):
    list_display = ("id", "deployment", "step", "started_at", "ended_at", "message", "error")
    list_filter = ("step",)
    search_fields = ("deployment__id", "message", "error")
    ordering = ("-id",)


@admin.register(Topology)
class TopologyAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "deployment",
        "region",
        "desired_status",
        "replicas_min",
        "replicas_max",
        "running_instances",
        "version",
    )
    list_filter = ("desired_status",)
    search_fields = ("deployment__id", "region__name")

    def running_instances(self, topology: Topology) -> int:
        """Return how many instances run there, which follows the load between minimum and maximum."""
        here = Instance.objects.filter(deployment=topology.deployment_id, region=topology.region_id)
        return here.filter(status=Instance.Status.RUNNING).count()


@admin.register(Instance)
class InstanceAdmin(ReadOnlyAdmin):
    list_display = ("id", "deployment", "region", "address", "status", "restarts", "name", "updated_at")
    list_filter = ("status",)
    search_fields = ("id", "name", "address", "deployment__id")


@admin.register(Suspension)
class SuspensionAdmin(ReadOnlyAdmin):
    list_display = ("app", "deployment", "workspace", "created_at")
    search_fields = ("app__id", "deployment__id", "workspace__slug")


@admin.register(OpenapiSpec)
class OpenapiSpecAdmin(ReadOnlyAdmin):
    list_display = ("id", "deployment", "state", "attempts", "path", "digest", "workspace", "created_at")
    list_filter = ("state",)
    search_fields = ("id", "deployment__id", "digest")


@admin.register(ScheduledChange)
class ScheduledChangeAdmin(ReadOnlyAdmin):
    list_display = ("pk", "deployment", "desired_state", "due_at")
    list_filter = ("desired_state",)
    search_fields = ("deployment__id",)
