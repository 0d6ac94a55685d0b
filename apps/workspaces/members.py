"""Writes of members and their personal tokens, and the check of a token."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.workspaces import roles
from apps.workspaces.models import Membership, PersonalToken, Workspace
from apps.workspaces.services import hash_of
from unkey import clock, errors, ids
from unkey.actors import Actor
from unkey.errors import Violation
from unkey.tenancy import workspace_scope

Role = Membership.Role

TOKEN_PREFIX = "unkey_pat_"  # noqa: S105 - what every token begins with
LONGEST_LIFE = timedelta(days=366)
_TOKEN_BYTES = 24
_USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who a personal token speaks for: its row, the person, and what it may do at most."""

    token: PersonalToken
    user: User
    role: Role


def add_member(workspace_id: str, username: str, role: Role, *, by: Role, actor: Actor) -> Membership:
    """Give a person who has an account a place in a workspace.

    Args:
        workspace_id: where.
        username: exact name of the account.
        role: what they may do there.
        by: the role of who does it; nobody grants more than they may themselves.
        actor: who does it.

    Raises:
        InvalidInput: there is no such account.
        Forbidden: the role may do more than `by`.
        MemberAlreadyExists: they are a member.
    """
    _refuse_more(role, by)
    user = User.objects.filter(username=username, is_active=True).first()
    if user is None:
        message = f"There is no account named {username[:150]!r}."
        fix = "Ask the person for the name that they log in with."
        raise errors.InvalidInput(message, violations=(Violation(message, "body.username", fix),))
    try:
        with transaction.atomic():
            row = Membership.objects.create(workspace_id=workspace_id, user=user, role=role)
            audit.record(
                "member.create", actor=actor, workspace_id=workspace_id, targets=[row], meta={"role": role}
            )
    except IntegrityError:
        raise errors.MemberAlreadyExists(f"{username} is a member of the workspace already.") from None
    return row


def set_role(membership_id: str, role: Role, *, by: Role, actor: Actor) -> Membership:
    """Give a member another role.

    Raises:
        MemberNotFound: the workspace in scope has no such member.
        Forbidden: the new or the present role may do more than `by`.
        PreconditionFailed: the workspace would have no owner left.
    """
    with transaction.atomic():
        row = _locked(membership_id)
        _refuse_more(Role(row.role), by)
        _refuse_more(role, by)
        if row.role != role:
            _keep_an_owner(row)
            before, row.role = row.role, role
            row.updated_at = clock.now()
            row.save(update_fields=["role", "updated_at"])
            audit.record(
                "member.update",
                actor=actor,
                workspace_id=row.workspace_id,
                targets=[row],
                before={"role": before},
                after={"role": role},
            )
    return row


def remove_member(membership_id: str, *, by: Role, actor: Actor) -> None:
    """Take a person's place in a workspace away, and with it their tokens of it.

    Raises:
        MemberNotFound: the workspace in scope has no such member.
        Forbidden: the member may do more than `by`.
        PreconditionFailed: the workspace would have no owner left.
    """
    with transaction.atomic():
        row = _locked(membership_id)
        _refuse_more(Role(row.role), by)
        _keep_an_owner(row)
        PersonalToken.objects.filter(user_id=row.user_id, revoked_at=None).update(revoked_at=clock.now())
        audit.record("member.delete", actor=actor, workspace_id=row.workspace_id, targets=[row])
        row.delete()


def create_token(
    workspace_id: str,
    user: User,
    name: str,
    role: Role,
    *,
    expires_at: datetime,
    by: Role,
    actor: Actor,
) -> tuple[PersonalToken, str]:
    """Make a personal token for a workspace; its text is returned once and never kept.

    Args:
        workspace_id: the only workspace that it can be used in.
        user: whose.
        name: what people call it.
        role: what it may do, as long as the person may.
        expires_at: when it stops working, within a year.
        by: the role of who does it.
        actor: who does it.

    Raises:
        InvalidInput: it would expire in the past, or after more than a year.
        Forbidden: the role may do more than `by`.
    """
    _refuse_more(role, by)
    now = clock.now()
    if not now < expires_at <= now + LONGEST_LIFE:
        message = f"expiresAt must be in the future, at most {LONGEST_LIFE.days} days from now"
        raise errors.InvalidInput(message, violations=(Violation(message, "body.expiresAt"),))
    secret = ids.base58(secrets.token_bytes(_TOKEN_BYTES))
    plaintext = f"{TOKEN_PREFIX}{secret}"
    with workspace_scope(workspace_id), transaction.atomic():
        row = PersonalToken.objects.create(
            workspace_id=workspace_id,
            user=user,
            role=role,
            name=name,
            hash=hash_of(plaintext),
            start=f"{TOKEN_PREFIX}{secret[:4]}",
            expires_at=expires_at,
        )
        audit.record(
            "token.create", actor=actor, workspace_id=workspace_id, targets=[row], meta={"role": role}
        )
    return row, plaintext


