"""What deployments promise: their documents, how two differ, and an environment that holds them to it."""

from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import pytest

from apps.deployments import compatibility, specification
from apps.deployments.models import DeploymentStep
from apps.deployments.tests.conftest import Platform, Programs
from apps.workflows.models import ACTIVE, WorkflowRun
from apps.workflows.outside import StepTimedOut
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.rpc.testing import Tenant

FIRST = b"""
openapi: 3.0.3
info: {title: Pets, version: "1"}
paths:
  /pets:
    get:
      parameters: [{name: limit, in: query, schema: {type: integer, maximum: 100}}]
      responses: {"200": {description: ok}}
  /pets/{id}:
    get: {operationId: getPet, responses: {"200": {description: ok}}}
"""
NARROWER = FIRST.replace(b"maximum: 100", b"maximum: 50")
WIDER = FIRST.replace(b"maximum: 100", b"maximum: 500")


@pytest.fixture
def release(platform: Platform, programs: Programs):
    """Deploy a program that serves a document, or none, to the end; returns the deployment."""

    def deploy(document: bytes | None, status: int = 200, **headers: str) -> str:
        programs.answers["/openapi.yaml"] = (status, document) if document is not None else (404, b"")
        made = platform.create(**headers)
        drain()
        platform.report(made, "running", address=programs.address)
        drain()
        assert platform.get(made)["status"] == "ready"
        return made

    return deploy


def demand(platform: Platform, refuses: bool = True) -> None:
    names = {**platform.names, "environment": "production"}
    platform.tenant("environments.updateSettings", {**names, "refuseBreakingChanges": refuses})
    shown = platform.tenant("environments.getEnvironment", names)
    assert shown.get("refuseBreakingChanges", False) is refuses


def difference(platform: Platform, old: str, new: str, **more: str):
    return platform.tenant(
        "deployments.getOpenapiDiff", {"oldDeploymentId": old, "newDeploymentId": new, **more}
    )


def test_the_document_of_a_deployment_is_returned_as_it_was_served(platform: Platform, release) -> None:
    made = release(FIRST)
    shown = platform.tenant("deployments.getOpenapiSpec", {"deploymentId": made})
    assert shown["deploymentId"] == made
    assert shown["path"] == "/openapi.yaml"
    assert shown["content"] == FIRST.decode()
    assert "fault" not in shown


def test_two_deployments_are_compared_in_either_direction(platform: Platform, release) -> None:
    first, second = release(FIRST), release(NARROWER)
    found = difference(platform, first, second, format="text")
    assert found["hasBreakingChanges"] is True
    assert found["summary"]["details"]["endpoints"] == {"added": 0, "deleted": 0, "modified": 1}
    assert found["changes"] == [
        {
            "id": "request-parameter-max-decreased",
            "text": "the query parameter `limit` has maximum 50 instead of 100",
            "level": 3,
            "operation": "GET",
            "operationId": "",
            "path": "/pets",
            "pointer": "#/paths/~1pets/get/parameters/0/schema",
        }
    ]
    assert found["report"].startswith("1 change: 1 breaking, 0 warnings, 0 harmless.\n")
    assert "report" not in difference(platform, first, second)
    assert difference(platform, second, first, format="markdown")["report"].startswith("# API changes\n")
    assert difference(platform, second, first)["hasBreakingChanges"] is False
    assert difference(platform, first, first)["summary"]["diff"] is False


