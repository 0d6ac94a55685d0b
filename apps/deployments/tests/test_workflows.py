"""Deploy, rollback, promote, standby: driven through the API, the agent's reports and the engine."""

import hashlib
import json
from datetime import timedelta

import pytest

from apps.audit.models import AuditLog
from apps.cluster.models import Stream
from apps.cluster.services import agent_heartbeat
from apps.cluster.tests.factories import EdgeFactory
from apps.deployments import lifecycle
from apps.deployments.models import Deployment, OpenapiSpec, ScheduledChange, Topology
from apps.deployments.tests.conftest import Platform, Programs
from apps.projects.models import App, Environment
from apps.quota.models import Limits
from apps.routing.models import Sentinel
from apps.vault import services as vault
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.env import env

pytestmark = pytest.mark.django_db


def test_a_deployment_goes_through_all_steps_and_gets_its_host_names(platform: Platform) -> None:
    made = platform.create()
    assert platform.get(made)["status"] == "pending"
    drain()
    assert platform.get(made)["status"] == "deploying"
    platform.report(made, "running")
    drain()

    shown = platform.get(made)
    assert shown["status"] == "ready"
    assert shown["isCurrent"] is True
    assert platform.app_row().current_deployment_id == made
    slug = made.replace("_", "-").lower()
    assert platform.routes() == {"shop": made, "shop-production": made, f"shop-{slug}": made}
    steps = platform.tenant("deployments.listSteps", {"deploymentId": made})
    assert [(step["step"], step["status"]) for step in steps["steps"]] == [
        ("queued", "done"),
        ("starting", "done"),
        ("building", "done"),
        ("deploying", "done"),
        ("network", "done"),
        ("finalizing", "done"),
    ]
    host = f"shop-{platform.tenant.workspace.slug}.{env.DEFAULT_DOMAIN}"
    assert steps["urls"][0] == f"http://{host}:{env.EDGE_HTTP_PORT}"
    assert platform.row(made).plan == {
        "kind": "procfile",
        "command": ["/bin/sh", "-c", "python app.py"],
        "install": None,
    }
    assert steps["steps"][2]["message"] == "procfile: python app.py"
    assert Sentinel.objects.get(pk=made).version == Stream.objects.get(pk="sentinels").version


def test_settings_variables_and_policies_are_frozen_and_a_redeploy_takes_the_new_ones(
    platform: Platform,
) -> None:
    where = {**platform.names, "environment": "production"}
    set_variable(platform, "GREETING", "hello")
    first = platform.deploy()
    set_variable(platform, "GREETING", "good evening")
    platform.tenant("environments.updateSettings", {**where, "port": 9000})
    Environment.objects.unscoped("test").filter(slug="production").update(policies=[{"name": "guard"}])

    second = platform.redeploy(first)

    old, new = platform.row(first), platform.row(second)
    assert old.image == new.image
    assert (old.settings["port"], new.settings["port"]) == (8080, 9000)
    assert (old.policies, new.policies) == ([], [{"name": "guard"}])
    assert [read_variable(row, "GREETING") for row in (old, new)] == ["hello", "good evening"]
    assert Sentinel.objects.get(pk=first).policies == []
    assert Sentinel.objects.get(pk=second).policies == [{"name": "guard"}]
    assert events(platform) == ["deployment.create", "deployment.rebuild"]

    platform.rollback(first)
    assert platform.routes()["shop"] == first


def test_a_source_with_nothing_to_run_fails_the_build_and_leaves_live_alone(platform: Platform) -> None:
    live = platform.deploy()
    failed = platform.create(image=platform.snapshot(**{"notes.txt": "nothing to see"}))
    drain()

    shown = platform.get(failed)
    assert shown["status"] == "failed"
    assert shown["error"]["code"] == "build_failed"
    assert shown["error"]["step"] == "building"
    assert "Procfile" in shown["error"]["message"]
    assert shown["availableActions"] == []
    assert not Topology.objects.filter(deployment_id=failed).exists()
    assert platform.routes()["shop"] == live
    assert platform.get(live)["isCurrent"] is True


