"""The monthly quota check: who is told, once, and what a crash leaves."""

from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core import mail

from apps.audit.models import AuditLog
from apps.quota import check
from apps.quota.models import Limits, QuotaNotice, Usage
from apps.workflows.engine import WorkflowRun
from apps.workflows.sweeper import drain
from apps.workspaces.models import Membership
from unkey import clock
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db


def use(tenant: Tenant, verifications: int, ratelimits: int = 0, limit: int | None = 100) -> None:
    Limits.objects.filter(pk=tenant.workspace.pk).update(billable_operations_per_month=limit)
    Usage.objects.update_or_create(
        workspace=tenant.workspace,
        period=check.period_of_now(),
        defaults={"verifications": verifications, "ratelimits": ratelimits},
    )


def run() -> None:
    check.start_check()
    drain()


@pytest.mark.parametrize(
    ("verifications", "ratelimits", "limit", "told"),
    [(60, 41, 100, 1), (60, 40, 100, 0), (10**12, 0, None, 0), (0, 0, 0, 0), (1, 0, 0, 1)],
)
def test_who_has_used_more_than_the_limit_is_told(
    tenant: Tenant, verifications: int, ratelimits: int, limit: int | None, told: int
) -> None:
    use(tenant, verifications, ratelimits, limit)
    run()
    assert QuotaNotice.objects.count() == told
    with unscoped("test"):
        assert AuditLog.objects.filter(event="workspace.quota_exceeded").count() == told


def test_it_is_told_once_a_month(tenant: Tenant) -> None:
    use(tenant, 101)
    run()
    with clock.shifted(timedelta(days=1)):
        period = check.period_of_now()
        use(tenant, 500)
        run()
    same = period == check.period_of_now()
    assert QuotaNotice.objects.count() == (1 if same else 2)
    assert WorkflowRun.objects.filter(service="quota_check").count() == 2
    with clock.shifted(timedelta(days=40)):
        use(tenant, 101)
        run()
    assert QuotaNotice.objects.filter(period=period).count() == 1
    assert QuotaNotice.objects.count() == (2 if same else 3)


def test_a_disabled_workspace_is_not_told(tenant: Tenant) -> None:
    use(tenant, 101)
    tenant.workspace.enabled = False
    tenant.workspace.save(update_fields=["enabled"])
    run()
    assert not QuotaNotice.objects.exists()


def test_owners_get_a_mail_where_a_sender_is_configured(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = get_user_model().objects.create_user("ada", "ada@example.com")
    with unscoped("test"):
        Membership.objects.create(workspace=tenant.workspace, user=user, role="owner")
    use(tenant, 150)
    monkeypatch.setattr(env, "QUOTA_MAIL_FROM", "quota@example.com")
    run()
    run()
    (sent,) = mail.outbox
    assert (sent.to, sent.from_email) == (["ada@example.com"], "quota@example.com")
    assert "has used 150 operations; its limit is 100." in sent.body


def test_a_check_that_breaks_off_tells_nobody_twice(
    tenant: Tenant, stranger: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tenant, 101)
    use(stranger, 101)
    monkeypatch.setattr(check, "BATCH", 1)
    record = check.audit.record
    calls: list[int] = []

    def crash(*args: object, **kwargs: object) -> object:
        made = record(*args, **kwargs)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the database went away")
        return made

    monkeypatch.setattr(check.audit, "record", crash)
    run()
    assert QuotaNotice.objects.count() == 1
    with clock.shifted(timedelta(minutes=1)):
        drain()
    assert QuotaNotice.objects.count() == 2
    assert WorkflowRun.objects.filter(service="quota_notice", state="succeeded").count() == 2
