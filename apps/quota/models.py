"""What a workspace may use."""

from typing import Any

from django.db import models

from unkey.models import Timestamped


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

    class Meta:
        verbose_name_plural = "limits"

    def __str__(self) -> str:
        return f"limits of {self.workspace_id}"
