"""Quota check: a workflow per month tells the workspaces that have used more than their limit, once."""

import structlog
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import F

from apps.audit import services as audit
from apps.quota.models import QuotaNotice, Usage
from apps.workflows.engine import JSON, Run, Wait, Workflow, send, start, step
from apps.workspaces.models import Membership
from unkey import clock
from unkey.actors import system
from unkey.env import env

BATCH = 100
QUOTACHECK = system("quotacheck")

log = structlog.get_logger(__name__)


def period_of_now() -> str:
    """Return the calendar month, in UTC, as usage is counted by."""
    return clock.now().strftime("%Y-%m")


@step
def check(run: Run) -> "JSON | Wait":
    """Tell the next workspaces that are past their limit and were not told this month."""
    period = run.input["period"]
    told = QuotaNotice.objects.filter(period=period).values("workspace")
    rows = (
        Usage.objects.select_for_update()
        .filter(period=period, workspace__enabled=True)
        .annotate(
            used=F("verifications") + F("ratelimits"),
            most=F("workspace__limits__billable_operations_per_month"),
        )
        .filter(used__gt=F("most"))
        .exclude(workspace__in=told)
        .select_related("workspace")
    )
    found = list(rows.order_by("workspace_id")[:BATCH])
    for usage in found:
        notice = QuotaNotice.objects.create(
            workspace_id=usage.workspace_id, period=period, used=usage.used, limit=usage.most
        )
        audit.record(
            "workspace.quota_exceeded",
            actor=QUOTACHECK,
            workspace_id=usage.workspace_id,
            targets=[usage.workspace],
            meta={"period": period, "used": usage.used, "limit": usage.most},
        )
        send(run, NotifyQuota, {"notice_id": notice.id}, name=notice.id)
    if found:
        return Wait(seconds=0)
    return {"told": QuotaNotice.objects.filter(period=period).count()}


class QuotaCheck(Workflow):
    """Compare a month's usage with the limits."""

    service = "quota_check"
    key = "period"
    steps = (check,)


def _mail(run: Run) -> JSON:
    """Write to the owners of a workspace, where a sender's address is configured."""
    notice = QuotaNotice.objects.select_related("workspace").get(pk=run.input["notice_id"])
    log.warning("quota_exceeded", workspace_id=notice.workspace_id, used=notice.used, limit=notice.limit)
    if not env.QUOTA_MAIL_FROM:
        return {"sent": 0}
    members = Membership.objects.unscoped("the owners of the workspace that the notice names")
    owners = members.filter(workspace_id=notice.workspace_id, role__in=["owner", "admin"])
    addresses = sorted({address for address in owners.values_list("user__email", flat=True) if address})
    for address in addresses:
        send_mail(
            f"{notice.workspace.name} has used more than its limit",
            f"In {notice.period} the workspace {notice.workspace.name} has used {notice.used:,} operations; "
            f"its limit is {notice.limit:,}. Nothing is refused. Ask your operator for a higher limit.",
            env.QUOTA_MAIL_FROM,
            [address],
        )
    return {"sent": len(addresses)}


@step(outside=_mail, timeout=120)
def notify_owners(run: Run, mailed: JSON) -> JSON:
    """Keep how many were written to."""
    return mailed


class NotifyQuota(Workflow):
    """Tell the owners of a workspace that it is past its limit."""

    service = "quota_notice"
    key = "notice_id"
    steps = (notify_owners,)


def start_check() -> None:
    """Start today's check of the current month."""
    today = clock.now().date().isoformat()
    with transaction.atomic():
        start(QuotaCheck, {"period": period_of_now()}, idempotency_key=f"quota:{today}")
