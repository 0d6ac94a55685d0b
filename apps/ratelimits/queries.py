"""Reads of namespaces and overrides, in the scope of a workspace."""

from collections.abc import Collection

from django.db.models import Q, QuerySet

from apps.ratelimits.models import Namespace, Override
from unkey import errors


def live_namespaces() -> "QuerySet[Namespace]":
    """Return the namespaces that are not deleted."""
    return Namespace.objects.filter(deleted_at=None)


def get_namespace(name: str) -> Namespace:
    """Return a namespace by its id or its name; an id goes first.

    Raises:
        RatelimitNamespaceNotFound: unknown, deleted, or another workspace's.
    """
    found = find_namespaces([name]).get(name)
    if found is None or found.deleted_at is not None:
        raise namespace_not_found(name)
    return found


def find_namespaces(names: Collection[str]) -> dict[str, Namespace]:
    """Return namespaces by the ids or names that they were asked by, deleted ones too; an id goes first."""
    rows = list(Namespace.objects.filter(Q(pk__in=names) | Q(name__in=names)))
    found = {row.name: row for row in rows} | {row.pk: row for row in rows}
    return {name: found[name] for name in names if name in found}


def namespace_not_found(name: str) -> errors.Fault:
    """Return the fault for a namespace that the caller may not know of."""
    return errors.RatelimitNamespaceNotFound(f"The namespace {name} does not exist.")


def live_overrides(namespace: Namespace) -> "QuerySet[Override]":
    """Return a namespace's overrides that are not deleted."""
    return Override.objects.filter(namespace=namespace, deleted_at=None)


def candidates(namespace_ids: Collection[str], identifiers: Collection[str]) -> "QuerySet[Override]":
    """Return the overrides that may apply to identifiers: those of the same text, and patterns."""
    return Override.objects.filter(
        Q(identifier__in=set(identifiers)) | Q(identifier__contains="*"),
        namespace_id__in=namespace_ids,
        deleted_at=None,
    )


def override_not_found(identifier: str) -> errors.Fault:
    """Return the fault for an override that the caller may not know of."""
    return errors.RatelimitOverrideNotFound(f"There is no override for the identifier {identifier}.")
