"""Projects, apps, environments: their settings, regions, variables and policies."""

import re
from typing import Any

from django.db import transaction
from django.db.models import Count, Q
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.audit import services as audit
from apps.console.rest.access import WorkspaceView
from apps.console.rest.describing import NOTHING, Body, Moment, NoQuery, SearchQuery, operation
from apps.console.rest.pages import page_of
from apps.projects import queries, services
from apps.projects.models import Environment, EnvironmentVariable
from apps.routing import policies
from apps.vault import services as vault
from apps.workspaces import roles
from apps.workspaces.roles import Action
from unkey import errors
from unkey.partial import present
from unkey.search import containing

_PLACE = ("project", "app", "environment")


class ProjectSerializer(serializers.Serializer[Any]):
    """A set of apps that belong together."""

    id = serializers.CharField()
    name = serializers.CharField()
    slug = serializers.CharField()
    deleteProtection = serializers.BooleanField(source="delete_protection")
    apps = serializers.IntegerField(source="app_count", help_text="how many apps it has")
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)


class AppSerializer(serializers.Serializer[Any]):
    """A program with environments."""

    id = serializers.CharField()
    projectId = serializers.CharField(source="project_id")
    name = serializers.CharField()
    slug = serializers.CharField()
    currentDeploymentId = serializers.CharField(source="current_deployment_id", allow_null=True)
    isRolledBack = serializers.BooleanField(source="is_rolled_back")
    deleteProtection = serializers.BooleanField(source="delete_protection")
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)


class ReplicasSerializer(serializers.Serializer[Any]):
    """How many instances a region runs."""

    min = serializers.IntegerField(source="replicas_min")
    max = serializers.IntegerField(source="replicas_max")


class RegionalSerializer(serializers.Serializer[Any]):
    """A region that deployments run in."""

    name = serializers.CharField(source="region.name")
    replicas = ReplicasSerializer(source="*")


class RuntimeSerializer(serializers.Serializer[Any]):
    """How instances run."""

    port = serializers.IntegerField()
    vCpus = serializers.SerializerMethodField()
    memoryMib = serializers.IntegerField(source="memory_mib")
    storageMib = serializers.IntegerField(source="storage_mib")
    command = serializers.ListField(child=serializers.CharField())
    healthcheck = serializers.DictField(allow_null=True)
    shutdownSignal = serializers.CharField(source="shutdown_signal")
    upstreamProtocol = serializers.CharField(source="upstream_protocol")
    openapiSpecPath = serializers.CharField(source="openapi_spec_path", allow_null=True)
    thresholdCpu = serializers.IntegerField(source="threshold_cpu")
    thresholdMemory = serializers.IntegerField(source="threshold_memory", allow_null=True)

    def get_vCpus(self, row: Environment) -> float:
        return row.cpu_millicores / 1000


class BuildSerializer(serializers.Serializer[Any]):
    """How source becomes something to run."""

    dockerfile = serializers.CharField(allow_null=True)
    rootDirectory = serializers.CharField(source="root_directory")
    buildCommand = serializers.CharField(source="build_command", allow_null=True)
    watchPaths = serializers.ListField(source="watch_paths", child=serializers.CharField())
    autoDeploy = serializers.BooleanField(source="auto_deploy")


class EnvironmentSerializer(serializers.Serializer[Any]):
    """Where an app runs, with its settings for deployments to come."""

    id = serializers.CharField()
    appId = serializers.CharField(source="app_id")
    slug = serializers.CharField()
    description = serializers.CharField()
    kind = serializers.ChoiceField(choices=Environment.Kind.choices)
    deleteProtection = serializers.BooleanField(source="delete_protection")
    refuseBreakingChanges = serializers.BooleanField(source="refuse_breaking_changes")
    runtime = RuntimeSerializer(source="*")
    build = BuildSerializer(source="*")
    regions = RegionalSerializer(many=True)
    refuseBreakingChanges = serializers.BooleanField(source="refuse_breaking_changes")
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)


class VariableSerializer(serializers.Serializer[Any]):
    """A variable; its value is never listed."""

    key = serializers.CharField()
    kind = serializers.ChoiceField(choices=EnvironmentVariable.Kind.choices)
    description = serializers.CharField()
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at", allow_null=True)


