"""Build slots, driven through deployments: whose turn it is, what the owner reads, what becomes of the dead."""

from datetime import timedelta

import pytest

from apps.builds import slots
from apps.builds.models import BuildSlot
from apps.deployments.models import Deployment, Topology
from apps.deployments.tests.conftest import Platform
from apps.workflows.engine import State, WorkflowRun
from apps.workflows.engine import cancel as cancel_run
from apps.workflows.sweeper import drain
from unkey import clock

pytestmark = pytest.mark.django_db


@pytest.fixture
def narrow(platform: Platform) -> Platform:
    """A workspace that builds one deployment at a time."""
    platform.limit(builds_concurrent_max=1)
    return platform


def status(platform: Platform, deployment: str) -> str:
    return str(platform.get(deployment)["status"])


def queued(platform: Platform, deployment: str) -> str:
    step = platform.tenant("deployments.listSteps", {"deploymentId": deployment})["steps"][0]
    assert step["step"] == "queued"
    return str(step.get("message", ""))


def building() -> set[str]:
    return set(BuildSlot.objects.exclude(granted_at=None).values_list("deployment_id", flat=True))


def test_one_builds_and_the_others_read_how_many_are_before_them(narrow: Platform) -> None:
    first, second, third = (narrow.create("preview") for _ in range(3))
    drain()
    assert [status(narrow, each) for each in (first, second, third)] == ["deploying", "pending", "pending"]
    assert queued(narrow, second) == "waiting for a build slot: 1 before you"
    assert queued(narrow, third) == "waiting for a build slot: 2 before you"

    narrow.report(first, "running")
    drain()

    assert [status(narrow, each) for each in (first, second, third)] == ["ready", "deploying", "pending"]
    assert queued(narrow, second) == ""
    assert queued(narrow, third) == "waiting for a build slot: 1 before you"
    narrow.finish(second)
    narrow.finish(third)
    assert not BuildSlot.objects.exists()


def test_production_goes_before_previews_that_asked_earlier(narrow: Platform) -> None:
    first, preview, production = narrow.create("preview"), narrow.create("preview"), narrow.create()
    drain()
    assert queued(narrow, production) == "waiting for a build slot: 1 before you"
    assert queued(narrow, preview) == "waiting for a build slot: 2 before you"
    narrow.finish(first)
    assert building() == {production}
    narrow.finish(production)
    assert building() == {preview}


def test_as_many_build_as_the_limit_says_and_a_raised_limit_is_seen_within_a_minute(
    narrow: Platform,
) -> None:
    narrow.limit(builds_concurrent_max=2)
    made = [narrow.create("preview") for _ in range(4)]
    drain()
    assert building() == set(made[:2])
    assert [queued(narrow, each) for each in made[2:]] == [
        "waiting for a build slot: 1 before you",
        "waiting for a build slot: 2 before you",
    ]
    narrow.limit(builds_concurrent_max=3)
    with clock.shifted(timedelta(seconds=61)):
        drain()
    assert building() == set(made[:3])


def test_a_deployment_that_fails_gives_its_slot_back(narrow: Platform) -> None:
    failing = narrow.create(image=narrow.snapshot(**{"notes.txt": "nothing to see"}))
    second = narrow.create("preview")
    drain()
    assert status(narrow, failing) == "failed"
    assert building() == {second}


def test_a_deployment_waits_an_hour_for_a_slot_and_says_what_was_wrong(narrow: Platform) -> None:
    first, second = narrow.create("preview"), narrow.create("preview")
    drain()
    with clock.shifted(timedelta(minutes=59)):
        WorkflowRun.objects.filter(input__deployment_id=first).update(wait_deadline=None, next_at=None)
        drain()
        assert status(narrow, second) == "pending"
    with clock.shifted(timedelta(hours=1, seconds=1)):
        drain()
        shown = narrow.get(second)
    assert shown["status"] == "failed"
    assert shown["error"] == {
        "code": "unknown",
        "step": "queued",
        "message": "Timed out waiting for a build slot. Too many builds are queued in this workspace. Cancel "
        "what is not needed (`unkey cancel`), or deploy again later.",
    }
    assert set(BuildSlot.objects.values_list("deployment_id", flat=True)) == {first}


