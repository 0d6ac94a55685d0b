"""A failed deployment is taken back in full: every table is compared before and after.

What stays is what tells of it: its row, its steps, its audit entry, the history of its run, and the
topologies that tell agents to stop. What was live before is as it was, to the last column.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
from django.apps import apps

from apps.deployments import workflows
from apps.deployments.models import Deployment, Instance, Topology
from apps.deployments.tests.conftest import Platform, make_platform
from apps.workflows.engine import Retry, Run, WorkflowRun
from apps.workflows.sweeper import drain
from unkey.rpc.testing import make_tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db

Tables = dict[str, dict[Any, dict[str, Any]]]
HISTORY = {"workflows", "audit"}  # apps whose tables only tell what happened
# What a failed deployment leaves: its own rows, and the numbers that agents and edges read by.
LEFT = {
    "deployments.Deployment",
    "deployments.DeploymentStep",
    "deployments.Topology",
    "deployments.Instance",
    "deployments.OpenapiSpec",
}
NUMBERS = {"cluster.Stream"}

BEFORE_SWITCH = [
    "check_superseded",
    "join_build_queue",
    "take_build_slot",
    "check_settings",
    "build",
    "create_topologies",
    "wait_for_instances",
    "scrape_openapi",
    "switch_routes",
]


def tables() -> Tables:
    """Return every row of every table of ours."""
    found: Tables = {}
    with unscoped("test"):
        for model in apps.get_models():
            if model.__module__.startswith("apps."):
                rows = model._default_manager.all().values()
                found[model._meta.label] = {row[model._meta.pk.attname]: dict(row) for row in rows}
    return found


def check_taken_back(before: Tables, failed: str) -> None:
    """Compare: nothing is missing, changed or added but what tells of the failed deployment."""
    for label, rows in tables().items():
        if label.partition(".")[0] in HISTORY or label in NUMBERS:
            continue
        old = before[label]
        assert {pk: rows.get(pk) for pk in old} == old, label
        added = [row for pk, row in rows.items() if pk not in old]
        if label == "deployments.Deployment":
            assert [(row["id"], row["status"], row["desired_state"]) for row in added] in (
                [(failed, "failed", "stopped")],
                [(failed, "failed", "running")],  # it never got so far as to run anywhere
            )
        elif label in LEFT:
            assert all(row["deployment_id"] == failed for row in added), label
        else:
            assert added == [], label
    steps = before["deployments.DeploymentStep"]
    assert all(
        row["ended_at"] for pk, row in tables()["deployments.DeploymentStep"].items() if pk not in steps
    )
    assert not Topology.objects.filter(deployment_id=failed).exclude(desired_status="stopped").exists()
    assert not Instance.objects.filter(deployment_id=failed).exclude(status="gone").exists()


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let one step of Deploy fail for good, after it has done its work."""

    def break_step(name: str) -> None:
        step = workflows.Deploy.by_name[name]

        def fails(run: Run, *values: Any) -> Any:
            result = step.record(run, *values)
            if not isinstance(result, workflows.Wait):
                raise RuntimeError("the disk caught fire")
            return result

        broken = replace(step, record=fails, retry=Retry(attempts=2, initial=0))
        monkeypatch.setitem(workflows.Deploy.by_name, name, broken)

    return break_step


@pytest.fixture(scope="module")
def running(made_once: Callable[[], AbstractContextManager[None]]) -> Iterator[tuple[Platform, str]]:
    """A platform, and what runs there before: a production deployment over an older one, and a preview."""
    with made_once():
        platform = make_platform(make_tenant())
        platform.add_region("far")
        platform.deploy("preview")
        platform.deploy()
        yield platform, platform.deploy()


@pytest.fixture
def platform(running: tuple[Platform, str], db: None) -> Platform:
    """The platform."""
    return running[0]


@pytest.fixture
def live(running: tuple[Platform, str]) -> str:
    """The production deployment."""
    return running[1]


