"""Portals, where customers' own users look after their keys, and the sessions that let them in.

A session is made for one user by a root key, with no more than the root key may do itself. Its code is
exchanged once for a token, which is a cookie of the portal's page from then on.
"""

import secrets
from collections.abc import Sequence
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from apps.audit import services as audit
from apps.keys.models import KeySpace, Portal, PortalSession
from apps.projects.models import App
from apps.quota.models import Limits
from apps.workspaces.services import hash_of
from unkey import clock, errors, ids
from unkey.actors import Actor, Principal
from unkey.env import env
from unkey.partial import UNSET, Unset

READ_KEYS, REROLL_KEYS, READ_ANALYTICS = "keys:read", "keys:reroll", "analytics:read"
SCOPES = (READ_KEYS, REROLL_KEYS, READ_ANALYTICS)
CODE_LIFE = timedelta(minutes=15)
TOKEN_LIFE = timedelta(hours=24)
_SECRET_OCTETS = 24


def portal_not_found() -> errors.Fault:
    """Return the fault for a portal that the caller may not know of."""
    return errors.PortalNotFound("The portal does not exist.")


def find_portal(name: str) -> Portal:
    """Return a portal of the workspace by its id or slug; an id goes first.

    Raises:
        PortalNotFound: unknown, or another workspace's.
    """
    found = list(Portal.objects.filter(Q(pk=name) | Q(slug=name)))
    if not found:
        raise portal_not_found()
    return max(found, key=lambda portal: portal.pk == name)


def portal_of(*, key_space_id: str | None = None, app_id: str | None = None) -> Portal:
    """Return the portal of a key space or of an app.

    Raises:
        PortalNotFound: it has none, or is another workspace's.
    """
    found = Portal.objects.filter(key_space=key_space_id, app=app_id).first()
    if found is None:
        raise portal_not_found()
    return found


def create_portal(
    workspace_id: str,
    *,
    slug: str,
    display_name: str,
    key_space_id: str | None = None,
    app_id: str | None = None,
    enabled: bool = True,
    logo_url: str = "",
    primary_color: str = "",
    actor: Actor,
) -> Portal:
    """Make a portal for exactly one key space or app.

    Raises:
        KeySpaceNotFound, AppNotFound: there is none in the workspace.
        PortalAlreadyExists: the slug is taken, or what it is for has a portal.
    """
    portal = Portal(
        workspace_id=workspace_id,
        slug=slug,
        display_name=display_name,
        enabled=enabled,
        logo_url=logo_url,
        primary_color=primary_color,
    )
    _point(portal, key_space_id, app_id)
    try:
        with transaction.atomic():
            portal.save(force_insert=True)
            audit.record("portal.create", actor=actor, workspace_id=workspace_id, targets=[portal])
    except IntegrityError:
        raise _taken(slug) from None
    return portal


def update_portal(
    portal: Portal,
    *,
    slug: str | Unset = UNSET,
    display_name: str | Unset = UNSET,
    key_space_id: str | None = None,
    app_id: str | None = None,
    enabled: bool | Unset = UNSET,
    logo_url: str | Unset | None = UNSET,
    primary_color: str | Unset | None = UNSET,
    actor: Actor,
) -> Portal:
    """Change what is mentioned of a portal; sessions end when it is disabled or is for something else.

    Args:
        key_space_id, app_id: what it is for from now on; None for both: as before.
        logo_url, primary_color: None removes it.

    Raises:
        KeySpaceNotFound, AppNotFound: there is none in the workspace.
        PortalAlreadyExists: the slug is taken, or what it is to be for has a portal.
        PortalNotFound: it was deleted.
    """
    try:
        with transaction.atomic():
            found = _locked(portal)
            before = (found.key_space_id, found.app_id, found.enabled)
            for name, value in (
                ("slug", slug),
                ("display_name", display_name),
                ("enabled", enabled),
                ("logo_url", logo_url),
                ("primary_color", primary_color),
            ):
                if not isinstance(value, Unset):
                    setattr(found, name, "" if value is None else value)
            if key_space_id is not None or app_id is not None:
                _point(found, key_space_id, app_id)
            found.updated_at = clock.now()
            found.save()
            ended = 0
            if (found.key_space_id, found.app_id, found.enabled) != before:
                ended = live_sessions(found).update(revoked_at=clock.now())
            audit.record(
                "portal.update",
                actor=actor,
                workspace_id=found.workspace_id,
                targets=[found],
                meta={"enabled": found.enabled, "sessionsRevoked": ended},
            )
    except IntegrityError:
        raise _taken(portal.slug if isinstance(slug, Unset) else slug) from None
    return found


def delete_portal(portal: Portal, *, actor: Actor) -> None:
    """Delete a portal; its sessions end.

    Raises:
        PortalNotFound: it was deleted already.
    """
    with transaction.atomic():
        found = _locked(portal)
        audit.record("portal.delete", actor=actor, workspace_id=found.workspace_id, targets=[found])
        found.delete()


def key_spaces_of(portal: Portal) -> list[KeySpace]:
    """Return the key spaces that a portal is for: its own, or those that guard its app's live deployment."""
    spaces = KeySpace.objects.select_related("api")
    if portal.key_space_id:
        return list(spaces.filter(pk=portal.key_space_id))
    live = App.objects.select_related("current_deployment").get(pk=portal.app_id).current_deployment
    policies = live.policies if live is not None else []
    named = {
        one
        for policy in policies
        if policy.get("enabled")
        for one in policy.get("keyauth", {}).get("keyspaces", ())
    }
    return list(spaces.filter(pk__in=named).order_by("pk"))


