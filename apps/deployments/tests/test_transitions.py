"""Every transition and gate of a deployment, through HTTP: from where, what is asked, what is answered.

A refusal changes nothing; an acceptance is followed to what it leads to. States that last for a
moment only, and `skipped`, which webhooks alone write, are written into the row.
"""

from collections.abc import Callable
from datetime import timedelta

import pytest

from apps.deployments import lifecycle, services
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform
from apps.projects.models import Environment
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.actors import system
from unkey.rpc.testing import Tenant
from unkey.tenancy import workspace_scope

pytestmark = pytest.mark.django_db

STATUSES = tuple(Deployment.Status.values)
MOMENTARY = ("starting", "building", "network", "finalizing", "skipped")
ACTIONS = ("promote", "rollback", "stop", "start", "cancel", "approve", "redeploy")

ACCEPTED = 202
NOT_READY = ("deployment_not_ready", "The deployment is not ready. Choose one that is: `unkey ps` lists all.")
DRAINING = (
    "deployment_not_ready",
    "The deployment is shutting down and cannot serve traffic. Try again in a minute, or choose another one: "
    "`unkey ps` lists all.",
)
NOT_PRODUCTION = (
    "deployment_not_production",
    "Only production deployments can be promoted or rolled back. Deploy it to production first.",
)
IS_CURRENT = (
    "deployment_is_current",
    "The deployment is already the current deployment. Choose another one: `unkey ps` lists all.",
)
IS_LIVE = (
    "deployment_is_current",
    "The deployment is already the current deployment. There is nothing to do.",
)
NO_CURRENT = (
    "deployment_no_current",
    "The app has no current deployment. Deploy to production: the first one that gets ready is it.",
)
NOT_RUNNING = (
    "deployment_not_running",
    "The deployment is not running. There is nothing to stop: `unkey ps` lists all.",
)
STOPPING = ("deployment_is_stopping", "The deployment is already stopping. Wait until it has.")
NOT_STOPPED = (
    "deployment_not_stopped",
    "The deployment is not stopped. Only what is can be started: `unkey ps` lists all.",
)
CANNOT_STOP = (
    "deployment_is_production",
    "Production deployments cannot be stopped. Promote or roll back to another one: what is replaced goes to "
    "sleep by itself.",
)
CANNOT_START = (
    "deployment_is_production",
    "Production deployments cannot be started. Promote it or roll back to it: that starts it.",
)
SUSPENDED = (
    "precondition_failed",
    "The workspace is suspended: nothing of it can be deployed, started or switched to. Ask your operator to "
    "resume it.",
)

Expected = int | tuple[str, str]


def not_awaiting(status: str) -> tuple[str, str]:
    return (
        "precondition_failed",
        f"The deployment is not awaiting approval: it is {status.replace('_', ' ')}. There is nothing to approve.",
    )


def ask(platform: Platform, action: str, deployment: str) -> Expected:
    """Ask for an action; return 202, or the code and the sentence of the refusal, which changes nothing."""
    before = snapshot()
    answer = platform.tenant.send(f"deployments.{action}Deployment", {"deploymentId": deployment})
    if answer.status in (201, 202):
        return ACCEPTED
    assert answer.status == 412, answer.body
    assert snapshot() == before
    error = answer.body["error"]
    return error["type"].rpartition("/")[2], error["detail"]


def snapshot() -> list[object]:
    rows = Deployment.objects.unscoped("test").order_by("id").values_list("id", "status", "desired_state")
    return [*rows, WorkflowRun.objects.count()]


def await_approval(platform: Platform, environment: str) -> str:
    with workspace_scope(platform.tenant.workspace.id):
        where = Environment.objects.get(slug=environment, app=platform.app_row())
        made = services.create_deployment(
            where, image=platform.snapshot(), needs_approval=True, actor=system("webhook")
        )
    return str(made.id)


