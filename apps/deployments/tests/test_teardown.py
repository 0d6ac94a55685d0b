"""A workspace that is suspended runs nothing and starts nothing; resumed, it serves what it served before."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditLog
from apps.deployments import lifecycle, teardown
from apps.deployments.models import Deployment, Suspension, Topology
from apps.deployments.tests.conftest import Platform
from apps.projects.models import App
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.actors import system
from unkey.tenancy import unscoped

OPERATOR = system("test")
SUSPENDED = (
    "The workspace is suspended: nothing of it can be deployed, started or switched to. Ask your operator to "
    "resume it."
)


def settle(platform: Platform, seconds: int = 5) -> None:
    """Let the agents report that nothing is left of what should have stopped, and the workflows go on."""
    drain()
    rows = Topology.objects.filter(desired_status="stopped").values_list("deployment_id", flat=True)
    for deployment in rows:
        platform.report_none(deployment)
    with clock.shifted(timedelta(seconds=seconds)):
        drain()


def suspend(platform: Platform) -> None:
    teardown.suspend(platform.tenant.workspace, actor=OPERATOR)
    settle(platform)


def resume(platform: Platform) -> None:
    teardown.resume(platform.tenant.workspace, actor=OPERATOR)
    drain()


def wanted(platform: Platform) -> set[str]:
    """Return the deployments that some region still is to run."""
    return set(Topology.objects.filter(desired_status="running").values_list("deployment_id", flat=True))


def last_run(service: str) -> WorkflowRun:
    return WorkflowRun.objects.filter(service=service).latest("arrival")


def result(service: str) -> Any:
    return last_run(service).journal.latest("position").result


def test_a_suspended_workspace_runs_nothing_and_a_resumed_one_what_was_live(
    platform: Platform, make_app: Any
) -> None:
    other = make_app("other")
    live, others, preview = platform.deploy(), other.deploy(), platform.deploy("preview")
    before = platform.routes()
    suspend(platform)
    assert wanted(platform) == set()
    assert result("teardown") == {"stopped": 3, "drained": True}
    assert {platform.row(each).status for each in (live, others, preview)} == {"stopped"}
    assert platform.app_row().current_deployment_id is None
    assert set(teardown.remembered(platform.tenant.workspace).values()) == {live, others}
    assert platform.routes() == before

    resume(platform)
    assert wanted(platform) == {live, others}
    assert platform.row(live).status == "deploying"
    for each in (live, others):
        platform.report(each, "running")
    drain()
    assert platform.get(live)["isCurrent"] is True
    assert other.get(others)["isCurrent"] is True
    assert platform.row(live).status == platform.row(others).status == "ready"
    assert not Suspension.objects.exists()
    # What is live is not put on standby like what a mere request has woken.
    with clock.shifted(timedelta(hours=2)):
        drain()
    assert wanted(platform) == {live, others}


def test_what_was_not_live_when_it_was_suspended_sleeps_until_a_request_comes(platform: Platform) -> None:
    preview, replaced, live = platform.deploy("preview"), platform.deploy(), platform.deploy()
    suspend(platform)
    assert platform.row(preview).asleep_since is not None
    assert platform.row(replaced).asleep_since is not None
    assert platform.row(live).asleep_since is None


def test_a_deploy_under_way_is_cancelled_in_every_step(platform: Platform) -> None:
    queued, started = platform.create(), None
    drain()
    started = platform.create("preview")
    suspend(platform)
    for each in (queued, started):
        row = platform.row(each)
        assert (row.status, row.desired_state) == ("cancelled", "stopped")
    assert wanted(platform) == set()
    assert set(WorkflowRun.objects.filter(service="deploy").values_list("state", flat=True)) == {"cancelled"}
    platform.report(queued, "running")
    with clock.shifted(timedelta(minutes=1)):
        drain()
    assert platform.routes() == {}


def test_a_creation_that_commits_in_the_same_moment_leaks_nothing(platform: Platform) -> None:
    suspend(platform)
    Workspace.objects.filter(pk=platform.tenant.workspace.pk).update(suspended_at=None)
    late = platform.create()  # its transaction read the workspace before the suspension was committed
    Workspace.objects.filter(pk=platform.tenant.workspace.pk).update(suspended_at=clock.now())
    drain()
    row = platform.row(late)
    assert row.status == "cancelled"
    assert row.steps.latest("started_at").error == lifecycle.SUSPENDED
    assert wanted(platform) == set()


@pytest.mark.parametrize("verb", ["create", "promote", "rollback", "start"])
def test_nothing_of_a_suspended_workspace_can_be_started(platform: Platform, verb: str) -> None:
    first, second = platform.deploy(), platform.deploy()
    asleep = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": asleep})
    platform.report_none(asleep)
    teardown.suspend(platform.tenant.workspace, actor=OPERATOR)
    names = {**platform.names, "environment": "production"}
    operation, body = {
        "create": ("createDeployment", {**names, "image": {"dockerImage": platform.snapshot()}}),
        "promote": ("promoteDeployment", {"deploymentId": first}),
        "rollback": ("rollbackDeployment", {"deploymentId": first}),
        "start": ("startDeployment", {"deploymentId": asleep}),
    }[verb]
    error = platform.tenant.refused(f"deployments.{operation}", body, 412)
    assert error["detail"] == SUSPENDED
    assert platform.get(first)["availableActions"] == platform.get(asleep)["availableActions"] == []
    assert platform.app_row().current_deployment_id == second


def test_an_archived_workspace_is_not_started_by_a_resume_and_may_deploy_again(platform: Platform) -> None:
    platform.deploy()
    suspend(platform)
    teardown.archive(platform.tenant.workspace, actor=OPERATOR)
    settle(platform)
    assert not Suspension.objects.exists()
    resume(platform)
    assert wanted(platform) == set()
    again = platform.deploy()
    assert platform.get(again)["isCurrent"] is True


def test_a_second_suspension_keeps_what_the_first_remembered(platform: Platform, make_app: Any) -> None:
    live = platform.deploy()
    suspend(platform)
    suspend(platform)
    assert set(teardown.remembered(platform.tenant.workspace).values()) == {live}


def test_a_resume_does_not_wait_for_a_teardown_that_waits_for_agents(platform: Platform) -> None:
    live = platform.deploy()
    teardown.suspend(platform.tenant.workspace, actor=OPERATOR)
    drain()
    with clock.shifted(timedelta(seconds=3)):
        drain()
    assert last_run("teardown").current_step == "wait_until_drained"
    teardown.resume(platform.tenant.workspace, actor=OPERATOR)
    with clock.shifted(timedelta(seconds=6)):
        drain()
        assert result("teardown") == {"stopped": 1, "drained": False}
        platform.report(live, "running")
        drain()
    assert platform.get(live)["isCurrent"] is True
    assert platform.row(live).status == "ready"


def test_agents_that_do_not_answer_are_waited_for_five_minutes(platform: Platform) -> None:
    platform.deploy()
    teardown.suspend(platform.tenant.workspace, actor=OPERATOR)
    drain()
    with clock.shifted(timedelta(minutes=4)):
        drain()
        assert last_run("teardown").state == "waiting"
    with clock.shifted(timedelta(minutes=11)):
        drain()
    assert result("teardown") == {"stopped": 1, "drained": False}


@pytest.mark.parametrize("part", ["end_switches", "stop_all"])
def test_a_teardown_that_breaks_off_goes_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    live = platform.deploy()
    platform.create("preview")
    drain()
    name = {"end_switches": "give_up", "stop_all": "set_desired_state"}[part]
    done = getattr(teardown.lifecycle, name)
    calls: list[int] = []

    def crash(*args: Any, **kwargs: Any) -> Any:
        done(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("the database went away")

    monkeypatch.setattr(teardown.lifecycle, name, crash)
    suspend(platform)
    settle(platform, 30)
    settle(platform, 60)
    assert len(calls) > 1
    assert wanted(platform) == set()
    assert last_run("teardown").state == "succeeded"
    assert set(teardown.remembered(platform.tenant.workspace).values()) == {live}


def test_operators_suspend_and_resume_by_command_and_it_is_told(platform: Platform) -> None:
    slug = platform.tenant.workspace.slug
    out = StringIO()
    call_command("workspace", "suspend", slug, "--json", stdout=out)
    assert json.loads(out.getvalue())["state"] == "suspended"
    call_command("workspace", "resume", platform.tenant.workspace.id, stdout=out)
    call_command("workspace", "resume", slug, stdout=out)
    with pytest.raises(CommandError, match="there is no workspace nobody"):
        call_command("workspace", "suspend", "nobody")
    with unscoped("test"):
        events = AuditLog.objects.filter(actor_id="manage.py workspace").order_by("time", "id")
        assert [row.event for row in events] == ["workspace.suspend", "workspace.resume"]


def test_another_workspace_is_left_alone(platform: Platform, stranger: Any) -> None:
    live = platform.deploy()
    teardown.suspend(stranger.workspace, actor=OPERATOR)
    drain()
    assert wanted(platform) == {live}
    assert App.objects.unscoped("test").get().current_deployment_id == live
    assert Deployment.objects.unscoped("test").get().status == "ready"
