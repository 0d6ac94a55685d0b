"""`/v2` operations on projects, apps, environments and their variables."""

from typing import Any, NoReturn

from apps.projects import queries, services
from apps.projects.models import App, Environment, EnvironmentVariable, Project
from unkey import clock, errors
from unkey.errors import Violation
from unkey.partial import present
from unkey.rpc.authorization import T, U
from unkey.rpc.call import Call, Page, paginate
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import (
    Field,
    Schema,
    array,
    boolean,
    handle,
    identifier,
    integer,
    nullable,
    number,
    obj,
    optional,
    string,
)

Fields = dict[str, Schema | Field]

_SLUG = handle()
_NAME = string(1, 256)
_PATH = r"^(/[\w\-]+)+(\.[\w]+)?$"
_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL")
_PROTOCOLS = ("http1", "h2c")
_NOTHING = obj({})
_TIMES: Fields = {"createdAt": integer(0), "updatedAt": optional(integer(0))}
_LISTING: Fields = {
    "limit": optional(integer(1, 100), default=100),
    "cursor": optional(string()),
    "search": optional(string(0, 256)),
}

PROJECT = obj(
    {"id": string(), "name": string(), "slug": string(), "deleteProtection": boolean(), **_TIMES},
)
APP = obj(
    {
        "id": string(),
        "name": string(),
        "slug": string(),
        "git": optional(obj({"repository": string(1, 255), "defaultBranch": optional(string(1, 256))})),
        "currentDeploymentId": optional(string()),
        "isRolledBack": boolean(),
        "deleteProtection": boolean(),
        **_TIMES,
    }
)
HEALTHCHECK = obj(
    {
        "method": string(choices=("GET", "POST")),
        "path": string(1, 512, pattern=_PATH),
        "intervalSeconds": optional(integer(1, 3600), default=10),
        "timeoutSeconds": optional(integer(1, 3600), default=5),
        "failureThreshold": optional(integer(1, 100), default=3),
        "initialDelaySeconds": optional(integer(0, 3600), default=0),
    }
)
REGION = obj({"name": string(1, 64), "replicas": obj({"min": integer(), "max": integer()})})
_USUAL_CPU = 80
_CPU = integer(1, 100, about="percent of an instance's vCpus above which there are more instances")
_MEMORY = integer(1, 100, about="the same of its memoryMib; null: memory does not matter")
ENVIRONMENT = obj(
    {
        "id": string(),
        "slug": string(),
        "description": string(),
        "kind": string(choices=("production", "preview")),
        "deleteProtection": boolean(),
        "refuseBreakingChanges": optional(boolean()),
        "thresholdCpu": optional(_CPU),
        "thresholdMemory": optional(_MEMORY),
        **_TIMES,
        "runtime": optional(
            obj(
                {
                    "port": integer(),
                    "vCpus": number(),
                    "memoryMib": integer(),
                    "storageMib": integer(),
                    "command": array(string()),
                    "healthcheck": optional(HEALTHCHECK),
                    "shutdownSignal": string(choices=_SIGNALS),
                    "upstreamProtocol": string(choices=_PROTOCOLS),
                    "openapiSpecPath": optional(string()),
                }
            )
        ),
        "build": optional(
            obj(
                {
                    "dockerfile": optional(string()),
                    "rootDirectory": string(),
                    "buildCommand": optional(string()),
                    "watchPaths": array(string()),
                    "autoDeploy": boolean(),
                }
            )
        ),
        "regions": optional(array(REGION)),
    }
)
_APP_NAMES = {"project": _SLUG, "app": _SLUG}
_ENVIRONMENT_NAMES = {**_APP_NAMES, "environment": _SLUG}
_VARIABLE_KEY = string(1, 256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
_VARIABLE_KINDS = ("recoverable", "writeonly")
_ENVIRONMENT_URN = "projects/{project}/apps/{app}/environments/{environment}"
_NO_GIT = (
    "Connecting a repository needs the GitHub App, which is not configured. "
    "Deploy with `unkey deploy` or `deployments.createDeployment` instead."
)


def _connect(git: dict[str, str]) -> NoReturn:
    if "repository" not in git:
        raise errors.InvalidInput(
            "The app has no connected repository.",
            violations=(
                Violation("the app has no connected repository", "body.git", "Give git.repository."),
            ),
        )
    raise errors.PreconditionFailed(_NO_GIT)


def _environment_rule(action: str) -> Any:
    return T(f"environment.{{environment}}.{action}") | U(f"{_ENVIRONMENT_URN}#{action}")


def _environment(call: Call, *, masked: bool = False) -> Environment:
    """Find the environment that a body names, if the caller may do to it what the route does."""
    body = call.body
    found = queries.find_environment(body["project"], body["app"], body["environment"])
    call.authorize(
        project=found.app.project_id,
        app=found.app_id,
        environment=found.id,
        masked=queries.environment_not_found if masked else None,
    )
    return found


# Projects


@route(
    "projects.createProject",
    request=obj({"name": _NAME, "slug": _SLUG}),
    response=obj({"id": identifier(8)}),
    permission=T("project.*.create_project") | U("projects/*#create_project"),
    errors=[errors.ProjectAlreadyExists],
)
def create_project(call: Call) -> JSON:
    """Create a project."""
    project = services.create_project(
        call.workspace_id, name=call.body["name"], slug=call.body["slug"], actor=call.actor
    )
    return {"id": project.id}


@route(
    "projects.getProject",
    request=obj({"project": _SLUG}),
    response=PROJECT,
    permission=T("project.{project}.read_project") | U("projects/{project}#read_project"),
    errors=[errors.ProjectNotFound],
)
def get_project(call: Call) -> JSON:
    """Return a project by id or slug."""
    project = queries.find_project(call.body["project"])
    call.authorize(project=project.id, masked=queries.project_not_found)
    return _show_project(project)


@route(
    "projects.listProjects",
    request=obj(_LISTING),
    response=array(PROJECT, most=100),
    permission=T("project.*.read_project") | U("projects/*#read_project"),
    paginated=True,
)
def list_projects(call: Call) -> Page:
    """List the projects of the workspace."""
    rows = queries.projects(call.body.get("search", ""))
    return paginate(rows, call.body, lambda page: map(_show_project, page))


@route(
    "projects.updateProject",
    request=obj(
        {
            "project": _SLUG,
            "slug": optional(_SLUG),
            "name": optional(_NAME),
            "deleteProtection": optional(boolean()),
        }
    ),
    response=PROJECT,
    permission=T("project.{project}.update_project") | U("projects/{project}#update_project"),
    errors=[errors.ProjectNotFound, errors.ProjectAlreadyExists],
)
def update_project(call: Call) -> JSON:
    """Change a project's name, slug or protection against deletion."""
    project = queries.find_project(call.body["project"])
    call.authorize(project=project.id)
    changes = present(call.body, name="name", slug="slug", delete_protection="deleteProtection")
    return _show_project(services.update_project(project, actor=call.actor, **changes))


@route(
    "projects.deleteProject",
    request=obj({"project": _SLUG}),
    response=_NOTHING,
    permission=T("project.{project}.delete_project") | U("projects/{project}#delete_project"),
    status=202,
    errors=[errors.ProjectNotFound, errors.ProtectedResource],
)
def delete_project(call: Call) -> JSON:
    """Delete a project with all its apps; what runs is taken down in the background."""
    project = queries.find_project(call.body["project"])
    call.authorize(project=project.id)
    services.delete_project(project, actor=call.actor)
    return {}


# Apps

_CONNECT = T("app.{app}.connect_repository")


@route(
    "apps.createApp",
    request=obj(
        {
            "project": _SLUG,
            "name": _NAME,
            "slug": _SLUG,
            "git": optional(
                obj({"repository": optional(string(1, 255)), "defaultBranch": optional(string(1, 256))})
            ),
        }
    ),
    response=obj({"appId": identifier(8)}),
    permission=T("project.{project}.create_app") | U("projects/{project}/apps/*#create_app"),
    errors=[errors.ProjectNotFound, errors.AppAlreadyExists, errors.PreconditionFailed],
)
def create_app(call: Call) -> JSON:
    """Create an app with a production and a preview environment; an empty `git` connects nothing yet."""
    project = queries.find_project(call.body["project"])
    call.authorize(project=project.id)
    if call.body.get("git"):
        call.authorize(T("app.*.connect_repository"))
        _connect(call.body["git"])
    app = services.create_app(project, name=call.body["name"], slug=call.body["slug"], actor=call.actor)
    return {"appId": app.id}


@route(
    "apps.getApp",
    request=obj(_APP_NAMES),
    response=APP,
    permission=T("app.{app}.read_app") | U("projects/{project}/apps/{app}#read_app"),
    errors=[errors.ProjectNotFound, errors.AppNotFound],
)
def get_app(call: Call) -> JSON:
    """Return an app by id or slug."""
    app = queries.find_app(call.body["project"], call.body["app"])
    call.authorize(project=app.project_id, app=app.id, masked=queries.app_not_found)
    return _show_app(app)


@route(
    "apps.listApps",
    request=obj({"project": _SLUG, **_LISTING}),
    response=array(APP, most=100),
    permission=T("app.{app}.read_app") | U("projects/{project}/apps/{app}#read_app"),
    paginated=True,
    errors=[errors.ProjectNotFound],
)
def list_apps(call: Call) -> Page:
    """List the apps of a project."""
    project = queries.find_project(call.body["project"])
    # Only a grant for every app will do, and its lack hides the project.
    call.authorize(project=project.id, app="*", masked=queries.project_not_found)
    rows = queries.apps(project, call.body.get("search", ""))
    return paginate(rows, call.body, lambda page: map(_show_app, page))


@route(
    "apps.updateApp",
    request=obj(
        {
            **_APP_NAMES,
            "name": optional(_NAME),
            "slug": optional(_SLUG),
            "git": optional(
                nullable(
                    {
                        **obj(
                            {
                                "repository": optional(string(1, 255)),
                                "defaultBranch": optional(string(1, 256)),
                            }
                        ),
                        "minProperties": 1,
                    }
                )
            ),
            "deleteProtection": optional(boolean()),
        }
    ),
    response=APP,
    permission=T("app.{app}.update_app") | U("projects/{project}/apps/{app}#update_app"),
    errors=[
        errors.ProjectNotFound,
        errors.AppNotFound,
        errors.AppAlreadyExists,
        errors.PreconditionFailed,
    ],
)
def update_app(call: Call) -> JSON:
    """Change an app's name, slug, repository or protection against deletion."""
    app = queries.find_app(call.body["project"], call.body["app"])
    changes = present(call.body, name="name", slug="slug", delete_protection="deleteProtection")
    if "git" in call.body:
        call.authorize(_CONNECT, app=app.id)
        call.authorized = not changes
    if changes or "git" not in call.body:
        call.authorize(project=app.project_id, app=app.id)
    git = call.body.get("git")
    if git is not None:
        _connect(git)
    return _show_app(services.update_app(app, actor=call.actor, **changes))


@route(
    "apps.deleteApp",
    request=obj(_APP_NAMES),
    response=_NOTHING,
    permission=T("app.{app}.delete_app") | U("projects/{project}/apps/{app}#delete_app"),
    status=202,
    errors=[errors.ProjectNotFound, errors.AppNotFound, errors.ProtectedResource],
)
def delete_app(call: Call) -> JSON:
    """Delete an app; what runs is taken down in the background."""
    app = queries.find_app(call.body["project"], call.body["app"])
    call.authorize(project=app.project_id, app=app.id)
    services.delete_app(app, actor=call.actor)
    return {}


# Environments


@route(
    "environments.getEnvironment",
    request=obj(_ENVIRONMENT_NAMES),
    response=ENVIRONMENT,
    permission=_environment_rule("read_environment"),
    errors=[errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound],
)
def get_environment(call: Call) -> JSON:
    """Return an environment with its settings."""
    return _show_environment(_environment(call, masked=True))


@route(
    "environments.listEnvironments",
    request=obj(_APP_NAMES),
    response=array(ENVIRONMENT),
    permission=_environment_rule("read_environment"),
    errors=[errors.ProjectNotFound, errors.AppNotFound],
)
def list_environments(call: Call) -> JSON:
    """List the environments of an app."""
    app = queries.find_app(call.body["project"], call.body["app"])
    call.authorize(project=app.project_id, app=app.id, environment="*", masked=queries.app_not_found)
    return [_show_environment(row) for row in queries.environments(app)]


@route(
    "environments.deleteEnvironment",
    request=obj(_ENVIRONMENT_NAMES),
    response=_NOTHING,
    permission=T("app.{app}.delete_app") | U("projects/{project}/apps/{app}#delete_app"),
    status=202,
    errors=[
        errors.ProjectNotFound,
        errors.AppNotFound,
        errors.EnvironmentNotFound,
        errors.ProtectedResource,
    ],
)
def delete_environment(call: Call) -> JSON:
    """Delete an environment with its deployments; what runs is taken down in the background."""
    body = call.body
    found = queries.find_environment(body["project"], body["app"], body["environment"])
    call.authorize(project=found.app.project_id, app=found.app_id)
    services.delete_environment(found, actor=call.actor)
    return {}


@route(
    "environments.listEnvironmentVariables",
    request=obj(
        {
            **_ENVIRONMENT_NAMES,
            "limit": optional(integer(1, 100), default=100),
            "cursor": optional(string(1, 1024)),
        }
    ),
    response=array(
        obj(
            {
                "key": string(),
                "kind": string(choices=_VARIABLE_KINDS),
                "value": optional(string(redact=True)),
                "description": optional(string()),
                "createdAt": integer(0),
            }
        )
    ),
    permission=_environment_rule("read_environment_variables"),
    paginated=True,
    errors=[
        errors.ProjectNotFound,
        errors.AppNotFound,
        errors.EnvironmentNotFound,
        errors.PreconditionFailed,
    ],
)
def list_environment_variables(call: Call) -> Page:
    """List the variables of an environment, with the values of those that may be read back."""
    return paginate(queries.variables(_environment(call)), call.body, _show_variables)


@route(
    "environments.setEnvironmentVariables",
    request=obj(
        {
            **_ENVIRONMENT_NAMES,
            "variables": array(
                obj(
                    {
                        "key": _VARIABLE_KEY,
                        "value": string(1, 16384, redact=True),
                        "kind": optional(string(choices=_VARIABLE_KINDS), default="writeonly"),
                        "description": optional(string(0, 255)),
                    }
                ),
                most=50,
            ),
            "prune": optional(boolean(), default=False),
        }
    ),
    response=_NOTHING,
    permission=_environment_rule("set_environment_variables"),
    errors=[errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound],
)
def set_environment_variables(call: Call) -> JSON:
    """Set variables for the deployments to come; with `prune`, remove all others."""
    environment = _environment(call)
    wanted = [
        services.Variable(
            key=item["key"],
            value=item["value"],
            kind=EnvironmentVariable.Kind(item["kind"]),
            description=item.get("description", ""),
        )
        for item in call.body["variables"]
    ]
    services.set_variables(environment, wanted, prune=call.body["prune"], actor=call.actor)
    return {}


@route(
    "environments.removeEnvironmentVariables",
    request=obj({**_ENVIRONMENT_NAMES, "variables": array(_VARIABLE_KEY, least=1, most=50)}),
    response=_NOTHING,
    permission=_environment_rule("remove_environment_variables"),
    errors=[errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound],
)
def remove_environment_variables(call: Call) -> JSON:
    """Remove variables by name; names that are not there are passed over."""
    services.remove_variables(_environment(call), call.body["variables"], actor=call.actor)
    return {}


_SETTINGS: dict[str, Schema] = {
    "dockerfile": nullable(string(1, 500)),
    "rootDirectory": string(1, 500),
    "buildCommand": nullable(string(1, 1000)),
    "watchPaths": array(string(0, 500), most=10),
    "autoDeploy": boolean(),
    "port": integer(1, 65535),
    "vCpus": number(0.25),
    "memoryMib": integer(256),
    "storageMib": integer(0),
    "command": array(string(0, 4096), most=10),
    "healthcheck": nullable(HEALTHCHECK),
    "shutdownSignal": string(choices=_SIGNALS),
    "upstreamProtocol": string(choices=_PROTOCOLS),
    "openapiSpecPath": nullable(string(1, 512, pattern=_PATH)),
    "regions": array(REGION, least=1, most=5),
    "thresholdCpu": _CPU,
    "thresholdMemory": nullable(_MEMORY),
    "refuseBreakingChanges": boolean(),
    "deleteProtection": boolean(),
}


@route(
    "environments.updateSettings",
    request=obj({**_ENVIRONMENT_NAMES, **{name: optional(schema) for name, schema in _SETTINGS.items()}}),
    response=_NOTHING,
    permission=_environment_rule("update_environment"),
    errors=[
        errors.ProjectNotFound,
        errors.AppNotFound,
        errors.EnvironmentNotFound,
        errors.InvalidEnvironmentSettings,
    ],
)
def update_settings(call: Call) -> JSON:
    """Change build settings, runtime settings and regions for the deployments to come."""
    environment = _environment(call)
    body = call.body
    others: dict[str, Any] = present(body, vcpus="vCpus")
    if "regions" in body:
        others["regions"] = [
            services.RegionReplicas(item["name"], item["replicas"]["min"], item["replicas"]["max"])
            for item in body["regions"]
        ]
    changes = present(
        body,
        dockerfile="dockerfile",
        root_directory="rootDirectory",
        build_command="buildCommand",
        watch_paths="watchPaths",
        auto_deploy="autoDeploy",
        port="port",
        memory_mib="memoryMib",
        storage_mib="storageMib",
        command="command",
        healthcheck="healthcheck",
        shutdown_signal="shutdownSignal",
        upstream_protocol="upstreamProtocol",
        openapi_spec_path="openapiSpecPath",
        threshold_cpu="thresholdCpu",
        threshold_memory="thresholdMemory",
        refuse_breaking_changes="refuseBreakingChanges",
        delete_protection="deleteProtection",
    )
    services.update_settings(environment, changes, actor=call.actor, **others)
    return {}


def _times(row: Project | App | Environment) -> dict[str, int]:
    times = {"createdAt": clock.to_ms(row.created_at)}
    if row.updated_at is not None:
        times["updatedAt"] = clock.to_ms(row.updated_at)
    return times


def _show_project(row: Project) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "slug": row.slug,
        "deleteProtection": row.delete_protection,
        **_times(row),
    }


