"""The rest of a workspace: host names, regions, builds, workflow runs, limits and usage, audit log."""

from typing import Any

from django.http import StreamingHttpResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.audit import queries as audit
from apps.cluster.models import Region
from apps.console import queries
from apps.console.rest.access import WorkspaceView
from apps.console.rest.deployments import NamedSerializer
from apps.console.rest.describing import Many, Moment, NoQuery, PageQuery, Query, operation
from apps.console.rest.pages import page_of
from apps.quota.models import Limits
from apps.routing.models import FrontlineRoute
from apps.workflows.models import State, WorkflowRun
from apps.workspaces.roles import Action
from unkey import errors


class RouteSerializer(serializers.Serializer[Any]):
    """A host name and the deployment that answers it."""

    id = serializers.CharField()
    host = serializers.CharField(source="fqdn")
    kind = serializers.ChoiceField(source="sticky", choices=FrontlineRoute.Sticky.choices)
    deploymentId = serializers.CharField(source="deployment_id")
    project = NamedSerializer()
    app = NamedSerializer()
    environment = NamedSerializer()
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)


class RoutesQuery(PageQuery):
    """Which host names."""

    project = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    app = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    environment = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    deployment = serializers.CharField(max_length=64, required=False)
    kind = Many(FrontlineRoute.Sticky.values, required=False, source="sticky")
    search = serializers.CharField(max_length=256, required=False, allow_blank=True)


class RegionSerializer(serializers.Serializer[Any]):
    """A place where instances can run."""

    name = serializers.CharField()
    canSchedule = serializers.BooleanField(source="can_schedule")


class SlotSerializer(serializers.Serializer[Any]):
    """A deployment that builds, or waits for its turn."""

    deploymentId = serializers.CharField(source="deployment_id")
    project = NamedSerializer(source="deployment.project")
    app = NamedSerializer(source="deployment.app")
    environment = NamedSerializer(source="deployment.environment")
    production = serializers.BooleanField(help_text="production goes before previews")
    building = serializers.SerializerMethodField()
    askedAt = Moment(source="asked_at")
    grantedAt = Moment(source="granted_at", allow_null=True)

    def get_building(self, row: Any) -> bool:
        return row.granted_at is not None


class QueueSerializer(serializers.Serializer[Any]):
    """Who builds and who waits, in the order of their turns."""

    limit = serializers.IntegerField(help_text="how many may build at once")
    items = SlotSerializer(many=True)


class RunSerializer(serializers.Serializer[Any]):
    """A run of a durable workflow."""

    id = serializers.CharField()
    service = serializers.CharField()
    state = serializers.ChoiceField(choices=State.choices)
    step = serializers.CharField(source="current_step", help_text="the one that comes next; empty at the end")
    steps = serializers.ListField(source="step_names", child=serializers.CharField())
    deploymentId = serializers.SerializerMethodField()
    parentId = serializers.CharField(source="parent_id", allow_null=True)
    errorCode = serializers.CharField(source="error_code")
    createdAt = Moment(source="created_at")
    startedAt = Moment(source="started_at", allow_null=True)
    finishedAt = Moment(source="finished_at", allow_null=True)
    nextAt = Moment(source="next_at", allow_null=True)

    def get_deploymentId(self, row: WorkflowRun) -> str | None:
        found = row.input.get("deployment_id")
        return found if isinstance(found, str) else None


class JournalSerializer(serializers.Serializer[Any]):
    """A step of a run that has ended, or failed and is tried again."""

    kind = serializers.CharField()
    name = serializers.CharField()
    attempts = serializers.IntegerField()
    failed = serializers.SerializerMethodField()
    startedAt = Moment(source="started_at")
    endedAt = Moment(source="ended_at", allow_null=True)

    def get_failed(self, row: Any) -> bool:
        return bool(row.error)


class EntrySerializer(serializers.Serializer[Any]):
    """What happened to a run besides its steps: waits, failed attempts, turns."""

    at = serializers.IntegerField()
    what = serializers.CharField()
    step = serializers.CharField(required=False)
    until = serializers.IntegerField(required=False)