def test_what_cannot_be_compared_says_which_and_why(platform: Platform, release) -> None:
    first, none, older = release(FIRST), release(None), release(b"swagger: '2.0'\n")
    body = {"oldDeploymentId": first, "newDeploymentId": none}
    error = platform.tenant.refused("deployments.getOpenapiDiff", body, 404)
    assert error["type"].endswith("/openapi_spec_not_found")
    assert none in error["detail"]
    error = platform.tenant.refused("deployments.getOpenapiDiff", {**body, "newDeploymentId": older}, 400)
    assert error["detail"].startswith("Invalid OpenAPI specification in new version: it is OpenAPI 2")
    body = {"oldDeploymentId": older, "newDeploymentId": first}
    error = platform.tenant.refused("deployments.getOpenapiDiff", body, 400)
    assert error["detail"].startswith("Invalid OpenAPI specification in old version: it is OpenAPI 2")
    shown = platform.tenant("deployments.getOpenapiSpec", {"deploymentId": older})
    assert shown["fault"].startswith("it is OpenAPI 2")


def test_the_deployment_of_another_workspace_is_not_found(
    platform: Platform, release, stranger: Tenant
) -> None:
    made = release(FIRST)
    for body in ({"oldDeploymentId": made, "newDeploymentId": made},):
        error = stranger.refused("deployments.getOpenapiDiff", body, 404)
        assert error["type"].endswith("/deployment_not_found")
    stranger.refused("deployments.getOpenapiSpec", {"deploymentId": made}, 404)


def test_what_breaks_clients_gets_ready_but_not_live_and_says_why(platform: Platform, release) -> None:
    first = release(FIRST)
    before = platform.routes()
    demand(platform)
    second = release(NARROWER)
    shown = platform.get(second)
    assert (shown["status"], shown["isCurrent"]) == ("ready", False)
    assert shown["objection"] == (
        f"It would break clients of the live deployment {first}: GET /pets: the query parameter `limit` has "
        f"maximum 50 instead of 100 [request-parameter-max-decreased]; `unkey diff {first} {second}` shows all. "
        "The environment refuses breaking changes: deploy a version that keeps the promises, or let breaking "
        "changes pass (`unkey settings --allow-breaking-changes`) and promote this one."
    )
    last = DeploymentStep.objects.get(deployment_id=second, step="finalizing")
    assert last.message == f"Not live. {shown['objection']}"
    assert platform.get(first)["isCurrent"] is True
    assert {host: to for host, to in platform.routes().items() if host in before} == before
    assert second in platform.routes().values()  # its own names answer
    drain()
    assert platform.row(first).desired_state == platform.row(second).desired_state == "running"


def test_promote_of_what_breaks_clients_is_refused_until_that_is_allowed(platform: Platform, release) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(NARROWER)
    error = platform.tenant.refused("deployments.promoteDeployment", {"deploymentId": second}, 412)
    assert error["type"].endswith("/deployment_breaks_clients")
    assert error["detail"] == platform.get(second)["objection"]
    assert platform.get(first)["isCurrent"] is True
    demand(platform, refuses=False)
    platform.promote(second)
    assert platform.get(second)["isCurrent"] is True
    assert "objection" not in platform.get(second)


def test_a_promote_that_was_accepted_is_compared_again_when_it_happens(platform: Platform, release) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(NARROWER)
    demand(platform, refuses=False)
    platform.tenant("deployments.promoteDeployment", {"deploymentId": second})
    demand(platform)
    drain()
    assert platform.get(first)["isCurrent"] is True
    run = WorkflowRun.objects.get(service="promote")
    assert (run.state, run.error_code) == ("failed", "deployment_breaks_clients")


def test_what_only_allows_more_becomes_live(platform: Platform, release) -> None:
    release(FIRST)
    demand(platform)
    second = release(WIDER)
    assert platform.get(second)["isCurrent"] is True
    assert "objection" not in platform.get(second)


def test_the_next_good_version_becomes_live_over_a_refused_one(platform: Platform, release) -> None:
    release(FIRST)
    demand(platform)
    refused, good = release(NARROWER), release(WIDER)
    assert platform.get(good)["isCurrent"] is True
    # What was refused has no purpose any more, as any other that was replaced.
    assert platform.row(refused).scheduled_change.desired_state == "stopped"