def create_session(
    portal: Portal,
    external_id: str,
    scopes: Sequence[str],
    key_spaces: Sequence[KeySpace],
    *,
    actor: Actor,
) -> tuple[PortalSession, str]:
    """Begin a session of a user; returns it and the address to send the user to.

    Raises:
        Forbidden: the portal is disabled.
        PreconditionFailed: PORTAL_URL says no page.
    """
    if not portal.enabled:
        raise errors.Forbidden("The portal is disabled; enable it first.")
    if not env.PORTAL_URL:
        raise errors.PreconditionFailed("This installation has no portal page; its operator sets PORTAL_URL.")
    code = _secret("pst")
    session = PortalSession(
        workspace_id=portal.workspace_id,
        portal=portal,
        external_id=external_id,
        scopes=list(dict.fromkeys(scopes)),
        key_spaces=[space.pk for space in key_spaces],
        code_hash=hash_of(code),
        expires_at=clock.now() + CODE_LIFE,
    )
    with transaction.atomic():
        session.save(force_insert=True)
        audit.record(
            "portal.session.create",
            actor=actor,
            workspace_id=portal.workspace_id,
            targets=[portal, session],
            meta={"externalId": external_id, "scopes": session.scopes},
        )
    return session, f"{env.PORTAL_URL}/?code={code}"


def exchange_code(code: str, *, remote_ip: str = "", user_agent: str = "") -> tuple[PortalSession, str]:
    """Exchange a code, once, for the token of its session.

    Raises:
        PortalSessionNotFound: unknown, used, revoked or expired.
    """
    now = clock.now()
    token = _secret("pat")
    with transaction.atomic():
        session = (
            PortalSession.objects.unscoped("the code says whose it is")
            .select_for_update()
            .filter(code_hash=hash_of(code), token_hash=None, revoked_at=None, expires_at__gt=now)
            .first()
        )
        if session is None:
            raise _session_not_found()
        session.token_hash = hash_of(token)
        session.expires_at = now + TOKEN_LIFE
        session.updated_at = now
        session.save(update_fields=["token_hash", "expires_at", "updated_at"])
        actor = Actor("portalEndUser", session.pk, session.external_id, remote_ip, user_agent[:512])
        audit.record(
            "portal.session.exchange", actor=actor, workspace_id=session.workspace_id, targets=[session]
        )
    return session, token


def authenticate_session(token: str) -> Principal:
    """Return who an access token speaks for: the user of its session, with its scopes as permissions.

    Raises:
        PortalSessionNotFound: unknown, revoked or expired, or its portal is disabled.
        WorkspaceDisabled: its workspace is.
    """
    session = (
        PortalSession.objects.unscoped("the token says whose it is")
        .select_related("workspace__limits")
        .filter(token_hash=hash_of(token), revoked_at=None, expires_at__gt=clock.now(), portal__enabled=True)
        .first()
    )
    if session is None:
        raise _session_not_found()
    if not session.workspace.enabled:
        raise errors.WorkspaceDisabled("The workspace is disabled.")
    limits: Limits | None = getattr(session.workspace, "limits", None)
    return Principal(
        workspace_id=session.workspace_id,
        subject="portalEndUser",
        id=session.pk,
        name=session.external_id,
        permissions=frozenset(session.scopes),
        requests_per_minute=limits.api_requests_per_minute if limits else None,
        expires_at=session.expires_at,
    )


def live_sessions(portal: Portal) -> "QuerySet[PortalSession]":
    """Return the sessions of a portal that can be revoked: neither expired nor revoked."""
    return PortalSession.objects.filter(portal=portal, revoked_at=None, expires_at__gt=clock.now())


def revoke_sessions(portal: Portal, external_id: str, *, actor: Actor) -> int:
    """End every session of a user at a portal; returns how many there were."""
    with transaction.atomic():
        ended = live_sessions(portal).filter(external_id=external_id).update(revoked_at=clock.now())
        if ended:
            audit.record(
                "portal.session.revoke",
                actor=actor,
                workspace_id=portal.workspace_id,
                targets=[portal],
                meta={"externalId": external_id, "sessionsRevoked": ended},
            )
    return ended


def _locked(portal: Portal) -> Portal:
    found = Portal.objects.select_for_update().filter(pk=portal.pk).first()
    if found is None:
        raise portal_not_found()
    return found


def _point(portal: Portal, key_space_id: str | None, app_id: str | None) -> None:
    portal.key_space = portal.app = None
    if key_space_id is not None:
        portal.key_space = KeySpace.objects.filter(pk=key_space_id, api__deleted_at=None).first()
        if portal.key_space is None:
            raise errors.KeySpaceNotFound(f"The key space {key_space_id} does not exist.")
    else:
        portal.app = App.objects.filter(pk=app_id, deleting_at=None).first()
        if portal.app is None:
            raise errors.AppNotFound(f"The app {app_id} does not exist.")


def _taken(slug: str) -> errors.Fault:
    return errors.PortalAlreadyExists(
        f"There is a portal with the slug '{slug}' already, or one for the same key space or app."
    )


def _session_not_found() -> errors.Fault:
    return errors.PortalSessionNotFound("The portal session does not exist or has ended; begin a new one.")


def _secret(prefix: str) -> str:
    return f"{prefix}_{ids.base58(secrets.token_bytes(_SECRET_OCTETS))}"
