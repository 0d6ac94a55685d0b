"""Deployments: what they are, how far they are, what may be done to them."""

from collections.abc import Iterable
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.builds import services as builds
from apps.console import queries
from apps.console.rest.access import WorkspaceView
from apps.console.rest.describing import (
    NOTHING,
    Body,
    Many,
    Moment,
    NoQuery,
    PageQuery,
    Query,
    operation,
)
from apps.console.rest.pages import page_of
from apps.console.rest.projects import without_hashes
from apps.deployments import actions, compatibility, logs, openapi, services
from apps.deployments import queries as known
from apps.deployments.models import Deployment, Instance
from apps.projects import queries as projects
from apps.routing import queries as routing
from apps.workflows.engine import State, WorkflowRun
from apps.workspaces.roles import Action
from unkey import errors
from unkey.env import env
from unkey.errors import Violation
from unkey.rpc.pipeline import receive

_ID = 64


class NamedSerializer(serializers.Serializer[Any]):
    """A project, an app or an environment, by id and slug."""

    id = serializers.CharField()
    slug = serializers.CharField()


class GitSerializer(serializers.Serializer[Any]):
    """The commit that was built."""

    commitSha = serializers.CharField(source="git_commit_sha")
    branch = serializers.CharField(source="git_branch")
    repository = serializers.CharField(source="git_repository")


class FailureSerializer(serializers.Serializer[Any]):
    """Why a deployment failed."""

    code = serializers.CharField(source="error_code")
    step = serializers.CharField(source="error_step")
    message = serializers.CharField(source="error_message")


class ScheduledSerializer(serializers.Serializer[Any]):
    """A change of the desired state that is to come."""

    desiredState = serializers.ChoiceField(source="desired_state", choices=Deployment.DesiredState.choices)
    dueAt = Moment(source="due_at")


class WantedRegionSerializer(serializers.Serializer[Any]):
    """A region, and how many instances were asked for there."""

    region = serializers.CharField()
    min = serializers.IntegerField()
    max = serializers.IntegerField()


class DeploymentSerializer(serializers.Serializer[Any]):
    """One version of an app in an environment, as a list shows it."""

    id = serializers.CharField()
    status = serializers.ChoiceField(choices=Deployment.Status.choices)
    desiredState = serializers.ChoiceField(source="desired_state", choices=Deployment.DesiredState.choices)
    isCurrent = serializers.SerializerMethodField()
    project = NamedSerializer()
    app = NamedSerializer()
    environment = NamedSerializer()
    environmentKind = serializers.CharField(source="environment.kind")
    trigger = serializers.ChoiceField(choices=Deployment.Trigger.choices)
    image = serializers.CharField()
    git = GitSerializer(source="*")
    regions = WantedRegionSerializer(many=True)
    hosts = serializers.SerializerMethodField(help_text="the host names that it answers")
    urls = serializers.SerializerMethodField()
    availableActions = serializers.SerializerMethodField(help_text="what would be accepted now")
    error = serializers.SerializerMethodField()
    scheduledChange = serializers.SerializerMethodField()
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)
    finishedAt = Moment(source="finished_at", allow_null=True)
    asleepSince = Moment(source="asleep_since", allow_null=True, help_text="its next request wakes it")

    def get_isCurrent(self, row: Deployment) -> bool:
        return bool(row.app.current_deployment_id == row.id)

    def get_hosts(self, row: Deployment) -> list[str]:
        return list(self.context["hosts"][row.id])

    def get_urls(self, row: Deployment) -> list[str]:
        port = "" if env.EDGE_HTTP_PORT == 80 else f":{env.EDGE_HTTP_PORT}"
        return [f"http://{host}{port}" for host in self.context["hosts"][row.id]]

    def get_availableActions(self, row: Deployment) -> list[str]:
        return list(self.context["actions"][row.id])

    @extend_schema_field(FailureSerializer(allow_null=True))
    def get_error(self, row: Deployment) -> Any:
        return FailureSerializer(row).data if row.status == Deployment.Status.FAILED else None

    @extend_schema_field(ScheduledSerializer(allow_null=True))
    def get_scheduledChange(self, row: Deployment) -> Any:
        change = getattr(row, "scheduled_change", None)
        return ScheduledSerializer(change).data if change is not None else None


