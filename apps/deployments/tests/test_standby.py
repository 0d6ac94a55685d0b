"""Sleeping and waking: scheduled standby, previews that nobody uses, and the first request after."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from apps.audit.models import AuditLog
from apps.cluster import queries
from apps.cluster.models import Edge
from apps.cluster.services import agent_heartbeat
from apps.cluster.tests.factories import EdgeFactory
from apps.deployments import desired_state, lifecycle, standby
from apps.deployments.models import Deployment, ScheduledChange, Topology
from apps.deployments.tests.conftest import Platform
from apps.routing.models import Sentinel
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.env import env

pytestmark = pytest.mark.django_db

IDLE = timedelta(seconds=env.PREVIEW_IDLE_SECONDS)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> Edge:
    """An edge that has told of all its requests up to now; it lives as long as a slow machine takes for a test."""
    monkeypatch.setattr(queries, "LIVE_WITHIN", MINUTE)
    now = clock.now()
    return EdgeFactory.create(counted_at=now, last_seen_at=now)


def beat(edge: Edge, **changes: Any) -> None:
    """Let an edge tell that it lives, and that it has told of all its requests unless changes say otherwise."""
    now = clock.now()
    Edge.objects.filter(pk=edge.pk).update(**{"last_seen_at": now, "counted_at": now, **changes})


def schedule(deployment: str, delay: timedelta, **options: Any) -> ScheduledChange | None:
    """Schedule the standby of a deployment."""
    with transaction.atomic():
        row = lifecycle.lock(deployment)
        return desired_state.schedule_standby(row, delay, cause=desired_state.REPLACED, **options)


def state(deployment: str) -> tuple[str, str, str]:
    """Return what a deployment's status is, what agents are told of it, and what edges are."""
    topology = Topology.objects.get(deployment_id=deployment)
    row = Deployment.objects.unscoped("test").get(pk=deployment)
    return row.status, topology.desired_status, Sentinel.objects.get(pk=deployment).desired_state


def sleep(platform: Platform, deployment: str) -> int:
    """Let a deployment fall asleep wholly; returns the version that edges know it by."""
    schedule(deployment, timedelta(0))
    drain()
    platform.report_none(deployment)
    assert state(deployment) == ("stopped", "stopped", "standby")
    return int(Sentinel.objects.get(pk=deployment).version)


def wakes() -> int:
    """Count the runs that wake deployments."""
    return WorkflowRun.objects.filter(service="wake").count()


# ----- scheduled changes


def test_a_replaced_preview_sleeps_after_a_minute_and_not_before(platform: Platform) -> None:
    first, second = platform.deploy("preview"), platform.deploy("preview")
    with clock.shifted(MINUTE - 5 * SECOND):
        drain()
    assert state(first) == ("ready", "running", "running")
    with clock.shifted(MINUTE + 5 * SECOND):
        drain()
    assert state(first) == ("ready", "stopped", "standby")
    platform.report_none(first)
    assert state(first) == ("stopped", "stopped", "standby")
    assert state(second) == ("ready", "running", "running")
    assert AuditLog.objects.unscoped("test").get(event="deployment.standby").meta == {"cause": "replaced"}


def test_defect_20_previews_of_an_image_without_a_branch_are_spun_down_as_others_are(
    platform: Platform,
) -> None:
    first, second, other = (
        platform.deploy("preview"),
        platform.deploy("preview"),
        platform.deploy("production"),
    )
    assert {platform.row(one).git_branch for one in (first, second)} == {""}
    with clock.shifted(MINUTE + 5 * SECOND):
        drain()
    assert [state(one)[1] for one in (first, second, other)] == ["stopped", "running", "running"]


def test_of_several_changes_the_last_one_asked_for_counts(platform: Platform) -> None:
    deployment = platform.deploy("preview")
    schedule(deployment, MINUTE)
    schedule(deployment, 3 * MINUTE)
    assert schedule(deployment, SECOND, overwrite=False) is None
    drain()  # the run of the first change learns that it was replaced, long before it is due
    ended = WorkflowRun.objects.filter(service="desired_state", state="succeeded")
    assert ended.count() == 1
    with clock.shifted(2 * MINUTE):
        drain()
    assert state(deployment)[1] == "running"
    with clock.shifted(4 * MINUTE):
        drain()
    assert state(deployment)[1] == "stopped"
    assert not ScheduledChange.objects.exists()


def test_defect_09_a_change_refused_for_the_current_deployment_is_no_longer_pending(
    platform: Platform,
) -> None:
    current = platform.deploy()
    schedule(current, timedelta(0))
    drain()
    assert state(current) == ("ready", "running", "running")
    assert not ScheduledChange.objects.exists()
    platform.deploy()
    assert ScheduledChange.objects.get().deployment_id == current
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    assert state(current)[1:] == ("stopped", "standby")