def bring(platform: Platform, status: str, environment: str) -> str:
    """Make a deployment of a status, as it gets there in life where it can."""
    match status:
        case "pending":
            return platform.create(environment)
        case "awaiting_approval":
            return await_approval(platform, environment)
        case "failed":
            made = platform.create(environment, platform.snapshot(**{"notes.txt": "nothing"}))
            drain()
        case "deploying":
            made = platform.create(environment)
            drain()
        case "cancelled":
            made = platform.create(environment)
            platform.tenant("deployments.cancelDeployment", {"deploymentId": made})
            drain()
        case "stopped" if environment == "preview":
            made = platform.deploy(environment)
            platform.tenant("deployments.stopDeployment", {"deploymentId": made})
            platform.report_none(made)
        case "ready":
            made = platform.deploy(environment)
        case _:
            made = platform.create(environment) if status in MOMENTARY else platform.deploy(environment)
            if status == "stopped":
                platform.report_none(made)
            changes = {"status": status} | ({"desired_state": "stopped"} if status == "stopped" else {})
            Deployment.objects.unscoped("test").filter(pk=made).update(**changes)
    assert platform.get(made)["status"] == status
    return made


def expected(status: str, environment: str, action: str) -> Expected:
    """The table of gates: what is asked of a deployment that is not the current one, by its status."""
    preview = environment == "preview"
    match action:
        case "promote" | "rollback":
            if status == "ready":
                return NOT_PRODUCTION if preview else ACCEPTED
            # One on standby is started first.
            return ACCEPTED if status == "stopped" and not preview else NOT_READY
        case "stop":
            if status == "ready":
                return ACCEPTED if preview else CANNOT_STOP
            return NOT_RUNNING
        case "start":
            if status == "stopped":
                return ACCEPTED if preview else CANNOT_START
            return NOT_STOPPED
        case "approve":
            return ACCEPTED if status == "awaiting_approval" else not_awaiting(status)
    return ACCEPTED


@pytest.mark.parametrize("environment", ["production", "preview"])
@pytest.mark.parametrize("status", STATUSES)
def test_gate(platform: Platform, status: str, environment: str) -> None:
    """All actions on one deployment, refusals first: what is refused leaves it as it was."""
    if status in Deployment.TERMINAL:
        target = bring(platform, status, environment)
        current = platform.deploy()
    else:
        current = platform.deploy()
        target = bring(platform, status, environment)
    assert platform.get(current)["isCurrent"]
    asked = {action: expected(status, environment, action) for action in ACTIONS}
    for action in sorted(ACTIONS, key=lambda name: asked[name] == ACCEPTED):
        if asked[action] == ACCEPTED:
            break
        assert ask(platform, action, target) == asked[action], action
    assert platform.get(target)["status"] == status
    shown = platform.get(target)["availableActions"]
    assert set(shown) == {
        action for action in ("promote", "rollback", "stop", "start") if asked[action] == ACCEPTED
    }


@pytest.mark.parametrize(
    ("status", "environment", "action"),
    [
        (status, environment, action)
        for environment in ("production", "preview")
        for status in STATUSES
        for action in ACTIONS
        if action not in ("cancel", "redeploy") and expected(status, environment, action) == ACCEPTED
    ],
)
def test_accepted(platform: Platform, status: str, environment: str, action: str) -> None:
    target = bring(platform, status, environment)
    current = platform.deploy()
    assert ask(platform, action, target) == ACCEPTED
    drain()
    platform.report(target, "running")
    drain()
    after = platform.get(target)
    match action:
        case "stop":
            platform.report_none(target)
            assert platform.get(target)["status"] == "stopped"
        case "promote" | "rollback":
            assert (after["status"], after["isCurrent"]) == ("ready", True)
            assert platform.routes()["shop"] == target
            assert platform.app_row().is_rolled_back is (action == "rollback")
            assert platform.get(current)["status"] == "ready"
        case _:
            assert after["status"] == "ready"


@pytest.mark.parametrize("status", STATUSES)
def test_cancel(platform: Platform, status: str) -> None:
    """What has not ended is cancelled, also what awaits approval; what has ended stays as it is."""
    target = bring(platform, status, "production")
    assert ask(platform, "cancel", target) == ACCEPTED
    drain()
    platform.report(target, "running")
    drain()
    shown = platform.get(target)
    if status in Deployment.TERMINAL:
        assert shown["status"] == status
        return
    assert shown["status"] == "cancelled"
    assert shown["availableActions"] == []
    assert target not in platform.routes().values()
    steps = platform.tenant("deployments.listSteps", {"deploymentId": target})["steps"]
    assert steps[-1]["status"] == "failed"
    assert steps[-1]["error"] == lifecycle.CANCELLED
    assert ask(platform, "cancel", target) == ACCEPTED


