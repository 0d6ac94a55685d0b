"""Writes of namespaces and overrides: at every edge within a second."""

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.cluster import versions
from apps.ratelimits.models import Namespace, Override
from apps.ratelimits.queries import namespace_not_found, override_not_found
from apps.workspaces.models import shard_of
from unkey import clock, errors
from unkey.actors import Actor


def ensure_namespace(workspace_id: str, name: str, *, actor: Actor) -> Namespace:
    """Return the namespace of a name, made if there is none; a deleted one is returned as it is."""
    try:
        return create_namespace(workspace_id, name, actor=actor)
    except errors.RatelimitNamespaceAlreadyExists:
        return Namespace.objects.get(workspace_id=workspace_id, name=name)


def create_namespace(workspace_id: str, name: str, *, actor: Actor) -> Namespace:
    """Make a namespace.

    Raises:
        RatelimitNamespaceAlreadyExists: there is, or was, one of this name.
    """
    namespace = Namespace(workspace_id=workspace_id, name=name, shard=shard_of(workspace_id))
    try:
        with transaction.atomic():
            versions.stamp(namespace)
            namespace.save(force_insert=True)
            audit.record(
                "ratelimitNamespace.create", actor=actor, workspace_id=workspace_id, targets=[namespace]
            )
    except IntegrityError:
        raise _taken(name) from None
    return namespace


def rename_namespace(namespace: Namespace, name: str, *, actor: Actor) -> Namespace:
    """Give a namespace another name; what was counted in it stays.

    Raises:
        RatelimitNamespaceNotFound: it was deleted.
        RatelimitNamespaceAlreadyExists: there is, or was, another one of this name.
    """
    try:
        with transaction.atomic():
            namespace = _locked(namespace)
            versions.stamp(namespace)
            before, namespace.name, namespace.updated_at = namespace.name, name, clock.now()
            namespace.save(update_fields=["name", "updated_at", "version"])
            audit.record(
                "ratelimitNamespace.update",
                actor=actor,
                workspace_id=namespace.workspace_id,
                targets=[namespace],
                meta={"before": {"name": before}, "after": {"name": name}},
            )
    except IntegrityError:
        raise _taken(name) from None
    return namespace


def delete_namespace(namespace: Namespace, *, actor: Actor) -> None:
    """Delete a namespace: limits in it are refused from now on, and its name stays taken.

    Raises:
        RatelimitNamespaceNotFound: it was deleted already.
    """
    with transaction.atomic():
        namespace = _locked(namespace)
        versions.stamp(namespace)
        namespace.deleted_at = namespace.updated_at = clock.now()
        namespace.save(update_fields=["deleted_at", "updated_at", "version"])
        audit.record(
            "ratelimitNamespace.delete",
            actor=actor,
            workspace_id=namespace.workspace_id,
            targets=[namespace],
        )


def set_override(
    namespace: Namespace, identifier: str, *, limit: int, duration_ms: int, actor: Actor
) -> Override:
    """Give an identifier, or all that match a pattern, another limit; one that was there keeps its id.

    Args:
        identifier: `*` stands for any text, also none.
        limit: most cost in a window; 0 denies everything that costs.
        duration_ms: length of the window, at least a second.

    Raises:
        RatelimitNamespaceNotFound: the namespace was deleted.
    """
    with transaction.atomic():
        # The namespace's row keeps others from making the same override, and it from being deleted.
        namespace = _locked(namespace)
        override = (
            Override.objects.select_for_update().filter(namespace=namespace, identifier=identifier).first()
        )
        fresh = override is None
        override = override or Override(
            workspace_id=namespace.workspace_id,
            namespace=namespace,
            identifier=identifier,
            shard=shard_of(namespace.workspace_id),
        )
        before = {} if fresh or override.deleted_at else _shown(override)
        override.limit, override.duration_ms, override.deleted_at = limit, duration_ms, None
        override.updated_at = override.updated_at if fresh else clock.now()
        versions.stamp(override)
        override.save(force_insert=fresh)
        _tell("set_override", override, actor, before, _shown(override))
    return override


def delete_override(namespace: Namespace, identifier: str, *, actor: Actor) -> None:
    """Delete the override of exactly this text: identifiers go back to the limits of their requests.

    Raises:
        RatelimitOverrideNotFound: there is none.
        RatelimitNamespaceNotFound: the namespace was deleted.
    """
    with transaction.atomic():
        namespace = _locked(namespace)
        override = (
            Override.objects.select_for_update()
            .filter(namespace=namespace, identifier=identifier, deleted_at=None)
            .first()
        )
        if override is None:
            raise override_not_found(identifier)
        override.namespace = namespace
        versions.stamp(override)
        override.deleted_at = override.updated_at = clock.now()
        override.save(update_fields=["deleted_at", "updated_at", "version"])
        _tell("delete_override", override, actor, _shown(override), {})


def _locked(namespace: Namespace) -> Namespace:
    found = Namespace.objects.select_for_update().filter(pk=namespace.pk, deleted_at=None).first()
    if found is None:
        raise namespace_not_found(namespace.name)
    return found


def _taken(name: str) -> errors.Fault:
    return errors.RatelimitNamespaceAlreadyExists(
        f"The name '{name}' is, or was, another namespace's; choose another one."
    )


def _shown(override: Override) -> dict[str, int]:
    return {"limit": override.limit, "duration": override.duration_ms}


def _tell(verb: str, override: Override, actor: Actor, before: dict[str, int], after: dict[str, int]) -> None:
    audit.record(
        f"ratelimit.{verb}",
        actor=actor,
        workspace_id=override.workspace_id,
        targets=[override, override.namespace],
        meta={"before": before, "after": after},
    )
