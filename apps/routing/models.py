"""Tables that the edge routes by: host names, what a sentinel enforces, and what is refused before that."""

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


class Contract(Versioned):
    """What requests to a deployment must look like, made of the OpenAPI document that it serves.

    There is one where an openapi policy asks for it; see `edge.sentinel.contract`.
    """

    deployment: Any = models.OneToOneField(
        "deployments.Deployment", primary_key=True, on_delete=models.CASCADE, related_name="contract"
    )
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.PROTECT, related_name="+")
    plan = models.BinaryField(
        default=b"",
        editable=False,
        help_text="packed; empty: it serves no document, or none that can be used",
    )
    fault = models.CharField(max_length=512, blank=True, help_text="why requests cannot be checked")

    def __str__(self) -> str:
        return f"contract of {self.deployment_id}"

    @property
    def stream(self) -> str:
        return "sentinels"


class Barrier(Versioned):
    """What is refused before every deployment of an environment, at once and without a new deployment."""

    environment: Any = models.OneToOneField(
        "projects.Environment", primary_key=True, on_delete=models.CASCADE, related_name="barrier"
    )
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.PROTECT, related_name="+")
    blocked = models.JSONField(default=list, help_text="addresses and CIDR ranges that are refused")
    maintenance = models.BooleanField(default=False, help_text="refuse everybody else, too")
    message = models.CharField(max_length=500, blank=True, help_text="what visitors are told meanwhile")
    retry_after = models.PositiveIntegerField(null=True, blank=True, help_text="seconds")
    exempt = models.JSONField(default=list, help_text="addresses and ranges that maintenance is not for")

    def __str__(self) -> str:
        return f"barrier of {self.environment_id}"

    @property
    def stream(self) -> str:
        return "sentinels"