@pytest.mark.parametrize("status", ["ready", "failed", "stopped", "cancelled", "deploying"])
def test_redeploy(platform: Platform, status: str) -> None:
    target = bring(platform, status, "preview")
    made = platform.tenant("deployments.redeployDeployment", {"deploymentId": target})["deploymentId"]
    assert platform.row(made).image == platform.row(target).image
    platform.finish(made)
    # What could not be built once cannot be built again.
    assert platform.get(made)["status"] == ("failed" if status == "failed" else "ready")


def test_the_current_deployment_is_neither_rolled_back_to_nor_promoted_nor_stopped(
    platform: Platform,
) -> None:
    current = platform.deploy()
    assert ask(platform, "rollback", current) == IS_CURRENT
    assert ask(platform, "promote", current) == IS_LIVE
    assert ask(platform, "stop", current) == CANNOT_STOP


def test_while_rolled_back_promoting_the_current_deployment_confirms_it(platform: Platform) -> None:
    first, _ = platform.deploy(), platform.deploy()
    platform.rollback(first)
    assert ask(platform, "rollback", first) == IS_CURRENT
    assert ask(platform, "promote", first) == ACCEPTED
    drain()
    assert platform.app_row().is_rolled_back is False
    assert ask(platform, "promote", first) == IS_LIVE


def test_an_app_without_a_current_deployment_has_nothing_to_switch_from(platform: Platform) -> None:
    made = platform.deploy()
    app = platform.app_row()
    app.current_deployment = None
    app.save()
    assert ask(platform, "rollback", made) == NO_CURRENT
    assert ask(platform, "promote", made) == NO_CURRENT


@pytest.mark.parametrize("environment", ["production", "preview"])
def test_a_deployment_that_is_stopping(platform: Platform, environment: str) -> None:
    target = platform.deploy(environment)
    platform.deploy()
    Deployment.objects.unscoped("test").filter(pk=target).update(desired_state="stopped")
    assert ask(platform, "promote", target) == DRAINING
    assert ask(platform, "rollback", target) == DRAINING
    assert ask(platform, "stop", target) == STOPPING
    if environment == "production":
        assert ask(platform, "start", target) == CANNOT_START
    else:
        assert ask(platform, "start", target) == ACCEPTED


def test_a_deployment_is_stopped_started_and_stopped_again(platform: Platform) -> None:
    """A request is remembered by its cause: the same one may be made again and again."""
    made = platform.deploy("preview")
    for _ in range(3):
        assert ask(platform, "stop", made) == ACCEPTED
        assert ask(platform, "stop", made) == STOPPING
        platform.report_none(made)
        assert ask(platform, "stop", made) == NOT_RUNNING
        assert ask(platform, "start", made) == ACCEPTED
        assert platform.get(made)["status"] == "deploying"
        assert ask(platform, "start", made) == NOT_STOPPED
        platform.finish(made)
        assert platform.get(made)["status"] == "ready"


def test_a_wake_that_is_cancelled_goes_back_to_sleep(platform: Platform) -> None:
    made = bring(platform, "stopped", "preview")
    assert ask(platform, "start", made) == ACCEPTED
    drain()
    assert ask(platform, "cancel", made) == ACCEPTED
    drain()
    assert platform.get(made)["status"] == "stopped"
    assert platform.row(made).desired_state == "stopped"
    told = platform.tenant("deployments.getLastRequest", {"deploymentId": made})
    assert (told["kind"], told["status"]) == ("start", "failed")
    assert told["message"] == "The deployment has been stopped meanwhile. Ask once more if it should run."
    assert ask(platform, "start", made) == ACCEPTED


def test_a_rollback_whose_target_is_cancelled_while_it_wakes_leaves_live_alone(platform: Platform) -> None:
    first = bring(platform, "stopped", "production")
    current = platform.deploy()
    assert ask(platform, "rollback", first) == ACCEPTED
    drain()
    assert platform.get(first)["status"] == "deploying"
    assert ask(platform, "cancel", first) == ACCEPTED
    platform.report(first, "running")
    drain()
    assert platform.routes()["shop"] == current
    assert platform.get(first)["status"] == "stopped"
    assert "asleepSince" in platform.get(first)  # nobody could start it: a request may wake it
    told = platform.tenant("deployments.getLastRequest", {"deploymentId": first})
    assert told["message"] == (
        "The deployment was stopped again before it was awake. Ask once more if it should run."
    )