def _show_app(row: App) -> dict[str, Any]:
    shown = {
        "id": row.id,
        "name": row.name,
        "slug": row.slug,
        "isRolledBack": row.is_rolled_back,
        "deleteProtection": row.delete_protection,
        **_times(row),
    }
    if row.current_deployment_id:
        shown["currentDeploymentId"] = row.current_deployment_id
    return shown


def _show_environment(row: Environment) -> dict[str, Any]:
    runtime = {
        "port": row.port,
        "vCpus": row.cpu_millicores / 1000,
        "memoryMib": row.memory_mib,
        "storageMib": row.storage_mib,
        "command": row.command,
        "healthcheck": row.healthcheck,
        "shutdownSignal": row.shutdown_signal,
        "upstreamProtocol": row.upstream_protocol,
        "openapiSpecPath": row.openapi_spec_path,
    }
    build = {
        "dockerfile": row.dockerfile,
        "rootDirectory": row.root_directory,
        "buildCommand": row.build_command,
        "watchPaths": row.watch_paths,
        "autoDeploy": row.auto_deploy,
    }
    return {
        "id": row.id,
        "slug": row.slug,
        "description": row.description,
        "kind": row.kind,
        "deleteProtection": row.delete_protection,
        **({"refuseBreakingChanges": True} if row.refuse_breaking_changes else {}),
        **({"thresholdCpu": row.threshold_cpu} if row.threshold_cpu != _USUAL_CPU else {}),
        **({"thresholdMemory": row.threshold_memory} if row.threshold_memory is not None else {}),
        **_times(row),
        "runtime": {name: value for name, value in runtime.items() if value is not None},
        "build": {name: value for name, value in build.items() if value is not None},
        "regions": [
            {
                "name": chosen.region.name,
                "replicas": {"min": chosen.replicas_min, "max": chosen.replicas_max},
            }
            for chosen in row.regions.all()
        ],
    }


def _show_variables(rows: list[EnvironmentVariable]) -> list[dict[str, Any]]:
    values = queries.revealed(rows)
    return [
        {
            "key": row.key,
            "kind": row.kind,
            **({"value": values[row.id]} if row.id in values else {}),
            **({"description": row.description} if row.description else {}),
            "createdAt": clock.to_ms(row.created_at),
        }
        for row in rows
    ]
