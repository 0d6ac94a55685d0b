"""Which keys have something to do now, and which of them a process without free places can serve."""

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Any

from django.db.models import Case, CharField, Exists, F, Func, Max, Min, OuterRef, Q, Value, When
from django.db.models.functions import Cast, Coalesce, Concat

from apps.workflows.definition import Step, workflows
from apps.workflows.models import State, WorkflowKey, WorkflowRun
from unkey import clock

BATCH = 500


class Room(Enum):
    """Which outside parts could begin in a process now. Parts that only record need no place."""

    ALL = "all"
    URGENT = "urgent"
    NONE = "none"


def due_keys(queues: Iterable[str] | None = None, limit: int = BATCH, room: Room = Room.ALL) -> list[str]:
    """Return keys that have a run to drive now, urgent ones first, then by how long they are due.

    Keys that somebody holds (a live lease, an exclusive run that itself is not due) are left out.

    Args:
        queues: of these only; None: of all.
        limit: most keys.
        room: leave out keys whose next part is an outside part that there is no room for, so that any
            number of them hides nothing that can be done.
    """
    now = clock.now()
    held = WorkflowKey.objects.filter(
        Q(lease_expires_at__gt=now) | (Q(exclusive=True) & ~Q(holder=OuterRef("id")) & ~Q(holder="")),
        key=OuterRef("key"),
    )
    due = WorkflowRun.objects.annotate(next_part=_NEXT_PART).filter(~Exists(held), next_at__lte=now)
    if queues is not None:
        due = due.filter(queue__in=list(queues))
    # Grouped by an expression: by the column itself SQLite walks the whole index of keys, parked runs too.
    named = due.order_by().annotate(name=Coalesce("key", Value(""))).values("name")
    keys = named.annotate(first=Min("next_at"), most=Max("urgent"))
    if room is not Room.ALL:
        # Whose turn it is in its key has the lowest rank: as `rows.next_runs` chooses.
        rank = F("arrival") - Case(When(urgent=True, then=Value(2**62)), default=Value(0))
        keys = keys.annotate(turn=Min(rank), placeless=Min(rank, filter=~_wants_place()))
        keys = keys.filter(turn=F("placeless"))
    found = [row["name"] for row in keys.order_by("-most", "first")[:limit]]
    if room is Room.URGENT:  # with those whose turn is that of a run that holds an urgent one up
        leased = WorkflowKey.objects.filter(lease_expires_at__gt=now, key=OuterRef("key"))
        urgent = WorkflowRun.objects.filter(~Exists(leased), urgent=True, next_at__lte=now)
        if queues is not None:
            urgent = urgent.filter(queue__in=list(queues))
        hurried = urgent.order_by("next_at").values_list("key", flat=True)[:limit]
        found = list(dict.fromkeys([*hurried, *found]))[:limit]
    return found


def unbegun_cancels(queues: Iterable[str] | None = None, limit: int = BATCH) -> list[tuple[str, str]]:
    """Return runs (id, key) that are to be cancelled and never began, whoever holds their keys."""
    found = WorkflowRun.objects.filter(
        next_at__lte=clock.now(), cancel_requested_at__isnull=False, state=State.PENDING, started_at=None
    )
    if queues is not None:
        found = found.filter(queue__in=list(queues))
    return list(found.order_by("next_at").values_list("id", "key")[:limit])


def next_due(queues: Iterable[str] | None = None) -> datetime | None:
    """Return the time of the nearest timer that is still to come."""
    later = WorkflowRun.objects.filter(next_at__gt=clock.now())
    if queues is not None:
        later = later.filter(queue__in=list(queues))
    return later.order_by("next_at").values_list("next_at", flat=True).first()


class _Element(Func):
    """The text at an index of a column that holds a JSON list of texts; NULL beyond its end."""

    function = "JSON_EXTRACT"
    output_field = CharField()

    def __init__(self, *expressions: Any, **extra: Any) -> None:
        names, index = expressions
        path = Concat(Value("$["), Cast(index, CharField()), Value("]"))
        super().__init__(names, path, **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        """Take the quotes off, which SQLite leaves away."""
        return self.as_sql(compiler, connection, template="JSON_UNQUOTE(%(function)s(%(expressions)s))")


_NEXT_PART = Coalesce(
    Case(
        When(undo__isnull=True, then=_Element("step_names", "step_index")),
        default=_Element("undo", "undo_index"),
    ),
    Value(""),
)


def _wants_place() -> Q:
    """Say which runs (with `next_part`) the running code knows to have an outside part next."""
    wanted = Q(pk__in=[])
    for name, workflow in workflows().items():
        of_it = Q(service=name)
        steps, undos = _outside(workflow.by_name), _outside(workflow.undo_by_name)
        if steps:
            forward = Q(undo__isnull=True, cancel_requested_at__isnull=True)
            wanted |= of_it & forward & Q(next_part__in=steps)
        if undos:
            wanted |= of_it & Q(undo__isnull=False, next_part__in=undos)
    return wanted


def _outside(steps: dict[str, Step]) -> list[str]:
    return [name for name, step in steps.items() if step.outside is not None]