def test_a_program_that_exits_fails_with_its_last_log_lines_and_is_stopped(
    platform: Platform, programs: Programs
) -> None:
    live = platform.deploy()
    line = {"time": 1, "instance": "a", "stream": "stderr", "text": "KeyError: 'DATABASE'"}
    programs.answers["/logs"] = (200, json.dumps({"lines": [line]}).encode())
    agent_heartbeat("agent-1", region=env.REGION, url=f"http://{programs.address}", applied={})
    failed = platform.create()
    drain()

    platform.report(failed, "failed", "exited with status 1")
    drain()

    error = platform.get(failed)["error"]
    assert error["code"] == "unknown"
    assert error["step"] == "deploying"
    assert error["message"] == (
        f"Instances failed to start. {env.REGION}: exited with status 1\nKeyError: 'DATABASE'\n"
        f"Mend that and deploy again."
    )
    assert programs.asked == [(f"/logs?deployment={failed}&tail=20", f"Bearer {env.secret('AGENT_TOKEN')}")]
    assert Topology.objects.get(deployment_id=failed).desired_status == "stopped"
    assert platform.routes()["shop"] == live
    assert Topology.objects.get(deployment_id=live).desired_status == "running"
    steps = platform.tenant("deployments.listSteps", {"deploymentId": failed})["steps"]
    assert steps[-1]["status"] == "failed"


def test_the_last_words_of_a_program_are_short_whatever_it_wrote(
    platform: Platform, programs: Programs
) -> None:
    lines = [{"time": 1, "instance": "a", "stream": "output", "text": "x" * 1_000_000}] * 20
    programs.answers["/logs"] = (200, json.dumps({"lines": lines}).encode())
    agent_heartbeat("agent-1", region=env.REGION, url=f"http://{programs.address}", applied={})
    failed = platform.create()
    drain()
    platform.report(failed, "failed", "exited with status 1")
    drain()
    told = platform.get(failed)["error"]["message"]
    assert told.startswith(f"Instances failed to start. {env.REGION}: exited with status 1\n{'x' * 509}...\n")
    assert told.endswith(f"{'x' * 509}...\nMend that and deploy again.")
    assert len(told) < 4000


def test_a_program_that_never_listens_fails_at_the_deadline(platform: Platform) -> None:
    made = platform.create()
    drain()
    platform.report(made, "pending", "nothing listens on port 8080")
    drain()
    assert platform.get(made)["status"] == "deploying"

    with clock.shifted(timedelta(seconds=env.DEPLOY_HEALTH_DEADLINE_SECONDS + 1)):
        agent_heartbeat("agent-1", region=env.REGION, url="", applied={})
        drain()
        shown = platform.get(made)
    assert shown["status"] == "failed"
    assert shown["error"]["message"] == (
        "Not enough regions became healthy within 900 s: 0 of 1 required. nothing listens on port 8080\n"
        "Mend that and deploy again."
    )
    assert Topology.objects.get(deployment_id=made).desired_status == "stopped"


def test_one_region_of_several_may_be_missing(platform: Platform) -> None:
    platform.add_region("far")
    made = platform.create()
    drain()
    topologies = Topology.objects.filter(deployment_id=made)
    assert {topology.region.name for topology in topologies} == {"far", env.REGION}
    platform.report(made, "failed", "no disk", region="far")
    drain()
    assert platform.get(made)["status"] == "deploying"
    platform.report(made, "running", region=env.REGION)
    drain()
    assert platform.get(made)["status"] == "ready"


def test_rollback_moves_live_and_environment_names_and_what_was_live_keeps_running(
    platform: Platform,
) -> None:
    first, second = platform.deploy(), platform.deploy()

    platform.rollback(first)

    routes = platform.routes()
    assert routes["shop"] == routes["shop-production"] == first
    assert routes[f"shop-{second.replace('_', '-').lower()}"] == second
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (first, True)
    assert Topology.objects.get(deployment_id=second).desired_status == "running"
    assert list(ScheduledChange.objects.all()) == []
    assert events(platform)[-1] == "deployment.rollback"