@pytest.mark.parametrize("name", BEFORE_SWITCH)
def test_an_accident_in_any_step_is_taken_back(
    platform: Platform, live: str, breaking: Callable[[str], None], name: str
) -> None:
    image = platform.snapshot()
    before = tables()
    breaking(name)
    failed = platform.create(image=image)
    drain()
    platform.report(failed, "running")
    drain()
    platform.report_none(failed)
    drain()

    check_taken_back(before, failed)
    assert platform.get(live)["isCurrent"]
    error = platform.get(failed)["error"]
    run = WorkflowRun.objects.get(input__deployment_id=failed, service="deploy")
    assert error["code"] == "unknown"
    assert "the disk caught fire" not in error["message"]
    assert "the disk caught fire" in run.error_message
    assert error["message"].endswith(
        f"Please deploy again; if that fails as well, ask your operator to look at {run.id}."
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("check_superseded", "Failed to read from database."),
        ("build", "The source could not be looked at."),
        ("create_topologies", "Regional deployment targets could not be prepared."),
        ("switch_routes", "Routing configuration failed."),
    ],
)
def test_an_accident_is_told_by_the_step_that_it_happened_in(
    platform: Platform, breaking: Callable[[str], None], name: str, told: str
) -> None:
    breaking(name)
    failed = platform.deploy()
    assert platform.get(failed)["error"]["message"].startswith(told)
    steps = platform.tenant("deployments.listSteps", {"deploymentId": failed})["steps"]
    assert steps[-1]["error"].startswith(told)


@pytest.mark.parametrize("way", ["nothing to run", "no quota", "instances fail", "nobody answers"])
def test_a_failure_that_a_user_can_cause_is_taken_back(platform: Platform, live: str, way: str) -> None:
    match way:
        case "nothing to run":
            image = platform.snapshot(**{"notes.txt": "nothing"})
        case _:
            image = platform.snapshot()
    if way == "no quota":
        platform.limit(cpu_millicores_max=1000)
    before = tables()
    failed = platform.create(image=image)
    drain()
    match way:
        case "instances fail":
            platform.report(failed, "failed", "exited with status 1")
        case "nobody answers":
            platform.report(failed, "pending", "nothing listens on port 8080")
            run = WorkflowRun.objects.filter(input__deployment_id=failed, service="deploy")
            run.update(wait_deadline=workflows.clock.now(), next_at=workflows.clock.now())
    drain()
    platform.report_none(failed)
    drain()
    check_taken_back(before, failed)
    assert platform.get(live)["isCurrent"]


@pytest.mark.parametrize("moment", ["queued", "deploying"])
def test_a_cancelled_deployment_is_taken_back(platform: Platform, live: str, moment: str) -> None:
    image = platform.snapshot()
    before = tables()
    made = platform.create(image=image)
    if moment == "deploying":
        drain()
        platform.report(made, "pending")
    platform.tenant("deployments.cancelDeployment", {"deploymentId": made})
    drain()
    platform.report_none(made)
    drain()
    after = tables()
    assert after["deployments.Deployment"].pop(made)["status"] == "cancelled"
    for label in before.keys() - LEFT - NUMBERS:
        if label.partition(".")[0] not in HISTORY:
            assert after[label] == before[label], label
    assert after["deployments.Deployment"] == before["deployments.Deployment"]
    assert not Topology.objects.filter(deployment_id=made).exclude(desired_status="stopped").exists()


@pytest.mark.parametrize("name", ["wait_for_edges", "retire_previous"])
def test_an_accident_after_the_switch_takes_nothing_away(
    platform: Platform, live: str, breaking: Callable[[str], None], name: str
) -> None:
    breaking(name)
    made = platform.deploy()
    shown = platform.get(made)
    assert (shown["status"], shown["isCurrent"]) == ("ready", True)
    assert platform.routes()["shop"] == made
    assert set(Topology.objects.filter(deployment_id=made).values_list("desired_status", flat=True)) == {
        "running"
    }
    assert Deployment.objects.unscoped("test").get(pk=live).desired_state == "running"
    steps = platform.tenant("deployments.listSteps", {"deploymentId": made})["steps"]
    assert all("endedAt" in step for step in steps)
