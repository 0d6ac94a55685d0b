"""`deployments.*` through HTTP: what is accepted, what is refused and that nothing happened then."""

import json
from datetime import timedelta

import pytest

from apps.cluster.models import Region
from apps.cluster.services import agent_heartbeat
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform, Programs
from apps.projects.models import App, Environment
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.env import env
from unkey.rpc.testing import Tenant

pytestmark = pytest.mark.django_db
CODE = "https://unkey.com/docs/errors/unkey/application/"


def refused(platform: Platform, verb: str, deployment: str, status: int = 412) -> tuple[str, str]:
    """Return the code and the first sentence of a refusal, after checking that nothing was started."""
    before = WorkflowRun.objects.count()
    error = platform.tenant.refused(f"deployments.{verb}Deployment", {"deploymentId": deployment}, status)
    assert WorkflowRun.objects.count() == before
    return error["type"].rpartition("/")[2], error["detail"].partition(". ")[0] + "."


def test_a_deployment_is_shown_in_full(platform: Platform) -> None:
    image = platform.snapshot()
    made = platform.deploy(image=image)
    shown = platform.get(made)
    row = platform.row(made)
    assert row.updated_at is not None
    assert row.finished_at is not None
    suffix = f"{platform.tenant.workspace.slug}.{env.DEFAULT_DOMAIN}"
    assert shown == {
        "id": made,
        "status": "ready",
        "isCurrent": True,
        "environment": "production",
        "app": "default",
        "project": "shop",
        "trigger": {"via": "api"},
        "docker": {"image": image},
        "availableActions": [],
        "regions": [env.REGION],
        "domains": [
            f"shop-{suffix}",
            f"shop-production-{suffix}",
            f"shop-{made.replace('_', '-').lower()}-{suffix}",
        ],
        "instances": {"running": 1, "total": 1, "restarts": 0},
        "runtime": {
            "vCpus": 0.25,
            "memoryMib": 256,
            "storageMib": 0,
            "port": 8080,
            "command": [],
            "shutdownSignal": "SIGTERM",
            "upstreamProtocol": "http1",
        },
        "createdAt": clock.to_ms(row.created_at),
        "updatedAt": clock.to_ms(row.updated_at),
        "finishedAt": clock.to_ms(row.finished_at),
    }


def test_a_deployment_is_finished_once_and_not_before(platform: Platform) -> None:
    made = platform.create("preview")
    assert "finishedAt" not in platform.get(made)
    with clock.shifted(timedelta(minutes=1)):
        platform.finish(made)
    ready = platform.get(made)
    assert ready["finishedAt"] >= ready["createdAt"] + 60_000
    platform.tenant("deployments.stopDeployment", {"deploymentId": made})
    platform.report_none(made)
    stopped = platform.get(made)
    assert (stopped["status"], stopped["finishedAt"]) == ("stopped", ready["finishedAt"])


@pytest.mark.parametrize(
    ("client", "trigger"),
    [("unkey-cli/1.2", "cli"), ("unkey-dashboard", "dashboard"), ("curl", "api"), ("", "api")],
)
def test_what_asked_for_a_deployment_is_kept(platform: Platform, client: str, trigger: str) -> None:
    made = platform.create(**{"X-Unkey-Client": client})
    assert platform.row(made).trigger == trigger


