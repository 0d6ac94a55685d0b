"""Workspace scope: tenant tables can be queried only inside one, and show only its rows.

    with workspace_scope("ws_…"):
        Project.objects.all()          # this workspace's projects

    Project.objects.all()              # raises OutsideWorkspace

    with unscoped("edge: lookup by key hash"):
        Key.objects.get(hash=…)        # every tenant; the reason is for the reader

The scope is fixed when a queryset is made, not when it is evaluated.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from django.db import models

_M = TypeVar("_M", bound=models.Model)
_EVERYONE = object()
_scope: ContextVar[object | None] = ContextVar("workspace_scope", default=None)


class OutsideWorkspace(RuntimeError):
    """A tenant table was touched outside any workspace scope, or a row of another workspace inside one."""


@contextmanager
def workspace_scope(workspace_id: str) -> Iterator[None]:
    """Limit every tenant query inside the block to one workspace."""
    token = _scope.set(workspace_id)
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def unscoped(reason: str) -> Iterator[None]:
    """Lift the scope inside the block; `reason` says why that is safe.

    Raises:
        ValueError: the reason is empty.
    """
    if not reason:
        raise ValueError("unscoped() needs a reason")
    token = _scope.set(_EVERYONE)
    try:
        yield
    finally:
        _scope.reset(token)


def current_workspace() -> str | None:
    """Return the workspace of the scope, or None outside of one or where it was lifted."""
    scope = _scope.get()
    return scope if isinstance(scope, str) else None


class TenantQuerySet(models.QuerySet[_M]):
    """A queryset that refuses to create rows of a workspace other than the scope's."""

    def create(self, **kwargs: Any) -> _M:
        instance = self.model(**kwargs)
        check_owner(instance)
        instance.save(force_insert=True, using=self.db)
        return instance

    def bulk_create(self, objs: Iterable[_M], *args: Any, **kwargs: Any) -> list[_M]:
        rows = list(objs)
        for row in rows:
            check_owner(row)
        return super().bulk_create(rows, *args, **kwargs)


class TenantManager(models.Manager[_M]):
    """The default manager of tenant tables: fails closed outside a scope."""

    def get_queryset(self) -> TenantQuerySet[_M]:
        scope = _scope.get()
        if scope is None:
            raise OutsideWorkspace(
                f"{self.model.__name__} was queried outside a workspace scope: "
                "use workspace_scope(id), or unscoped(reason)"
            )
        queryset: TenantQuerySet[_M] = TenantQuerySet(self.model, using=self._db)
        if scope is _EVERYONE:
            return queryset
        return queryset.filter(workspace_id=scope)

    def unscoped(self, reason: str) -> TenantQuerySet[_M]:
        """Return a queryset over all workspaces; `reason` says why that is safe."""
        with unscoped(reason):
            return self.get_queryset()


def check_owner(instance: Any) -> None:
    """Refuse a new row that is of another workspace than the scope's.

    Raises:
        OutsideWorkspace: or there is no scope.
    """
    scope = _scope.get()
    if scope is None:
        raise OutsideWorkspace(f"{type(instance).__name__} was created outside a workspace scope")
    if scope is not _EVERYONE and instance.workspace_id != scope:
        raise OutsideWorkspace(
            f"{type(instance).__name__} of workspace {instance.workspace_id} was created "
            f"in the scope of {scope}"
        )
