"""Writes of permissions and roles.

What a permission or a role means to edges is part of the keys and roles that hold it: those are stamped
with one version when it goes. Their rows are locked before the stream, as in `services`.
"""

from collections.abc import Iterable, Sequence

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from apps.audit import services as audit
from apps.cluster import versions
from apps.keys.models import Key, Permission, Role
from apps.keys.queries import permission_not_found, role_not_found
from apps.keys.services import ensure_permissions
from apps.workspaces.models import shard_of
from unkey import clock, errors
from unkey.actors import Actor
from unkey.partial import UNSET, Unset


def create_permission(
    workspace_id: str, name: str, slug: str, *, description: str = "", actor: Actor
) -> Permission:
    """Make a permission.

    Raises:
        PermissionAlreadyExists: there is one of this slug.
    """
    permission = Permission(workspace_id=workspace_id, name=name, slug=slug, description=description)
    try:
        with transaction.atomic():
            permission.save(force_insert=True)
            audit.record("permission.create", actor=actor, workspace_id=workspace_id, targets=[permission])
    except IntegrityError:
        raise errors.PermissionAlreadyExists(f"A permission with the slug '{slug}' already exists.") from None
    return permission


def update_permission(
    permission: Permission,
    *,
    name: str | Unset = UNSET,
    slug: str | Unset = UNSET,
    description: str | Unset | None = UNSET,
    actor: Actor,
) -> Permission:
    """Change what is mentioned of a permission; keys and roles keep it, by its new slug.

    Args:
        description: None and the empty text remove it.

    Raises:
        PermissionAlreadyExists: another one has the slug.
        PermissionNotFound: it was deleted.
    """
    try:
        with transaction.atomic():
            if slug is not UNSET and slug != permission.slug:
                _stamp(
                    permission.workspace_id,
                    Key.objects.filter(permissions=permission),
                    Role.objects.filter(permissions=permission),
                )
            found = Permission.objects.select_for_update().filter(pk=permission.pk).first()
            if found is None:
                raise permission_not_found(permission.slug)
            before = audit.state(found, "name", "slug", "description")
            changed = _changed(found, name=name, slug=slug, description=description)
            if changed:
                found.updated_at = clock.now()
                found.save()
                audit.record(
                    "permission.update",
                    actor=actor,
                    workspace_id=found.workspace_id,
                    targets=[found],
                    before=before,
                    after=audit.state(found, *before),
                )
    except IntegrityError:
        raise errors.PermissionAlreadyExists(f"A permission with the slug '{slug}' already exists.") from None
    return found


def delete_permission(permission: Permission, *, actor: Actor) -> None:
    """Delete a permission: no key and no role has it any more, at every edge within a second.

    Raises:
        PermissionNotFound: it was deleted already.
    """
    with transaction.atomic():
        _stamp(
            permission.workspace_id,
            Key.objects.filter(permissions=permission),
            Role.objects.filter(permissions=permission),
        )
        found = Permission.objects.select_for_update().filter(pk=permission.pk).first()
        if found is None:
            raise permission_not_found(permission.slug)
        audit.record("permission.delete", actor=actor, workspace_id=found.workspace_id, targets=[found])
        found.delete()


def create_role(
    workspace_id: str,
    name: str,
    *,
    description: str = "",
    permissions: Sequence[str] = (),
    actor: Actor,
) -> Role:
    """Make a role.

    Args:
        permissions: slugs; those that do not exist are made.

    Raises:
        RoleAlreadyExists: there is one of this name.
    """
    role = Role(workspace_id=workspace_id, name=name, description=description, shard=shard_of(workspace_id))
    try:
        with transaction.atomic():
            versions.stamp(role)
            role.save(force_insert=True)
            audit.record("role.create", actor=actor, workspace_id=workspace_id, targets=[role])
            _connect(role, ensure_permissions(workspace_id, permissions, actor), actor)
    except IntegrityError:
        raise errors.RoleAlreadyExists(f"A role with the name '{name}' already exists.") from None
    return role


