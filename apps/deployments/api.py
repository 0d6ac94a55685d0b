"""`/v2` operations on deployments."""

from collections.abc import Iterable
from typing import Any

from apps.deployments import actions, compatibility, lifecycle, logs, openapi, queries, services
from apps.deployments.models import Deployment
from apps.projects import queries as projects
from apps.routing import queries as routing
from apps.workflows.engine import State, WorkflowRun
from unkey import clock, errors
from unkey.env import env
from unkey.errors import Violation
from unkey.rpc.authorization import Rule, T, U
from unkey.rpc.call import Call, Page
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import array, boolean, handle, integer, moment, number, obj, optional, string

_STATUSES = tuple(Deployment.Status.values)
_NOTHING = obj({})
_ID = handle()
_NAMES = {"project": handle(), "app": handle(), "environment": handle()}
_NOT_FOUND = (errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound)
_GIT_REPOSITORY = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"

HEALTHCHECK = obj(
    {
        "method": string(choices=("GET", "POST")),
        "path": string(1, 512),
        "intervalSeconds": optional(integer()),
        "timeoutSeconds": optional(integer()),
        "failureThreshold": optional(integer()),
        "initialDelaySeconds": optional(integer()),
    }
)
DEPLOYMENT = obj(
    {
        "id": string(),
        "status": string(choices=_STATUSES),
        "isCurrent": boolean(),
        "environment": string(),
        "app": string(),
        "project": string(),
        "trigger": obj({"via": string(choices=("unknown", *Deployment.Trigger.values, "unkey"))}),
        "git": optional(obj({"commitSha": string(), "branch": optional(string())})),
        "docker": optional(obj({"image": string()})),
        "availableActions": array(string(choices=actions.PUBLISHED)),
        "regions": array(string()),
        "error": optional(
            obj(
                {
                    "code": string(choices=(*sorted(lifecycle.ERROR_CODES), "unknown")),
                    "step": string(),
                    "message": string(),
                }
            )
        ),
        "objection": optional(string(about="why it is ready but not live: what it would break")),
        "domains": optional(array(string())),
        "instances": optional(obj({"running": integer(0), "total": integer(0), "restarts": integer(0)})),
        "runtime": obj(
            {
                "vCpus": number(),
                "memoryMib": integer(),
                "storageMib": integer(),
                "port": integer(),
                "command": array(string()),
                "shutdownSignal": string(choices=("SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL")),
                "upstreamProtocol": string(choices=("http1", "h2c")),
                "healthcheck": optional(HEALTHCHECK),
            }
        ),
        "createdAt": integer(0),
        "updatedAt": optional(integer(0)),
        "finishedAt": optional(integer(0)),
        "asleepSince": optional(integer(0, about="on standby since then: its next request wakes it")),
    }
)


def _rule(action: str) -> Rule:
    path = "projects/{project}/apps/{app}/environments/{environment}/deployments/{deployment}"
    return T(f"environment.{{environment}}.{action}") | U(f"{path}#{action}")


_READ = _rule("read_deployment")


@route(
    "deployments.createDeployment",
    request=obj(
        {
            **_NAMES,
            "git": optional(
                obj(
                    {
                        "branch": optional(string(0, 256)),
                        "commitSha": optional(string(0, 40)),
                        "repository": optional(string(0, 256, pattern=_GIT_REPOSITORY)),
                    }
                )
            ),
            "image": optional(obj({"dockerImage": string(1, pattern=r"\S")})),
            "deployment": optional(obj({"deploymentId": _ID})),
        },
        exactly_one=("image", "git", "deployment"),
    ),
    response=obj({"deploymentId": string()}),
    permission=_rule("create_deployment"),
    status=201,
    errors=[
        *_NOT_FOUND,
        errors.DeploymentNotFound,
        errors.SnapshotNotFound,
        errors.InvalidEnvironmentSettings,
        errors.InvalidSnapshot,
        errors.PreconditionFailed,
    ],
)
def create_deployment(call: Call) -> JSON:
    """Deploy an image, a commit, or an earlier deployment once more with today's settings."""
    body = call.body
    environment = projects.find_environment(body["project"], body["app"], body["environment"])
    call.authorize(
        project=environment.app.project_id, app=environment.app_id, environment=environment.id, deployment="*"
    )
    earlier = queries.find(body["deployment"]["deploymentId"]) if "deployment" in body else None
    image = body["image"]["dockerImage"].strip() if "image" in body else None
    if image is not None and len(image) > services.MAX_IMAGE:
        message = f"dockerImage must have at most {services.MAX_IMAGE} characters"
        raise errors.InvalidInput(message, violations=(Violation(message, "body.image.dockerImage"),))
    made = services.create_deployment(
        environment,
        image=image,
        redeploy_of=earlier,
        git=body.get("git"),
        trigger=_trigger(call),
        actor=call.actor,
    )
    return {"deploymentId": made.id}


