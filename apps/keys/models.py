"""Tables of the API-key product: key spaces, APIs, keys, identities, permissions, roles, limits."""

from typing import Any

from django.db import models
from django.db.models import Q

from apps.workspaces.models import shard_of
from unkey.models import Tenant, Versioned, id_field


class Sharded(Versioned):
    """A row of a `keys:<shard>` stream: edges read by `(shard, version)`."""

    workspace_id: str
    shard = models.PositiveSmallIntegerField(default=0, editable=False)

    class Meta:
        abstract = True

    @property
    def stream(self) -> str:
        return f"keys:{shard_of(self.workspace_id)}"


class KeySpace(Tenant):
    """The set of keys behind an API."""

    id = id_field("ks")
    default_prefix = models.CharField(max_length=16, blank=True)
    default_bytes = models.PositiveSmallIntegerField(default=16)
    store_encrypted_keys = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(default_bytes__gte=16, default_bytes__lte=255), name="keyspace_bytes"
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Api(Tenant, Sharded):
    """An API: the name under which a key space is managed."""

    id = id_field("api")
    name = models.CharField(max_length=256)
    key_space: Any = models.OneToOneField(KeySpace, on_delete=models.PROTECT, related_name="api")
    ip_whitelist = models.TextField(blank=True, help_text="addresses and CIDR ranges, separated by commas")
    delete_protection = models.BooleanField(default=False)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["shard", "version"]), models.Index(fields=["workspace", "id"])]

    def __str__(self) -> str:
        return self.name


