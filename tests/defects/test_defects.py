"""The 22 defects of the original control plane, and for each one that it is not ours.

They are numbered as in the list of traps that the platform was designed by. Each test drives what
exists here through its front door: the API, the reports of agents, the workflow engine.

Some of the originals live in parts that are not built yet. What of them is here already is tested
here; the rest has to be shown by the issue that brings the part:

- 1 and 16: the verification of custom domains. Here: a run that is started in a transaction is as
  transactional as its rows; a host name may be claimed again and again.
- 13: ACME challenges, and the certificates of custom domains. Here: whatever an app has.
- 14: connections of repositories to apps. Here: what a deployment is made of is frozen in it.
- 17: the issuing of certificates for custom domains. Here: a host name has one owner.
- 21: plans. Here: suspension.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import transaction

from agent import wire
from agent.desired import Desired
from apps.builds import slots
from apps.builds.models import BuildSlot
from apps.cluster.models import Stream
from apps.cluster.queries import topologies_after
from apps.deployments import desired_state, lifecycle, queries, services, workflows
from apps.deployments.models import Deployment, Instance, ScheduledChange, Topology
from apps.deployments.tests.conftest import Platform
from apps.projects.models import App, Environment
from apps.routing.models import FrontlineRoute, Sentinel
from apps.routing.services import HostNameTaken, claim_host
from apps.vault import services as vault
from apps.workflows.engine import State, WorkflowRun
from apps.workflows.sweeper import drain
from apps.workspaces.models import Workspace
from unkey import clock
from unkey.actors import system
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped, workspace_scope

pytestmark = pytest.mark.django_db


class Crash(RuntimeError):
    """What a test lets happen."""


def create(platform: Platform, environment: str = "preview", **more: Any) -> Deployment:
    """Create a deployment as a webhook would: with a commit, or awaiting approval."""
    with workspace_scope(platform.tenant.workspace.id):
        where = Environment.objects.get(slug=environment, app=platform.app_row())
        image = platform.snapshot()
        return services.create_deployment(where, image=image, actor=system("webhook"), **more)


def put_on_standby(platform: Platform, deployment: str) -> None:
    with clock.shifted(timedelta(seconds=env.STANDBY_AFTER_SECONDS + 5)):
        drain()
    platform.report_none(deployment)
    assert platform.get(deployment)["status"] == "stopped"


def test_defect_01_a_run_that_is_started_in_a_transaction_never_runs_before_or_without_it(
    platform: Platform,
) -> None:
    """The original submits inside the transaction, and its workflow waits for the row for two minutes."""

    def create_and_crash() -> None:
        with transaction.atomic():
            create(platform)
            assert WorkflowRun.objects.filter(service="deploy").exists()
            raise Crash

    with pytest.raises(Crash):
        create_and_crash()
    assert not WorkflowRun.objects.exists()
    assert not Deployment.objects.unscoped("test").exists()
    drain()

    made = create(platform)
    drain()
    run = WorkflowRun.objects.get(service="deploy")
    assert run.journal.filter(name="check_superseded").values_list("attempts", flat=True).get() == 1
    assert platform.get(made.id)["status"] == "deploying"


@pytest.mark.parametrize("moment", ["before", "between", "after", "twice"])
def test_defect_02_a_report_of_readiness_is_never_lost(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The original loses what is reported between its look at the instances and its wait for them."""
    made = platform.create()
    look = queries.readiness
    looked: list[str] = []

    def readiness(deployment_id: str) -> queries.Readiness:
        found = look(deployment_id)
        looked.append(deployment_id)
        # The outside part has looked once, the recording part looks now, and the run parks after that.
        if moment == "between" and len(looked) == 2:
            platform.report(made, "running")
        return found

    monkeypatch.setattr(queries, "readiness", readiness)
    if moment == "before":
        monkeypatch.setattr(lifecycle, "instances_topic", lambda _: "nobody listens")
        drain()
        platform.report(made, "running")
        monkeypatch.undo()
        WorkflowRun.objects.filter(service="deploy").update(next_at=clock.now())
    drain()
    if moment in ("after", "twice"):
        for _ in range(2 if moment == "twice" else 1):
            platform.report(made, "running")
            platform.report(made, "pending")
            platform.report(made, "running")
    drain()
    assert platform.get(made)["status"] == "ready"