@route(
    "deployments.getDeployment",
    request=obj({"deploymentId": _ID}),
    response=DEPLOYMENT,
    permission=_READ,
    errors=[errors.DeploymentNotFound],
)
def get_deployment(call: Call) -> JSON:
    """Return a deployment: its status, what it runs, its host names and what may be done to it."""
    return _show([_deployment(call)])[0]


@route(
    "deployments.listDeployments",
    request=obj(
        {
            **{name: optional(schema) for name, schema in _NAMES.items()},
            "status": optional(array(string(choices=_STATUSES), most=len(_STATUSES))),
            "branch": optional(array(string(1, 256), most=100)),
            "startTime": optional(moment()),
            "endTime": optional(moment()),
            "limit": optional(integer(1, 100), default=100),
            "cursor": optional(string()),
        }
    ),
    response=array(DEPLOYMENT, most=100),
    permission=T("environment.*.read_deployment")
    | U("projects/*/apps/*/environments/*/deployments/*#read_deployment"),
    paginated=True,
    errors=[*_NOT_FOUND],
)
def list_deployments(call: Call) -> Page:
    """List deployments, the newest first, of the workspace or of a project, app or environment."""
    body = call.body
    _check_filters(body)
    found: dict[str, str | None] = {}
    if "environment" in body:
        row = projects.find_environment(body["project"], body["app"], body["environment"])
        found["environment_id"] = row.id
    elif "app" in body:
        found["app_id"] = projects.find_app(body["project"], body["app"]).id
    elif "project" in body:
        found["project_id"] = projects.find_project(body["project"]).id
    rows, cursor = queries.newest(
        **found,
        statuses=body.get("status"),
        branches=body.get("branch"),
        since=clock.from_ms(body["startTime"]) if "startTime" in body else None,
        until=clock.from_ms(body["endTime"]) if "endTime" in body else None,
        limit=body["limit"],
        cursor=body.get("cursor"),
    )
    return Page(_show(rows), cursor)


@route(
    "deployments.promoteDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("promote_deployment"),
    status=202,
    errors=[
        errors.DeploymentNotFound,
        errors.DeploymentNotReady,
        errors.DeploymentNotProduction,
        errors.DeploymentNoCurrent,
        errors.DeploymentIsCurrent,
        errors.DeploymentBreaksClients,
        errors.PreconditionFailed,
    ],
)
def promote_deployment(call: Call) -> JSON:
    """Make a deployment the live one, if it breaks no promise that must be kept; new ones go live again."""
    services.promote(_deployment(call), actor=call.actor)
    return {}


@route(
    "deployments.rollbackDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("rollback_deployment"),
    status=202,
    errors=[
        errors.DeploymentNotFound,
        errors.DeploymentNotReady,
        errors.DeploymentNotProduction,
        errors.DeploymentNoCurrent,
        errors.DeploymentIsCurrent,
        errors.PreconditionFailed,
    ],
)
def rollback_deployment(call: Call) -> JSON:
    """Point the app back at an earlier deployment; new ones do not go live until one is promoted."""
    services.rollback(_deployment(call), actor=call.actor)
    return {}


@route(
    "deployments.startDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("start_deployment"),
    status=202,
    errors=[
        errors.DeploymentNotFound,
        errors.DeploymentNotStopped,
        errors.DeploymentIsProduction,
        errors.PreconditionFailed,
    ],
)
def start_deployment(call: Call) -> JSON:
    """Start a preview deployment that was stopped."""
    services.start_again(_deployment(call), actor=call.actor)
    return {}