@pytest.mark.parametrize(
    ("action", "status"),
    [("rollback", "ready"), ("promote", "ready"), ("start", "stopped"), ("approve", "awaiting_approval")],
)
def test_a_suspended_workspace_starts_nothing(platform: Platform, action: str, status: str) -> None:
    environment = "preview" if action == "start" else "production"
    target = bring(platform, status, environment)
    platform.deploy()
    Workspace.objects.filter(pk=platform.tenant.workspace.id).update(suspended_at=clock.now())
    assert ask(platform, action, target) == SUSPENDED
    assert platform.get(target)["status"] == status


@pytest.mark.parametrize("operation", ["create", "redeploy"])
def test_a_suspended_workspace_deploys_nothing(platform: Platform, operation: str) -> None:
    made = platform.deploy()
    Workspace.objects.filter(pk=platform.tenant.workspace.id).update(suspended_at=clock.now())
    body = {
        "create": {**platform.names, "environment": "preview", "image": {"dockerImage": platform.snapshot()}},
        "redeploy": {"deploymentId": made},
    }[operation]
    error = platform.tenant.refused(f"deployments.{operation}Deployment", body, 412)
    assert (error["type"].rpartition("/")[2], error["detail"]) == SUSPENDED
    assert Deployment.objects.unscoped("test").count() == 1


def test_a_suspended_workspace_may_stop_and_cancel(platform: Platform) -> None:
    running, pending = platform.deploy("preview"), platform.create("preview")
    Workspace.objects.filter(pk=platform.tenant.workspace.id).update(suspended_at=clock.now())
    assert ask(platform, "stop", running) == ACCEPTED
    assert ask(platform, "cancel", pending) == ACCEPTED


@pytest.mark.parametrize("action", ACTIONS)
def test_nobody_learns_of_another_workspaces_deployment(
    platform: Platform, stranger: Tenant, action: str
) -> None:
    made = platform.deploy("preview")
    before = snapshot()
    for body, who in (
        ({"deploymentId": made}, stranger),
        ({"deploymentId": "d_nobody"}, platform.tenant),
        ({"deploymentId": made}, platform.tenant.holding("environment.*.read_environment")),
    ):
        error = who.refused(f"deployments.{action}Deployment", body, 404)
        assert error["detail"] == "The requested deployment does not exist."
    platform.tenant.refused(f"deployments.{action}Deployment", {}, 400)
    platform.tenant.refused(f"deployments.{action}Deployment", {"deploymentId": made, "x": 1}, 400)
    assert snapshot() == before


def test_the_last_request_says_what_came_of_it(platform: Platform) -> None:
    first = platform.deploy()
    assert platform.tenant("deployments.getLastRequest", {"deploymentId": first}) == {}
    platform.deploy()
    ask(platform, "rollback", first)
    told = platform.tenant("deployments.getLastRequest", {"deploymentId": first})
    assert (told["kind"], told["status"]) == ("rollback", "pending")
    drain()
    told = platform.tenant("deployments.getLastRequest", {"deploymentId": first})
    assert (told["kind"], told["status"]) == ("rollback", "done")


# -- superseding, on branches


@pytest.fixture
def commit(platform: Platform) -> Callable[..., str]:
    """Deploy a commit of a branch to the preview environment, as a webhook would."""

    def create(branch: str, sha: str = "", *, approval: bool = False) -> str:
        with workspace_scope(platform.tenant.workspace.id):
            where = Environment.objects.get(slug="preview", app=platform.app_row())
            made = services.create_deployment(
                where,
                image=platform.snapshot(),
                commit={"branch": branch, "commitSha": sha},
                needs_approval=approval,
                actor=system("webhook"),
            )
        return str(made.id)

    return create