def test_defect_03_the_same_stop_may_be_asked_for_again_and_again(platform: Platform) -> None:
    """The original's idempotency key is the deployment's id, and so the second stop is none."""
    preview = platform.deploy("preview")
    for _ in range(2):
        platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
        platform.report_none(preview)
        assert platform.get(preview)["status"] == "stopped"
        platform.tenant("deployments.startDeployment", {"deploymentId": preview})
        platform.finish(preview)
        assert platform.get(preview)["status"] == "ready"

    first, second = platform.deploy(), platform.deploy()
    for _ in range(2):
        put_on_standby(platform, first)
        platform.tenant("deployments.promoteDeployment", {"deploymentId": first})
        platform.finish(first)
        put_on_standby(platform, second)
        platform.tenant("deployments.promoteDeployment", {"deploymentId": second})
        platform.finish(second)
    assert ScheduledChange.objects.filter(deployment_id=first).exists()


def test_defect_04_a_rollback_protects_the_generated_live_names_too(platform: Platform) -> None:
    """The original gives them to the next deployment; only custom domains stay."""
    first, _ = platform.deploy(), platform.deploy()
    claim_host(platform.row(first), "www.example.com")
    platform.rollback(first)
    third = platform.deploy()
    routes = platform.routes()
    for name in ("shop", "shop-production", "www.example.com"):
        assert routes[name] == first
    assert routes[f"shop-{third.replace('_', '-').lower()}"] == third
    assert platform.app_row().current_deployment_id == first


def test_defect_05_names_are_short_enough_and_never_taken_over(platform: Platform, stranger: Tenant) -> None:
    """The original takes over any row that has the name, whoever's it is."""
    tenant = platform.tenant
    long = "a" * 80
    tenant("projects.createProject", {"name": "Long", "slug": long})
    tenant("apps.createApp", {"name": "Default", "slug": "default", "project": long})
    made = Platform(tenant, project=long).deploy()
    for domain in platform.get(made)["domains"]:
        assert all(len(label) <= 63 for label in domain.split("."))

    # The project "shop-api" and the app "api" of the project "shop" are written alike.
    tenant("projects.createProject", {"name": "Shop API", "slug": "shop-api"})
    tenant("apps.createApp", {"name": "Default", "slug": "default", "project": "shop-api"})
    theirs = Platform(tenant, project="shop-api").deploy()
    tenant("apps.createApp", {"name": "API", "slug": "api", "project": "shop"})
    ours = Platform(tenant, app="api").deploy()
    assert platform.routes()["shop-api"] == theirs
    assert ours in platform.routes().values()

    # Another workspace's row in the place of the next deployment's name stays theirs.
    stranger("projects.createProject", {"name": "Shop", "slug": "shop"})
    stranger("apps.createApp", {"name": "Default", "slug": "default", "project": "shop"})
    foreign = Platform(stranger).deploy()
    taken = f"shop-{tenant.workspace.slug}.{env.DEFAULT_DOMAIN}"
    with unscoped("test"):
        FrontlineRoute.objects.filter(deployment_id=foreign, sticky="live").update(fqdn=taken)
    mine = platform.deploy()
    with unscoped("test"):
        assert FrontlineRoute.objects.get(fqdn=taken).deployment_id == foreign
    assert platform.get(mine)["status"] == "ready"
    assert taken not in platform.get(mine)["domains"]


