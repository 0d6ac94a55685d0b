"""Tables of builds: uploaded sources, and who may build at once."""

from typing import Any

from django.db import models

from unkey import clock
from unkey.models import Tenant, id_field


class Snapshot(Tenant):
    """A packed source folder in the object store, named by its SHA-256."""

    id = id_field("snap")
    digest = models.CharField(max_length=64, editable=False)
    size = models.BigIntegerField(editable=False)
    files = models.PositiveIntegerField(editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workspace", "digest"], name="snapshot_digest")]

    def __str__(self) -> str:
        return self.reference

    @property
    def reference(self) -> str:
        """The image reference that deployments use."""
        return f"snapshot@sha256:{self.digest}"


class BuildSlot(models.Model):
    """A deployment that builds, or waits for its turn to: a workspace has a limited number of slots.

    A row without `granted_at` waits. One that has it holds a slot under a lease, which whoever waits
    behind it renews while the holder's run lives, and takes away when that has ended or died.
    """

    deployment: Any = models.OneToOneField(
        "deployments.Deployment", primary_key=True, on_delete=models.CASCADE, related_name="build_slot"
    )
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.CASCADE, related_name="+")
    run_id = models.CharField(max_length=48, help_text="the workflow run that builds")
    production = models.BooleanField(help_text="production goes before previews")
    asked_at = models.DateTimeField(default=clock.now)
    granted_at = models.DateTimeField(null=True, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["workspace", "granted_at"], name="builds_slot_workspace")]

    def __str__(self) -> str:
        return f"{'slot' if self.granted_at else 'wait for a slot'} of {self.deployment_id}"
