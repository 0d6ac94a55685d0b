"""What is offered for a deployment is what is accepted: every state, in every situation of its app."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from apps.builds.models import Snapshot
from apps.deployments import actions, queries, services
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform
from apps.projects.models import App, Environment, EnvironmentRegion
from apps.projects.services import delete_app, delete_environment, delete_project
from apps.workflows.sweeper import drain
from apps.workspaces.models import Workspace
from unkey import clock, errors
from unkey.actors import system
from unkey.tenancy import workspace_scope

pytestmark = pytest.mark.django_db

TESTS = system("tests")
DO: dict[str, Callable[..., Any]] = {
    "promote": services.promote,
    "rollback": services.rollback,
    "stop": services.stop,
    "start": services.start_again,
    "cancel": services.cancel,
    "approve": services.approve,
    "redeploy": services.redeploy,
}
# One status of those that are alike for every action, with a desired state that it may have in life.
STATES = [
    ("pending", "running"),
    ("awaiting_approval", "running"),
    ("deploying", "running"),
    ("ready", "running"),
    ("ready", "stopped"),
    ("stopped", "stopped"),
    ("failed", "stopped"),
]


def as_usual(platform: Platform) -> None:
    """Change nothing."""


def suspended(platform: Platform) -> None:
    Workspace.objects.filter(pk=platform.tenant.workspace.id).update(suspended_at=clock.now())


def project_is_being_deleted(platform: Platform) -> None:
    with workspace_scope(platform.tenant.workspace.id):
        delete_project(platform.app_row().project, actor=TESTS)


def app_is_being_deleted(platform: Platform) -> None:
    with workspace_scope(platform.tenant.workspace.id):
        delete_app(platform.app_row(), actor=TESTS)


def previews_are_being_deleted(platform: Platform) -> None:
    with workspace_scope(platform.tenant.workspace.id):
        previews = Environment.objects.get(app=platform.app_row(), slug="preview")
        delete_environment(previews, actor=TESTS)


def a_switch_is_pending(platform: Platform) -> None:
    live = platform.app_row().current_deployment
    assert live is not None
    other = Deployment.objects.unscoped("test").filter(environment=live.environment).exclude(pk=live.pk).get()
    platform.tenant("deployments.rollbackDeployment", {"deploymentId": other.id})


def rolled_back(platform: Platform) -> None:
    App.objects.unscoped("test").update(is_rolled_back=True)


def nothing_is_live(platform: Platform) -> None:
    App.objects.unscoped("test").update(current_deployment=None)


def sources_are_gone(platform: Platform) -> None:
    Snapshot.objects.unscoped("test").delete()


def no_source_was_ever_found(platform: Platform) -> None:
    Deployment.objects.unscoped("test").update(image="")


def images_that_the_runtime_cannot_run(platform: Platform) -> None:
    Deployment.objects.unscoped("test").update(image="nginx:1")


def regions_are_taken_away(platform: Platform) -> None:
    EnvironmentRegion.objects.all().delete()


def the_branch_has_a_newer_one(platform: Platform) -> None:
    platform.create("preview")
    Deployment.objects.unscoped("test").update(git_branch="main")


SITUATIONS = (
    as_usual,
    suspended,
    project_is_being_deleted,
    app_is_being_deleted,
    previews_are_being_deleted,
    a_switch_is_pending,
    rolled_back,
    nothing_is_live,
    sources_are_gone,
    no_source_was_ever_found,
    images_that_the_runtime_cannot_run,
    regions_are_taken_away,
    the_branch_has_a_newer_one,
)


def is_accepted(action: str, row: Deployment) -> bool:
    """Do it as anybody would, see whether it was refused, and undo it."""
    ended = row.status in Deployment.TERMINAL
    with transaction.atomic():
        try:
            DO[action](row, actor=TESTS)
        except errors.Fault:
            return False
        else:
            return action != "cancel" or not ended  # to cancel what has ended is no fault, and does nothing
        finally:
            transaction.set_rollback(True)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda function: function.__name__)
def test_exactly_what_would_be_accepted_is_offered(
    platform: Platform, situation: Callable[[Platform], None]
) -> None:
    earlier, live, preview = platform.deploy(), platform.deploy(), platform.deploy("preview")
    situation(platform)
    rows = Deployment.objects.unscoped("test")
    with workspace_scope(platform.tenant.workspace.id):
        for target in (earlier, live, preview):
            for status, desired in STATES if target != live else [("ready", "running")]:
                rows.filter(pk=target).update(status=status, desired_state=desired)
                row = queries.find(target)
                offered = actions.available([row], actions.ALL)[target]
                accepted = [action for action in actions.ALL if is_accepted(action, row)]
                assert offered == accepted, f"{target} {status} {desired}"


def test_what_is_deleted_between_a_look_and_an_action_is_not_found(platform: Platform) -> None:
    with workspace_scope(platform.tenant.workspace.id):
        made, live = platform.deploy(), platform.deploy()
        row = queries.find(made)
        project_is_being_deleted(platform)
        drain()
        platform.report_none(made)
        platform.report_none(live)
        for minutes in range(5):
            with clock.shifted(timedelta(minutes=minutes)):
                drain()
        assert not App.objects.filter(pk=row.app_id).exists()
        for action in actions.ALL:
            expected = errors.EnvironmentNotFound if action == "redeploy" else errors.DeploymentNotFound
            with pytest.raises(expected):
                DO[action](row, actor=TESTS)
