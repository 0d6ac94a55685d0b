"""Tables that tie the satellites to the control plane: streams, regions, agents, edges."""

from typing import Any

from django.db import models

from unkey import clock
from unkey.models import Timestamped, id_field


class Stream(models.Model):
    """One stream of the change feed and the last version given out in it.

    A row whose end every satellite has passed is removed: who resumes before `compacted` may have missed
    such an end, and needs the whole state.
    """

    name = models.CharField(max_length=64, primary_key=True)
    version = models.BigIntegerField(default=0)
    compacted = models.BigIntegerField(
        default=0, db_default=0, help_text="ends up to this version may be gone"
    )

    def __str__(self) -> str:
        return f"{self.name} at {self.version}"


class Region(Timestamped):
    """A place where instances run."""

    id = id_field("rgn")
    name = models.CharField(max_length=64, unique=True)
    can_schedule = models.BooleanField(default=True)

    def __str__(self) -> str:
        return self.name


class Token(Timestamped):
    """What one satellite proves itself by; only its digest is kept. Two are valid while one replaces another."""

    class Kind(models.TextChoices):
        AGENT = "agent"
        EDGE = "edge"

    id = id_field("sat")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.CharField(max_length=64, help_text="AGENT_ID or EDGE_ID of the only one who may use it")
    region: Any = models.ForeignKey(
        Region, on_delete=models.CASCADE, related_name="tokens", help_text="the only region it may speak for"
    )
    digest = models.CharField(max_length=64, unique=True, editable=False, help_text="SHA-256, hexadecimal")
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        indexes = [models.Index(fields=["kind", "name"])]

    def __str__(self) -> str:
        return f"{self.id} of {self.kind} {self.name}"


class Agent(models.Model):
    """An agent that reports for a region."""

    id = models.CharField(max_length=64, primary_key=True)
    region: Any = models.ForeignKey(Region, on_delete=models.CASCADE, related_name="agents")
    url = models.CharField(max_length=255, blank=True)
    applied = models.JSONField(default=dict)
    software = models.CharField(max_length=64, blank=True, db_default="", help_text="its release")
    token: Any = models.ForeignKey(
        Token,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="agents",
        editable=False,
        help_text="what it proved itself by last; none: AGENT_TOKEN",
    )
    problems = models.JSONField(
        default=list, blank=True, help_text="the latest rows that it could not apply, newest first"
    )
    started_at = models.DateTimeField(default=clock.now)
    last_seen_at = models.DateTimeField(default=clock.now, db_index=True)

    def __str__(self) -> str:
        return self.id


class Edge(models.Model):
    """An edge process and what it has applied of each stream: `{"routes": 17, …}`."""

    id = models.CharField(max_length=64, primary_key=True)
    region_name = models.CharField(max_length=64)
    role = models.CharField(max_length=16, default="all")
    software = models.CharField(max_length=64, blank=True, db_default="", help_text="its release")
    applied = models.JSONField(default=dict)
    counted_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="until when it has told of its requests"
    )
    count_lost_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="until when requests may have gone uncounted"
    )
    started_at = models.DateTimeField(default=clock.now)
    last_seen_at = models.DateTimeField(default=clock.now, db_index=True)

    def __str__(self) -> str:
        return self.id