def update_role(
    role: Role,
    *,
    name: str | Unset = UNSET,
    description: str | Unset | None = UNSET,
    actor: Actor,
) -> Role:
    """Change what is mentioned of a role; keys keep it, by its new name.

    Args:
        description: None and the empty text remove it.

    Raises:
        RoleAlreadyExists: another one has the name.
        RoleNotFound: it was deleted.
    """
    try:
        with transaction.atomic():
            found = Role.objects.select_for_update().filter(pk=role.pk).first()
            if found is None:
                raise role_not_found(role.name)
            before = audit.state(found, "name", "description")
            changed = _changed(found, name=name, description=description)
            if changed:
                versions.stamp(found)
                found.updated_at = clock.now()
                found.save()
                audit.record(
                    "role.update",
                    actor=actor,
                    workspace_id=found.workspace_id,
                    targets=[found],
                    before=before,
                    after=audit.state(found, *before),
                )
    except IntegrityError:
        raise errors.RoleAlreadyExists(f"A role with the name '{name}' already exists.") from None
    return found


def delete_role(role: Role, *, actor: Actor) -> None:
    """Delete a role: no key has it any more, at every edge within a second.

    Raises:
        RoleNotFound: it was deleted already.
    """
    with transaction.atomic():
        _stamp(role.workspace_id, Key.objects.filter(roles=role), Role.objects.filter(pk=role.pk))
        found = Role.objects.select_for_update().filter(pk=role.pk).first()
        if found is None:
            raise role_not_found(role.name)
        audit.record("role.delete", actor=actor, workspace_id=found.workspace_id, targets=[found])
        found.delete()


def set_role_permissions(role: Role, slugs: Sequence[str], *, actor: Actor) -> None:
    """Give a role exactly these permissions; those that do not exist are made.

    Raises:
        RoleNotFound: it was deleted.
    """
    with transaction.atomic():
        found = Role.objects.select_for_update().filter(pk=role.pk).first()
        if found is None:
            raise role_not_found(role.name)
        versions.stamp(found)
        found.updated_at = clock.now()
        found.save(update_fields=["version", "updated_at"])
        wanted = ensure_permissions(found.workspace_id, slugs, actor)
        kept = {row.pk for row in wanted}
        held = list(found.permissions.all())
        removed = [row for row in held if row.pk not in kept]
        if removed:
            found.permissions.remove(*removed)
            _tell("authorization.disconnect_role_and_permissions", found, removed, actor)
        had = {row.pk for row in held}
        _connect(found, [row for row in wanted if row.pk not in had], actor)


def _changed(row: Permission | Role, **fields: str | Unset | None) -> dict[str, str]:
    """Set the fields that are mentioned and differ, and return them."""
    given = {name: value or "" for name, value in fields.items() if not isinstance(value, Unset)}
    changed = {name: value for name, value in given.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return changed


def _connect(role: Role, permissions: Sequence[Permission], actor: Actor) -> None:
    if permissions:
        role.permissions.add(*permissions)
        _tell("authorization.connect_role_and_permission", role, permissions, actor)


def _tell(event: str, role: Role, permissions: Iterable[Permission], actor: Actor) -> None:
    audit.record(event, actor=actor, workspace_id=role.workspace_id, targets=[role, *permissions])


def _stamp(workspace_id: str, keys: QuerySet[Key], roles: QuerySet[Role]) -> None:
    """Give keys and roles one new version of the workspace's stream."""
    for rows in (keys, roles):
        list(rows.order_by("pk").select_for_update().values_list("pk"))
    version = versions.next_version(f"keys:{shard_of(workspace_id)}")
    # What has come since the rows were locked is caught here: nothing comes while the stream is held.
    keys.update(version=version)
    roles.update(version=version)
