"""The OpenAPI documents of deployments, fetched: at once when one gets ready, later where it did not answer.

Whether a deployment *has* no document and whether it has not answered are two things: where an
environment refuses breaking changes, only the former lets a version become live.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

from apps.deployments import compatibility, lifecycle, specification
from apps.deployments.models import Deployment, Instance, OpenapiSpec
from apps.routing import contracts
from apps.routing import services as routing
from apps.workflows.engine import JSON, Retry, Run, Wait, Workflow, send, step
from apps.workflows.engine import State as RunState
from unkey import clock

DEADLINE_SECONDS = 20.0
INSTANCES = 3
ATTEMPTS = 10
QUICK_ATTEMPTS = 3  # of these, each but the first comes a minute after the one before
SOON_SECONDS, LATER_SECONDS = 60.0, 600.0
HELD_BACK_MOST = 20  # the newest of an environment; older ones are compared when somebody promotes them

State = OpenapiSpec.State


def look_later(run: Run, deployment_id: str) -> None:
    """Ask a deployment again in the background, from a step of a run that got no answer."""
    at = clock.now() + timedelta(seconds=SOON_SECONDS)
    send(run, LookAgain, {"deployment_id": deployment_id}, at=at)


def keep_silence(run: Run, deployments: Iterable[Deployment]) -> None:
    """Record that deployments were asked and nothing came of it: too slow, or asking them ended in an accident."""
    _keep(run, {deployment.id: _silence(deployment) for deployment in deployments})


def _silence(deployment: Deployment) -> specification.Unknown:
    path = deployment.settings["openapiSpecPath"] or specification.DEFAULT_PATH
    return specification.Unknown(f"did not answer {path} in time")


def _fetch(deployments: list[Deployment]) -> dict[str, specification.Found]:
    """Ask deployments for their documents side by side."""
    asked: list[tuple[list[str], str | None]] = []
    for deployment in deployments:
        running = Instance.objects.filter(deployment=deployment, status=Instance.Status.RUNNING)
        addresses = running.exclude(address="").order_by("id").values_list("address", flat=True)
        asked.append((list(addresses[:INSTANCES]), deployment.settings["openapiSpecPath"]))
    with ThreadPoolExecutor(max_workers=max(len(asked), 1)) as pool:
        answers = pool.map(lambda each: specification.fetch_any(*each), asked)
        return {row.id: _with_contract(row, answer) for row, answer in zip(deployments, answers, strict=True)}


def _with_contract(deployment: Deployment, answer: specification.Found) -> specification.Found:
    """Make of a document what edges need, where a policy asks them to check requests against it."""
    if not isinstance(answer, specification.Document) or not contracts.is_asked_for(deployment.policies):
        return answer
    return replace(answer, contract=contracts.of_document(answer.packed, answer.fault))


def _fetch_unread(run: Run) -> Any:
    """Ask the deployment, and the live one that it would be compared with, as far as neither has answered."""
    deployment = _find(run)
    if deployment is None:
        return {}
    return _fetch(compatibility.unread(deployment, deployment.app.current_deployment_id, itself=True))


@step(outside=_fetch_unread, timeout=2 * DEADLINE_SECONDS)
def store_openapi(run: Run, found: dict[str, specification.Found]) -> JSON:
    """Keep what the program answered."""
    _keep(run, found)
    spec = compatibility.spec_of(run.input["deployment_id"])
    return {"state": spec.state if spec else State.UNKNOWN, "digest": (spec.digest if spec else "") or None}


class ScrapeOpenapi(Workflow):
    """Fetch the OpenAPI document of a deployment; a run of its own, so that the project never waits."""

    service = "openapi"
    key = "deployment_id"
    steps = (store_openapi,)


def _fetch_again(run: Run) -> Any:
    deployment = _find(run)
    return _fetch([deployment]) if deployment is not None and _is_worth_asking(deployment) else {}


# One attempt: after an accident `go_on` asks again, later.
@step(outside=_fetch_again, timeout=2 * DEADLINE_SECONDS, retry=Retry(attempts=1))
def look_again(run: Run, found: dict[str, specification.Found]) -> "JSON | Wait":
    """Ask until there is an answer: every minute twice, then every ten minutes, ten times in all."""
    _keep(run, found)
    deployment = _find(run)
    spec = compatibility.spec_of(run.input["deployment_id"])
    if deployment is None or spec is None:
        return {"state": State.UNKNOWN, "why": "The deployment was deleted or stopped before it was asked."}
    if _is_worth_asking(deployment):
        return Wait(seconds=_pause(spec))
    return {"state": spec.state, "attempts": spec.attempts}


def _compare_held_back(run: Run) -> Any:
    """Say anew why those are not live that were held back, now that more is known."""
    deployment = _find(run)
    if deployment is None:
        return None
    live = deployment.app.current_deployment_id
    rows = Deployment.objects.unscoped("same environment").filter(
        environment_id=deployment.environment_id, status__in=("ready", "stopped")
    )
    held = list(rows.exclude(objection="").exclude(pk=live).order_by("-created_at", "-id")[:HELD_BACK_MOST])
    return {"live": live, "why": {row.id: compatibility.standing(row, live) for row in held}}


@step(outside=_compare_held_back)
def tell_held_back(run: Run, compared: dict[str, Any] | None) -> "JSON | Wait":
    """Tell the owners of what was held back what is known now: what it would break, or that it may go live.

    It does not go live by itself: its deploy has ended, perhaps long ago, and somebody was told so.
    """
    deployment = _find(run)
    if compared is None or deployment is None:
        return None
    app = lifecycle.lock_app(deployment.app_id)
    if app.current_deployment_id != compared["live"]:
        return Wait(seconds=0)
    told: list[JSON] = []
    for identifier, why in sorted(compared["why"].items()):
        rows = Deployment.objects.unscoped("a workflow names it by its id").filter(pk=identifier)
        told += [identifier] * rows.exclude(objection="").exclude(objection=why).update(
            objection=why, updated_at=clock.now()
        )
    return {"told": told}


def go_on(run: Run, code: str, message: str) -> JSON:
    """Count an accident while asking as no answer, and go on with a run of its own, which tells the owners too."""
    deployment = _find(run)
    if deployment is None or code == RunState.CANCELLED or look_again.name in run.results:
        return None
    keep_silence(run, [deployment])
    spec = compatibility.spec_of(deployment.id)
    assert spec is not None
    again = clock.now() + timedelta(seconds=_pause(spec) if _is_worth_asking(deployment) else 0)
    return {"run": send(run, LookAgain, {"deployment_id": deployment.id}, at=again).id}


class LookAgain(Workflow):
    """Ask a deployment for its OpenAPI document until it answers, or for a little more than an hour."""

    service = "openapi_again"
    key = "deployment_id"
    exclusive = False
    steps = (look_again, tell_held_back)
    on_failure = go_on


def _find(run: Run) -> Deployment | None:
    rows: Any = Deployment.objects.unscoped("a workflow names it by its id")
    found: Deployment | None = (
        rows.select_related("app", "environment").filter(pk=run.input["deployment_id"]).first()
    )
    return found


def _is_worth_asking(deployment: Deployment) -> bool:
    if deployment.desired_state != Deployment.DesiredState.RUNNING:
        return False
    spec = compatibility.spec_of(deployment.id)
    return spec is None or (spec.state == State.UNKNOWN and spec.attempts < ATTEMPTS)


def _pause(spec: OpenapiSpec) -> float:
    return SOON_SECONDS if spec.attempts < QUICK_ATTEMPTS else LATER_SECONDS


def _keep(run: Run, found: dict[str, specification.Found]) -> None:
    for identifier, answer in sorted(found.items()):
        rows = Deployment.objects.unscoped("a workflow names it by its id").select_for_update()
        deployment = rows.filter(pk=identifier).first()
        if deployment is None:
            continue
        with run.scope():
            spec = OpenapiSpec.objects.filter(deployment=deployment).first() or OpenapiSpec(
                deployment=deployment, workspace_id=deployment.workspace_id, state=State.UNKNOWN, attempts=0
            )
            spec.attempts += 1
            if spec.state == State.UNKNOWN:  # another may have had an answer meanwhile
                _note(spec, answer, deployment.settings["openapiSpecPath"])
                _tell_edges(deployment, spec, answer)
            spec.save()


def _tell_edges(deployment: Deployment, spec: OpenapiSpec, answer: specification.Found) -> None:
    """Let edges check requests against the document, or refuse them as long as it is not known."""
    if not contracts.is_asked_for(deployment.policies):
        return
    plan, fault = b"", ""
    if isinstance(answer, specification.Document) and answer.contract is not None:
        plan, fault = answer.contract
    elif not isinstance(answer, specification.Absent):
        fault = f"the app {spec.fault}"
    routing.write_contract(deployment, plan, fault)


def _note(spec: OpenapiSpec, answer: specification.Found, path: str | None) -> None:
    spec.path = path or specification.DEFAULT_PATH
    spec.created_at = clock.now()
    match answer:
        case specification.Document():
            spec.state, spec.path, spec.text = State.SERVED, answer.path, answer.text
            spec.digest, spec.document, spec.fault = answer.digest, answer.packed, answer.fault
        case specification.Absent():
            spec.state, spec.fault = State.NONE, ""
        case specification.Unknown(why):
            spec.state, spec.fault = State.UNKNOWN, why[: specification.FAULT_MAX]