def test_defect_03_a_deployment_replaced_for_the_second_time_sleeps_again(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.promote(first)
    platform.promote(second)
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    assert state(first)[1:] == ("stopped", "standby")
    assert state(second)[1:] == ("running", "running")


def test_defect_08_a_start_that_never_becomes_healthy_ends_and_leaves_nothing_deploying(
    platform: Platform,
) -> None:
    deployment = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": deployment})
    platform.report_none(deployment)
    platform.tenant("deployments.startDeployment", {"deploymentId": deployment})
    drain()
    assert state(deployment) == ("deploying", "running", "waking")
    assert WorkflowRun.objects.get(service="wake").state == "waiting"  # and holds no worker
    with clock.shifted(timedelta(seconds=env.DEPLOY_HEALTH_DEADLINE_SECONDS + 5)):
        drain()
    assert state(deployment) == ("stopped", "stopped", "stopped")
    platform.tenant("deployments.startDeployment", {"deploymentId": deployment})
    platform.finish(deployment)
    assert state(deployment) == ("ready", "running", "running")


def test_a_change_of_a_deleted_deployment_does_nothing(platform: Platform) -> None:
    deployment = platform.deploy("preview")
    schedule(deployment, timedelta(0))
    rows = Deployment.objects.unscoped("test").filter(pk=deployment)
    Sentinel.objects.filter(pk=deployment).delete()
    for route in list(rows.get().routes.unscoped("test")):
        route.delete()
    rows.delete()
    drain()
    run = WorkflowRun.objects.get(service="desired_state")
    result: Any = run.journal.get(name="change_state").result
    assert (run.state, result["changed"]) == ("succeeded", False)


def test_nothing_is_stopped_that_an_edge_may_still_send_requests_to(platform: Platform, edge: Edge) -> None:
    deployment = platform.deploy("preview")
    schedule(deployment, timedelta(0), routes_version=10_000)
    drain()
    assert state(deployment)[1] == "running"
    beat(edge, applied={"routes": 10_000})
    with clock.shifted(2 * SECOND):
        drain()
    assert state(deployment)[1] == "stopped"


# ----- starting by hand


def test_a_started_deployment_is_ready_once_every_edge_knows(platform: Platform, edge: Edge) -> None:
    preview = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    platform.report_none(preview)
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    platform.finish(preview)
    assert state(preview) == ("deploying", "running", "running")
    assert platform.tenant("deployments.getLastRequest", {"deploymentId": preview})["status"] == "pending"
    beat(edge, applied={"sentinels": Sentinel.objects.get(pk=preview).version})
    with clock.shifted(SECOND):
        drain()
    assert state(preview) == ("ready", "running", "running")
    assert platform.tenant("deployments.getLastRequest", {"deploymentId": preview})["status"] == "done"


def test_a_start_that_waits_for_an_agent_that_is_gone_says_so(platform: Platform) -> None:
    preview = platform.deploy("preview")
    agent_heartbeat("agent-1", region=env.REGION, url="", applied={})
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    platform.report_none(preview)
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    drain()
    asked = {"deploymentId": preview}
    assert "message" not in platform.tenant("deployments.getLastRequest", asked)
    with clock.shifted(2 * MINUTE + SECOND):
        last = platform.tenant("deployments.getLastRequest", asked)
    assert (last["kind"], last["status"]) == ("start", "pending")
    assert last["message"].startswith(f"No agent has reported from region {env.REGION} for 2 minutes: ")


def test_an_edge_that_does_not_answer_delays_a_start_for_a_minute(platform: Platform, edge: Edge) -> None:
    preview = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    platform.report_none(preview)
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    platform.finish(preview)
    with clock.shifted(MINUTE + SECOND):
        beat(edge)
        drain()
    assert state(preview)[0] == "ready"


def test_what_an_agent_said_before_it_knew_of_a_start_does_not_count(platform: Platform) -> None:
    def report(status: str, applied: int, number: int) -> None:
        body = {
            "agent": "agent-1",
            "region": env.REGION,
            "deploymentId": preview,
            "instances": [{"name": f"i-{number}", "address": "127.0.0.1:1", "status": status}],
            "run": "one",
            "number": number,
            "applied": applied,
        }
        answer = platform.tenant.client.post(
            "/internal/instances/report",
            body,
            content_type="application/json",
            headers={"Authorization": f"Bearer {env.secret('AGENT_TOKEN')}"},
        )
        assert answer.status_code == 200

    def version() -> int:
        return Topology.objects.get(deployment_id=preview).version

    preview = platform.deploy("preview")
    report("running", version(), 1)
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    stopped = version()
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    report("running", stopped, 2)  # it is about to be drained
    drain()
    assert state(preview)[0] == "deploying"
    report("draining", version(), 3)
    drain()
    assert state(preview)[0] == "deploying"
    report("running", version(), 4)
    drain()
    assert state(preview)[0] == "ready"


# ----- previews that nobody uses


def test_a_preview_without_requests_sleeps_after_its_time_and_not_before(
    platform: Platform, edge: Edge
) -> None:
    preview, live = platform.deploy("preview"), platform.deploy("production")
    with clock.shifted(IDLE - MINUTE):
        beat(edge)
        assert standby.sleep_idle() == 0
    with clock.shifted(IDLE + MINUTE):
        beat(edge)
        assert standby.sleep_idle() == 1
        assert standby.sleep_idle() == 0  # it is pending
        drain()
        assert standby.sleep_idle() == 0
    assert state(preview) == ("ready", "stopped", "standby")
    assert state(live) == ("ready", "running", "running")
    audited = AuditLog.objects.unscoped("test").get(event="deployment.standby")
    assert (audited.actor_type, audited.meta) == ("system", {"cause": "idle"})


def test_a_preview_with_a_request_keeps_running(platform: Platform, edge: Edge) -> None:
    preview = platform.deploy("preview")
    with clock.shifted(2 * IDLE):
        Sentinel.objects.filter(pk=preview).update(last_request_at=clock.now() - IDLE + MINUTE)
        beat(edge)
        assert standby.sleep_idle() == 0
    with clock.shifted(2 * IDLE + 2 * MINUTE):
        beat(edge)
        assert standby.sleep_idle() == 1


def test_a_request_between_the_decision_and_the_deed_keeps_a_preview_awake(
    platform: Platform, edge: Edge
) -> None:
    preview = platform.deploy("preview")
    with clock.shifted(IDLE + MINUTE):
        beat(edge)
        assert standby.sleep_idle() == 1
        Sentinel.objects.filter(pk=preview).update(last_request_at=clock.now())
        drain()
    assert state(preview) == ("ready", "running", "running")
    assert not ScheduledChange.objects.exists()


def _silent(edge: Edge) -> None:
    beat(edge, counted_at=clock.now() - MINUTE - IDLE)


def _never(edge: Edge) -> None:
    beat(edge, counted_at=None)


def _uncounted(edge: Edge) -> None:
    beat(edge, count_lost_at=clock.now() - IDLE + MINUTE)


def _gone_for_an_hour(edge: Edge) -> None:
    beat(edge)
    hour = clock.now() - timedelta(hours=1)
    EdgeFactory.create(region_name="far", counted_at=hour - IDLE, last_seen_at=hour)


def _none(edge: Edge) -> None:
    edge.delete()


@pytest.mark.parametrize("told", [_silent, _never, _uncounted, _gone_for_an_hour, _none])
def test_nothing_sleeps_while_an_edge_has_not_told_of_its_requests(
    platform: Platform, edge: Edge, told: Any
) -> None:
    platform.deploy("preview")
    with clock.shifted(IDLE + 5 * MINUTE):
        told(edge)
        assert standby.sleep_idle() == 0
        assert not ScheduledChange.objects.exists()


def test_an_edge_that_is_gone_for_good_and_one_that_serves_no_apps_stop_nobody(
    platform: Platform, edge: Edge
) -> None:
    platform.deploy("preview")
    with clock.shifted(IDLE + MINUTE):
        beat(edge)
        long_ago = clock.now() - timedelta(days=2)
        EdgeFactory.create(region_name="far", last_seen_at=long_ago)
        EdgeFactory.create(role="api")
        assert standby.sleep_idle() == 1


def test_many_idle_previews_are_decided_page_by_page(
    platform: Platform, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "BATCH", 2)
    row = platform.row(platform.deploy("preview"))
    sentinel = Sentinel.objects.get(pk=row.pk)
    made = [row.pk]
    for number in range(4):
        row.pk = f"d_{number}"
        row.save(force_insert=True)
        sentinel.pk = row.pk
        sentinel.save(force_insert=True)
        made.append(row.pk)
    with clock.shifted(IDLE + MINUTE):
        beat(edge)
        assert standby.sleep_idle() == 5
    assert set(ScheduledChange.objects.values_list("deployment_id", flat=True)) == set(made)


# ----- the first request


def test_a_request_wakes_a_preview_once_however_many_edges_ask(platform: Platform) -> None:
    preview = platform.deploy("preview")
    version = sleep(platform, preview)
    for edge in ("edge-1", "edge-2", "edge-1"):
        assert standby.wake_on_request(preview, version, edge=edge) == standby.Wake(standby.Answer.WAKING)
    assert state(preview) == ("deploying", "running", "waking")
    assert wakes() == 1
    platform.finish(preview)
    assert state(preview) == ("ready", "running", "running")
    row = platform.row(preview)
    assert row.asleep_since is None
    audited = AuditLog.objects.unscoped("test").get(event="deployment.wake")
    assert (audited.actor_type, audited.actor_id, audited.meta) == (
        "system",
        "edge edge-1",
        {"cause": "request"},
    )


def test_a_request_of_an_earlier_sleep_wakes_nothing(platform: Platform) -> None:
    preview = platform.deploy("preview")
    version = sleep(platform, preview)
    standby.wake_on_request(preview, version, edge="edge-1")
    platform.finish(preview)
    with clock.shifted(2 * MINUTE):
        later = sleep(platform, preview)
        assert standby.wake_on_request(preview, version, edge="edge-1").answer == "stale"
        assert state(preview)[2] == "standby"
        assert standby.wake_on_request(preview, later, edge="edge-1").answer == "waking"
    assert wakes() == 2


def test_a_preview_that_does_not_start_is_tried_once_a_minute(platform: Platform) -> None:
    preview = platform.deploy("preview")
    standby.wake_on_request(preview, sleep(platform, preview), edge="edge-1")
    drain()
    platform.report(preview, "failed", "exited with status 1")
    drain()
    assert state(preview) == ("stopped", "stopped", "standby")
    version = Sentinel.objects.get(pk=preview).version
    resting = standby.wake_on_request(preview, version, edge="edge-1")
    assert resting.answer == "resting"
    assert 0 < resting.retry_after <= 60
    with clock.shifted(MINUTE):
        assert standby.wake_on_request(preview, version, edge="edge-1").answer == "waking"
    assert wakes() == 2


def test_what_its_owner_stopped_and_what_failed_is_not_woken(platform: Platform) -> None:
    preview = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    platform.report_none(preview)
    version = Sentinel.objects.get(pk=preview).version
    assert standby.wake_on_request(preview, version, edge="edge-1").answer == "stopped"
    broken = platform.create("preview")
    drain()
    platform.report(broken, "failed", "exited with status 1")
    drain()
    assert platform.get(broken)["status"] == "failed"
    assert standby.wake_on_request(broken, version, edge="edge-1").answer == "stopped"
    assert standby.wake_on_request("d_none", 1, edge="edge-1").answer == "unknown"
    assert wakes() == 0


@pytest.mark.parametrize("closed", [{"enabled": False}, {"suspended_at": clock.now()}])
def test_nothing_of_a_disabled_or_suspended_workspace_is_woken(
    platform: Platform, closed: dict[str, Any]
) -> None:
    preview = platform.deploy("preview")
    version = sleep(platform, preview)
    Workspace.objects.filter(pk=platform.tenant.workspace.pk).update(**closed)
    assert standby.wake_on_request(preview, version, edge="edge-1").answer == "stopped"
    assert state(preview)[2] == "standby"


def test_its_owner_may_stop_a_sleeping_preview_and_then_no_request_wakes_it(platform: Platform) -> None:
    preview = platform.deploy("preview")
    version = sleep(platform, preview)
    shown = platform.get(preview)
    assert shown["availableActions"] == ["stop", "start"]
    assert 0 < shown["asleepSince"] <= clock.now_ms()
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    assert state(preview) == ("stopped", "stopped", "stopped")
    assert standby.wake_on_request(preview, version, edge="edge-1").answer == "stopped"
    shown = platform.get(preview)
    assert shown["availableActions"] == ["start"]
    assert "asleepSince" not in shown


def test_its_owner_may_start_a_sleeping_preview(platform: Platform) -> None:
    preview = platform.deploy("preview")
    version = sleep(platform, preview)
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    assert standby.wake_on_request(preview, version, edge="edge-1").answer == "waking"
    platform.finish(preview)
    assert state(preview) == ("ready", "running", "running")
    assert wakes() == 1


def test_a_replaced_live_deployment_wakes_on_request_and_sleeps_again_after_its_standby(
    platform: Platform,
) -> None:
    first, second = platform.deploy(), platform.deploy()
    standby_after = timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)
    with clock.shifted(standby_after):
        drain()
        platform.report_none(first)
        version = Sentinel.objects.get(pk=first).version
        assert standby.wake_on_request(first, version, edge="edge-1").answer == "waking"
        platform.finish(first)
        assert state(first) == ("ready", "running", "running")
        assert platform.app_row().current_deployment_id == second
        due: datetime = ScheduledChange.objects.get(deployment_id=first).due_at
    with clock.shifted(2 * standby_after):
        assert due < clock.now()
        drain()
    assert state(first)[1:] == ("stopped", "standby")
