"""Tables of deployments: what was frozen at creation, its steps, where it should run, what runs."""

from typing import Any

from django.db import models
from django.db.models import Q

from unkey import clock
from unkey.models import Tenant, Versioned, id_field


class Deployment(Tenant):
    """One version of an app in an environment: image, variables, settings and policies, frozen."""

    class Status(models.TextChoices):
        PENDING = "pending"
        STARTING = "starting"
        BUILDING = "building"
        DEPLOYING = "deploying"
        NETWORK = "network"
        FINALIZING = "finalizing"
        READY = "ready"
        FAILED = "failed"
        SKIPPED = "skipped"
        AWAITING_APPROVAL = "awaiting_approval"
        STOPPED = "stopped"
        SUPERSEDED = "superseded"
        CANCELLED = "cancelled"

    class DesiredState(models.TextChoices):
        RUNNING = "running"
        STOPPED = "stopped"

    class Trigger(models.TextChoices):
        API = "api"
        CLI = "cli"
        DASHBOARD = "dashboard"
        GITHUB = "github"

    TERMINAL = frozenset({"ready", "failed", "skipped", "stopped", "superseded", "cancelled"})

    id = id_field("d")
    project: Any = models.ForeignKey("projects.Project", on_delete=models.PROTECT, related_name="deployments")
    app: Any = models.ForeignKey("projects.App", on_delete=models.PROTECT, related_name="deployments")
    environment: Any = models.ForeignKey(
        "projects.Environment", on_delete=models.PROTECT, related_name="deployments"
    )
    status = models.CharField(max_length=20, choices=Status.choices, default=Status.PENDING)
    desired_state = models.CharField(max_length=8, choices=DesiredState.choices, default=DesiredState.RUNNING)
    trigger = models.CharField(max_length=16, choices=Trigger.choices, default=Trigger.API)

    image = models.CharField(max_length=512, blank=True)
    git_commit_sha = models.CharField(max_length=40, blank=True)
    git_branch = models.CharField(max_length=256, blank=True)
    git_repository = models.CharField(max_length=256, blank=True)

    settings = models.JSONField(help_text="runtime settings as they were at creation")
    regions = models.JSONField(help_text='[{"region": name, "min": 1, "max": 1}] at creation')
    variables = models.JSONField(
        default=list, help_text='[{"key", "ciphertext"}] at creation', editable=False
    )
    policies = models.JSONField(default=list, help_text="policies at creation")
    plan = models.JSONField(
        null=True, blank=True, help_text="what the build found to run: command, install, kind"
    )

    error_code = models.CharField(max_length=64, blank=True)
    error_step = models.CharField(max_length=32, blank=True)
    error_message = models.TextField(blank=True)
    objection = models.TextField(
        blank=True, default="", help_text="why it is ready but did not become live: what it would break"
    )
    finished_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="when it first became ready, failed or was given up"
    )
    asleep_since = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="on standby since then: the first request wakes it"
    )
    woken_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="when a request last woke it"
    )

    class Meta:
        indexes = [
            models.Index(fields=["workspace", "created_at"]),
            models.Index(fields=["workspace", "updated_at"], name="deployment_changed"),
            models.Index(fields=["environment", "created_at"]),
            models.Index(fields=["app", "status"]),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(desired_state__in=["running", "stopped"]), name="deployment_desired"
            ),
        ]

    def __str__(self) -> str:
        return self.id


class DeploymentStep(models.Model):
    """A step of a deployment as its owner sees it."""

    id = models.BigAutoField(primary_key=True)
    deployment: Any = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="steps")
    step = models.CharField(max_length=16)
    started_at = models.DateTimeField(default=clock.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    message = models.TextField(blank=True)
    error = models.CharField(max_length=512, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["deployment", "step"], name="deployment_step_once")]
        ordering = ["started_at", "id"]

    def __str__(self) -> str:
        return f"{self.step} of {self.deployment_id}"


