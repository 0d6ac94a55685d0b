"""Tables of standalone rate limits: namespaces and overrides."""

from typing import Any

from django.db import models
from django.db.models import Q

from apps.keys.models import Sharded
from unkey.models import Tenant, id_field


class Namespace(Tenant, Sharded):
    """What identifiers are counted in; its name stays taken when it is deleted."""

    id = id_field("rlns")
    name = models.CharField(max_length=512)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["shard", "version"])]
        constraints = [models.UniqueConstraint(fields=["workspace", "name"], name="namespace_name")]

    def __str__(self) -> str:
        return self.name


class Override(Tenant, Sharded):
    """Another limit for one identifier of a namespace, or for all that match a pattern with `*`."""

    id = id_field("rlor")
    namespace: Any = models.ForeignKey(Namespace, on_delete=models.PROTECT, related_name="overrides")
    identifier = models.CharField(max_length=512)
    limit = models.BigIntegerField(help_text="0 denies everything that costs")
    duration_ms = models.BigIntegerField()
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["shard", "version"]), models.Index(fields=["namespace", "id"])]
        constraints = [
            models.UniqueConstraint(fields=["namespace", "identifier"], name="override_identifier"),
            models.CheckConstraint(condition=Q(limit__gte=0, duration_ms__gte=1000), name="override_limit"),
        ]

    def __str__(self) -> str:
        return self.identifier