@pytest.mark.parametrize("died", ["gone", "succeeded", "failed", "cancelled"])
def test_a_holder_whose_run_ended_or_is_gone_loses_its_slot(narrow: Platform, died: str) -> None:
    first, second = narrow.create("preview"), narrow.create("preview")
    drain()
    run = WorkflowRun.objects.filter(input__deployment_id=first)
    if died == "gone":
        run.delete()
    else:
        run.update(state=died, next_at=None)
    with clock.shifted(timedelta(seconds=61)):
        drain()
    shown = narrow.get(first)
    assert shown["status"] == "failed"
    assert shown["error"]["message"] == slots.DIED
    assert Topology.objects.get(deployment_id=first).desired_status == "stopped"
    assert building() == {second}


def test_a_holder_that_stopped_for_an_operator_keeps_its_slot_for_its_lease(narrow: Platform) -> None:
    first, second = narrow.create("preview"), narrow.create("preview")
    drain()
    stopped = WorkflowRun.objects.filter(input__deployment_id=first)
    stopped.update(state=State.NEEDS_ATTENTION, next_at=None)
    with clock.shifted(timedelta(minutes=50)):
        drain()
        assert building() == {first}
    WorkflowRun.objects.filter(input__deployment_id=second).update(wait_deadline=None)
    with clock.shifted(timedelta(minutes=61)):
        drain()
        assert narrow.get(first)["error"]["message"] == slots.EXPIRED
        assert building() == {second}


def test_a_live_holders_lease_is_renewed_but_not_for_ever(narrow: Platform) -> None:
    first, second = narrow.create("preview"), narrow.create("preview")
    drain()
    runs = WorkflowRun.objects.filter(input__deployment_id__in=(first, second))
    runs.update(wait_deadline=None)
    for hours in (2, 5, 7.9):
        with clock.shifted(timedelta(hours=hours)):
            runs.filter(input__deployment_id=second).update(next_at=clock.now())
            drain()
            assert building() == {first}
            held = BuildSlot.objects.get(pk=first)
            assert held.lease_expires_at is not None
            assert held.lease_expires_at > clock.now()
            runs.update(wait_deadline=None)
    with clock.shifted(timedelta(hours=8, seconds=1)):
        runs.filter(input__deployment_id=second).update(next_at=clock.now())
        drain()
        assert narrow.get(first)["error"]["message"] == slots.EXPIRED
        assert building() == {second}
        assert WorkflowRun.objects.get(input__deployment_id=first).state == State.CANCELLED


def test_whoever_is_cancelled_while_waiting_leaves_the_queue(narrow: Platform) -> None:
    first, second, third = (narrow.create("preview") for _ in range(3))
    drain()
    assert cancel_run(WorkflowRun.objects.get(input__deployment_id=second).id)
    drain()
    assert queued(narrow, third) == "waiting for a build slot: 1 before you"
    assert set(BuildSlot.objects.values_list("deployment_id", flat=True)) == {first, third}
    assert status(narrow, second) == "cancelled"


def test_another_workspace_builds_meanwhile(narrow: Platform, stranger: object) -> None:
    narrow.create("preview")
    theirs = Platform(stranger)  # type: ignore[arg-type]
    theirs.tenant("projects.createProject", {"name": "Shop", "slug": "shop"})
    theirs.tenant("apps.createApp", {"name": "Default", "slug": "default", "project": "shop"})
    other = theirs.create("preview")
    drain()
    assert len(building()) == 2
    assert theirs.get(other)["status"] == "deploying"


def test_releasing_twice_or_what_was_never_asked_for_changes_nothing(narrow: Platform) -> None:
    first, second, third = (narrow.create("preview") for _ in range(3))
    drain()
    slots.release(first)
    slots.release(first)
    slots.release("d_nobody")
    assert building() == {second}
    slots.release(third)
    assert building() == {second}
    assert Deployment.objects.unscoped("test").filter(status="pending").count() == 2