def test_a_new_commit_ends_what_of_its_branch_has_not_begun(
    platform: Platform, commit: Callable[..., str]
) -> None:
    approval, pending = commit("main", approval=True), commit("main")
    assert platform.get(approval)["status"] == "superseded"
    other = commit("other")
    newest = commit("main")
    assert platform.get(pending)["status"] == "superseded"
    assert platform.get(other)["status"] == "pending"
    steps = platform.tenant("deployments.listSteps", {"deploymentId": pending})["steps"]
    assert [(step["step"], step["error"]) for step in steps] == [("queued", lifecycle.SUPERSEDED)]
    drain()
    assert platform.get(pending)["status"] == "superseded"
    platform.finish(newest)
    assert platform.get(newest)["status"] == "ready"
    assert ask(platform, "approve", approval) == not_awaiting("superseded")


def test_what_has_begun_goes_on_but_takes_no_name_of_a_newer_commit(
    platform: Platform, commit: Callable[..., str]
) -> None:
    older = commit("main", "a" * 40)
    drain()
    newer = commit("main", "b" * 40)
    assert platform.get(older)["status"] == "deploying"
    platform.finish(newer)
    platform.finish(older)
    routes = platform.routes()
    assert routes["shop-git-main"] == routes["shop-preview"] == newer
    assert routes["shop-git-aaaaaaa"] == older
    assert routes["shop-git-bbbbbbb"] == newer
    assert platform.get(older)["status"] == "ready"


def test_one_that_waits_for_a_slot_is_superseded_and_leaves_the_queue(
    platform: Platform, commit: Callable[..., str]
) -> None:
    platform.limit(builds_concurrent_max=1)
    building, waiting = commit("main"), None
    drain()
    waiting = commit("main")
    drain()
    newest = commit("main")
    drain()
    assert [platform.get(each)["status"] for each in (building, waiting, newest)] == [
        "deploying",
        "superseded",
        "pending",
    ]
    steps = platform.tenant("deployments.listSteps", {"deploymentId": newest})["steps"]
    assert steps[0]["message"] == "waiting for a build slot: 1 before you"


def test_images_without_a_branch_never_supersede_each_other(platform: Platform) -> None:
    first, second = platform.create("preview"), platform.create("preview")
    assert [platform.get(each)["status"] for each in (first, second)] == ["pending", "pending"]


def test_an_older_commit_is_redeployed_over_a_newer_one_by_force_alone(
    platform: Platform, commit: Callable[..., str]
) -> None:
    older = platform.finish(commit("main"))
    newer = platform.finish(commit("main"))
    error = platform.tenant.refused("deployments.redeployDeployment", {"deploymentId": older}, 412)
    assert error["detail"] == (
        f"Branch main has a newer deployment, {newer}, which is ready. Redeploy that one, or force this one."
    )
    made = platform.tenant("deployments.redeployDeployment", {"deploymentId": older, "force": True})
    platform.finish(made["deploymentId"])
    assert platform.routes()["shop-git-main"] == made["deploymentId"]
    assert platform.tenant("deployments.redeployDeployment", {"deploymentId": made["deploymentId"]})


@pytest.mark.parametrize(
    ("operation", "body", "what"),
    [
        ("apps.deleteApp", {}, "app default"),
        ("environments.deleteEnvironment", {"environment": "production"}, "environment production"),
        ("environments.deleteEnvironment", {"environment": "preview"}, "environment preview"),
    ],
)
def test_of_what_is_being_deleted_the_refusal_says_so_by_the_name_that_people_gave(
    platform: Platform, operation: str, body: dict[str, str], what: str
) -> None:
    """Its slug is free for others by then, and its deployments shut down: neither is the reason."""
    targets = {"preview": platform.deploy("preview"), "production": platform.deploy()}
    platform.deploy()
    platform.tenant(operation, {**platform.names, **body})
    for seconds in (0, 5, 10):
        with clock.shifted(timedelta(seconds=seconds)):
            drain()
    deleting = (
        "precondition_failed",
        f"The {what} is being deleted. Deploy to another one, or create it anew once it is gone.",
    )
    for environment, target in targets.items():
        if body.get("environment", environment) == environment:
            assert platform.row(target).desired_state == "stopped"
            for action in ("promote", "rollback", "start", "approve"):
                assert ask(platform, action, target) == deleting, action
            assert platform.get(target)["availableActions"] == []