class DeploymentDetailSerializer(DeploymentSerializer):
    """One version of an app in an environment, with all that was frozen when it was made."""

    settings = serializers.DictField()
    variables = serializers.SerializerMethodField(help_text="names of the variables, without values")
    policies = serializers.SerializerMethodField()

    def get_policies(self, row: Deployment) -> list[dict[str, Any]]:
        return without_hashes(row.policies)

    def get_variables(self, row: Deployment) -> list[str]:
        return [variable["key"] for variable in row.variables]


class StepSerializer(serializers.Serializer[Any]):
    """A step of a deployment."""

    step = serializers.CharField()
    status = serializers.SerializerMethodField()
    startedAt = Moment(source="started_at")
    endedAt = Moment(source="ended_at", allow_null=True)
    message = serializers.CharField()
    error = serializers.CharField()

    @extend_schema_field(serializers.ChoiceField(choices=["running", "done", "failed"]))
    def get_status(self, row: Any) -> str:
        return "failed" if row.error else "done" if row.ended_at else "running"


class InstanceSerializer(serializers.Serializer[Any]):
    """A running copy of a deployment, as its agent reported it last."""

    id = serializers.CharField()
    name = serializers.CharField()
    region = serializers.CharField(source="region.name")
    address = serializers.CharField()
    status = serializers.ChoiceField(choices=Instance.Status.choices)
    message = serializers.CharField()
    restarts = serializers.IntegerField()
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at")


class TopologySerializer(serializers.Serializer[Any]):
    """How many instances of a deployment a region should run."""

    region = serializers.CharField(source="region.name")
    desiredState = serializers.CharField(source="desired_status")
    min = serializers.IntegerField(source="replicas_min")
    max = serializers.IntegerField(source="replicas_max")
    thresholdCpu = serializers.IntegerField(source="threshold_cpu", allow_null=True)
    thresholdMemory = serializers.IntegerField(source="threshold_memory", allow_null=True)


class LogLineSerializer(serializers.Serializer[Any]):
    """A line that an instance wrote."""

    time = serializers.IntegerField(required=False)
    region = serializers.CharField()
    instance = serializers.CharField(required=False)
    stream = serializers.CharField(required=False)
    text = serializers.CharField()


class LogsSerializer(serializers.Serializer[Any]):
    """The last lines of all instances, oldest first."""

    lines = LogLineSerializer(many=True)
    notes = serializers.ListField(child=serializers.CharField(), help_text="which agents did not answer")


class AnsweredSerializer(serializers.Serializer[Any]):
    """A rollback, promote or start that was accepted, and what came of it."""

    runId = serializers.CharField(source="id")
    kind = serializers.SerializerMethodField()
    state = serializers.ChoiceField(choices=State.choices)
    switched = serializers.SerializerMethodField(help_text="whether the routes have moved")
    message = serializers.SerializerMethodField(help_text="why it failed")
    requestedAt = Moment(source="created_at")
    finishedAt = Moment(source="finished_at", allow_null=True)

    def get_kind(self, row: WorkflowRun) -> str:
        return "start" if row.service == "wake" else row.service

    def get_switched(self, row: WorkflowRun) -> bool:
        return known.has_switched(row)

    def get_message(self, row: WorkflowRun) -> str:
        return known.told(row) if row.error_code else ""


class RequestSerializer(serializers.Serializer[Any]):
    """What was asked last."""

    request = AnsweredSerializer(allow_null=True)


class SpecSerializer(serializers.Serializer[Any]):
    """An OpenAPI document."""

    deploymentId = serializers.CharField(source="deployment_id")
    path = serializers.CharField(help_text="where the deployment served it")
    digest = serializers.CharField(help_text="SHA-256 of the content")
    content = serializers.CharField(source="text", help_text="JSON or YAML, as it was served")
    fault = serializers.CharField(help_text="why it cannot be compared; empty: it can")
    createdAt = Moment(source="created_at")