@route(
    "deployments.stopDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("stop_deployment"),
    status=202,
    errors=[
        errors.DeploymentNotFound,
        errors.DeploymentNotRunning,
        errors.DeploymentIsStopping,
        errors.DeploymentIsProduction,
    ],
)
def stop_deployment(call: Call) -> JSON:
    """Stop a preview deployment; it can be started again."""
    services.stop(_deployment(call), actor=call.actor)
    return {}


# Beyond the published API: the other things that may be done to a deployment.


@route(
    "deployments.cancelDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("stop_deployment"),
    status=202,
    errors=[errors.DeploymentNotFound],
)
def cancel_deployment(call: Call) -> JSON:
    """End a deployment that is not ready yet, also one that awaits approval; one that has ended stays."""
    services.cancel(_deployment(call), actor=call.actor)
    return {}


@route(
    "deployments.approveDeployment",
    request=obj({"deploymentId": _ID}),
    response=_NOTHING,
    permission=_rule("create_deployment"),
    status=202,
    errors=[errors.DeploymentNotFound, errors.PreconditionFailed],
)
def approve_deployment(call: Call) -> JSON:
    """Let a deployment that awaits approval begin."""
    services.approve(_deployment(call), actor=call.actor)
    return {}


@route(
    "deployments.redeployDeployment",
    request=obj(
        {
            "deploymentId": _ID,
            "force": optional(
                boolean(about="also when the branch has a newer deployment, which is then overtaken"),
                default=False,
            ),
        }
    ),
    response=obj({"deploymentId": string()}),
    permission=_rule("create_deployment"),
    status=201,
    errors=[
        errors.DeploymentNotFound,
        errors.AppNotFound,
        errors.EnvironmentNotFound,
        errors.SnapshotNotFound,
        errors.InvalidEnvironmentSettings,
        errors.PreconditionFailed,
    ],
)
def redeploy_deployment(call: Call) -> JSON:
    """Deploy an earlier deployment's image once more, with today's settings, variables and policies."""
    made = services.redeploy(
        _deployment(call), force=call.body["force"], trigger=_trigger(call), actor=call.actor
    )
    return {"deploymentId": made.id}


@route(
    "deployments.getLastRequest",
    request=obj({"deploymentId": _ID}),
    response=obj(
        {
            "kind": optional(string(choices=("rollback", "promote", "start"))),
            "status": optional(string(choices=("pending", "done", "failed"))),
            "code": optional(string()),
            "message": optional(string()),
            "requestedAt": optional(integer(0)),
            "finishedAt": optional(integer(0)),
        }
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound],
)
def get_last_request(call: Call) -> JSON:
    """Say what came of the last rollback, promote or start of a deployment; empty if there was none.

    The message says why it failed, or which regions it waits for in vain.
    """
    deployment = _deployment(call)
    found = queries.last_request(deployment)
    if found is None:
        return {}
    shown = _show_request(found)
    if shown["status"] == "pending" and (gone := queries.readiness(deployment.id).gone):
        shown["message"] = gone
    return shown


# The OpenAPI documents that deployments served.


@route(
    "deployments.getOpenapiSpec",
    request=obj({"deploymentId": _ID}),
    response=obj(
        {
            "deploymentId": string(),
            "path": string(about="where the deployment served it"),
            "digest": string(about="SHA-256 of the content"),
            "content": string(about="JSON or YAML, as it was served"),
            "fault": optional(string(about="why it cannot be compared")),
            "createdAt": integer(0),
        }
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound, errors.OpenapiSpecNotFound],
)
def get_openapi_spec(call: Call) -> JSON:
    """Return the OpenAPI document that a deployment served when it got ready."""
    deployment = _deployment(call)
    spec = compatibility.find_spec(deployment)
    shown = {
        "deploymentId": deployment.id,
        "path": spec.path,
        "digest": spec.digest,
        "content": spec.text,
        "createdAt": clock.to_ms(spec.created_at),
    }
    return shown | ({"fault": spec.fault} if spec.fault else {})


_COUNTS = obj({"added": integer(0), "deleted": integer(0), "modified": integer(0)})