@pytest.mark.parametrize("verb", ["rollback", "promote"])
def test_defect_06_routes_and_the_live_pointer_move_together_or_not_at_all(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The original moves one route after another, and then the pointer."""
    first, second = platform.deploy(), platform.deploy()
    before = platform.routes()
    version = Stream.objects.get(pk="routes").version

    def crash(*_: Any, **__: Any) -> None:
        assert platform.routes() != before  # the routes have moved by now, for this transaction alone
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(workflows, "_make_current", crash)
        platform.tenant(f"deployments.{verb}Deployment", {"deploymentId": first})
        drain()
    app = platform.app_row()
    assert platform.routes() == before
    assert (app.current_deployment_id, app.is_rolled_back) == (second, False)
    assert Stream.objects.get(pk="routes").version == version
    with clock.shifted(timedelta(minutes=1)):
        drain()  # the next attempt moves all of it
    assert platform.routes()["shop"] == platform.app_row().current_deployment_id == first


def test_defect_07_no_deployment_is_ready_whose_switch_failed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original says `ready` first, and when the swap fails stops the instances of what is ready."""
    live = platform.deploy()
    before = platform.routes()

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    monkeypatch.setattr(workflows, "_make_current", crash)
    made = platform.deploy()
    for minutes in range(1, 10):
        with clock.shifted(timedelta(minutes=minutes)):
            drain()
    row = platform.row(made)
    assert (row.status, row.desired_state) == ("failed", "stopped")
    assert Topology.objects.get(deployment_id=made).desired_status == "stopped"
    assert platform.routes() == before
    assert platform.app_row().current_deployment_id == live
    assert not Sentinel.objects.filter(deployment_id=made).exists()


def test_defect_08_a_wake_holds_no_worker_and_ends_when_its_time_is_over(platform: Platform) -> None:
    """The original polls in one step for 15 minutes, and leaves `deploying` when they are over."""
    preview = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    platform.report_none(preview)
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    drain()  # returns: nothing is held
    run = WorkflowRun.objects.get(service="wake")
    assert run.state == State.WAITING
    assert run.wait_topic == lifecycle.instances_topic(preview)
    assert platform.get(preview)["status"] == "deploying"

    with clock.shifted(timedelta(seconds=env.DEPLOY_HEALTH_DEADLINE_SECONDS + 1)):
        drain()
    assert platform.get(preview)["status"] == "stopped"
    assert platform.row(preview).desired_state == "stopped"
    told = platform.tenant("deployments.getLastRequest", {"deploymentId": preview})
    assert told["status"] == "failed"
    assert told["message"].startswith("Not enough regions became healthy")
    platform.tenant("deployments.startDeployment", {"deploymentId": preview})
    platform.finish(preview)
    assert platform.get(preview)["status"] == "ready"


def test_defect_09_a_refused_change_of_the_current_deployment_blocks_no_later_one(
    platform: Platform,
) -> None:
    """The original refuses it, leaves it stored, and from then on schedules nothing."""
    first = platform.deploy()

    def schedule() -> ScheduledChange | None:
        with transaction.atomic():
            row = lifecycle.lock(first)
            return desired_state.schedule_standby(
                row, timedelta(0), cause=desired_state.REPLACED, overwrite=False
            )

    assert schedule() is not None
    drain()
    assert platform.row(first).desired_state == "running"
    assert not ScheduledChange.objects.exists()

    platform.deploy()  # it is not the current one any more
    ScheduledChange.objects.all().delete()
    assert schedule() is not None
    drain()
    assert platform.row(first).desired_state == "stopped"


def test_defect_10_a_rollback_during_a_build_is_seen_by_the_switch(platform: Platform) -> None:
    """The original reads the rolled-back flag when the deploy begins."""
    first, _ = platform.deploy(), platform.deploy()
    third = platform.create()
    drain()
    assert platform.get(third)["status"] == "deploying"
    platform.rollback(first)
    platform.finish(third)
    app = platform.app_row()
    assert (app.current_deployment_id, app.is_rolled_back) == (first, True)
    assert platform.get(third)["status"] == "ready"
    assert platform.routes()["shop"] == first


def test_defect_11_an_older_build_that_ends_later_never_becomes_live(platform: Platform) -> None:
    """The original looks for newer commits when the older one begins, and never again."""
    older = create(platform, "production", commit={"branch": "main", "commitSha": "a" * 40}).id
    drain()
    newer = create(platform, "production", commit={"branch": "main", "commitSha": "b" * 40}).id
    platform.finish(newer)
    platform.finish(older)
    assert platform.app_row().current_deployment_id == newer
    routes = platform.routes()
    for name in ("shop", "shop-production", "shop-git-main"):
        assert routes[name] == newer
    assert routes["shop-git-aaaaaaa"] == older
    assert platform.get(older)["status"] == "ready"


def test_defect_12_an_agents_cursor_never_passes_what_it_has_kept(platform: Platform, tmp_path: Path) -> None:
    """The original advances it on receipt, and relies on a resynchronisation for what it then lost."""

    def rows(after: int) -> list[wire.Topology]:
        events = topologies_after(env.REGION, after, limit=100)
        return [msgspec.convert(event, wire.Topology) for event in events]

    first, second = platform.deploy(), platform.deploy()
    file = tmp_path / "state.json"
    agent = Desired(file)
    one, two = rows(agent.version)
    agent.apply(one)
    agent.save()
    agent.apply(two)  # and the agent dies before it has kept that

    again = Desired(file)
    assert again.version == one.version
    assert set(again.topologies) == {first}
    assert [row.deployment_id for row in rows(again.version)] == [second]

    # Rows carry the state and no change, so that what is missed, doubled or late does no harm.
    for _ in range(2):
        for row in rows(0):
            again.apply(row)
    put_on_standby(platform, first)
    (changed,) = rows(again.version)
    assert (changed.deployment_id, changed.desired) == (first, "stopped")


def test_defect_13_deleting_an_app_tells_agents_and_edges_and_leaves_nothing_running(
    platform: Platform, make_app: Callable[[str], Platform]
) -> None:
    """The original's deletion of an environment writes no change, and leaves what ran there."""
    kept = platform.deploy()
    other = make_app("other")
    made = [other.deploy(), other.deploy("preview"), other.create()]
    drain()
    streams = {name: Stream.objects.get(pk=name).version for name in ("routes", f"topologies:{env.REGION}")}

    platform.tenant("apps.deleteApp", {"project": "shop", "app": "other"})
    for deployment in made:
        drain()
        platform.report_none(deployment)
    with clock.shifted(timedelta(minutes=5)):
        drain()

    for name, version in streams.items():
        assert Stream.objects.get(pk=name).version > version, name
    running = Topology.objects.filter(desired_status="running").values_list("deployment_id", flat=True)
    assert set(running) == {kept}
    assert set(platform.routes().values()) == {kept}
    assert set(Instance.objects.exclude(status="gone").values_list("deployment_id", flat=True)) == {kept}
    answering = Sentinel.objects.filter(desired_state="running").values_list("deployment_id", flat=True)
    assert set(answering) == {kept}
    assert not BuildSlot.objects.exists()
    active = ("pending", "running", "waiting", "compensating")
    assert not WorkflowRun.objects.filter(input__deployment_id__in=made, state__in=active).exists()


def test_defect_14_what_is_approved_is_what_was_asked_for_whatever_else_the_project_has(
    platform: Platform, make_app: Callable[[str], Platform]
) -> None:
    """The original looks the source up by the project, and takes another app's."""
    other = make_app("other")
    commit: services.GitSource = {"branch": "fix", "commitSha": "c" * 40, "repository": "ada/shop"}
    waiting = create(platform, needs_approval=True, commit=commit)
    elsewhere = create(other, needs_approval=True, commit={"branch": "fix", "commitSha": "d" * 40})
    image = waiting.image
    other.deploy("preview")

    platform.tenant("deployments.approveDeployment", {"deploymentId": waiting.id})
    platform.finish(waiting.id)

    row = platform.row(waiting.id)
    assert (row.status, row.app_id, row.image) == ("ready", platform.app_row().id, image)
    assert (row.git_commit_sha, row.git_repository) == ("c" * 40, "ada/shop")
    assert platform.get(elsewhere.id)["status"] == "awaiting_approval"
    assert platform.routes()["shop-fork-ada-git-ccccccc"] == waiting.id


def test_defect_15_what_awaits_approval_can_be_cancelled(platform: Platform) -> None:
    """The original cancels a run, and what awaits approval has none."""
    waiting = create(platform, needs_approval=True)
    assert not WorkflowRun.objects.exists()
    platform.tenant("deployments.cancelDeployment", {"deploymentId": waiting.id})
    assert platform.get(waiting.id)["status"] == "cancelled"
    error = platform.tenant.refused("deployments.approveDeployment", {"deploymentId": waiting.id}, 412)
    assert error["detail"] == (
        "The deployment is not awaiting approval: it is cancelled. There is nothing to approve."
    )


def test_defect_16_a_host_name_is_claimed_as_often_as_it_takes(platform: Platform) -> None:
    """The original inserts, and is stuck when the row is there already."""
    made = platform.row(platform.deploy())
    first = claim_host(made, "www.example.com")
    assert claim_host(made, "www.example.com").pk == first.pk
    with unscoped("test"):
        FrontlineRoute.objects.filter(pk=first.pk).update(deleted_at=clock.now())
    again = claim_host(made, "www.example.com")
    assert (again.pk, again.deleted_at) == (first.pk, None)
    assert again.version > first.version
    assert platform.routes()["www.example.com"] == made.id


def test_defect_17_a_host_name_belongs_to_one_workspace_whoever_else_names_it(
    platform: Platform, stranger: Tenant
) -> None:
    """The original looks custom domains up by their name alone, and takes the first."""
    mine = platform.row(platform.deploy())
    stranger("projects.createProject", {"name": "Shop", "slug": "shop"})
    stranger("apps.createApp", {"name": "Default", "slug": "default", "project": "shop"})
    theirs = Platform(stranger).row(Platform(stranger).deploy())
    claim_host(mine, "www.example.com")
    with pytest.raises(HostNameTaken):
        claim_host(theirs, "www.example.com")
    with unscoped("test"):
        (route,) = FrontlineRoute.objects.filter(fqdn="www.example.com")
    assert (route.workspace_id, route.deployment_id) == (mine.workspace_id, mine.id)


def test_defect_18_slots_go_to_production_first_and_come_back_from_the_dead(platform: Platform) -> None:
    """The original's timers outlive the wait by luck, and a killed run compensates nothing."""
    platform.limit(builds_concurrent_max=1)
    dead, preview, production = platform.create("preview"), platform.create("preview"), platform.create()
    drain()
    # No way around the limit, only ahead of the others.
    assert platform.get(production)["status"] == "pending"
    WorkflowRun.objects.get(input__deployment_id=dead).delete()  # killed, nothing is compensated
    with clock.shifted(timedelta(seconds=61)):
        drain()
        assert platform.get(dead)["error"]["message"] == slots.DIED
        assert BuildSlot.objects.exclude(granted_at=None).get().deployment_id == production
    # Who waits gives up by its own time; no other clock takes its place away before.
    with clock.shifted(timedelta(hours=1, seconds=62)):
        drain()
        assert platform.get(preview)["error"]["message"] == (
            "Timed out waiting for a build slot. Too many builds are queued in this workspace. Cancel what is "
            "not needed (`unkey cancel`), or deploy again later."
        )
    assert not BuildSlot.objects.filter(deployment_id__in=(dead, preview)).exists()


def test_defect_19_a_deployment_keeps_its_variables_as_ciphertext_whatever_becomes_of_them(
    platform: Platform,
) -> None:
    where = {**platform.names, "environment": "production"}
    variable = {"key": "TOKEN", "value": "s3cret-of-the-first", "kind": "writeonly"}
    platform.tenant("environments.setEnvironmentVariables", {**where, "variables": [variable]})
    first = platform.deploy()
    platform.tenant("environments.removeEnvironmentVariables", {**where, "variables": ["TOKEN"]})
    second = platform.deploy()
    platform.rollback(first)

    row = platform.row(first)
    assert "s3cret-of-the-first" not in str(row.variables)
    (kept,) = row.variables
    assert vault.decrypt(row.environment_id, kept["ciphertext"]) == "s3cret-of-the-first"
    assert platform.row(second).variables == []
    for run in WorkflowRun.objects.all():
        journal = list(run.journal.values_list("result", "error"))
        assert "s3cret-of-the-first" not in f"{run.input} {journal}"
    event = topologies_after(env.REGION, 0, limit=100)[0]
    assert event["variables"] == ["TOKEN"]
    assert kept["ciphertext"] not in str(event)


def test_defect_20_a_preview_without_a_branch_is_spun_down_by_the_next_one(platform: Platform) -> None:
    """The original compares branches by `=`, which null never passes."""
    first, branch = platform.deploy("preview"), create(platform, commit={"branch": "main"}).id
    platform.finish(branch)
    second = platform.deploy("preview")
    assert set(ScheduledChange.objects.values_list("deployment_id", flat=True)) == {first}
    with clock.shifted(timedelta(minutes=1, seconds=5)):
        drain()
    assert platform.row(first).desired_state == "stopped"
    assert platform.row(second).desired_state == "running"
    assert platform.row(branch).desired_state == "running"


def test_defect_21_a_suspended_workspace_is_held_by_every_gate_and_no_setting_softens_it(
    platform: Platform,
) -> None:
    first, _ = platform.deploy(), platform.deploy()
    waiting = create(platform, needs_approval=True)
    Workspace.objects.filter(pk=platform.tenant.workspace.id).update(suspended_at=clock.now())
    runs = WorkflowRun.objects.count()
    image = {"image": {"dockerImage": platform.snapshot()}}
    for operation, body in (
        ("create", {**platform.names, "environment": "production", **image}),
        ("redeploy", {"deploymentId": first}),
        ("approve", {"deploymentId": waiting.id}),
        ("rollback", {"deploymentId": first}),
        ("promote", {"deploymentId": first}),
    ):
        error = platform.tenant.refused(f"deployments.{operation}Deployment", body, 412)
        assert error["detail"] == (
            "The workspace is suspended: nothing of it can be deployed, started or switched to. Ask your operator "
            "to resume it."
        ), operation
    assert WorkflowRun.objects.count() == runs
    assert not [name for name in vars(env) if "GATE" in name]


def test_defect_22_stopped_means_that_nothing_runs_anywhere_and_failed_is_stopped_as_well(
    platform: Platform,
) -> None:
    platform.add_region("far", "preview")
    preview = platform.deploy("preview")
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    services.report_instances(preview, "far", [], "agent-1")
    assert platform.get(preview)["status"] == "ready"  # one region has not let go yet
    platform.report(preview, "draining", region=env.REGION)
    assert platform.get(preview)["status"] == "ready"
    platform.report_none(preview)
    assert platform.get(preview)["status"] == "stopped"

    failed = platform.create()
    drain()
    platform.report(failed, "failed", "exited with status 1")
    drain()
    assert Topology.objects.get(deployment_id=failed).desired_status == "stopped"
    platform.report_none(failed)
    assert not Instance.objects.filter(deployment_id=failed).exclude(status="gone").exists()
    shown = platform.get(failed)
    assert (shown["status"], platform.row(failed).desired_state) == ("failed", "stopped")
    assert App.objects.unscoped("test").get(pk=platform.app_row().pk).current_deployment_id is None