def test_a_live_document_that_disappears_is_an_objection_and_a_first_one_is_none(
    platform: Platform, release
) -> None:
    demand(platform)
    nothing = release(None)
    assert platform.get(nothing)["isCurrent"] is True
    first = release(FIRST)
    assert platform.get(first)["isCurrent"] is True
    silent = release(None)
    assert platform.get(silent)["objection"].startswith(
        f"It serves no OpenAPI document at /openapi.yaml, and the live deployment {first} does."
    )
    unreadable = release(b"openapi: 2.9\n")
    assert platform.get(unreadable)["objection"].startswith(
        f"Its OpenAPI document cannot be compared with that of {first}: it is OpenAPI 2.9"
    )
    assert platform.get(first)["isCurrent"] is True


def test_a_rollback_is_never_refused(platform: Platform, release) -> None:
    first = release(NARROWER)
    second = release(FIRST)
    demand(platform)
    platform.rollback(first)
    assert platform.get(first)["isCurrent"] is True
    assert platform.get(second)["isCurrent"] is False


def test_previews_may_break_what_they_like(platform: Platform, programs: Programs, release) -> None:
    release(FIRST)
    demand(platform)
    names = {**platform.names, "environment": "preview", "refuseBreakingChanges": True}
    platform.tenant("environments.updateSettings", names)
    programs.answers["/openapi.yaml"] = (200, NARROWER)
    made = platform.deploy("preview")
    assert "objection" not in platform.get(made)


MINUTE = timedelta(minutes=1)
ALLOW = "let breaking changes pass (`unkey settings --allow-breaking-changes`)"


def undecided(what: str, why: str, deployment: str) -> str:
    return (
        f"{what} is not known: the program {why} So nothing says whether this deployment would break clients, "
        f"and the environment refuses breaking changes. `unkey promote {deployment}` asks once more and makes "
        f"it live if nothing breaks; or {ALLOW} and promote it."
    )


def test_a_program_that_does_not_answer_stays_ready_and_is_told_when_it_has(
    platform: Platform, programs: Programs, release
) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(b"", status=503)
    shown = platform.get(second)
    assert (shown["status"], shown["isCurrent"]) == ("ready", False)
    assert shown["objection"] == undecided(
        "Its OpenAPI document at /openapi.yaml",
        "answered /openapi.yaml with status 503. It was asked once.",
        second,
    )
    programs.answers["/openapi.yaml"] = (200, WIDER)
    with clock.shifted(MINUTE / 2):
        drain()
    assert platform.get(second)["objection"] == shown["objection"]
    with clock.shifted(MINUTE):
        drain()
    shown = platform.get(second)
    assert shown["isCurrent"] is False  # its deploy said so, and ended
    assert shown["objection"] == (
        "It did not become live because too little was known when it got ready. Nothing speaks against it any "
        f"more: make it live with `unkey promote {second}`."
    )
    platform.promote(second)
    assert platform.get(second)["isCurrent"] is True
    assert "objection" not in platform.get(second)
    assert platform.get(first)["isCurrent"] is False


def test_an_answer_that_comes_late_and_breaks_clients_is_the_objection_then(
    platform: Platform, programs: Programs, release
) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(b"", status=500)
    programs.answers["/openapi.yaml"] = (200, NARROWER)
    with clock.shifted(MINUTE):
        drain()
    assert platform.get(second)["objection"].startswith(
        f"It would break clients of the live deployment {first}: GET /pets: "
    )
    platform.tenant.refused("deployments.promoteDeployment", {"deploymentId": second}, 412)


def test_a_program_is_asked_twice_after_a_minute_and_then_every_ten_ten_times_in_all(
    platform: Platform, programs: Programs, release
) -> None:
    release(FIRST)
    demand(platform)
    programs.asked.clear()
    second = release(b"", status=500)
    asked: list[int] = []
    for minutes in range(90):
        with clock.shifted(minutes * MINUTE + timedelta(seconds=5)):
            programs.asked.clear()
            drain()
            asked += [minutes] * len(programs.asked)
    assert asked == [1, 2, 12, 22, 32, 42, 52, 62, 72]
    assert "It was asked 10 times." in platform.get(second)["objection"]


