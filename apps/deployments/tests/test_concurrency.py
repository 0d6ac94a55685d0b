"""Operators, workers and new commits at the same time, each with a connection of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.db import connection

from apps.audit.models import AuditLog
from apps.builds.models import BuildSlot
from apps.deployments import services
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform
from apps.projects.models import Environment
from apps.workflows.sweeper import drain
from unkey.actors import system
from unkey.tenancy import workspace_scope

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Call functions in threads that start together, and return their results in order."""
    barrier = Barrier(len(work))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return function()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def test_of_rollback_and_promote_at_once_one_wins_and_the_other_is_told_why(platform: Platform) -> None:
    for _ in range(2):
        platform.limit(builds_concurrent_max=10)
        first, second, third = (platform.deploy() for _ in range(3))
        seen = AuditLog.objects.unscoped("test").count()

        def press(verb: str, target: str) -> Callable[[], tuple[str, str, int, Any]]:
            body = {"deploymentId": target}
            return lambda: (verb, target, *_sent(platform, f"deployments.{verb}Deployment", body))

        answers = at_once(
            press("rollback", first),
            press("promote", second),
            press("rollback", second),
            press("promote", first),
        )
        won = [(verb, target) for verb, target, status, _ in answers if status == 202]
        assert len(won) == 1, answers
        verb, target = won[0]
        told = {body["error"]["detail"] for *_, status, body in answers if status == 412}
        assert len([1 for *_, status, _ in answers if status == 412]) == 3
        assert told == {
            f"A {verb} to {target} was asked for before and has not happened yet. "
            "Look at what it does, and decide again."
        }
        at_once(drain, drain)
        app = platform.app_row()
        assert (app.current_deployment_id, app.is_rolled_back) == (target, verb == "rollback")
        routes = platform.routes()
        assert routes["shop"] == routes["shop-production"] == target
        events = list(AuditLog.objects.unscoped("test").order_by("time").values_list("event", flat=True))[
            seen:
        ]
        assert [event for event in events if event in ("deployment.rollback", "deployment.promote")] == [
            f"deployment.{verb}"
        ]
        platform.promote(third)


def _sent(platform: Platform, operation: str, body: dict[str, str]) -> tuple[int, Any]:
    answer = platform.tenant.send(operation, body)
    return answer.status, answer.body


def test_a_cancel_and_the_switch_of_routes_at_once_end_in_one_of_both(platform: Platform) -> None:
    live = platform.deploy()
    for _ in range(3):
        made = platform.create()
        drain()
        platform.report(made, "running")
        at_once(drain, partial(platform.tenant, "deployments.cancelDeployment", {"deploymentId": made}))
        drain()
        status = platform.get(made)["status"]
        owner = platform.routes()["shop"]
        assert (status, owner) in {("ready", made), ("cancelled", live)}
        assert platform.row(made).desired_state == ("running" if status == "ready" else "stopped")
        live = owner


def test_commits_of_a_branch_that_arrive_at_once_leave_one(platform: Platform) -> None:
    def push() -> str:
        with workspace_scope(platform.tenant.workspace.id):
            made = services.create_deployment(
                Environment.objects.get(slug="preview"),
                image=image,
                commit={"branch": "main"},
                actor=system("webhook"),
            )
        return str(made.id)

    image = platform.snapshot()
    made = at_once(*[push] * 5)
    statuses = sorted(Deployment.objects.unscoped("test").values_list("status", flat=True))
    assert statuses == ["pending", *["superseded"] * 4]
    drain()
    (winner,) = Deployment.objects.unscoped("test").exclude(status="superseded")
    platform.finish(winner.id)
    assert platform.routes()["shop-git-main"] == winner.id
    assert winner.id in made


def test_many_workers_never_grant_more_slots_than_there_are(platform: Platform) -> None:
    platform.limit(builds_concurrent_max=2)
    waiting = {platform.create("preview") for _ in range(6)}
    while waiting:
        at_once(*[drain] * 3)
        building = set(BuildSlot.objects.exclude(granted_at=None).values_list("deployment_id", flat=True))
        assert len(building) == min(2, len(waiting))
        for deployment in building:
            platform.report(deployment, "running")
        waiting -= building
    drain()
    assert not BuildSlot.objects.exists()
    assert set(Deployment.objects.unscoped("test").values_list("status", flat=True)) == {"ready"}