@route(
    "deployments.getOpenapiDiff",
    request=obj(
        {
            "oldDeploymentId": _ID,
            "newDeploymentId": _ID,
            "format": optional(string(choices=("text", "markdown"), about="add a report for people")),
        }
    ),
    response=obj(
        {
            "summary": obj(
                {
                    "diff": boolean(),
                    "details": obj({"endpoints": _COUNTS, "paths": _COUNTS, "schemas": _COUNTS}),
                }
            ),
            "hasBreakingChanges": boolean(),
            "changes": array(
                obj(
                    {
                        "id": string(about="name of the check, as oasdiff has it"),
                        "text": string(),
                        "level": integer(1, 3, about="1 information, 2 warning, 3 breaks clients"),
                        "operation": string(about="method; empty for what belongs to no operation"),
                        "operationId": string(),
                        "path": string(),
                        "pointer": string(about="JSON pointer; into the earlier document for what is gone"),
                    }
                )
            ),
            "report": optional(string()),
        }
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound, errors.OpenapiSpecNotFound],
)
def get_openapi_diff(call: Call) -> JSON:
    """Say how the APIs of two deployments differ, and what of it breaks clients of the old one."""
    old, new = (_deployment(call, name) for name in ("oldDeploymentId", "newDeploymentId"))
    report = compatibility.compare(old, new)
    shown = openapi.as_json(report)
    written = {"text": openapi.as_text, "markdown": openapi.as_markdown}.get(call.body.get("format", ""))
    return shown | ({"report": written(report)} if written else {})


# What `unkey deploy`, `unkey logs` and `unkey ps` show.


@route(
    "deployments.listSteps",
    request=obj({"deploymentId": _ID}),
    response=obj(
        {
            "steps": array(
                obj(
                    {
                        "step": string(),
                        "status": string(choices=("running", "done", "failed")),
                        "startedAt": integer(0),
                        "endedAt": optional(integer(0)),
                        "message": optional(string()),
                        "error": optional(string()),
                    }
                )
            ),
            "urls": array(string()),
        }
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound],
)
def list_steps(call: Call) -> JSON:
    """List the steps that a deployment has gone through, and the URLs that it answers."""
    deployment = _deployment(call)
    steps: list[dict[str, Any]] = []
    for step in queries.steps(deployment):
        status = "failed" if step.error else "done" if step.ended_at else "running"
        shown = {"step": step.step, "status": status, "startedAt": clock.to_ms(step.started_at)}
        if step.ended_at:
            shown["endedAt"] = clock.to_ms(step.ended_at)
        if step.message:
            shown["message"] = step.message
        if step.error:
            shown["error"] = step.error
        steps.append(shown)
    hosts = routing.hosts_of([deployment.id])[deployment.id]
    return {"steps": steps, "urls": [_url(host) for host in hosts]}


@route(
    "deployments.getLogs",
    request=obj({"deploymentId": _ID, "tail": optional(integer(1, 5000), default=200)}),
    response=obj(
        {
            "lines": array(
                {
                    "type": "object",
                    "properties": {
                        "time": integer(0),
                        "region": string(),
                        "instance": string(),
                        "stream": string(),
                        "text": string(),
                    },
                    "required": ["region", "text"],
                }
            ),
            "note": optional(string()),
        }
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound],
)
def get_logs(call: Call) -> JSON:
    """Return the last lines that a deployment's instances wrote, oldest first."""
    deployment = _deployment(call)
    lines, notes = logs.fetch(queries.agents(deployment), deployment.id, call.body["tail"])
    return {"lines": lines} | ({"note": " ".join(notes)} if notes else {})


@route(
    "deployments.listInstances",
    request=obj({"deploymentId": _ID}),
    response=array(
        obj(
            {
                "id": string(),
                "region": string(),
                "address": string(),
                "status": string(),
                "restarts": integer(0),
                "message": optional(string()),
            }
        )
    ),
    permission=_READ,
    errors=[errors.DeploymentNotFound],
)
def list_instances(call: Call) -> JSON:
    """List the instances of a deployment as their agents reported them last."""
    return [
        {
            "id": row.id,
            "region": row.region.name,
            "address": row.address,
            "status": row.status,
            "restarts": row.restarts,
        }
        | ({"message": row.message} if row.message else {})
        for row in queries.instances(_deployment(call))
    ]


