"""What a handler is given, and the forms of its answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from django.db import models

from unkey import errors
from unkey.actors import Actor, Principal
from unkey.rpc import authorization
from unkey.rpc.authorization import Rule
from unkey.rpc.routes import Route

_M = TypeVar("_M", bound=models.Model)


@dataclass(frozen=True, slots=True)
class Page:
    """A list with a cursor to its next page; None: this was the last."""

    items: Sequence[Any]
    cursor: str | None = None


@dataclass(slots=True)
class Call:
    """One authenticated, validated request.

    Args:
        route: what was asked for.
        request_id: `req_…`, also in the answer.
        body: the decoded body with defaults filled in; empty for routes without a JSON body.
        headers: request headers, names in any case.
        remote_ip: address of the caller.
        principal: who asks.
        actor: the principal as the subject of changes.
        upload: file that holds an `Archive` body; removed after the answer.
    """

    route: Route
    request_id: str
    body: dict[str, Any]
    headers: Any
    remote_ip: str
    principal: Principal
    actor: Actor
    upload: Path | None = None
    authorized: bool = field(default=False, init=False)

    @property
    def workspace_id(self) -> str:
        """The workspace that the request acts in."""
        return self.principal.workspace_id

    def authorize(
        self,
        rule: Rule | None = None,
        *,
        masked: Callable[[], errors.Fault] | None = None,
        ids: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        """Let the caller pass, or refuse.

        Args:
            rule: what is needed; None: the permission of the route.
            masked: makes the "not found" that hides whether the resource exists.
            ids, more: a value for each placeholder of the rule.

        Raises:
            InsufficientPermissions: or the fault that `masked` makes.
        """
        wanted = rule or self.route.permission
        if wanted is None:
            raise RuntimeError(f"{self.route.name} has no permission to check")
        authorization.authorize(self.principal, wanted, {**(ids or {}), **more}, masked=masked)
        if rule is None:
            self.authorized = True

    def allows(self, ids: Mapping[str, str]) -> bool:
        """Say whether the caller has the permission of the route, for answers that do not refuse."""
        if self.route.permission is None:
            raise RuntimeError(f"{self.route.name} has no permission to check")
        self.authorized = True
        return not self.route.permission.lacks(self.principal, ids)


def paginate(
    rows: "models.QuerySet[_M]", body: dict[str, Any], show: Callable[[list[_M]], Iterable[Any]]
) -> Page:
    """Return the page of a queryset that a body's `limit` and `cursor` ask for, ordered by id.

    Args:
        rows: unordered, already filtered.
        body: `limit` (1 to 100) and `cursor`, the id of the first row of the page.
        show: turns the rows of the page into JSON, all at once so that it can fetch in bulk.
    """
    limit = body["limit"]
    if body.get("cursor"):
        rows = rows.filter(pk__gte=body["cursor"])
    found = list(rows.order_by("pk")[: limit + 1])
    cursor = str(found[limit].pk) if len(found) > limit else None
    return Page(list(show(found[:limit])), cursor)
