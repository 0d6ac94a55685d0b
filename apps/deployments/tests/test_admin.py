"""What operators do to deployments in the admin: through the same services, in their own name."""

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditLog
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform
from apps.deployments.tests.test_transitions import bring
from apps.workflows.sweeper import drain

pytestmark = pytest.mark.django_db


def act(browser: Client, action: str, *deployments: str) -> list[str]:
    """Choose deployments on the list page, run an action, and return what the page says then."""
    url = reverse("admin:deployments_deployment_changelist")
    body = {"action": action, ACTION_CHECKBOX_NAME: list(deployments)}
    page = browser.post(url, body, follow=True)
    return [str(message) for message in page.context["messages"]]


@pytest.mark.parametrize(
    ("action", "status", "event"),
    [
        ("rollback", "ready", "deployment.rollback"),
        ("promote", "ready", "deployment.promote"),
        ("stop", "ready", "deployment.stop"),
        ("start", "stopped", "deployment.wake"),
        ("cancel", "pending", "deployment.cancel"),
        ("approve", "awaiting_approval", "deployment.approve"),
        ("redeploy", "ready", "deployment.rebuild"),
    ],
)
def test_an_operator_may_do_all_that_an_owner_may(
    platform: Platform, admin_client: Client, action: str, status: str, event: str
) -> None:
    target = bring(platform, status, "preview" if action in ("stop", "start") else "production")
    platform.deploy()
    assert act(admin_client, action, target) == [f"{target}: accepted"]
    drain()
    log = AuditLog.objects.unscoped("test").filter(workspace=platform.tenant.workspace, event=event)
    assert [(row.actor_type, row.actor_name) for row in log] == [("user", "admin")]


def test_each_refusal_is_told_beside_what_was_accepted(platform: Platform, admin_client: Client) -> None:
    live, preview = platform.deploy(), platform.deploy("preview")
    assert sorted(act(admin_client, "stop", live, preview)) == sorted(
        [
            f"{live}: Production deployments cannot be stopped. Promote or roll back to another one: "
            "what is replaced goes to sleep by itself.",
            f"{preview}: accepted",
        ]
    )
    assert platform.row(live).desired_state == "running"
    assert platform.row(preview).desired_state == "stopped"


def test_what_has_ended_is_not_said_to_be_cancelled(platform: Platform, admin_client: Client) -> None:
    failed = bring(platform, "failed", "production")
    told = f"{failed}: The deployment has ended already: it is failed. There is nothing to cancel."
    assert act(admin_client, "cancel", failed) == [told]
    url = reverse("admin:deployments_deployment_changelist")
    body = {"action": "cancel", ACTION_CHECKBOX_NAME: [failed]}
    page = admin_client.post(url, body, follow=True).content.decode()
    assert f">{told}</li>" in page  # as it is: an id with a capital would be another one


def test_staff_who_may_only_look_are_not_obeyed(platform: Platform, client: Client) -> None:
    preview = platform.deploy("preview")
    reader = get_user_model().objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="view_deployment"))
    client.force_login(reader)
    assert "accepted" not in str(act(client, "stop", preview))
    assert Deployment.objects.unscoped("test").get(pk=preview).desired_state == "running"