class RunDetailSerializer(RunSerializer):
    """A run with its timeline."""

    journal = JournalSerializer(many=True)
    trail = EntrySerializer(many=True)
    children = serializers.ListField(child=serializers.CharField())


class RunsQuery(PageQuery):
    """Which runs."""

    service = Many(required=False)
    state = Many(State.values, required=False)
    deployment = serializers.CharField(max_length=64, required=False)
    since = Moment(required=False)
    until = Moment(required=False)


class LimitsSerializer(serializers.Serializer[Any]):
    """What the workspace may use; null is no limit."""

    apiRequestsPerMinute = serializers.IntegerField(source="api_requests_per_minute", allow_null=True)
    buildsConcurrentMax = serializers.IntegerField(source="builds_concurrent_max")
    cpuMillicoresMax = serializers.IntegerField(source="cpu_millicores_max")
    memoryMibMax = serializers.IntegerField(source="memory_mib_max")
    storageMibMax = serializers.IntegerField(source="storage_mib_max")
    cpuMillicoresPerInstanceMax = serializers.IntegerField(source="cpu_millicores_per_instance_max")
    memoryMibPerInstanceMax = serializers.IntegerField(source="memory_mib_per_instance_max")
    storageMibPerInstanceMax = serializers.IntegerField(source="storage_mib_per_instance_max")
    replicasMax = serializers.IntegerField(source="replicas_max")
    auditRetentionDays = serializers.IntegerField(source="audit_retention_days")
    billableOperationsPerMonth = serializers.IntegerField(
        source="billable_operations_per_month", allow_null=True, help_text="more is told, not refused"
    )


class UsageSerializer(serializers.Serializer[Any]):
    """What the workspace has and runs at the moment."""

    projects = serializers.IntegerField()
    apps = serializers.IntegerField()
    environments = serializers.IntegerField()
    deploymentsRunning = serializers.IntegerField(source="deployments_running")
    instances = serializers.IntegerField()
    cpuMillicores = serializers.IntegerField(source="cpu_millicores")
    memoryMib = serializers.IntegerField(source="memory_mib")
    storageMib = serializers.IntegerField(source="storage_mib")
    builds = serializers.IntegerField()
    buildsWaiting = serializers.IntegerField(source="builds_waiting")
    period = serializers.CharField(help_text="the calendar month of the next two, YYYY-MM in UTC")
    verifications = serializers.IntegerField()
    ratelimits = serializers.IntegerField()


class LimitsAndUsageSerializer(serializers.Serializer[Any]):
    """What the workspace may use and what it uses."""

    limits = LimitsSerializer()
    usage = UsageSerializer()


class TargetSerializer(serializers.Serializer[Any]):
    """What was changed."""

    type = serializers.CharField()
    id = serializers.CharField()
    name = serializers.CharField()


class ActorSerializer(serializers.Serializer[Any]):
    """Who changed it."""

    type = serializers.CharField(source="actor_type")
    id = serializers.CharField(source="actor_id")
    name = serializers.CharField(source="actor_name")


class AuditSerializer(serializers.Serializer[Any]):
    """Who changed what, and when."""

    id = serializers.CharField()
    time = Moment()
    event = serializers.CharField()
    description = serializers.CharField()
    actor = ActorSerializer(source="*")
    targets = TargetSerializer(many=True)
    changes = serializers.DictField(help_text="field to its value before and after")
    meta = serializers.DictField()
    remoteIp = serializers.CharField(source="remote_ip")
    userAgent = serializers.CharField(source="user_agent")
    correlationId = serializers.CharField(source="correlation_id", help_text="of all that one request did")
    sequence = serializers.IntegerField(allow_null=True, help_text="place in the chain; null: not sealed yet")
    hash = serializers.CharField(help_text="of this entry and, through the one before it, of all before")


class AuditFilter(Query):
    """Which entries."""

    event = Many(required=False, help_text="key.* stands for every event of keys")
    actor = serializers.CharField(max_length=128, required=False, help_text="id")
    target = serializers.CharField(max_length=128, required=False, help_text="id")
    since = Moment(required=False)
    until = Moment(required=False)
    search = serializers.CharField(max_length=256, required=False, allow_blank=True)