def revoke_token(token_id: str, *, user: User, by: Role, actor: Actor) -> None:
    """Stop a token for good: one of the person's own, or anybody's by who manages members.

    Raises:
        TokenNotFound: there is none in the workspace in scope, or it is somebody else's.
    """
    with transaction.atomic():
        row = PersonalToken.objects.select_for_update().filter(pk=token_id, revoked_at=None).first()
        if row is None or (row.user_id != user.pk and not roles.may(by, roles.Action.MEMBERS)):
            raise errors.TokenNotFound("The requested token does not exist.")
        row.revoked_at = row.updated_at = clock.now()
        row.save(update_fields=["revoked_at", "updated_at"])
        audit.record("token.revoke", actor=actor, workspace_id=row.workspace_id, targets=[row])


def authenticate_token(plaintext: str) -> Bearer:
    """Return who a personal token speaks for.

    The look-up is by SHA-256 of the whole text, so its time tells nothing about stored tokens.

    Raises:
        InvalidCredentials: unknown, revoked, expired, or its person has left the workspace.
    """
    now = clock.now()
    row = (
        PersonalToken.objects.unscoped("who is asking is not known yet")
        .select_related("user")
        .filter(hash=hash_of(plaintext), revoked_at=None, expires_at__gt=now, user__is_active=True)
        .first()
    )
    role = role_of(row.user, row.workspace_id) if row else None
    if row is None or role is None:
        raise errors.InvalidCredentials("The token is unknown, expired or revoked. Make a new one.")
    if row.last_used_at is None or now - row.last_used_at > _USED_EVERY:
        PersonalToken.objects.unscoped("the token that is asking").filter(pk=row.pk).update(last_used_at=now)
    return Bearer(row, row.user, roles.least(Role(row.role), role))


def role_of(user: User, workspace_id: str) -> Role | None:
    """Return a person's role in a workspace; None if they have no place there."""
    rows = Membership.objects.unscoped("a person's own place, in the workspace that is named")
    found = rows.filter(user=user.pk, workspace_id=workspace_id).values_list("role", flat=True).first()
    return None if found is None else Role(found)


def find_workspace(user: User, name: str) -> tuple[Workspace, Role]:
    """Return a workspace that a person belongs to, by id or slug, with its limits, and their role there.

    Raises:
        WorkspaceNotFound: there is none, or they are no member.
    """
    places = dict(
        Membership.objects.unscoped("a person's own places")
        .filter(user=user.pk)
        .values_list("workspace_id", "role")
    )
    rows = list(
        Workspace.objects.filter(pk__in=places, pk=name).select_related("limits")
        or Workspace.objects.filter(pk__in=places, slug=name).select_related("limits")
    )
    if not rows:
        raise errors.WorkspaceNotFound("The requested workspace does not exist.")
    return rows[0], Role(places[rows[0].id])


def _refuse_more(role: Role, by: Role) -> None:
    if not roles.covers(by, role):
        raise errors.Forbidden(f"Your role {by} may not grant or change the role {role}.")


def _locked(membership_id: str) -> Membership:
    row = Membership.objects.select_for_update().filter(pk=membership_id).select_related("user").first()
    if row is None:
        raise errors.MemberNotFound("The requested member does not exist.")
    return row


def _keep_an_owner(row: Membership) -> None:
    """Refuse to lose the last owner; two of them cannot leave at the same time."""
    if row.role != Role.OWNER:
        return
    Workspace.objects.select_for_update().get(pk=row.workspace_id)
    if not Membership.objects.filter(role=Role.OWNER).exclude(pk=row.pk).exists():
        raise errors.PreconditionFailed("A workspace keeps at least one owner. Make somebody else one first.")
