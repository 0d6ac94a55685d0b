"""Writes of sources: keeps packed folders in the object store under their SHA-256."""

import hashlib
import re
from typing import BinaryIO

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.builds.models import Snapshot
from unkey import errors, objects, snapshots
from unkey.actors import Actor
from unkey.env import env
from unkey.errors import Violation

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def object_key(workspace_id: str, digest: str) -> str:
    """Return where the object store keeps a snapshot.

    Args:
        workspace_id: whose.
        digest: 64 hexadecimal digits.
    """
    return f"snapshots/{workspace_id}/{digest}"


def create_snapshot(
    workspace_id: str, file: BinaryIO, *, expected_digest: str | None, actor: Actor
) -> Snapshot:
    """Check and keep a packed folder; the same content again is the same snapshot.

    Args:
        workspace_id: whose.
        file: the archive, seekable; read from its beginning.
        expected_digest: `sha256:<64 hexadecimal digits>` that the sender computed, if it did.
        actor: who does it.

    Raises:
        errors.InvalidInput: the expected digest is malformed.
        errors.InvalidSnapshot: the archive is broken, too large, reaches outside of its folder, or is
            not what the sender sent; nothing is kept.
        errors.ServiceUnavailable: the object store cannot keep it.
    """
    expected = _read_digest(expected_digest)
    digest, size = _measure(file)
    if expected is not None and expected != digest:
        raise errors.InvalidSnapshot(
            f"The archive has the digest sha256:{digest}, not sha256:{expected}: it was damaged on its way."
        )
    file.seek(0)
    listing = snapshots.inspect(file)
    key = object_key(workspace_id, digest)
    try:
        store = objects.open_store(env.OBJECT_STORE_URL)
        if not store.exists(key):
            file.seek(0)
            store.put(key, file)
    except objects.StoreUnavailable as error:
        raise errors.ServiceUnavailable("The object store cannot keep the snapshot at the moment.") from error
    found = Snapshot.objects.filter(digest=digest).first()
    if found is not None:
        return found
    try:
        with transaction.atomic():
            row = Snapshot.objects.create(
                workspace_id=workspace_id, digest=digest, size=size, files=listing.files
            )
            audit.record("snapshot.create", actor=actor, workspace_id=workspace_id, targets=[row])
            return row
    except IntegrityError:
        # The same content was uploaded twice at once.
        return Snapshot.objects.get(digest=digest)


def _read_digest(text: str | None) -> str | None:
    if text is None:
        return None
    match = _DIGEST.fullmatch(text.strip())
    if match is None:
        message = "X-Unkey-Digest must read sha256: and 64 hexadecimal digits in lower case"
        raise errors.InvalidInput(message, violations=(Violation(message, "header.X-Unkey-Digest"),))
    return match[1]


def _measure(file: BinaryIO) -> tuple[str, int]:
    file.seek(0)
    hasher = hashlib.sha256()
    size = 0
    while chunk := file.read(1024 * 1024):
        hasher.update(chunk)
        size += len(chunk)
    return hasher.hexdigest(), size