class Topology(Versioned):
    """How many instances of a deployment a region should run; agents watch these rows."""

    id = models.BigAutoField(primary_key=True)
    deployment: Any = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="topologies")
    region: Any = models.ForeignKey("cluster.Region", on_delete=models.PROTECT, related_name="topologies")
    desired_status = models.CharField(max_length=8, choices=Deployment.DesiredState.choices)
    replicas_min = models.PositiveSmallIntegerField(default=1)
    replicas_max = models.PositiveSmallIntegerField(default=1)
    threshold_cpu = models.PositiveSmallIntegerField(
        default=80, help_text="percent of an instance's CPU above which there are more of them"
    )
    threshold_memory = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="the same of its memory; empty: memory does not matter"
    )
    created_at = models.DateTimeField(default=clock.now)
    reporter = models.CharField(
        max_length=64, blank=True, editable=False, help_text="run of the agent that reported last"
    )
    report = models.BigIntegerField(default=0, editable=False, help_text="number of its last report")
    applied = models.BigIntegerField(
        null=True,
        editable=False,
        help_text="version of this row that the instances followed which were reported last; empty: unsaid",
    )

    class Meta:
        verbose_name_plural = "topologies"
        constraints = [models.UniqueConstraint(fields=["deployment", "region"], name="topology_once")]
        indexes = [models.Index(fields=["region", "version"])]

    def __str__(self) -> str:
        return f"{self.deployment_id} in {self.region_id}"

    @property
    def stream(self) -> str:
        return f"topologies:{self.region.name}"


class Instance(Versioned):
    """A running copy of a deployment, as its agent reported it; edges watch these rows."""

    class Status(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        FAILED = "failed"
        DRAINING = "draining"
        GONE = "gone"

    id = id_field("ins")
    deployment: Any = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="instances")
    region: Any = models.ForeignKey("cluster.Region", on_delete=models.PROTECT, related_name="instances")
    name = models.CharField(max_length=64, help_text="the agent's own name of it")
    address = models.CharField(max_length=255, blank=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.PENDING)
    message = models.TextField(blank=True)
    restarts = models.PositiveIntegerField(
        default=0, help_text="how often it had to be started again, since it was first started"
    )
    created_at = models.DateTimeField(default=clock.now)
    updated_at = models.DateTimeField(default=clock.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["deployment", "region", "name"], name="instance_name")]

    def __str__(self) -> str:
        return f"{self.id} {self.status}"

    @property
    def stream(self) -> str:
        return "instances"


class ScheduledChange(models.Model):
    """The one pending change of a deployment's desired state; a later one replaces it.

    The workflow that carries a change out looks for its own nonce here first, so that one that was
    replaced or cancelled does nothing however late it wakes.
    """

    deployment: Any = models.OneToOneField(
        Deployment, primary_key=True, on_delete=models.CASCADE, related_name="scheduled_change"
    )
    nonce = models.CharField(max_length=48)
    desired_state = models.CharField(max_length=8, choices=Deployment.DesiredState.choices)
    due_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.deployment_id} to {self.desired_state} at {self.due_at}"


class Suspension(models.Model):
    """What was live in an app when its workspace was suspended; a resume starts it again."""

    app: Any = models.OneToOneField(
        "projects.App", primary_key=True, on_delete=models.CASCADE, related_name="suspension"
    )
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.CASCADE, related_name="+")
    deployment: Any = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"{self.app_id} with {self.deployment_id}"


class OpenapiSpec(Tenant):
    """What a deployment answered when it was asked for its OpenAPI document."""

    class State(models.TextChoices):
        SERVED = "served"
        NONE = "none", "it has none"
        UNKNOWN = "unknown", "it did not answer, or not with a document"

    id = id_field("oas")
    deployment: Any = models.OneToOneField(Deployment, on_delete=models.CASCADE, related_name="openapi_spec")
    state = models.CharField(
        max_length=8, choices=State.choices, default=State.SERVED, db_default=State.SERVED
    )
    attempts = models.PositiveSmallIntegerField(
        default=1, db_default=1, help_text="how often it has been asked"
    )
    path = models.CharField(max_length=512)
    digest = models.CharField(max_length=64, blank=True)
    text = models.TextField(blank=True)
    document = models.BinaryField(
        null=True, editable=False, help_text="the document as it was understood, packed; null if it was not"
    )
    fault = models.CharField(
        max_length=512, blank=True, help_text="why it cannot be compared, or why there is no answer"
    )

    def __str__(self) -> str:
        return f"OpenAPI of {self.deployment_id}"
