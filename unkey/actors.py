"""Who does something: recorded in the audit log and carried through every write."""

from dataclasses import dataclass
from datetime import datetime
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

    type: Literal["rootkey", "user", "system", "portalEndUser"]
    id: str
    name: str = ""
    remote_ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request was authenticated as, and what it may do.

    Args:
        workspace_id: the only workspace that the request sees.
        subject: `rootkey`, `user`, or `portalEndUser`.
        id: identifier of the root key, user or portal session.
        name: what people call it.
        permissions: tuples (`api.*.read_key`) and URN grants (`unkey:v1:ws_…:keyspaces/*#read_key`).
        requests_per_minute: the workspace's limit on management requests; None: no limit.
        expires_at: when it stops being valid; None: never.
    """

    workspace_id: str
    subject: Literal["rootkey", "user", "portalEndUser"]
    id: str
    name: str
    permissions: frozenset[str]
    requests_per_minute: int | None = None
    expires_at: datetime | None = None

    def actor(self, *, remote_ip: str = "", user_agent: str = "") -> Actor:
        """Return this principal as the actor of a change."""
        return Actor(self.subject, self.id, self.name, remote_ip, user_agent[:512])


def system(name: str) -> Actor:
    """Return the actor of a workflow, job or command."""
    return Actor(type="system", id=name, name=name)