class AuditQuery(AuditFilter, PageQuery):
    """Which page of which entries."""


class Routes(WorkspaceView):
    """The host names of a workspace."""

    needs = {"GET": Action.READ}

    @operation("routes.list", answer=RouteSerializer, page=True, query=RoutesQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the host names that the workspace's deployments answer, the newest first."""
        query = RoutesQuery().read(request)
        return Response(
            page_of(queries.routes(query), query, lambda page: RouteSerializer(page, many=True).data)
        )


class Regions(WorkspaceView):
    """The regions of the platform."""

    needs = {"GET": Action.READ}

    @operation("regions.list", answer=RegionSerializer, many=True, query=NoQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the regions that environments can choose from."""
        NoQuery().read(request)
        return Response({"items": RegionSerializer(Region.objects.order_by("name"), many=True).data})


class BuildQueue(WorkspaceView):
    """The build slots of a workspace."""

    needs = {"GET": Action.READ}

    @operation("builds.queue", answer=QueueSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the deployments that build, and those that wait for their turn."""
        NoQuery().read(request)
        shown = {
            "limit": _limits(self.workspace.id).builds_concurrent_max,
            "items": queries.build_queue(self.workspace.id),
        }
        return Response(QueueSerializer(shown).data)


class Runs(WorkspaceView):
    """The workflow runs of a workspace."""

    needs = {"GET": Action.READ}

    @operation("runs.list", answer=RunSerializer, page=True, query=RunsQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List workflow runs, the newest first."""
        query = RunsQuery().read(request)
        rows = queries.runs(self.workspace.id, query)
        return Response(page_of(rows, query, lambda page: RunSerializer(page, many=True).data))


class RunDetail(WorkspaceView):
    """One workflow run."""

    needs = {"GET": Action.READ}

    @operation("runs.get", answer=RunDetailSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, run: str) -> Response:
        """Return a run with its timeline."""
        NoQuery().read(request)
        row = queries.runs(self.workspace.id, {}).filter(pk=run).first()
        if row is None:
            raise errors.RunNotFound("The requested run does not exist.")
        shown = RunSerializer(row).data | {
            "journal": JournalSerializer(queries.journal(row), many=True).data,
            "trail": [
                {name: entry[name] for name in ("at", "what", "step", "until") if name in entry}
                for entry in row.trail or []
            ],
            "children": queries.children(row),
        }
        return Response(shown)


class LimitsAndUsage(WorkspaceView):
    """What a workspace may use and uses."""

    needs = {"GET": Action.READ}

    @operation("limits.get", answer=LimitsAndUsageSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """Return the limits of the workspace beside what it has and runs at the moment."""
        NoQuery().read(request)
        shown = {"limits": _limits(self.workspace.id), "usage": queries.usage(self.workspace.id)}
        return Response(LimitsAndUsageSerializer(shown).data)


class Audit(WorkspaceView):
    """The audit log of a workspace."""

    needs = {"GET": Action.AUDIT}

    @operation("audit.list", answer=AuditSerializer, page=True, query=AuditQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List what was changed, by whom, the newest first."""
        query = AuditQuery().read(request)
        rows = audit.matching({**query, "events": query.get("event")})
        show = page_of(rows, query, lambda page: AuditSerializer(page, many=True).data, newest="time")
        return Response(show)


class AuditExport(WorkspaceView):
    """The audit log as a file."""

    needs = {"GET": Action.AUDIT}

    @operation("audit.export", media="application/x-ndjson", query=AuditFilter)
    def get(self, request: Request, workspace: str) -> StreamingHttpResponse:
        """Return every entry that fits, the oldest first, a JSON object on each line."""
        query = AuditFilter().read(request)
        rows = audit.matching({**query, "events": query.get("event")})
        return StreamingHttpResponse(
            audit.ndjson(rows),
            content_type="application/x-ndjson",
            headers={"Content-Disposition": f'attachment; filename="audit-{self.workspace.slug}.ndjson"'},
        )


def _limits(workspace_id: str) -> Limits:
    return Limits.objects.filter(pk=workspace_id).first() or Limits(workspace_id=workspace_id)
