"""The audit log: one row for every change, written in the change's own transaction."""

from django.db import models

from unkey import clock
from unkey.models import id_field
from unkey.tenancy import TenantManager


class AuditLog(models.Model):
    """Who changed what; append-only."""

    id = id_field("log")
    workspace = models.ForeignKey(
        "workspaces.Workspace", on_delete=models.PROTECT, related_name="+", editable=False
    )
    time = models.DateTimeField(default=clock.now, editable=False)
    event = models.CharField(max_length=64, editable=False)
    description = models.CharField(max_length=512, blank=True, editable=False)
    actor_type = models.CharField(max_length=16, editable=False)
    actor_id = models.CharField(max_length=128, editable=False)
    actor_name = models.CharField(max_length=255, blank=True, editable=False)
    targets = models.JSONField(default=list, editable=False)
    meta = models.JSONField(default=dict, editable=False)
    remote_ip = models.CharField(max_length=64, blank=True, editable=False)
    user_agent = models.CharField(max_length=512, blank=True, editable=False)
    correlation_id = models.CharField(max_length=48, blank=True, editable=False)

    objects = TenantManager()

    class Meta:
        indexes = [
            models.Index(fields=["workspace", "time"]),
            models.Index(fields=["workspace", "event", "time"]),
        ]

    def __str__(self) -> str:
        return f"{self.event} by {self.actor_type} {self.actor_id}"
