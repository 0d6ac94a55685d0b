"""What a workspace may use."""

from typing import Any

from django.db import models

from unkey import clock
from unkey.models import Timestamped, id_field


class Limits(Timestamped):
    """Limits of one workspace; null means no limit."""

    workspace: Any = models.OneToOneField(
        "workspaces.Workspace", on_delete=models.CASCADE, primary_key=True, related_name="limits"
    )
    api_requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    builds_concurrent_max = models.PositiveIntegerField(default=1)
    cpu_millicores_max = models.PositiveIntegerField(default=64_000)
    memory_mib_max = models.PositiveIntegerField(default=131_072)
    storage_mib_max = models.PositiveIntegerField(default=1_048_576)
    cpu_millicores_per_instance_max = models.PositiveIntegerField(default=8_000)
    memory_mib_per_instance_max = models.PositiveIntegerField(default=16_384)
    storage_mib_per_instance_max = models.PositiveIntegerField(default=102_400)
    replicas_max = models.PositiveIntegerField(default=10)
    audit_retention_days = models.PositiveIntegerField(default=30)
    logs_retention_days = models.PositiveIntegerField(
        default=30, help_text="how old events may be that analytics are asked for"
    )
    billable_operations_per_month = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="verifications and rate limits of a calendar month; more is told, not refused",
    )

    class Meta:
        verbose_name_plural = "limits"

    def __str__(self) -> str:
        return f"limits of {self.workspace_id}"


class Usage(models.Model):
    """What a workspace has used of a calendar month so far: totals, written by whoever counts."""

    id = id_field("use")
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.CASCADE, related_name="usage")
    period = models.CharField(max_length=7, help_text="YYYY-MM, in UTC")
    verifications = models.BigIntegerField(default=0)
    ratelimits = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(default=clock.now)

    class Meta:
        verbose_name_plural = "usage"
        constraints = [models.UniqueConstraint(fields=["workspace", "period"], name="usage_once")]
        indexes = [models.Index(fields=["period", "workspace"], name="quota_usage_period")]

    def __str__(self) -> str:
        return f"{self.workspace_id} in {self.period}"


class QuotaNotice(models.Model):
    """That a workspace was told that it has used more than its limit: once a month."""

    id = id_field("qn")
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.CASCADE, related_name="+")
    period = models.CharField(max_length=7)
    used = models.BigIntegerField()
    limit = models.BigIntegerField()
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workspace", "period"], name="quota_notice_once")]

    def __str__(self) -> str:
        return f"{self.workspace_id} in {self.period}: {self.used} of {self.limit}"


class RefillDay(models.Model):
    """How far the refill of one day's keys is."""

    date = models.DateField(primary_key=True)
    cursor = models.CharField(max_length=48, blank=True, help_text="the last key that was looked at")
    refilled = models.PositiveBigIntegerField(default=0)
    started_at = models.DateTimeField(default=clock.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"refill of {self.date}"
