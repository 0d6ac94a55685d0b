"""The audit log: one row for every change, written in the change's own transaction, and its chain."""

from django.db import models

from unkey import clock
from unkey.models import id_field
from unkey.tenancy import TenantManager


class AuditLog(models.Model):
    """Who changed what; append-only.

    A row is written without a place in its workspace's chain: until it is sealed it is its own outbox
    event. Sealing gives it its `sequence` and `hash`, once; nothing else of a row ever changes. The
    database itself refuses more than that: see `apps.audit.guard`.
    """

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
    changes = models.JSONField(default=dict, editable=False, help_text="field to its value before and after")
    meta = models.JSONField(default=dict, editable=False)
    remote_ip = models.CharField(max_length=64, blank=True, editable=False)
    user_agent = models.CharField(max_length=512, blank=True, editable=False)
    correlation_id = models.CharField(max_length=48, blank=True, editable=False)
    sequence = models.BigIntegerField(null=True, editable=False, help_text="place in the chain, from 1")
    hash = models.CharField(max_length=64, blank=True, editable=False)

    objects = TenantManager()

    class Meta:
        indexes = [
            models.Index(fields=["workspace", "time"]),
            models.Index(fields=["workspace", "event", "time"]),
            models.Index(fields=["sequence", "workspace"], name="audit_unsealed"),
        ]
        constraints = [models.UniqueConstraint(fields=["workspace", "sequence"], name="audit_place")]

    def __str__(self) -> str:
        return f"{self.event} by {self.actor_type} {self.actor_id}"


class AuditChain(models.Model):
    """Both ends of a workspace's chain: its last sealed row, and the anchor where pruning has cut it."""

    workspace = models.OneToOneField(
        "workspaces.Workspace", on_delete=models.PROTECT, primary_key=True, related_name="+", editable=False
    )
    sequence = models.BigIntegerField(default=0, editable=False, help_text="of the last sealed row")
    hash = models.CharField(max_length=64, blank=True, editable=False, help_text="of the last sealed row")
    pruned = models.BigIntegerField(default=0, editable=False, help_text="rows up to here are gone")
    anchor = models.CharField(max_length=64, blank=True, editable=False, help_text="hash of the last of them")
    sealed_at = models.DateTimeField(null=True, editable=False)

    objects = TenantManager()

    def __str__(self) -> str:
        return f"{self.workspace_id} up to {self.sequence}"
