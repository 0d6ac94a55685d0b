"""Where a deployment runs, how many instances of it, and when that is enough."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.cluster.models import Region
from apps.cluster.services import agent_heartbeat
from apps.deployments import services
from apps.deployments.capacity import replicas
from apps.deployments.models import Topology
from apps.deployments.tests.conftest import Platform
from apps.projects.models import EnvironmentRegion
from apps.workflows.sweeper import drain
from unkey import clock
from unkey.env import env

pytestmark = pytest.mark.django_db


@given(st.integers(-5, 50), st.integers(-5, 50), st.integers(0, 20))
def test_there_is_always_one_and_never_more_than_the_limit(least: int, most: int, limit: int) -> None:
    fewest, greatest = replicas({"min": least, "max": most}, limit)
    assert 1 <= fewest <= greatest <= max(limit, 1)
    if 1 <= least <= most <= limit:
        assert (fewest, greatest) == (least, most)


def settings(platform: Platform, **bounds: tuple[int, int]) -> None:
    """Set minimum and maximum of regions of production; those that it lacks are added."""
    for name, (least, most) in bounds.items():
        if not EnvironmentRegion.objects.filter(
            environment__slug="production", region__name=name, environment__app=platform.app_row()
        ).exists():
            platform.add_region(name)
        EnvironmentRegion.objects.filter(environment__slug="production", region__name=name).update(
            replicas_min=least, replicas_max=most
        )


def wanted(deployment: str) -> dict[str, tuple[int, int]]:
    rows = Topology.objects.filter(deployment_id=deployment, desired_status="running")
    return {row.region.name: (row.replicas_min, row.replicas_max) for row in rows.select_related("region")}


def run(deployment: str, region: str, count: int, status: str = "running") -> None:
    """Report as many instances in a region."""
    instances: list[services.InstanceReport] = [
        {"name": f"{deployment}-{number}", "address": f"127.0.0.1:{number}", "status": status}
        for number in range(1, count + 1)
    ]
    services.report_instances(deployment, region, instances, "agent-1")
    drain()


def test_replicas_are_those_of_the_regions_settings_when_it_was_created(platform: Platform) -> None:
    settings(platform, **{env.REGION: (2, 4), "far": (1, 3)})
    made = platform.create()
    settings(platform, **{env.REGION: (1, 1), "far": (1, 1)})
    drain()
    assert wanted(made) == {env.REGION: (2, 4), "far": (1, 3)}


def test_replicas_are_clamped_to_the_workspaces_limit(platform: Platform) -> None:
    settings(platform, **{env.REGION: (5, 9), "far": (1, 9)})
    platform.limit(replicas_max=3)
    made = platform.create()
    drain()
    assert wanted(made) == {env.REGION: (3, 3), "far": (1, 3)}


def test_the_quota_counts_the_most_that_may_run_in_all_regions_together(platform: Platform) -> None:
    settings(platform, **{env.REGION: (1, 3), "far": (1, 2)})
    platform.limit(cpu_millicores_max=5 * 250 - 1)
    failed = platform.create()
    drain()
    error = platform.get(failed)["error"]
    assert (error["code"], error["message"]) == (
        "cpu_quota_exceeded",
        "We are unable to deploy this application as you have exceeded your CPU quota: it asks for 1250 millicores, "
        "and 0 of 1249 are taken. Stop previews that are not needed (`unkey stop`), give the environment less or "
        "fewer instances, or ask your operator for a larger quota; then deploy again.",
    )
    platform.limit(cpu_millicores_max=5 * 250)
    made = platform.create()
    drain()
    assert wanted(made) == {env.REGION: (1, 3), "far": (1, 2)}
    assert wanted(failed) == {}


def test_a_region_is_healthy_when_its_minimum_runs(platform: Platform) -> None:
    settings(platform, **{env.REGION: (3, 5)})
    made = platform.create()
    drain()
    run(made, env.REGION, 2)
    assert platform.get(made)["status"] == "deploying"
    run(made, env.REGION, 3)
    assert platform.get(made)["status"] == "ready"


@pytest.mark.parametrize(("regions", "enough"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_one_region_may_be_missing_and_no_more(platform: Platform, regions: int, enough: int) -> None:
    names = [env.REGION, *(f"far-{number}" for number in range(1, regions))]
    for name in names[1:]:
        platform.add_region(name)
    made = platform.create()
    drain()
    for healthy, name in enumerate(names[:enough], 1):
        assert platform.get(made)["status"] == "deploying"
        run(made, name, 1)
        assert (platform.get(made)["status"] == "ready") is (healthy == enough)
    steps = platform.tenant("deployments.listSteps", {"deploymentId": made})["steps"]
    told = ", ".join(sorted(names[:enough]))
    assert [step["message"] for step in steps if step["step"] == "deploying"] == [f"healthy in {told}"]


def test_a_region_that_is_closed_meanwhile_is_left_out(platform: Platform) -> None:
    platform.add_region("far")
    made = platform.create()
    Region.objects.filter(name="far").update(can_schedule=False)
    drain()
    assert set(wanted(made)) == {env.REGION}

    failed = platform.create()
    Region.objects.update(can_schedule=False)
    drain()
    error = platform.get(failed)["error"]
    assert (error["code"], error["message"]) == (
        "no_schedulable_regions",
        "No regions configured. Please configure at least one region before deploying.",
    )


def test_thresholds_are_those_of_the_environment_when_it_was_created(platform: Platform) -> None:
    def thresholds(deployment: str) -> tuple[int, int | None]:
        return Topology.objects.values_list("threshold_cpu", "threshold_memory").get(deployment_id=deployment)

    usual = platform.create()
    names = {**platform.names, "environment": "production"}
    platform.tenant("environments.updateSettings", {**names, "thresholdCpu": 35, "thresholdMemory": 60})
    drain()
    changed = platform.deploy()
    assert (thresholds(usual), thresholds(changed)) == ((80, None), (35, 60))
    # One that was frozen before environments could say.
    older = platform.create()
    row = platform.row(older)
    row.settings = {name: value for name, value in row.settings.items() if not name.startswith("threshold")}
    row.save()
    drain()
    assert thresholds(older) == (80, None)


def test_a_region_whose_agent_is_gone_is_named_while_it_is_waited_for_and_in_the_end(
    platform: Platform,
) -> None:
    settings(platform, **{env.REGION: (1, 1), "far": (1, 1), "fra": (1, 1)})
    for region in (env.REGION, "fra"):
        agent_heartbeat(f"agent-{region}", region=region, url="", applied={})
    made = platform.create()
    drain()

    def waits() -> str:
        steps = platform.tenant("deployments.listSteps", {"deploymentId": made})["steps"]
        return str(steps[-1].get("message", ""))

    do = "have its agent started again, or take the region out of the environment's regions and deploy again."
    assert waits() == f"No agent has reported from region far yet: {do}"
    agent_heartbeat("agent-far", region="far", url="", applied={})
    assert waits() == ""
    with clock.shifted(timedelta(seconds=125)):
        for region in (env.REGION, "far"):
            agent_heartbeat(f"agent-{region}", region=region, url="", applied={})
        assert waits() == f"No agent has reported from region fra for 2 minutes: {do}"
    run(made, env.REGION, 1)
    with clock.shifted(timedelta(seconds=env.DEPLOY_HEALTH_DEADLINE_SECONDS + 1)):
        agent_heartbeat("agent-far", region="far", url="", applied={})
        drain()
        error = platform.get(made)["error"]
    assert error["message"] == (
        "Not enough regions became healthy within 900 s: 1 of 2 required. "
        f"No agent has reported from region fra for 15 minutes: {do}"
    )
