"""Tables of sources."""

from django.db import models

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
