"""Tickets for live progress: a browser's EventSource can send no header, so its address carries one.

A ticket is signed, names one person, one workspace and what may be followed, and opens streams for a
minute. It is no session: it opens nothing else, and the place of its person is looked at again.
"""

from dataclasses import asdict, dataclass
from datetime import timedelta

from django.core import signing

from unkey import errors

LIFE = timedelta(seconds=60)
_SALT = "unkey.console.tickets"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a stream may show.

    Args:
        user: primary key of the person.
        workspace: id of the workspace.
        deployment: id of the one deployment that is followed; empty: all of the workspace.
        logs: whether the deployment's log lines are sent as well.
        token: id of the personal token that it was made by; empty: a session.
    """

    user: int
    workspace: str
    deployment: str = ""
    logs: bool = False
    token: str = ""


def sign(ticket: Ticket) -> str:
    """Return the text of a ticket."""
    return signing.dumps(asdict(ticket), salt=_SALT, compress=True)


def read(text: str) -> Ticket:
    """Return what a text was signed for.

    Raises:
        InvalidCredentials: it is no ticket of ours, or older than a minute.
    """
    try:
        return Ticket(**signing.loads(text, salt=_SALT, max_age=LIFE))
    except signing.BadSignature as error:
        raise errors.InvalidCredentials(
            "The ticket is invalid or older than a minute. Ask for a new one."
        ) from error
