"""What each role of a workspace may do. Whatever is not written here is refused."""

from enum import StrEnum

from apps.workspaces.models import Membership

Role = Membership.Role


class Action(StrEnum):
    """Something that people do in a workspace."""

    READ = "read"
    TOKENS = "make tokens"
    DEPLOY = "deploy"
    OPERATE = "switch, stop, start or cancel deployments"
    CONFIGURE = "change settings, variables or policies"
    CREATE = "create projects or apps"
    KEYS = "make or change APIs, keys, identities, permissions or roles"
    DELETE = "delete projects, apps, environments or APIs"
    APPROVE = "approve deployments"
    REVEAL = "read the values of variables"
    AUDIT = "read the audit log"
    MEMBERS = "manage members"
    ROOT_KEYS = "manage root keys"
    OWNERS = "grant or take the role owner"


_VIEWER = frozenset({Action.READ, Action.TOKENS})
_MEMBER = _VIEWER | {Action.DEPLOY, Action.OPERATE, Action.CONFIGURE, Action.CREATE, Action.KEYS}
_ADMIN = _MEMBER | {
    Action.DELETE,
    Action.APPROVE,
    Action.REVEAL,
    Action.AUDIT,
    Action.MEMBERS,
    Action.ROOT_KEYS,
}

ALLOWED: dict[Role, frozenset[Action]] = {
    Role.VIEWER: _VIEWER,
    Role.MEMBER: _MEMBER,
    Role.ADMIN: _ADMIN,
    Role.OWNER: frozenset(Action),
}
"""Each role may do what those before it may, and more."""

_ORDER = tuple(ALLOWED)


def may(role: Role, action: Action) -> bool:
    """Say whether a role may do something."""
    return action in ALLOWED[role]


def least(one: Role, other: Role) -> Role:
    """Return the role of two that may do less."""
    return min(one, other, key=_ORDER.index)


def covers(one: Role, other: Role) -> bool:
    """Say whether a role may do all that another may."""
    return ALLOWED[one] >= ALLOWED[other]