def test_a_promote_asks_once_more_and_says_why_it_did_not_happen(
    platform: Platform, programs: Programs, release
) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(b"", status=500)
    platform.promote(second)
    last = platform.tenant("deployments.getLastRequest", {"deploymentId": second})
    assert (last["kind"], last["status"], last["code"]) == ("promote", "failed", "precondition_failed")
    assert last["message"] == undecided(
        "Its OpenAPI document at /openapi.yaml",
        "answered /openapi.yaml with status 500. It was asked 2 times.",
        second,
    )
    assert platform.get(first)["isCurrent"] is True
    programs.answers["/openapi.yaml"] = (200, NARROWER)
    platform.promote(second)
    last = platform.tenant("deployments.getLastRequest", {"deploymentId": second})
    assert (last["status"], last["code"]) == ("failed", "deployment_breaks_clients")
    assert last["message"].startswith(f"It would break clients of the live deployment {first}: ")


@pytest.fixture
def asking_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let every attempt at asking end in an accident, as one does that runs out of time; or mend it."""
    fetch = specification.fetch_any

    def fail(*_: object) -> NoReturn:
        raise StepTimedOut("no result after 40 s")

    def switch(broken: bool) -> None:
        monkeypatch.setattr(specification, "fetch_any", fail if broken else fetch)

    return switch


def later(after: timedelta) -> None:
    """Drain what is due after a while, with every attempt of a step that keeps failing."""
    for seconds in range(0, 25, 5):
        with clock.shifted(after + timedelta(seconds=seconds)):
            drain()


def test_an_accident_while_asking_counts_as_no_answer_and_asking_goes_on(
    platform: Platform, programs: Programs, release, asking_fails: Callable[[bool], None]
) -> None:
    release(FIRST)
    demand(platform)
    asking_fails(True)
    second = platform.create()
    drain()
    platform.report(second, "running", address=programs.address)
    later(timedelta(0))
    silence = "did not answer /openapi.yaml in time. It was asked {}."
    what = "Its OpenAPI document at /openapi.yaml"
    shown = platform.get(second)
    assert (shown["status"], shown["isCurrent"]) == ("ready", False)
    assert shown["objection"] == undecided(what, silence.format("once"), second)
    later(2 * MINUTE)
    platform.promote(second)
    later(3 * MINUTE)
    last = platform.tenant("deployments.getLastRequest", {"deploymentId": second})
    assert (last["status"], last["code"]) == ("failed", "precondition_failed")
    assert last["message"] == undecided(what, silence.format("3 times"), second)
    asking_fails(False)
    programs.answers["/openapi.yaml"] = (200, WIDER)
    later(30 * MINUTE)
    assert platform.get(second)["objection"].endswith(f"make it live with `unkey promote {second}`.")
    assert not compatibility.is_unread(second)


def test_asking_that_always_ends_in_an_accident_ends_too_and_the_owner_is_told(
    platform: Platform, programs: Programs, release, asking_fails: Callable[[bool], None]
) -> None:
    release(FIRST)
    demand(platform)
    asking_fails(True)
    second = platform.create()
    drain()
    platform.report(second, "running", address=programs.address)
    for minutes in range(0, 120, 10):
        later(minutes * MINUTE)
    assert "It was asked 10 times." in platform.get(second)["objection"]
    assert not WorkflowRun.objects.filter(service="openapi_again", state__in=ACTIVE).exists()


def test_a_live_deployment_that_does_not_answer_is_named_and_asked_again(
    platform: Platform, programs: Programs, release
) -> None:
    first = release(b"", status=500)  # nothing is demanded yet
    assert platform.get(first)["isCurrent"] is True
    demand(platform)
    programs.answers["/live"] = (200, FIRST)
    second = platform.create()
    drain()
    # From here on they answer differently: the new one has its document, the live one is broken.
    live = platform.row(first)
    live.settings["openapiSpecPath"] = "/live"
    live.save()
    programs.answers["/live"] = (500, b"")
    programs.answers["/openapi.yaml"] = (200, WIDER)
    platform.report(second, "running", address=programs.address)
    drain()
    assert platform.get(second)["objection"] == undecided(
        f"The OpenAPI document of the live deployment {first}",
        "answered /live with status 500. It was asked 2 times.",
        second,
    )
    programs.answers["/live"] = (200, FIRST)
    platform.promote(second)
    assert platform.get(second)["isCurrent"] is True


def test_a_live_document_that_makes_no_sense_is_not_blamed_on_the_new_one(
    platform: Platform, release
) -> None:
    first = release(b"openapi: 2.9\n")
    demand(platform)
    second = release(WIDER)
    shown = platform.get(second)
    assert shown["isCurrent"] is False
    assert shown["objection"] == (
        f"The OpenAPI document of the live deployment {first} cannot be compared with: it is OpenAPI 2.9; "
        "documents of OpenAPI 3 can be compared. So nothing says whether this one keeps what that one promises. "
        f"The environment refuses breaking changes: {ALLOW} and promote this one (`unkey promote {second}`)."
    )


def test_a_deployment_that_is_deleted_or_stopped_is_not_asked_any_more(
    platform: Platform, programs: Programs, release
) -> None:
    made = release(b"", status=500)
    programs.asked.clear()
    platform.deploy("preview")  # its instance is at an address where nobody is
    row = platform.row(made)
    row.desired_state = "stopped"
    row.save()
    with clock.shifted(MINUTE * 2):
        drain()
    assert programs.asked == []
    assert WorkflowRun.objects.get(service="openapi_again", input__deployment_id=made).state == "succeeded"
    found = platform.tenant.refused("deployments.getOpenapiSpec", {"deploymentId": made}, 404)
    assert found["detail"] == (
        f"The OpenAPI document of the deployment {made} is not known: it answered /openapi.yaml with status "
        "500. It was asked once. Mend that, or let the environment's setting openapiSpecPath name another path."
    )


def test_a_promote_that_would_be_refused_is_not_offered(
    platform: Platform, programs: Programs, release
) -> None:
    first = release(FIRST)
    demand(platform)
    second = release(NARROWER)
    assert platform.get(second)["availableActions"] == ["rollback"]
    listed = platform.tenant("deployments.listDeployments", platform.names)
    assert [(row["id"], row["availableActions"]) for row in listed] == [(second, ["rollback"]), (first, [])]
    demand(platform, refuses=False)
    assert set(platform.get(second)["availableActions"]) == {"promote", "rollback"}
    demand(platform)
    unknown = release(b"", status=500)  # a promote asks once more
    assert set(platform.get(unknown)["availableActions"]) == {"promote", "rollback"}


def test_a_reference_that_leads_nowhere_is_blamed_on_the_document_that_has_it(
    platform: Platform, release
) -> None:
    dangling = FIRST.replace(b"{type: integer, maximum: 100}", b"{$ref: '#/components/schemas/Gone'}")
    first = release(dangling)
    demand(platform)
    second = release(WIDER)
    assert platform.get(second)["objection"].startswith(
        f"The OpenAPI document of the live deployment {first} cannot be compared with: the reference "
        "'#/components/schemas/Gone' leads to nothing. So nothing says whether "
    )
    demand(platform, refuses=False)
    platform.promote(second)
    demand(platform)
    third = release(dangling)
    assert platform.get(third)["objection"].startswith(
        f"Its OpenAPI document cannot be compared with that of {second}: the reference "
    )