def test_exactly_one_source_is_needed(platform: Platform) -> None:
    where = {**platform.names, "environment": "production"}
    for sources in (
        {},
        {"image": {"dockerImage": "a"}, "git": {}},
        {"image": {"dockerImage": "a"}, "deployment": {"deploymentId": "d_1"}},
    ):
        error = platform.tenant.refused("deployments.createDeployment", {**where, **sources}, 400)
        assert error["type"] == CODE + "invalid_input"
    assert not Deployment.objects.unscoped("test").exists()


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({"image": {"dockerImage": "snapshot@sha256:" + "0" * 64}}, 404, "snapshot_not_found"),
        ({"image": {"dockerImage": "snapshot@sha256:xyz"}}, 400, "invalid_snapshot"),
        ({"image": {"dockerImage": "ghcr.io/acme/shop:1"}}, 400, "invalid_input"),
        ({"image": {"dockerImage": "  "}}, 400, "invalid_input"),
        ({"image": {"dockerImage": "x" * 600}}, 400, "invalid_input"),
        ({"git": {}}, 412, "precondition_failed"),
        ({"git": {"repository": "ada/shop"}}, 400, "invalid_input"),
        ({"git": {"repository": "ada/shop", "commitSha": "a" * 40}}, 412, "precondition_failed"),
        ({"git": {"commitSha": "a" * 41}}, 400, "invalid_input"),
        ({"deployment": {"deploymentId": "d_nobody"}}, 404, "deployment_not_found"),
    ],
)
def test_a_source_that_cannot_be_deployed_is_refused(
    platform: Platform, source: dict[str, object], status: int, code: str
) -> None:
    body = {**platform.names, "environment": "production", **source}
    error = platform.tenant.refused("deployments.createDeployment", body, status)
    assert error["type"].rpartition("/")[2] == code
    assert not Deployment.objects.unscoped("test").exists()
    assert not WorkflowRun.objects.exists()


def test_another_workspaces_snapshot_is_not_found(platform: Platform, stranger: Tenant) -> None:
    theirs = Platform(stranger).snapshot(Procfile="web: theirs")
    body = {**platform.names, "environment": "production", "image": {"dockerImage": theirs}}
    error = platform.tenant.refused("deployments.createDeployment", body, 404)
    assert error["type"].rpartition("/")[2] == "snapshot_not_found"


def test_a_deployment_without_an_image_cannot_be_deployed_again(platform: Platform) -> None:
    made = platform.deploy()
    Deployment.objects.unscoped("test").update(image="")
    body = {**platform.names, "environment": "production", "deployment": {"deploymentId": made}}
    error = platform.tenant.refused("deployments.createDeployment", body, 412)
    assert error["detail"] == (
        f"Deployment {made} never produced an image, so it cannot be deployed again. Deploy its source once more."
    )


def test_a_deployment_of_another_app_cannot_be_deployed_here(platform: Platform) -> None:
    made = platform.deploy()
    platform.tenant("apps.createApp", {"name": "Other", "slug": "other", "project": "shop"})
    body = {
        "project": "shop",
        "app": "other",
        "environment": "production",
        "deployment": {"deploymentId": made},
    }
    error = platform.tenant.refused("deployments.createDeployment", body, 404)
    assert error["type"].rpartition("/")[2] == "deployment_not_found"


def test_an_environment_that_cannot_be_deployed_says_every_reason(platform: Platform) -> None:
    Region.objects.update(can_schedule=False)
    body = {
        **platform.names,
        "environment": "production",
        "image": {"dockerImage": platform.snapshot()},
    }
    error = platform.tenant.refused("deployments.createDeployment", body, 400)
    assert error["type"] == CODE + "invalid_environment_settings"
    assert error["detail"] == (
        'environment "production" is not deployable: '
        "No regions configured. Please configure at least one region before deploying."
    )
    assert not Deployment.objects.unscoped("test").exists()


def test_gates_of_rollback_and_promote(platform: Platform) -> None:
    pending = platform.create()
    assert refused(platform, "rollback", pending) == ("deployment_not_ready", "The deployment is not ready.")
    preview = platform.deploy("preview")
    not_production = (
        "deployment_not_production",
        "Only production deployments can be promoted or rolled back.",
    )
    assert refused(platform, "promote", preview) == not_production
    live = platform.finish(pending)
    is_current = ("deployment_is_current", "The deployment is already the current deployment.")
    assert refused(platform, "rollback", live) == is_current
    assert refused(platform, "promote", live) == is_current
    rows = Deployment.objects.unscoped("test")
    rows.filter(pk=live).update(desired_state="stopped")
    draining = ("deployment_not_ready", "The deployment is shutting down and cannot serve traffic.")
    assert refused(platform, "promote", live) == draining
    rows.filter(pk=live).update(desired_state="running")
    App.objects.unscoped("test").update(current_deployment=None)
    no_current = ("deployment_no_current", "The app has no current deployment.")
    assert refused(platform, "rollback", live) == no_current
    for status in ("failed", "superseded", "cancelled", "skipped", "awaiting_approval", "building"):
        rows.filter(pk=live).update(status=status)
        assert refused(platform, "promote", live)[0] == "deployment_not_ready"


