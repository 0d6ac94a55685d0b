"""What agents ask web for and tell it: heartbeats, instances, secrets, snapshots, problems.

Bearers of AGENT_TOKEN, or of a token of their own, only; the watch stream itself is served by feed (`apps.cluster.feed`).
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from django.http import FileResponse, HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from apps.builds.models import Snapshot
from apps.cluster import services, tokens
from apps.cluster.models import Token
from apps.cluster.queries import edges_applied
from apps.deployments import services as deployments
from apps.deployments import standby
from apps.deployments.models import Topology
from apps.vault import services as vault
from apps.vault.errors import VaultError
from unkey import errors, objects, snapshots
from unkey.env import env

MAX_BODY = 4 * 1024 * 1024
_BEARER = "unkey.bearer"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Heartbeat(msgspec.Struct):
    """An agent lives, and has applied these versions."""

    agent: Name
    region: Name
    url: Annotated[str, msgspec.Meta(max_length=255)] = ""
    applied: dict[str, int] = {}
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""


class InstanceState(msgspec.Struct):
    """One instance as its agent sees it."""

    name: Name
    address: Annotated[str, msgspec.Meta(max_length=255)]
    status: Annotated[str, msgspec.Meta(pattern="^(pending|running|failed|draining)$")]
    message: str = ""
    restarts: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


class InstancesReport(msgspec.Struct):
    """All instances of a deployment in a region; those that are not listed are gone.

    An agent names each of its runs anew and counts the reports of one: late ones are told by that.
    `applied` is the version of the topology that the instances follow; agents of earlier releases lack it.
    """

    agent: Name
    region: Name
    deployment_id: Name = msgspec.field(name="deploymentId")
    instances: list[InstanceState]
    run: Annotated[str, msgspec.Meta(max_length=64)] = ""
    number: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    applied: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class AppliedRequest(msgspec.Struct):
    """Do the edges know of the instances as of this version?"""

    version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SecretsRequest(msgspec.Struct):
    """Which deployment is about to be started."""

    deployment_id: Name = msgspec.field(name="deploymentId")
    region: Name


class Problem(msgspec.Struct):
    """A row that the agent could not apply."""

    agent: Name
    region: Name
    stream: Name
    version: int
    row: Annotated[str, msgspec.Meta(max_length=255)]
    message: Annotated[str, msgspec.Meta(max_length=4000)]


class WakeRequest(msgspec.Struct):
    """An edge has a request for a deployment that sleeps, as of this version of its sentinel row."""

    edge: Name
    deployment_id: Name = msgspec.field(name="deploymentId")
    sleep: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


_Body = TypeVar("_Body", bound=msgspec.Struct)
_View = Callable[..., HttpResponseBase]


def _refused(status: int, title: str, detail: str) -> JsonResponse:
    return JsonResponse({"error": {"title": title, "detail": detail, "status": status}}, status=status)


def _for(kind: Token.Kind, method: str) -> Callable[[_View], _View]:
    """Let a view be called by one method and by satellites of a kind; map domain errors to statuses."""

    def wrap(view: _View) -> _View:
        @csrf_exempt
        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            bearer = tokens.bearer(request.headers.get("Authorization", ""))
            if bearer is None:
                return _refused(401, "Unauthorized", tokens.HOW)
            if request.method != method:
                return _refused(405, "Method Not Allowed", f"Use {method}.")
            if why := bearer.refusal(kind, None, None):
                return _refused(403, "Forbidden", why)
            request.META[_BEARER] = bearer
            try:
                return view(request, *args, **kwargs)
            except errors.Fault as fault:
                return _refused(fault.kind.status, fault.kind.title, fault.detail)
            except VaultError as error:
                return _refused(503, "Service Unavailable", f"vault: {type(error).__name__}")

        return guarded

    return wrap


_for_agents = functools.partial(_for, tokens.AGENT)
_for_edges = functools.partial(_for, tokens.EDGE)


def _body(request: HttpRequest, kind: type[_Body]) -> _Body:
    raw = request.read(MAX_BODY + 1)
    if len(raw) > MAX_BODY:
        raise errors.RequestBodyTooLarge(f"A report has at most {MAX_BODY} octets.")
    try:
        body = msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise errors.InvalidInput(str(error)) from error
    bearer: tokens.Bearer = request.META[_BEARER]
    name = getattr(body, "agent", getattr(body, "edge", None))
    if why := bearer.refusal(bearer.kind, name, getattr(body, "region", None)):
        raise errors.Forbidden(why)
    return body


@_for_agents("POST")
def heartbeat(request: HttpRequest) -> HttpResponseBase:
    """Record that an agent lives."""
    body = _body(request, Heartbeat)
    bearer: tokens.Bearer = request.META[_BEARER]
    services.agent_heartbeat(
        body.agent,
        region=body.region,
        url=body.url,
        applied=body.applied,
        software=body.software,
        token_id=bearer.token_id,
    )
    return JsonResponse({})


@_for_agents("POST")
def report_instances(request: HttpRequest) -> HttpResponseBase:
    """Record all instances of a deployment in a region; say from which version on edges know of them."""
    body = _body(request, InstancesReport)
    version = deployments.report_instances(
        body.deployment_id,
        body.region,
        [
            deployments.InstanceReport(
                name=instance.name,
                address=instance.address,
                status=instance.status,
                message=instance.message,
                restarts=instance.restarts,
            )
            for instance in body.instances
        ],
        body.agent,
        run=body.run,
        number=body.number,
        applied=body.applied,
    )
    return JsonResponse({"version": version})


@_for_agents("POST")
def instances_applied(request: HttpRequest) -> HttpResponseBase:
    """Say whether every live edge knows of the instances as of a version; agents ask before they end one."""
    body = _body(request, AppliedRequest)
    return JsonResponse({"applied": edges_applied("instances", body.version)})


@_for_agents("POST")
def secrets(request: HttpRequest) -> HttpResponseBase:
    """Return the decrypted variables of a deployment that should run in the agent's region."""
    body = _body(request, SecretsRequest)
    topology = (
        Topology.objects.filter(
            deployment_id=body.deployment_id, region__name=body.region, desired_status="running"
        )
        .select_related("deployment")
        .first()
    )
    if topology is None:
        raise errors.DeploymentNotFound("No such deployment should run in this region.")
    deployment = topology.deployment
    variables = vault.decrypt_bulk(
        deployment.environment_id,
        {variable["key"]: variable["ciphertext"] for variable in deployment.variables},
    )
    return JsonResponse({"variables": variables}, headers={"Cache-Control": "no-store"})


