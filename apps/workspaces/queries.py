"""Reads of root keys, limits and usage, inside the caller's workspace scope."""

from collections.abc import Iterable
from datetime import UTC, datetime

from django.db.models import QuerySet

from apps.quota.models import Limits, Usage
from apps.workspaces.models import RootKey
from unkey import errors
from unkey.rpc.grants import grants


def root_keys() -> "QuerySet[RootKey]":
    """Return the root keys of the workspace that were not deleted."""
    return RootKey.objects.filter(deleted_at=None)


def readable_root_keys(workspace_id: str, held: Iterable[str]) -> "QuerySet[RootKey]":
    """Return the root keys that somebody with these permissions may see: all, or those that are named."""
    held = list(held)
    scope = f"unkey:v1:{workspace_id}:rootKeys/"
    if grants(held, f"{scope}*#read"):
        return root_keys()
    named = [text.removeprefix(scope).removesuffix("#read") for text in held if text.startswith(scope)]
    return root_keys().filter(pk__in=[one for one in named if grants(held, f"{scope}{one}#read")])


def find_root_key(root_key_id: str) -> RootKey:
    """Return a root key by id.

    Raises:
        KeyNotFound
    """
    found = root_keys().filter(pk=root_key_id).first()
    if found is None:
        raise root_key_not_found()
    return found


def root_key_not_found() -> errors.Fault:
    """Return that there is no such root key, without saying whether there is one elsewhere."""
    return errors.KeyNotFound("The requested root key does not exist.")


def limits_of(workspace_id: str) -> Limits:
    """Return what a workspace may use."""
    return Limits.objects.filter(pk=workspace_id).first() or Limits(workspace_id=workspace_id)


def usage_of(workspace_id: str, month: datetime) -> Usage:
    """Return what was counted of a workspace's operations in a calendar month; zeros if nothing was."""
    period = f"{month:%Y-%m}"
    found = Usage.objects.filter(workspace_id=workspace_id, period=period).first()
    return found or Usage(workspace_id=workspace_id, period=period)


def month(year: int, number: int) -> tuple[datetime, datetime]:
    """Return the first moment of a calendar month in UTC, and of the next."""
    start = datetime(year, number, 1, tzinfo=UTC)
    return start, datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