def _deployment(call: Call, name: str = "deploymentId") -> Deployment:
    """Find the deployment that a call names; whoever may not touch it does not learn that it exists."""
    deployment = queries.find(call.body[name])
    call.authorize(
        project=deployment.project_id,
        app=deployment.app_id,
        environment=deployment.environment_id,
        deployment=deployment.id,
        masked=queries.not_found,
    )
    return deployment


def _show_request(run: WorkflowRun) -> dict[str, Any]:
    ended = {
        State.SUCCEEDED: "done",
        State.FAILED: "failed",
        State.CANCELLED: "failed",
        State.NEEDS_ATTENTION: "failed",
    }
    shown: dict[str, Any] = {
        "kind": "start" if run.service == "wake" else run.service,
        "status": ended.get(State(run.state), "failed" if run.undo is not None else "pending"),
        "requestedAt": clock.to_ms(run.created_at),
    }
    if queries.has_switched(run):  # what is left waits for the edges and clears up
        shown["status"] = "done"
    if shown["status"] == "failed":
        shown["code"] = run.error_code
        shown["message"] = queries.told(run)
    if run.finished_at:
        shown["finishedAt"] = clock.to_ms(run.finished_at)
    return shown


def _trigger(call: Call) -> Deployment.Trigger:
    client = call.headers.get("X-Unkey-Client", "")
    if client.startswith("unkey-cli/"):
        return Deployment.Trigger.CLI
    if client.startswith("unkey-dashboard"):
        return Deployment.Trigger.DASHBOARD
    return Deployment.Trigger.API


def _check_filters(body: dict[str, Any]) -> None:
    faults = [
        Violation(f"{inner} requires {outer}", f"body.{inner}", f"Add {outer}.")
        for inner, outer in (("app", "project"), ("environment", "app"), ("branch", "app"))
        if body.get(inner) and outer not in body
    ]
    if "startTime" in body and "endTime" in body and body["endTime"] <= body["startTime"]:
        faults.append(Violation("endTime must be later than startTime", "body.endTime"))
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=tuple(faults))


def _url(host: str) -> str:
    return f"http://{host}" if env.EDGE_HTTP_PORT == 80 else f"http://{host}:{env.EDGE_HTTP_PORT}"


def _show(rows: Iterable[Deployment]) -> list[dict[str, Any]]:
    deployments = list(rows)
    hosts = routing.hosts_of([row.id for row in deployments])
    counts = queries.instance_counts([row.id for row in deployments])
    available = actions.available(deployments, actions.PUBLISHED)
    return [
        _show_one(row, hosts[row.id])
        | {"availableActions": available[row.id]}
        | ({"instances": counts[row.id]} if row.id in counts else {})
        for row in deployments
    ]


def _show_one(row: Deployment, hosts: list[str]) -> dict[str, Any]:
    settings = row.settings
    runtime = {
        "vCpus": settings["cpuMillicores"] / 1000,
        **{
            name: settings[name]
            for name in ("memoryMib", "storageMib", "port", "command", "shutdownSignal", "upstreamProtocol")
        },
    }
    if settings["healthcheck"]:
        runtime["healthcheck"] = settings["healthcheck"]
    shown: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "isCurrent": row.app.current_deployment_id == row.id,
        "environment": row.environment.slug,
        "app": row.app.slug,
        "project": row.project.slug,
        "trigger": {"via": row.trigger},
        "regions": [region["region"] for region in row.regions],
        "domains": hosts,
        "runtime": runtime,
        "createdAt": clock.to_ms(row.created_at),
    }
    if row.git_commit_sha:
        shown["git"] = {"commitSha": row.git_commit_sha} | (
            {"branch": row.git_branch} if row.git_branch else {}
        )
    if row.image:
        shown["docker"] = {"image": row.image}
    if row.status == Deployment.Status.FAILED:
        shown["error"] = {
            "code": row.error_code or "unknown",
            "step": row.error_step,
            "message": row.error_message,
        }
    if row.objection and not shown["isCurrent"]:
        shown["objection"] = row.objection
    if row.updated_at:
        shown["updatedAt"] = clock.to_ms(row.updated_at)
    if row.finished_at and row.status in Deployment.TERMINAL:
        shown["finishedAt"] = clock.to_ms(row.finished_at)
    if row.asleep_since:
        shown["asleepSince"] = clock.to_ms(row.asleep_since)
    return shown
