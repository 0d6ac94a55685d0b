"""Tables of certificates."""

from typing import Any

from django.db import models

from unkey.models import Timestamped, Versioned, id_field


class Certificate(Timestamped, Versioned):
    """A certificate for one host name (`*.` stands for one label); its key as the vault's ciphertext."""

    id = id_field("cert")
    workspace: Any = models.ForeignKey(
        "workspaces.Workspace", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    hostname = models.CharField(max_length=253, unique=True)
    chain = models.TextField(help_text="PEM, leaf first")
    private_key = models.TextField(editable=False, help_text="ciphertext; key ring: `keyring`")
    keyring = models.CharField(max_length=64, editable=False)
    not_after = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.hostname

    @property
    def stream(self) -> str:
        return "certificates"
