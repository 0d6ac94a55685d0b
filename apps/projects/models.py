"""Tables of what is deployed: projects, their apps, the apps' environments and variables."""

from typing import Any

from django.db import models
from django.db.models import Q

from unkey.models import Tenant, id_field


class Project(Tenant):
    """A set of apps that belong together."""

    id = id_field("proj")
    name = models.CharField(max_length=256)
    slug = models.CharField(max_length=255)
    delete_protection = models.BooleanField(default=False)
    deleting_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workspace", "slug"], name="project_slug")]

    def __str__(self) -> str:
        return self.slug


class App(Tenant):
    """A program with environments."""

    id = id_field("app")
    project: Any = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="apps")
    name = models.CharField(max_length=256)
    slug = models.CharField(max_length=255)
    current_deployment: Any = models.ForeignKey(
        "deployments.Deployment",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        editable=False,
    )
    is_rolled_back = models.BooleanField(default=False, editable=False)
    delete_protection = models.BooleanField(default=False)
    deleting_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "slug"], name="app_slug")]

    def __str__(self) -> str:
        return self.slug


class Environment(Tenant):
    """Where an app runs, with its settings; a deployment freezes them at creation."""

    class Kind(models.TextChoices):
        PRODUCTION = "production"
        PREVIEW = "preview"

    class Signal(models.TextChoices):
        SIGTERM = "SIGTERM"
        SIGINT = "SIGINT"
        SIGQUIT = "SIGQUIT"
        SIGKILL = "SIGKILL"

    class Upstream(models.TextChoices):
        HTTP1 = "http1"
        H2C = "h2c"

    id = id_field("env")
    app: Any = models.ForeignKey(App, on_delete=models.PROTECT, related_name="environments")
    slug = models.CharField(max_length=255)
    description = models.CharField(max_length=255, blank=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    delete_protection = models.BooleanField(default=False)
    deleting_at = models.DateTimeField(null=True, blank=True, editable=False)

    port = models.PositiveIntegerField(default=8080)
    cpu_millicores = models.PositiveIntegerField(default=250)
    memory_mib = models.PositiveIntegerField(default=256)
    storage_mib = models.PositiveIntegerField(default=0)
    command = models.JSONField(default=list, blank=True)
    healthcheck = models.JSONField(null=True, blank=True)
    shutdown_signal = models.CharField(max_length=8, choices=Signal.choices, default=Signal.SIGTERM)
    upstream_protocol = models.CharField(max_length=8, choices=Upstream.choices, default=Upstream.HTTP1)
    openapi_spec_path = models.CharField(max_length=512, null=True, blank=True)

    dockerfile = models.CharField(max_length=500, null=True, blank=True)
    root_directory = models.CharField(max_length=500, default=".")
    build_command = models.CharField(max_length=1000, null=True, blank=True)
    watch_paths = models.JSONField(default=list, blank=True)
    auto_deploy = models.BooleanField(default=True)

    threshold_cpu = models.PositiveSmallIntegerField(
        default=80, db_default=80, help_text="percent of an instance's CPU above which there are more of them"
    )
    threshold_memory = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="the same of its memory; empty: memory does not matter"
    )

    policies = models.JSONField(default=list, blank=True)
    refuse_breaking_changes = models.BooleanField(
        default=False,
        db_default=False,
        help_text="a deployment whose OpenAPI document breaks clients of the live one does not become live",
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["app", "slug"], name="environment_slug"),
            models.CheckConstraint(condition=Q(kind__in=["production", "preview"]), name="environment_kind"),
            models.CheckConstraint(condition=Q(port__gte=1, port__lte=65535), name="environment_port"),
            models.CheckConstraint(condition=Q(cpu_millicores__gte=250), name="environment_cpu"),
            models.CheckConstraint(condition=Q(memory_mib__gte=256), name="environment_memory"),
            models.CheckConstraint(
                condition=Q(threshold_cpu__gte=1, threshold_cpu__lte=100), name="environment_threshold_cpu"
            ),
            models.CheckConstraint(
                condition=Q(threshold_memory=None) | Q(threshold_memory__gte=1, threshold_memory__lte=100),
                name="environment_threshold_memory",
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class EnvironmentRegion(models.Model):
    """A region that an environment's deployments run in, and how many instances there."""

    id = models.BigAutoField(primary_key=True)
    environment: Any = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="regions")
    region: Any = models.ForeignKey("cluster.Region", on_delete=models.PROTECT, related_name="+")
    replicas_min = models.PositiveSmallIntegerField(default=1)
    replicas_max = models.PositiveSmallIntegerField(default=1)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["environment", "region"], name="environment_region_once"),
            models.CheckConstraint(
                condition=Q(replicas_min__gte=1) & Q(replicas_max__gte=models.F("replicas_min")),
                name="environment_region_replicas",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.environment_id} in {self.region_id}"


class EnvironmentVariable(Tenant):
    """A variable of an environment, as the vault's ciphertext (key ring: the environment's id)."""

    class Kind(models.TextChoices):
        RECOVERABLE = "recoverable"
        WRITEONLY = "writeonly"

    id = id_field("evr")
    environment: Any = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="variables")
    key = models.CharField(max_length=256)
    ciphertext = models.TextField(editable=False)
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.WRITEONLY)
    description = models.CharField(max_length=255, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["environment", "key"], name="variable_key")]

    def __str__(self) -> str:
        return self.key


def given_slug(row: Project | App | Environment) -> str:
    """Return the slug that people gave; what is being deleted is renamed, see `removal.release_slug`."""
    return row.slug.partition("~")[0]