class Identity(Tenant, Sharded):
    """A user of the customer's, who may hold several keys and share limits among them."""

    id = id_field("id")
    external_id = models.CharField(max_length=255)
    meta = models.JSONField(default=dict, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "identities"
        indexes = [models.Index(fields=["shard", "version"])]
        constraints = [
            models.UniqueConstraint(fields=["workspace", "external_id"], name="identity_external_id")
        ]

    def __str__(self) -> str:
        return self.external_id


class Permission(Tenant):
    """What a key may do, by slug."""

    id = id_field("perm")
    name = models.CharField(max_length=512)
    slug = models.CharField(max_length=512)
    description = models.CharField(max_length=512, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workspace", "slug"], name="permission_slug")]

    def __str__(self) -> str:
        return self.slug


class Role(Tenant, Sharded):
    """A named set of permissions."""

    id = id_field("role")
    name = models.CharField(max_length=512)
    description = models.CharField(max_length=512, blank=True)
    permissions: Any = models.ManyToManyField(Permission, related_name="roles", blank=True)

    class Meta:
        indexes = [models.Index(fields=["shard", "version"])]
        constraints = [models.UniqueConstraint(fields=["workspace", "name"], name="role_name")]

    def __str__(self) -> str:
        return self.name


class KeyMigration(Tenant):
    """Where imported keys come from: under what name they are imported, and how they were hashed there."""

    class Algorithm(models.TextChoices):
        SHA256 = "sha256", "SHA-256 of the whole key"
        PREFIXED = "github.com/seamapi/prefixed-api-key", "prefixed-api-key: SHA-256 of the long token"

    id = id_field("mig")
    name = models.CharField(max_length=255)
    algorithm = models.CharField(max_length=64, choices=Algorithm.choices)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workspace", "name"], name="keymigration_name")]

    def __str__(self) -> str:
        return self.name


class Key(Tenant, Sharded):
    """An API key; only the hash of its text is kept."""

    class Refill(models.TextChoices):
        DAILY = "daily"
        MONTHLY = "monthly"

    id = id_field("key")
    key_space: Any = models.ForeignKey(KeySpace, on_delete=models.PROTECT, related_name="keys")
    identity: Any = models.ForeignKey(
        Identity, null=True, blank=True, on_delete=models.SET_NULL, related_name="keys"
    )
    hash = models.CharField(max_length=64, unique=True, editable=False)
    pending_migration: Any = models.ForeignKey(
        KeyMigration,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="keys",
        help_text="whose hash the key still has; its first use gives it one of ours",
    )
    start = models.CharField(max_length=50, blank=True)
    name = models.CharField(max_length=255, blank=True)
    meta = models.JSONField(default=dict, blank=True)
    enabled = models.BooleanField(default=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    remaining = models.BigIntegerField(
        null=True, blank=True, help_text="credits not leased to an edge; null: unlimited"
    )
    credits_epoch = models.PositiveIntegerField(default=0, help_text="leases of an earlier epoch are void")
    refill_interval = models.CharField(max_length=8, choices=Refill.choices, blank=True)
    refill_amount = models.BigIntegerField(null=True, blank=True)
    refill_day = models.PositiveSmallIntegerField(null=True, blank=True)
    last_refill_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    permissions: Any = models.ManyToManyField(Permission, related_name="keys", blank=True)
    roles: Any = models.ManyToManyField(Role, related_name="keys", blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["shard", "version"]),
            models.Index(fields=["key_space", "id"]),
            models.Index(fields=["identity", "id"]),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(remaining__isnull=True) | Q(remaining__gte=0), name="key_remaining"
            ),
            models.CheckConstraint(
                condition=Q(refill_interval="", refill_amount__isnull=True)
                | Q(refill_interval__in=["daily", "monthly"], refill_amount__gte=1),
                name="key_refill",
            ),
            models.CheckConstraint(
                condition=Q(refill_day__isnull=True) | Q(refill_day__gte=1, refill_day__lte=31),
                name="key_refill_day",
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.start or self.id


class EncryptedKey(models.Model):
    """The vault's ciphertext of a recoverable key."""

    key: Any = models.OneToOneField(Key, primary_key=True, on_delete=models.CASCADE, related_name="encrypted")
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.PROTECT, related_name="+")
    ciphertext = models.TextField()

    def __str__(self) -> str:
        return str(self.key_id)


class Ratelimit(Tenant):
    """A named limit of a key or of an identity."""

    id = id_field("rl")
    key: Any = models.ForeignKey(
        Key, null=True, blank=True, on_delete=models.CASCADE, related_name="ratelimits"
    )
    identity: Any = models.ForeignKey(
        Identity, null=True, blank=True, on_delete=models.CASCADE, related_name="ratelimits"
    )
    name = models.CharField(max_length=128)
    limit = models.BigIntegerField()
    duration_ms = models.BigIntegerField()
    auto_apply = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key", "name"], name="ratelimit_key_name"),
            models.UniqueConstraint(fields=["identity", "name"], name="ratelimit_identity_name"),
            models.CheckConstraint(
                condition=Q(key__isnull=True, identity__isnull=False)
                | Q(key__isnull=False, identity__isnull=True),
                name="ratelimit_owner",
            ),
            models.CheckConstraint(
                condition=Q(limit__gte=1, duration_ms__gte=1000), name="ratelimit_positive"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.limit} per {self.duration_ms} ms"


class CreditLease(models.Model):
    """Credits handed to one edge, which spends them from memory."""

    id = id_field("lease")
    workspace: Any = models.ForeignKey("workspaces.Workspace", on_delete=models.PROTECT, related_name="+")
    key: Any = models.ForeignKey(Key, on_delete=models.CASCADE, related_name="leases")
    edge_id = models.CharField(max_length=64)
    epoch = models.PositiveIntegerField()
    amount = models.BigIntegerField()
    spent = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        indexes = [models.Index(fields=["edge_id", "key"])]
        constraints = [
            models.CheckConstraint(
                condition=Q(spent__gte=0) & Q(spent__lte=models.F("amount")), name="lease_spent"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount} credits of {self.key_id} at {self.edge_id}"


class KeyImport(Tenant):
    """How far an operator's import of a file of keys is: what a restart goes on from."""

    id = id_field("imp")
    api: Any = models.ForeignKey(Api, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=64, help_text="SHA-256 of the file")
    total = models.PositiveBigIntegerField(help_text="entries of the file")
    read = models.PositiveBigIntegerField(default=0)
    imported = models.PositiveBigIntegerField(default=0)
    rejected = models.PositiveBigIntegerField(default=0)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["api", "source"], name="key_import_once")]

    def __str__(self) -> str:
        return f"{self.read} of {self.total} into {self.api_id}"


class Portal(Tenant):
    """A page where customers' own users look after their keys: of one key space, or of those that guard an app."""

    id = id_field("pc")
    slug = models.CharField(max_length=64)
    display_name = models.CharField(max_length=256)
    key_space: Any = models.OneToOneField(
        KeySpace, null=True, blank=True, on_delete=models.PROTECT, related_name="portal"
    )
    app: Any = models.OneToOneField(
        "projects.App", null=True, blank=True, on_delete=models.CASCADE, related_name="portal"
    )
    enabled = models.BooleanField(default=True)
    logo_url = models.CharField(max_length=500, blank=True)
    primary_color = models.CharField(max_length=7, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["workspace", "slug"], name="portal_slug"),
            models.CheckConstraint(
                condition=Q(key_space__isnull=True, app__isnull=False)
                | Q(key_space__isnull=False, app__isnull=True),
                name="portal_resource",
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class PortalSession(Tenant):
    """What one user may do at a portal: begun with a code, used with a token; only their hashes are kept."""

    id = id_field("ps")
    portal: Any = models.ForeignKey(Portal, on_delete=models.CASCADE, related_name="sessions")
    external_id = models.CharField(max_length=256)
    scopes = models.JSONField()
    key_spaces = models.JSONField(help_text="ids, as they were when the session was made")
    code_hash = models.CharField(max_length=44, unique=True, editable=False)
    token_hash = models.CharField(max_length=44, unique=True, null=True, editable=False)
    expires_at = models.DateTimeField(help_text="of the code until it is exchanged, then of the token")
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["portal", "external_id"]), models.Index(fields=["expires_at"])]

    def __str__(self) -> str:
        return f"{self.external_id} at {self.portal_id}"