def test_while_rolled_back_a_new_deployment_gets_ready_but_takes_only_its_own_name(
    platform: Platform,
) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.rollback(first)

    third = platform.deploy()

    shown = platform.get(third)
    assert shown["status"] == "ready"
    assert shown["isCurrent"] is False
    assert shown["domains"] == [host(platform, f"shop-{third.replace('_', '-').lower()}")]
    assert platform.routes()["shop"] == platform.routes()["shop-production"] == first
    assert platform.app_row().is_rolled_back is True
    assert set(shown["availableActions"]) == {"promote", "rollback"}
    assert not ScheduledChange.objects.filter(deployment_id=third).exists()

    platform.promote(third)
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (third, False)
    assert platform.routes()["shop"] == platform.routes()["shop-production"] == third
    # The one that was rolled back from would otherwise run for ever.
    assert set(ScheduledChange.objects.values_list("deployment_id", flat=True)) == {first, second}


def test_a_rollback_during_a_build_keeps_the_new_deployment_from_going_live(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    third = platform.create()
    drain()
    platform.rollback(first)
    platform.report(third, "running")
    drain()
    assert platform.get(third)["status"] == "ready"
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (first, True)
    assert platform.routes()["shop"] == first != second


def test_previews_are_not_held_back_by_a_rolled_back_app(platform: Platform) -> None:
    first, _ = platform.deploy(), platform.deploy()
    platform.rollback(first)
    preview = platform.deploy("preview")
    assert platform.routes()["shop-preview"] == preview


def test_promoting_what_is_live_confirms_a_rollback_and_retires_the_newer_one(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.rollback(first)
    platform.promote(first)
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (first, False)
    assert platform.routes()["shop"] == first
    assert list(ScheduledChange.objects.values_list("deployment_id", flat=True)) == [second]


def test_promoting_the_only_deployment_of_a_rolled_back_app_retires_nothing(platform: Platform) -> None:
    only = platform.deploy()
    App.objects.unscoped("test").update(is_rolled_back=True)
    platform.promote(only)
    assert platform.app_row().is_rolled_back is False
    assert not ScheduledChange.objects.exists()


def test_a_replaced_deployment_stops_after_its_standby_and_not_before(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    topology = Topology.objects.get(deployment_id=first)
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS - 5)):
        drain()
        topology.refresh_from_db()
        assert topology.desired_status == "running"
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    topology.refresh_from_db()
    assert topology.desired_status == "stopped"
    assert topology.version == Stream.objects.get(pk=f"topologies:{env.REGION}").version
    assert Sentinel.objects.get(pk=first).desired_state == "standby"
    assert platform.get(first)["status"] == "ready"  # its instance is still there
    platform.report_none(first)
    assert platform.get(first)["status"] == "stopped"
    assert platform.get(second)["status"] == "ready"


def test_a_rollback_cancels_the_pending_standby_of_its_target(platform: Platform) -> None:
    first, _ = platform.deploy(), platform.deploy()
    assert ScheduledChange.objects.filter(deployment_id=first).exists()
    platform.rollback(first)
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    assert Topology.objects.get(deployment_id=first).desired_status == "running"


def test_a_deployment_may_be_replaced_promoted_and_replaced_again_and_stops_each_time(
    platform: Platform,
) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.promote(first)
    platform.promote(second)
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    assert Topology.objects.get(deployment_id=first).desired_status == "stopped"
    assert Topology.objects.get(deployment_id=second).desired_status == "running"


def test_a_rollback_to_a_deployment_on_standby_starts_it_first(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    put_on_standby(platform, first)

    platform.rollback(first)
    assert platform.get(first)["status"] == "deploying"
    assert Topology.objects.get(deployment_id=first).desired_status == "running"
    assert platform.routes()["shop"] == second

    platform.report(first, "running")
    drain()
    assert platform.get(first)["status"] == "ready"
    assert platform.routes()["shop"] == first
    assert platform.app_row().is_rolled_back is True


def test_a_target_that_does_not_wake_up_goes_back_to_standby_and_live_stays(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    put_on_standby(platform, first)
    platform.rollback(first)
    platform.report(first, "failed", "exited with status 1")
    drain()
    assert platform.get(first)["status"] == "stopped"
    assert Topology.objects.get(deployment_id=first).desired_status == "stopped"
    assert platform.routes()["shop"] == second
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (second, False)
    run = WorkflowRun.objects.get(service="rollback")
    assert (run.state, run.error_code) == ("failed", "deployment_not_ready")


def test_of_two_operators_one_wins_and_the_other_is_told_why(platform: Platform) -> None:
    first, second, third = platform.deploy(), platform.deploy(), platform.deploy()
    platform.tenant("deployments.rollbackDeployment", {"deploymentId": second})
    error = platform.tenant.refused("deployments.rollbackDeployment", {"deploymentId": first}, 412)
    assert error["detail"] == (
        f"A rollback to {second} was asked for before and has not happened yet. "
        "Look at what it does, and decide again."
    )
    drain()
    assert platform.routes()["shop"] == second
    assert platform.get(third)["status"] == "ready"
    platform.rollback(first)
    assert platform.routes()["shop"] == first


def test_a_rollback_that_a_new_live_deployment_overtakes_says_so(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.tenant("deployments.rollbackDeployment", {"deploymentId": first})
    App.objects.unscoped("test").update(current_deployment=platform.row(first))
    drain()
    lost = WorkflowRun.objects.get(service="rollback")
    assert (lost.state, lost.error_code) == ("failed", "precondition_failed")
    assert "Another deployment became the current one" in lost.error_message
    assert platform.routes()["shop"] == second


def test_an_older_deployment_that_was_slow_never_overtakes_a_newer_one(platform: Platform) -> None:
    older, newer = platform.create(), platform.create()
    platform.finish(newer)
    platform.finish(older)

    shown = platform.get(older)
    assert shown["status"] == "ready"
    assert shown["isCurrent"] is False
    assert shown["domains"] == [host(platform, f"shop-{older.replace('_', '-').lower()}")]
    assert platform.routes()["shop"] == platform.routes()["shop-production"] == newer
    assert list(ScheduledChange.objects.values_list("deployment_id", flat=True)) == [older]


def test_a_newer_deployment_that_failed_does_not_hold_back_an_older_one(platform: Platform) -> None:
    older = platform.create()
    newer = platform.create(image=platform.snapshot(**{"notes.txt": ""}))
    drain()
    assert platform.get(newer)["status"] == "failed"
    platform.finish(older)
    assert platform.routes()["shop"] == older


def test_a_commit_with_a_newer_one_on_its_branch_is_superseded(platform: Platform) -> None:
    older, newer = platform.create(), platform.create()
    rows = Deployment.objects.unscoped("test")
    rows.update(git_branch="main")
    rows.filter(pk=older).update(git_commit_sha="a" * 40)
    rows.filter(pk=newer).update(git_commit_sha="b" * 40)
    platform.finish(newer)
    assert platform.get(older)["status"] == "superseded"
    assert platform.get(newer)["git"] == {"commitSha": "b" * 40, "branch": "main"}
    assert platform.routes()["shop-git-main"] == newer
    assert platform.routes()[f"shop-git-{'b' * 7}"] == newer
    steps = platform.tenant("deployments.listSteps", {"deploymentId": older})["steps"]
    assert [(step["step"], step["error"]) for step in steps] == [("queued", lifecycle.SUPERSEDED)]


def test_nothing_is_retired_before_every_live_edge_has_the_new_routes(platform: Platform) -> None:
    first = platform.deploy()
    edge = EdgeFactory.create(region_name=env.REGION, applied={"routes": 0})
    second = platform.deploy()
    assert platform.get(second)["status"] == "ready"
    assert not ScheduledChange.objects.exists()

    edge.applied = {"routes": Stream.objects.get(pk="routes").version}
    edge.save()
    with clock.shifted(timedelta(seconds=1)):
        drain()
    assert list(ScheduledChange.objects.values_list("deployment_id", flat=True)) == [first]


def test_an_edge_that_never_confirms_keeps_the_replaced_deployment_running(platform: Platform) -> None:
    first = platform.deploy()
    edge = EdgeFactory.create(region_name=env.REGION, applied={"routes": 0})
    second = platform.deploy()
    for seconds in (61, env.STANDBY_AFTER_SECONDS + 120):
        with clock.shifted(timedelta(seconds=seconds)):
            edge.last_seen_at = clock.now()
            edge.save()
            drain()
    assert Topology.objects.get(deployment_id=first).desired_status == "running"
    steps = platform.tenant("deployments.listSteps", {"deploymentId": second})["steps"]
    assert steps[-1]["message"] == "Not every edge has confirmed the new routes yet."


def test_replaced_previews_stop_after_a_minute_and_can_be_started_again(platform: Platform) -> None:
    first, second = platform.deploy("preview"), platform.deploy("preview")
    with clock.shifted(timedelta(seconds=61)):
        drain()
    platform.report_none(first)
    assert platform.get(first)["status"] == "stopped"
    assert platform.get(first)["availableActions"] == ["stop", "start"]
    assert platform.get(second)["availableActions"] == ["stop"]

    platform.tenant("deployments.startDeployment", {"deploymentId": first})
    drain()
    assert platform.get(first)["status"] == "deploying"
    platform.report(first, "running")
    drain()
    assert platform.get(first)["status"] == "ready"
    assert Sentinel.objects.get(pk=first).desired_state == "running"


def test_a_preview_that_does_not_wake_up_can_be_started_again_later(platform: Platform) -> None:
    made = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": made})
    platform.report_none(made)
    platform.tenant("deployments.startDeployment", {"deploymentId": made})
    drain()
    with clock.shifted(timedelta(seconds=env.DEPLOY_HEALTH_DEADLINE_SECONDS + 1)):
        drain()
    shown = platform.get(made)
    assert shown["status"] == "stopped"
    assert shown["availableActions"] == ["start"]


def test_a_quota_that_is_exceeded_names_which(platform: Platform) -> None:
    Limits.objects.update(memory_mib_max=400)
    first, second = platform.deploy(), platform.create()
    drain()
    assert platform.get(first)["status"] == "ready"
    assert platform.get(second)["error"] == {
        "code": "memory_quota_exceeded",
        "step": "deploying",
        "message": "We are unable to deploy this application as you have exceeded your Memory quota: it asks for 256 "
        "MiB, and 256 of 400 are taken. Stop previews that are not needed (`unkey stop`), give the environment less "
        "or fewer instances, or ask your operator for a larger quota; then deploy again.",
    }
    assert not Topology.objects.filter(deployment_id=second).exists()


def test_a_deployment_of_an_app_that_is_deleted_meanwhile_is_cancelled(platform: Platform) -> None:
    made = platform.create()
    App.objects.unscoped("test").update(deleting_at=clock.now())
    drain()
    assert platform.row(made).status == "cancelled"
    assert not Topology.objects.filter(deployment_id=made).exists()


def test_the_openapi_document_is_kept(platform: Platform, programs: Programs) -> None:
    text = "openapi: 3.1.0\ninfo: {title: hello, version: '1'}\npaths: {}\n"
    programs.answers["/openapi.yaml"] = (200, text.encode())
    made = platform.create()
    drain()
    platform.report(made, "running", address=programs.address)
    drain()
    spec = OpenapiSpec.objects.unscoped("test").get(deployment_id=made)
    assert (spec.path, spec.text) == ("/openapi.yaml", text)
    assert spec.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_page_that_is_no_openapi_document_is_not_kept(platform: Platform, programs: Programs) -> None:
    programs.answers["/openapi.yaml"] = (200, b"<!doctype html><title>my openapi: page</title>")
    made = platform.create()
    drain()
    platform.report(made, "running", address=programs.address)
    drain()
    assert platform.get(made)["status"] == "ready"
    spec = OpenapiSpec.objects.unscoped("test").get(deployment_id=made)
    assert (spec.state, spec.text) == ("none", "")


def set_variable(platform: Platform, key: str, value: str) -> None:
    body = {
        **platform.names,
        "environment": "production",
        "variables": [{"key": key, "value": value, "kind": "recoverable"}],
    }
    platform.tenant("environments.setEnvironmentVariables", body)


def read_variable(deployment: Deployment, key: str) -> str:
    found = {row["key"]: row["ciphertext"] for row in deployment.variables}
    return vault.decrypt(deployment.environment_id, found[key])


def put_on_standby(platform: Platform, deployment: str) -> None:
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    platform.report_none(deployment)
    assert platform.get(deployment)["status"] == "stopped"


def events(platform: Platform) -> list[str]:
    rows = AuditLog.objects.unscoped("test").filter(workspace=platform.tenant.workspace)
    return list(rows.filter(event__startswith="deployment.").order_by("time").values_list("event", flat=True))


def host(platform: Platform, name: str) -> str:
    return f"{name}-{platform.tenant.workspace.slug}.{env.DEFAULT_DOMAIN}"