def test_gates_of_stop_and_start(platform: Platform) -> None:
    live, preview = platform.deploy(), platform.deploy("preview")
    assert refused(platform, "stop", live) == (
        "deployment_is_production",
        "Production deployments cannot be stopped.",
    )
    not_stopped = ("deployment_not_stopped", "The deployment is not stopped.")
    assert refused(platform, "start", preview) == not_stopped
    platform.tenant("deployments.stopDeployment", {"deploymentId": preview})
    assert refused(platform, "stop", preview) == (
        "deployment_is_stopping",
        "The deployment is already stopping.",
    )
    platform.report_none(preview)
    assert platform.get(preview)["status"] == "stopped"
    assert refused(platform, "stop", preview) == (
        "deployment_not_running",
        "The deployment is not running.",
    )
    Deployment.objects.unscoped("test").filter(pk=live).update(desired_state="stopped", status="stopped")
    assert refused(platform, "start", live) == (
        "deployment_is_production",
        "Production deployments cannot be started.",
    )
    failed = platform.create("preview", platform.snapshot(**{"notes.txt": ""}))
    drain()
    assert refused(platform, "start", failed) == not_stopped


@pytest.mark.parametrize("verb", ["get", "promote", "rollback", "start", "stop"])
def test_a_foreign_or_forbidden_deployment_is_not_found(
    platform: Platform, stranger: Tenant, verb: str
) -> None:
    made = platform.deploy()
    for caller in (stranger, platform.tenant.holding("api.*.read_api")):
        error = caller.refused(f"deployments.{verb}Deployment", {"deploymentId": made}, 404)
        assert error["type"].rpartition("/")[2] == "deployment_not_found"
        assert error["detail"] == "The requested deployment does not exist."


def test_permissions_of_each_operation(platform: Platform) -> None:
    first, _ = platform.deploy(), platform.deploy()
    environment = platform.row(first).environment_id
    body = {"deploymentId": first}
    tenant, workspace = platform.tenant, platform.tenant.workspace.id
    tenant.holding("environment.*.read_deployment")("deployments.getDeployment", body)
    tenant.holding(f"environment.{environment}.rollback_deployment")("deployments.rollbackDeployment", body)
    drain()
    grant = f"unkey:v1:{workspace}:projects/**#promote_deployment"
    tenant.holding(grant)("deployments.promoteDeployment", body)
    create = {**platform.names, "environment": "production", "image": {"dockerImage": platform.snapshot()}}
    tenant.holding("environment.*.read_deployment").refused("deployments.createDeployment", create, 403)
    tenant.holding(f"environment.{environment}.create_deployment")("deployments.createDeployment", create)
    limited = tenant.holding(f"environment.{environment}.read_deployment")
    assert limited.refused("deployments.listDeployments", {}, 403)["detail"] == (
        "Missing one of these permissions: environment.*.read_deployment or "
        f"unkey:v1:{workspace}:projects/*/apps/*/environments/*/deployments/*#read_deployment"
    )


def test_deployments_are_listed_newest_first_in_pages(platform: Platform) -> None:
    made = [platform.create(), platform.create("preview"), platform.create()]
    tenant = platform.tenant

    page = tenant.full("deployments.listDeployments", {"limit": 2})
    assert [row["id"] for row in page["data"]] == [made[2], made[1]]
    assert page["pagination"] == {"hasMore": True, "cursor": made[0]}
    page = tenant.full("deployments.listDeployments", {"limit": 2, "cursor": made[0]})
    assert [row["id"] for row in page["data"]] == [made[0]]
    assert page["pagination"] == {"hasMore": False}

    where = {**platform.names, "environment": "preview"}
    assert [row["id"] for row in tenant("deployments.listDeployments", where)] == [made[1]]
    assert len(tenant("deployments.listDeployments", platform.names)) == 3
    assert len(tenant("deployments.listDeployments", {"project": "shop"})) == 3
    assert tenant("deployments.listDeployments", {"status": ["ready", "failed"]}) == []
    assert len(tenant("deployments.listDeployments", {"status": ["pending"]})) == 3


