"""Who does something: recorded in the audit log and carried through every write."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Actor:
    """The subject of a change.

    Args:
        type: kind of subject.
        id: identifier of the root key, user or system process.
        name: what people call it.
        remote_ip: address that the request came from, empty for the system.
        user_agent: as the client sent it, cut at 512 characters.
    """

    type: Literal["rootkey", "user", "system"]
    id: str
    name: str = ""
    remote_ip: str = ""
    user_agent: str = ""


def system(name: str) -> Actor:
    """Return the actor of a workflow, job or command."""
    return Actor(type="system", id=name, name=name)