class RevealedSerializer(serializers.Serializer[Any]):
    """The value of a variable that may be read back."""

    key = serializers.CharField()
    value = serializers.CharField()


class PolicySerializer(serializers.Serializer[Any]):
    """A rule of the gateway; exactly one of the kinds is there."""

    id = serializers.CharField()
    name = serializers.CharField()
    enabled = serializers.BooleanField()
    match = serializers.ListField(child=serializers.DictField(), required=False)
    keyauth = serializers.DictField(required=False)
    jwtauth = serializers.DictField(required=False)
    basicauth = serializers.DictField(required=False)
    ipRules = serializers.DictField(required=False)
    ratelimit = serializers.DictField(required=False)
    firewall = serializers.DictField(required=False)
    openapi = serializers.DictField(required=False)
    logging = serializers.DictField(required=False)


class Projects(WorkspaceView):
    """The projects of a workspace."""

    needs = {"GET": Action.READ, "POST": Action.CREATE}

    _NEW = Body.of("projects.createProject")

    @operation("projects.list", answer=ProjectSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List projects, the newest first; `search` looks in id, name and slug."""
        query = SearchQuery().read(request)
        rows = _counted(queries.projects(query.get("search", "")))
        return Response(page_of(rows, query, lambda page: ProjectSerializer(page, many=True).data))

    @operation("projects.create", answer=ProjectSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Create a project."""
        body = self._NEW.read(request)
        made = services.create_project(
            self.workspace.id, name=body["name"], slug=body["slug"], actor=self.actor
        )
        return Response(_project(made.id), status=201)


class Project(WorkspaceView):
    """One project."""

    needs = {"GET": Action.READ, "PATCH": Action.CONFIGURE, "DELETE": Action.DELETE}

    _CHANGES = Body.of("projects.updateProject", without=["project"])

    @operation("projects.get", answer=ProjectSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, project: str) -> Response:
        """Return a project by id or slug."""
        NoQuery().read(request)
        return Response(_project(queries.find_project(project).id))

    @operation("projects.update", answer=ProjectSerializer, body=_CHANGES)
    def patch(self, request: Request, workspace: str, project: str) -> Response:
        """Change a project's name, slug or protection against deletion."""
        body = self._CHANGES.read(request)
        changes = present(body, name="name", slug="slug", delete_protection="deleteProtection")
        row = services.update_project(queries.find_project(project), actor=self.actor, **changes)
        return Response(_project(row.id))

    @operation("projects.delete", body=NOTHING, status=202)
    def delete(self, request: Request, workspace: str, project: str) -> Response:
        """Delete a project with all its apps; what runs is taken down in the background."""
        NOTHING.read(request)
        services.delete_project(queries.find_project(project), actor=self.actor)
        return Response({}, status=202)


class Apps(WorkspaceView):
    """The apps of a project."""

    needs = {"GET": Action.READ, "POST": Action.CREATE}

    _NEW = Body.of("apps.createApp", without=["project", "git"])

    @operation("apps.list", answer=AppSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str, project: str) -> Response:
        """List the apps of a project, the newest first."""
        query = SearchQuery().read(request)
        rows = queries.apps(queries.find_project(project), query.get("search", ""))
        return Response(page_of(rows, query, lambda page: AppSerializer(page, many=True).data))

    @operation("apps.create", answer=AppSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str, project: str) -> Response:
        """Create an app with a production and a preview environment."""
        body = self._NEW.read(request)
        made = services.create_app(
            queries.find_project(project), name=body["name"], slug=body["slug"], actor=self.actor
        )
        return Response(AppSerializer(made).data, status=201)


class AppDetail(WorkspaceView):
    """One app."""

    needs = {"GET": Action.READ, "PATCH": Action.CONFIGURE, "DELETE": Action.DELETE}

    _CHANGES = Body.of("apps.updateApp", without=["project", "app", "git"])

    @operation("apps.get", answer=AppSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, project: str, app: str) -> Response:
        """Return an app by id or slug."""
        NoQuery().read(request)
        return Response(AppSerializer(queries.find_app(project, app)).data)

    @operation("apps.update", answer=AppSerializer, body=_CHANGES)
    def patch(self, request: Request, workspace: str, project: str, app: str) -> Response:
        """Change an app's name, slug or protection against deletion."""
        body = self._CHANGES.read(request)
        changes = present(body, name="name", slug="slug", delete_protection="deleteProtection")
        row = services.update_app(queries.find_app(project, app), actor=self.actor, **changes)
        return Response(AppSerializer(row).data)

    @operation("apps.delete", body=NOTHING, status=202)
    def delete(self, request: Request, workspace: str, project: str, app: str) -> Response:
        """Delete an app; what runs is taken down in the background."""
        NOTHING.read(request)
        services.delete_app(queries.find_app(project, app), actor=self.actor)
        return Response({}, status=202)


class Environments(WorkspaceView):
    """The environments of an app."""

    needs = {"GET": Action.READ}

    @operation("environments.list", answer=EnvironmentSerializer, many=True, query=NoQuery)
    def get(self, request: Request, workspace: str, project: str, app: str) -> Response:
        """List the environments of an app, production first."""
        NoQuery().read(request)
        rows = queries.environments(queries.find_app(project, app))
        return Response({"items": EnvironmentSerializer(rows, many=True).data})


class EnvironmentView(WorkspaceView):
    """The base of views below one environment."""

    @property
    def environment(self) -> Environment:
        """The environment that the address names.

        Raises:
            ProjectNotFound, AppNotFound, EnvironmentNotFound
        """
        return queries.find_environment(*(self.kwargs[name] for name in _PLACE))


class EnvironmentDetail(EnvironmentView):
    """One environment."""

    needs = {"GET": Action.READ, "DELETE": Action.DELETE}

    @operation("environments.get", answer=EnvironmentSerializer, query=NoQuery)
    def get(self, request: Request, **_names: str) -> Response:
        """Return an environment with its settings, by id or slug."""
        NoQuery().read(request)
        return Response(EnvironmentSerializer(self.environment).data)

    @operation("environments.delete", body=NOTHING, status=202)
    def delete(self, request: Request, **_names: str) -> Response:
        """Delete an environment with its deployments; what runs is taken down in the background."""
        NOTHING.read(request)
        services.delete_environment(self.environment, actor=self.actor)
        return Response({}, status=202)


class Settings(EnvironmentView):
    """The settings of an environment, regions and replicas too."""

    needs = {"PATCH": Action.CONFIGURE}

    _CHANGES = Body.of("environments.updateSettings", without=_PLACE)

    @operation("environments.updateSettings", answer=EnvironmentSerializer, body=_CHANGES)
    def patch(self, request: Request, **_names: str) -> Response:
        """Change build settings, runtime settings and regions for the deployments to come."""
        body = self._CHANGES.read(request)
        others: dict[str, Any] = present(body, vcpus="vCpus")
        if "regions" in body:
            others["regions"] = [
                services.RegionReplicas(item["name"], item["replicas"]["min"], item["replicas"]["max"])
                for item in body["regions"]
            ]
        changes = {_column(name): body[name] for name in body.keys() - {"vCpus", "regions"}}
        services.update_settings(self.environment, changes, actor=self.actor, **others)
        return Response(EnvironmentSerializer(self.environment).data)


class Variables(EnvironmentView):
    """The variables of an environment."""

    needs = {"GET": Action.READ, "POST": Action.CONFIGURE}

    _SET = Body.of("environments.setEnvironmentVariables", without=_PLACE)

    @operation("variables.list", answer=VariableSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, **_names: str) -> Response:
        """List variables, the newest first, without their values."""
        query = SearchQuery().read(request)
        rows = queries.variables(self.environment)
        if query.get("search"):
            rows = rows.filter(containing(query["search"], "key", "description"))
        return Response(page_of(rows, query, lambda page: VariableSerializer(page, many=True).data))

    @operation("variables.set", body=_SET, status=204)
    def post(self, request: Request, **_names: str) -> Response:
        """Set variables for the deployments to come; with `prune`, remove all others."""
        body = self._SET.read(request)
        wanted = [
            services.Variable(
                key=item["key"],
                value=item["value"],
                kind=EnvironmentVariable.Kind(item["kind"]),
                description=item.get("description", ""),
            )
            for item in body["variables"]
        ]
        services.set_variables(self.environment, wanted, prune=body["prune"], actor=self.actor)
        return Response(status=204)


class Variable(EnvironmentView):
    """One variable."""

    needs = {"DELETE": Action.CONFIGURE}

    @operation("variables.remove", body=NOTHING, status=204)
    def delete(self, request: Request, **names: str) -> Response:
        """Remove a variable for the deployments to come."""
        NOTHING.read(request)
        environment = self.environment
        _variable(environment, names["key"])
        services.remove_variables(environment, [names["key"]], actor=self.actor)
        return Response(status=204)


class Reveal(EnvironmentView):
    """The value of one variable."""

    needs = {"POST": Action.REVEAL}
    keeps_answers = False

    @operation("variables.reveal", answer=RevealedSerializer, body=NOTHING, once_only=False)
    def post(self, request: Request, **names: str) -> Response:
        """Decrypt a variable that may be read back; every time is written to the audit log."""
        NOTHING.read(request)
        row = _variable(self.environment, names["key"])
        if row.kind != EnvironmentVariable.Kind.RECOVERABLE:
            raise errors.PreconditionFailed(
                f"The variable {row.key} is write-only: its value can be replaced, not read back."
            )
        value = vault.decrypt(row.environment_id, row.ciphertext)
        with transaction.atomic():
            audit.record("variable.reveal", actor=self.actor, workspace_id=self.workspace.id, targets=[row])
        answer = Response(RevealedSerializer({"key": row.key, "value": value}).data)
        answer.headers["Cache-Control"] = "no-store"
        return answer


class Policies(EnvironmentView):
    """The policies of an environment."""

    needs = {"GET": Action.READ, "PUT": Action.CONFIGURE}

    _SET = Body.of("gateway.setPolicies", without=_PLACE)

    @operation("policies.list", answer=PolicySerializer, many=True, query=NoQuery)
    def get(self, request: Request, **_names: str) -> Response:
        """List the policies of an environment in the order of their evaluation."""
        NoQuery().read(request)
        kept = self.environment.policies
        return Response({"items": kept if roles.may(self.role, Action.CONFIGURE) else without_hashes(kept)})

    @operation("policies.set", answer=PolicySerializer, many=True, body=_SET)
    def put(self, request: Request, **_names: str) -> Response:
        """Replace the policies of an environment for the deployments to come."""
        body = self._SET.read(request)
        kept = policies.set_policies(self.environment, body["policies"], actor=self.actor)
        return Response({"items": kept})


class Policy(EnvironmentView):
    """One policy."""

    needs = {"PATCH": Action.CONFIGURE}

    _CHANGES = Body.of("gateway.updatePolicy", without=[*_PLACE, "policyId"])

    @operation("policies.update", answer=PolicySerializer, body=_CHANGES)
    def patch(self, request: Request, **names: str) -> Response:
        """Change one policy of an environment for the deployments to come."""
        body = self._CHANGES.read(request)
        return Response(policies.update_policy(self.environment, names["policy"], body, actor=self.actor))


def without_hashes(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return policies as they are shown to those who may not change them: no hash of a password."""
    return [
        {
            **policy,
            "basicauth": {
                "credentials": [{**each, "passwordHash": ""} for each in policy["basicauth"]["credentials"]]
            },
        }
        if policy.get("basicauth")
        else policy
        for policy in policies
    ]


def _column(field: str) -> str:
    """Return the column of a setting: `openapi_spec_path` of `openapiSpecPath`."""
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)


def _counted(rows: Any) -> Any:
    return rows.annotate(app_count=Count("apps", filter=Q(apps__deleting_at=None)))


def _project(identifier: str) -> Any:
    return ProjectSerializer(_counted(queries.projects()).get(pk=identifier)).data


def _variable(environment: Environment, key: str) -> EnvironmentVariable:
    row = queries.variables(environment).filter(key=key).first()
    if row is None:
        raise errors.VariableNotFound("The requested variable does not exist.")
    return row