class CountsSerializer(serializers.Serializer[Any]):
    """How many."""

    added = serializers.IntegerField()
    deleted = serializers.IntegerField()
    modified = serializers.IntegerField()


class DetailsSerializer(serializers.Serializer[Any]):
    """How many of what."""

    endpoints = CountsSerializer()
    paths = CountsSerializer()
    schemas = CountsSerializer()


class SummarySerializer(serializers.Serializer[Any]):
    """Whether there is a difference, and how much of one."""

    diff = serializers.BooleanField()
    details = DetailsSerializer()


class ChangeSerializer(serializers.Serializer[Any]):
    """One change of an API."""

    id = serializers.CharField(help_text="name of the check, as oasdiff has it")
    text = serializers.CharField()
    level = serializers.IntegerField(help_text="1 information, 2 warning, 3 breaks clients")
    operation = serializers.CharField()
    operationId = serializers.CharField()
    path = serializers.CharField()
    pointer = serializers.CharField()


class DiffSerializer(serializers.Serializer[Any]):
    """What an API has changed since an older deployment."""

    summary = SummarySerializer()
    hasBreakingChanges = serializers.BooleanField()
    changes = ChangeSerializer(many=True)
    report = serializers.CharField(allow_null=True, help_text="for people, in the format that was asked for")


class DiffQuery(Query):
    """Since when."""

    since = serializers.CharField(max_length=64, help_text="id of the older deployment")
    format = serializers.ChoiceField(choices=["text", "markdown"], required=False)


class SnapshotSerializer(serializers.Serializer[Any]):
    """A packed source folder that can be deployed."""

    image = serializers.CharField(help_text="what a deployment takes as image.dockerImage")
    size = serializers.IntegerField()
    files = serializers.IntegerField()


class DeploymentsQuery(PageQuery):
    """Which deployments."""

    project = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    app = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    environment = serializers.CharField(max_length=255, required=False, help_text="id or slug")
    status = Many(Deployment.Status.values, required=False)
    branch = Many(required=False)
    since = Moment(required=False)
    until = Moment(required=False)
    search = serializers.CharField(max_length=256, required=False, allow_blank=True)


class LogsQuery(Query):
    """Which log lines."""

    tail = serializers.IntegerField(min_value=1, max_value=5000, default=200)


