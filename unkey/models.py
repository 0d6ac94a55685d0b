"""Columns and base classes that every app's tables share. No tables of its own."""

from typing import Any

from django.db import models

from unkey import clock, ids
from unkey.tenancy import TenantManager


def id_field(prefix: str) -> "models.CharField[str, str]":
    """Return the primary key column: `<prefix>_` and 16 characters of base58."""
    return models.CharField(primary_key=True, max_length=48, default=ids.factory(prefix), editable=False)


class Timestamped(models.Model):
    """When a row was made and last changed; services set `updated_at`."""

    created_at = models.DateTimeField(default=clock.now, editable=False)
    updated_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        abstract = True


class Tenant(Timestamped):
    """A row that belongs to a workspace; its manager fails closed outside a workspace scope."""

    workspace: Any = models.ForeignKey(
        "workspaces.Workspace", on_delete=models.PROTECT, related_name="+", editable=False
    )

    objects = TenantManager()

    class Meta:
        abstract = True


class Versioned(models.Model):
    """A row that satellites watch: `version` is its position in a stream of the change feed.

    `apps.cluster.versions.stamp` sets it inside the writer's transaction.
    """

    version = models.BigIntegerField(default=0, db_index=True, editable=False)

    class Meta:
        abstract = True

    @property
    def stream(self) -> str:
        """The stream of the change feed that this row belongs to."""
        raise NotImplementedError