def test_deployments_are_listed_by_branch_and_time(platform: Platform) -> None:
    made = []
    for minutes, branch in enumerate(("main", "fix", "")):
        with clock.shifted(timedelta(minutes=minutes)):
            made.append(platform.create())
        Deployment.objects.unscoped("test").filter(pk=made[-1]).update(git_branch=branch)
    first, second, third = made
    middle = platform.get(second)["createdAt"]

    def listed(**filters: object) -> list[str]:
        return [row["id"] for row in platform.tenant("deployments.listDeployments", filters)]

    assert listed(**platform.names, branch=["main", "fix"]) == [second, first]
    assert listed(**platform.names, branch=["other"]) == []
    assert listed(branch=[]) == [third, second, first]
    assert listed(startTime=middle) == [third, second]
    assert listed(endTime=middle) == [first]
    assert listed(startTime=middle, endTime=middle + 1) == [second]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"app": "default"}, 400),
        ({"project": "shop", "environment": "production"}, 400),
        ({"project": "nowhere"}, 404),
        ({"status": ["sleepy"]}, 400),
        ({"limit": 0}, 400),
        ({"limit": 101}, 400),
        ({"cursor": "d_nobody"}, 400),
        ({"project": "shop", "branch": ["main"]}, 400),
        ({"startTime": 5, "endTime": 5}, 400),
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(
    platform: Platform, body: dict[str, object], status: int
) -> None:
    platform.tenant.refused("deployments.listDeployments", body, status)


def test_logs_come_from_the_regions_agent(platform: Platform, programs: Programs) -> None:
    made = platform.deploy()
    lines = [
        {"time": 2, "instance": "a", "stream": "stdout", "text": "second"},
        {"time": 1, "instance": "a", "stream": "stderr", "text": "first"},
    ]
    programs.answers["/logs"] = (200, json.dumps({"lines": lines}).encode())
    agent_heartbeat("agent-1", region=env.REGION, url=f"http://{programs.address}", applied={})

    shown = platform.tenant("deployments.getLogs", {"deploymentId": made, "tail": 50})
    assert shown == {"lines": [{**line, "region": env.REGION} for line in reversed(lines)]}
    assert programs.asked == [(f"/logs?deployment={made}&tail=50", f"Bearer {env.secret('AGENT_TOKEN')}")]


def test_logs_of_an_agent_that_is_gone_are_empty_with_a_note(platform: Platform) -> None:
    made = platform.deploy()
    nobody = platform.tenant("deployments.getLogs", {"deploymentId": made})
    nobody_there = {
        "lines": [],
        "note": "No agent of the deployment's regions can be reached at the moment.",
    }
    assert nobody == nobody_there
    agent_heartbeat("agent-1", region=env.REGION, url="http://127.0.0.1:1", applied={})
    gone = platform.tenant("deployments.getLogs", {"deploymentId": made})
    assert gone == {"lines": [], "note": f"The agent agent-1 of region {env.REGION} did not answer."}
    with clock.shifted(timedelta(minutes=1)):
        assert platform.tenant("deployments.getLogs", {"deploymentId": made}) == nobody_there


def test_instances_are_listed_as_reported(platform: Platform) -> None:
    made = platform.create()
    drain()
    platform.report(made, "pending", "installing packages")
    [instance] = platform.tenant("deployments.listInstances", {"deploymentId": made})
    assert instance == {
        "id": instance["id"],
        "region": env.REGION,
        "address": "",
        "status": "pending",
        "restarts": 0,
        "message": "installing packages",
    }
    platform.report_none(made)
    assert platform.tenant("deployments.listInstances", {"deploymentId": made}) == []


def test_ids_may_be_used_instead_of_slugs(platform: Platform) -> None:
    app = platform.app_row()
    environment = Environment.objects.unscoped("test").get(app=app, slug="production")
    body = {
        "project": app.project_id,
        "app": app.id,
        "environment": environment.id,
        "image": {"dockerImage": platform.snapshot()},
    }
    made = platform.tenant("deployments.createDeployment", body)["deploymentId"]
    assert platform.get(made)["environment"] == "production"