class Deployments(WorkspaceView):
    """The deployments of a workspace."""

    needs = {"GET": Action.READ, "POST": Action.DEPLOY}

    _NEW = Body.of("deployments.createDeployment")

    @operation("deployments.list", answer=DeploymentSerializer, page=True, query=DeploymentsQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List deployments, the newest first."""
        query = DeploymentsQuery().read(request)
        return Response(page_of(queries.deployments(query), query, shown))

    @operation("deployments.create", answer=DeploymentDetailSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Deploy an image or an uploaded snapshot, a commit, or an earlier deployment once more."""
        body = self._NEW.read(request)
        environment = projects.find_environment(body["project"], body["app"], body["environment"])
        earlier = known.find(body["deployment"]["deploymentId"]) if "deployment" in body else None
        image = body["image"]["dockerImage"].strip() if "image" in body else None
        if image is not None and len(image) > services.MAX_IMAGE:
            message = f"dockerImage must have at most {services.MAX_IMAGE} characters"
            raise errors.InvalidInput(message, violations=(Violation(message, "body.image.dockerImage"),))
        made = services.create_deployment(
            environment,
            image=image,
            redeploy_of=earlier,
            git=body.get("git"),
            trigger=Deployment.Trigger.API if self.token else Deployment.Trigger.DASHBOARD,
            actor=self.actor,
        )
        return Response(detail(made.id), status=201)


class DeploymentView(WorkspaceView):
    """The base of views below one deployment."""

    @property
    def deployment(self) -> Deployment:
        """The deployment that the address names.

        Raises:
            DeploymentNotFound
        """
        return known.find(self.kwargs["deployment"])


class DeploymentDetail(DeploymentView):
    """One deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.get", answer=DeploymentDetailSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """Return a deployment with all that was frozen when it was made."""
        NoQuery().read(request)
        return Response(detail(deployment))


class Steps(DeploymentView):
    """The steps of a deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.steps", answer=StepSerializer, many=True, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """List the steps that a deployment has gone through."""
        NoQuery().read(request)
        return Response({"items": StepSerializer(known.steps(self.deployment), many=True).data})


class Instances(DeploymentView):
    """The instances of a deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.instances", answer=InstanceSerializer, many=True, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """List the instances of a deployment as their agents reported them last."""
        NoQuery().read(request)
        rows = known.instances(self.deployment)
        return Response({"items": InstanceSerializer(rows, many=True).data})


class Topologies(DeploymentView):
    """The topologies of a deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.topologies", answer=TopologySerializer, many=True, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """List the regions that a deployment should run in, and with how many instances."""
        NoQuery().read(request)
        rows = queries.topologies(self.deployment)
        return Response({"items": TopologySerializer(rows, many=True).data})


class Logs(DeploymentView):
    """The log of a deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.logs", answer=LogsSerializer, query=LogsQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """Return the last lines that a deployment's instances wrote, oldest first."""
        query = LogsQuery().read(request)
        row = self.deployment
        lines, notes = logs.fetch(known.agents(row), row.id, query["tail"])
        return Response({"lines": lines, "notes": notes})


class ActionView(DeploymentView):
    """The base of views that do one thing to a deployment."""

    needs = {"POST": Action.OPERATE}

    def shown(self, status: int = 202) -> Response:
        """Return the answer: the deployment as it is now."""
        return Response(detail(self.kwargs["deployment"]), status=status)


class Promote(ActionView):
    """Promoting."""

    @operation("deployments.promote", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Make a deployment the live one; new deployments go live again."""
        NOTHING.read(request)
        services.promote(self.deployment, actor=self.actor)
        return self.shown()


class Rollback(ActionView):
    """Rolling back."""

    @operation("deployments.rollback", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Point the app back at a deployment; new ones do not go live until one is promoted."""
        NOTHING.read(request)
        services.rollback(self.deployment, actor=self.actor)
        return self.shown()


class Stop(ActionView):
    """Stopping."""

    @operation("deployments.stop", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Stop a preview; it can be started again."""
        NOTHING.read(request)
        services.stop(self.deployment, actor=self.actor)
        return self.shown()


class Start(ActionView):
    """Starting again."""

    @operation("deployments.start", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Start a preview that was stopped."""
        NOTHING.read(request)
        services.start_again(self.deployment, actor=self.actor)
        return self.shown()


class Cancel(ActionView):
    """Cancelling."""

    @operation("deployments.cancel", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """End a deployment that is not ready yet; one that has ended stays as it is."""
        NOTHING.read(request)
        services.cancel(self.deployment, actor=self.actor)
        return self.shown()


class Approve(ActionView):
    """Approving."""

    needs = {"POST": Action.APPROVE}

    @operation("deployments.approve", answer=DeploymentDetailSerializer, body=NOTHING, status=202)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Let a deployment that awaits approval begin."""
        NOTHING.read(request)
        services.approve(self.deployment, actor=self.actor)
        return self.shown()


class Redeploy(ActionView):
    """Deploying once more."""

    needs = {"POST": Action.DEPLOY}

    _BODY = Body.of("deployments.redeployDeployment", without=["deploymentId"])

    @operation("deployments.redeploy", answer=DeploymentDetailSerializer, body=_BODY, status=201)
    def post(self, request: Request, workspace: str, deployment: str) -> Response:
        """Deploy the same image with what the environment says now; returns the new deployment."""
        body = self._BODY.read(request)
        made = services.redeploy(
            self.deployment,
            force=body["force"],
            trigger=Deployment.Trigger.API if self.token else Deployment.Trigger.DASHBOARD,
            actor=self.actor,
        )
        return Response(detail(made.id), status=201)


class ScheduledChange(DeploymentView):
    """The change of a deployment's desired state that is to come."""

    needs = {"DELETE": Action.OPERATE}

    @operation("deployments.cancelScheduledChange", answer=DeploymentDetailSerializer, body=NOTHING)
    def delete(self, request: Request, workspace: str, deployment: str) -> Response:
        """Let a deployment keep running that was to go on standby."""
        NOTHING.read(request)
        services.cancel_scheduled_change(self.deployment, actor=self.actor)
        return Response(detail(deployment))


class LastRequest(DeploymentView):
    """The fate of what was asked last."""

    needs = {"GET": Action.READ}

    @operation("deployments.lastRequest", answer=RequestSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """Say what came of the last rollback, promote or start of a deployment; null if there was none."""
        NoQuery().read(request)
        return Response(RequestSerializer({"request": known.last_request(self.deployment)}).data)


class Spec(DeploymentView):
    """The OpenAPI document of a deployment."""

    needs = {"GET": Action.READ}

    @operation("deployments.openapi", answer=SpecSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """Return the OpenAPI document that a deployment served when it got ready."""
        NoQuery().read(request)
        return Response(SpecSerializer(compatibility.find_spec(self.deployment)).data)


class Diff(DeploymentView):
    """What an API has changed."""

    needs = {"GET": Action.READ}

    @operation("deployments.openapiDiff", answer=DiffSerializer, query=DiffQuery)
    def get(self, request: Request, workspace: str, deployment: str) -> Response:
        """Say how a deployment's API differs from an older one's, and what of it breaks clients."""
        query = DiffQuery().read(request)
        report = compatibility.compare(known.find(query["since"]), self.deployment)
        written = {"text": openapi.as_text, "markdown": openapi.as_markdown}.get(query.get("format", ""))
        return Response({**openapi.as_json(report), "report": written(report) if written else None})


class Snapshots(WorkspaceView):
    """Uploaded sources."""

    needs = {"POST": Action.DEPLOY}
    keeps_answers = False
    parser_classes = ()

    _TYPE = "application/gzip"

    @operation("snapshots.create", answer=SnapshotSerializer, archive=_TYPE, status=201, once_only=False)
    def post(self, request: Request, workspace: str) -> Response:
        """Upload a packed source folder; the same content again is the same snapshot.

        The header X-Unkey-Digest (`sha256:…`) has it checked on arrival.
        """
        if (request.content_type or "").partition(";")[0].strip().lower() != self._TYPE:
            raise errors.UnsupportedMediaType(f"Send the packed folder as {self._TYPE}.")
        upload = receive(request._request, env.SNAPSHOT_MAX_BYTES)
        try:
            with upload.open("rb") as file:
                made = builds.create_snapshot(
                    self.workspace.id,
                    file,
                    expected_digest=request.headers.get("X-Unkey-Digest"),
                    actor=self.actor,
                )
        finally:
            upload.unlink(missing_ok=True)
        shown = {"image": made.reference, "size": made.size, "files": made.files}
        return Response(SnapshotSerializer(shown).data, status=201)


def shown(rows: Iterable[Deployment]) -> list[dict[str, Any]]:
    """Return deployments as a list shows them."""
    deployments = list(rows)
    return list(DeploymentSerializer(deployments, many=True, context=_context(deployments)).data)


def detail(identifier: str) -> dict[str, Any]:
    """Return one deployment with everything.

    Raises:
        DeploymentNotFound
    """
    row = queries.of_ids([identifier]).first()
    if row is None:
        raise known.not_found()
    return dict(DeploymentDetailSerializer(row, context=_context([row])).data)


def _context(rows: list[Deployment]) -> dict[str, Any]:
    return {
        "hosts": routing.hosts_of([row.id for row in rows]),
        "actions": actions.available(rows, actions.ALL),
    }
