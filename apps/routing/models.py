"""Tables that the edge routes by: host names, and what a deployment's sentinel enforces."""

from typing import Any

from django.db import models

from unkey.models import Tenant, Versioned, id_field


class FrontlineRoute(Tenant, Versioned):
    """A host name and the deployment that answers it."""

    class Sticky(models.TextChoices):
        NONE = "none"
        BRANCH = "branch"
        ENVIRONMENT = "environment"
        LIVE = "live"
        DEPLOYMENT = "deployment"

    id = id_field("flr")
    fqdn = models.CharField(max_length=253, unique=True)
    project: Any = models.ForeignKey("projects.Project", on_delete=models.PROTECT, related_name="routes")
    app: Any = models.ForeignKey("projects.App", on_delete=models.PROTECT, related_name="routes")
    environment: Any = models.ForeignKey(
        "projects.Environment", on_delete=models.PROTECT, related_name="routes"
    )
    deployment: Any = models.ForeignKey(
        "deployments.Deployment", on_delete=models.PROTECT, related_name="routes"
    )
    sticky = models.CharField(max_length=16, choices=Sticky.choices)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["environment", "sticky"])]

    def __str__(self) -> str:
        return self.fqdn

    @property
    def stream(self) -> str:
        return "routes"


class Sentinel(Versioned):
    """What the edge enforces and how it speaks to one deployment's instances."""

    class State(models.TextChoices):
        RUNNING = "running"
        STOPPED = "stopped"
        STANDBY = "standby"  # asleep: the first request has it woken and is held meanwhile
        WAKING = "waking"  # being started: requests are held until there is an instance

    deployment: Any = models.OneToOneField(
        "deployments.Deployment", primary_key=True, on_delete=models.CASCADE, related_name="sentinel"
    )
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.PROTECT, related_name="+")
    environment: Any = models.ForeignKey("projects.Environment", on_delete=models.PROTECT, related_name="+")
    policies = models.JSONField(default=list)
    upstream_protocol = models.CharField(max_length=8, default="http1")
    desired_state = models.CharField(max_length=8, choices=State.choices, default=State.RUNNING)
    last_request_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="when an edge last told of requests to it"
    )

    def __str__(self) -> str:
        return f"sentinel of {self.deployment_id}"

    @property
    def stream(self) -> str:
        return "sentinels"