@_for_agents("GET")
def snapshot(_request: HttpRequest, digest: str) -> HttpResponseBase:
    """Send the archive of a digest; whose it is does not matter, equal digests are equal octets."""
    digest = snapshots.parse_reference(snapshots.reference(digest))
    found = Snapshot.objects.unscoped("an agent asks by digest; equal digests are equal octets").filter(
        digest=digest
    )
    for workspace_id in found.values_list("workspace_id", flat=True):
        try:
            file = objects.open_store(env.OBJECT_STORE_URL).get(f"snapshots/{workspace_id}/{digest}")
        except objects.ObjectNotFound:
            continue
        return FileResponse(file, content_type="application/gzip")
    raise errors.SnapshotNotFound("There is no snapshot of this digest.")


@_for_agents("POST")
def problem(request: HttpRequest) -> HttpResponseBase:
    """Record a row that an agent could not apply."""
    body = _body(request, Problem)
    services.agent_problem(
        body.agent,
        region=body.region,
        stream=body.stream,
        version=body.version,
        row=body.row,
        message=body.message,
    )
    return JsonResponse({})


@_for_edges("POST")
def wake(request: HttpRequest) -> HttpResponseBase:
    """Wake a deployment for an edge that holds a request for it; however often it is asked."""
    body = _body(request, WakeRequest)
    woken = standby.wake_on_request(body.deployment_id, body.sleep, edge=body.edge)
    return JsonResponse({"answer": woken.answer, "retryAfterSeconds": woken.retry_after})


urlpatterns = [
    path("deployments/wake", wake),
    path("agents/heartbeat", heartbeat),
    path("instances/report", report_instances),
    path("instances/applied", instances_applied),
    path("secrets", secrets),
    path("snapshots/<str:digest>", snapshot),
    path("problems", problem),
]
