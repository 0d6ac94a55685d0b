"""What a comparison finds: changes with an id, a level, a place and a sentence."""

from dataclasses import dataclass
from enum import Enum, IntEnum


class Level(IntEnum):
    """How bad a change is for clients that were written against the earlier document."""

    INFO = 1
    WARNING = 2
    ERROR = 3


class Effect(Enum):
    """What a change does to the set of messages that are allowed."""

    NARROWS = "narrows"
    WIDENS = "widens"
    REPLACES = "replaces"
    UNKNOWN = "unknown"
    NONE = "none"


class Direction(Enum):
    """Who writes the message: the client its requests, the server its responses."""

    REQUEST = "request"
    RESPONSE = "response"

    def level(self, effect: Effect) -> Level:
        """Return how bad an effect is: clients must go on being heard, and go on understanding."""
        if effect is Effect.REPLACES:
            return Level.ERROR
        if effect is Effect.UNKNOWN:
            return Level.WARNING
        breaking = Effect.NARROWS if self is Direction.REQUEST else Effect.WIDENS
        return Level.ERROR if effect is breaking else Level.INFO


@dataclass(frozen=True, slots=True)
class Finding:
    """One change.

    Args:
        id: name of the check, as oasdiff has it where it has one.
        level: how bad.
        text: a sentence for people.
        method: upper case; empty for what belongs to no operation.
        path: template as the later document has it; the earlier one's if it is gone.
        operation_id: of the operation, if it has one.
        pointer: JSON pointer into the later document; into the earlier one for what is gone.
    """

    id: str
    level: Level
    text: str
    method: str = ""
    path: str = ""
    operation_id: str = ""
    pointer: str = ""

    @property
    def order(self) -> tuple[str, str, int, str, str, str]:
        """Where it stands in a report: by place, the worst first."""
        return (self.path, self.method, -self.level, self.id, self.pointer, self.text)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many things of one kind appeared, went, and changed."""

    added: int = 0
    deleted: int = 0
    modified: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one comparison has found, in a fixed order.

    Args:
        findings: by path, method, level (the worst first), id.
        endpoints, paths, schemas: counts, also of changes that touch no client (a description).
    """

    findings: tuple[Finding, ...]
    endpoints: Counts
    paths: Counts
    schemas: Counts

    @property
    def breaking(self) -> tuple[Finding, ...]:
        """The findings of level error."""
        return tuple(found for found in self.findings if found.level is Level.ERROR)

    @property
    def differs(self) -> bool:
        """Whether the documents differ in anything that is looked at."""
        return bool(self.findings) or any(
            counts != Counts() for counts in (self.endpoints, self.paths, self.schemas)
        )

    def count(self, level: Level) -> int:
        """Return how many findings are of one level."""
        return sum(found.level is level for found in self.findings)
