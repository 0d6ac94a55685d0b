"""Tables of tenants: workspaces, who belongs to them, root keys and personal tokens."""

from typing import Any

from django.conf import settings
from django.db import models

from unkey.models import Tenant, Timestamped, Versioned, id_field

KEY_SHARDS = 8


def shard_of(workspace_id: str) -> int:
    """Return which of the `keys` streams carries a workspace's rows (FNV-1a over its id)."""
    digest = 0x811C9DC5
    for octet in workspace_id.encode():
        digest = ((digest ^ octet) * 0x01000193) & 0xFFFFFFFF
    return digest % KEY_SHARDS


class Workspace(Timestamped, Versioned):
    """A tenant."""

    id = id_field("ws")
    name = models.CharField(max_length=256)
    slug = models.SlugField(max_length=64, unique=True)
    enabled = models.BooleanField(default=True)
    suspended_at = models.DateTimeField(
        null=True, blank=True, help_text="since when nothing of it may be started: it has spent its cap"
    )

    def __str__(self) -> str:
        return self.slug

    @property
    def stream(self) -> str:
        return f"keys:{shard_of(self.id)}"


class Membership(Tenant):
    """A person's place in a workspace; `apps.workspaces.roles` says what each role may do."""

    class Role(models.TextChoices):
        OWNER = "owner"
        ADMIN = "admin"
        MEMBER = "member"
        VIEWER = "viewer"

    id = id_field("mem")
    user: Any = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.MEMBER)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["workspace", "user"], name="membership_once"),
            models.CheckConstraint(
                condition=models.Q(role__in=["owner", "admin", "member", "viewer"]), name="membership_role"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.workspace_id}"


class RootKey(Tenant, Versioned):
    """A key that manages a workspace through the API; only its hash is kept."""

    id = id_field("key")
    name = models.CharField(max_length=255, blank=True)
    hash = models.CharField(max_length=44, unique=True, editable=False)
    start = models.CharField(max_length=32, editable=False)
    end = models.CharField(max_length=8, blank=True, editable=False)
    permissions = models.JSONField(default=list)
    enabled = models.BooleanField(default=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="to the minute; of calls to web")
    deleted_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name or self.start

    @property
    def stream(self) -> str:
        return f"keys:{shard_of(self.workspace_id)}"


class PersonalToken(Tenant):
    """A person's key to the dashboard REST in one workspace; only its hash is kept.

    It can do what `role` may, and never more than its person may at the moment of a request.
    """

    id = id_field("pat")
    user: Any = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="personal_tokens"
    )
    role = models.CharField(max_length=16, choices=Membership.Role.choices)
    name = models.CharField(max_length=255)
    hash = models.CharField(max_length=44, unique=True, editable=False)
    start = models.CharField(max_length=32, editable=False)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name
