"""What agents and edges prove themselves by.

Two ways. `AGENT_TOKEN`, which the installation makes for itself, speaks for every satellite of it;
`AGENT_PREVIOUS_TOKENS` are still taken while it is replaced. A `Token` is made by an operator for one
satellite in one region, and cannot speak for another; two of them are valid while one replaces the other.
"""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Q, QuerySet

from apps.cluster.models import Agent, Region, Token
from unkey import clock, errors, ids
from unkey.env import env
from unkey.tokens import bears_agent_token

AGENT, EDGE = Token.Kind.AGENT, Token.Kind.EDGE
HOW = "Send AGENT_TOKEN, or a token that `manage.py cluster token create` made, as a bearer token."
VALID_AT_ONCE = 2
_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whom a token names; without a token of its own, any satellite of the installation."""

    token_id: str = ""
    kind: str = ""
    name: str = ""
    region: str = ""

    def refusal(self, kind: str, name: str | None, region: str | None) -> str:
        """Say why it may not speak for a satellite; empty when it may.

        Args:
            kind: `agent` or `edge`.
            name: the satellite's name; None: whatever it is.
            region: the satellite's region; None: whatever it is.
        """
        if not self.token_id:
            return ""
        if self.kind != kind:
            return f"This is the token of an {self.kind}."
        if name not in (None, self.name):
            return (
                f"This token is of {self.name}, not of {name or 'an unnamed one'}: check {kind.upper()}_ID."
            )
        if region not in (None, self.region):
            return f"This token speaks for region {self.region}, not for {region}: check REGION."
        return ""


INSTALLATION = Bearer()


def is_installation(authorization: str) -> bool:
    """Say whether an Authorization header bears AGENT_TOKEN or one of its predecessors; no database."""
    return bears_agent_token(authorization)


def bearer(authorization: str) -> Bearer | None:
    """Return whom an Authorization header names, None for nobody.

    Raises:
        django.db.Error: the database does not answer, and it is no token of the settings.
    """
    if is_installation(authorization):
        return INSTALLATION
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.startswith(
        tuple(f"unkey_{kind}_" for kind in Token.Kind.values)
    ):
        return None
    row = _valid().select_related("region").filter(digest=digest_of(text)).first()
    if row is None:
        return None
    now = clock.now()
    if row.last_used_at is None or now - row.last_used_at > _NOTED_EVERY:
        Token.objects.filter(pk=row.pk).update(last_used_at=now)
    return Bearer(row.id, row.kind, row.name, row.region.name)


def still_valid(token_ids: Collection[str]) -> set[str]:
    """Return those of the tokens that are neither revoked nor expired."""
    return set(_valid().filter(pk__in=token_ids).values_list("pk", flat=True))


def create(kind: str, name: str, region: str) -> tuple[Token, str]:
    """Make a token for a satellite; its text is returned this once and kept nowhere.

    Args:
        kind: `agent` or `edge`.
        name: its AGENT_ID or EDGE_ID.
        region: name of its region; made when it is new.

    Raises:
        PreconditionFailed: two are valid already.
    """
    with transaction.atomic():
        place, _ = Region.objects.get_or_create(name=region)
        Region.objects.select_for_update().get(pk=place.pk)
        valid = _valid().filter(kind=kind, name=name).order_by("created_at", "id")
        if len(valid) >= VALID_AT_ONCE:
            raise errors.PreconditionFailed(
                f"{kind} {name} has {len(valid)} valid tokens: revoke one first ({valid[0].id} is the older one)."
            )
        text = f"unkey_{kind}_{ids.base58(secrets.token_bytes(24))}"
        return Token.objects.create(kind=kind, name=name, region=place, digest=digest_of(text)), text


def rotate(kind: str, name: str, grace: timedelta) -> tuple[Token, str]:
    """Make a successor; the tokens that are valid now lapse after a grace.

    Raises:
        PreconditionFailed: there is none to replace, or two are valid already.
    """
    with transaction.atomic():
        current = _valid().select_related("region").filter(kind=kind, name=name).order_by("created_at").last()
        if current is None:
            raise errors.PreconditionFailed(f"{kind} {name} has no valid token: create one.")
        made = create(kind, name, current.region.name)
        lapses = clock.now() + grace
        _valid().filter(kind=kind, name=name).exclude(pk=made[0].pk).filter(
            Q(expires_at=None) | Q(expires_at__gt=lapses)
        ).update(expires_at=lapses)
    return made


def revoke(token_id: str) -> Token:
    """End a token at once; open streams of it end within seconds.

    Raises:
        PreconditionFailed: there is no such token.
    """
    row = Token.objects.filter(pk=token_id).first()
    if row is None:
        raise errors.PreconditionFailed(
            f"There is no token {token_id}: `manage.py cluster token list` shows all."
        )
    row.delete()
    row.pk = token_id
    return row


def credentials_for(agent: Agent) -> list[str]:
    """Return what an agent may know the control plane by, to be tried in turn.

    An agent with a token of its own takes its digest, which nobody else has but the database.
    """
    if agent.token is not None:
        return [agent.token.digest]
    return [env.secret("AGENT_TOKEN"), *env.AGENT_PREVIOUS_TOKENS]


def digest_of(text: str) -> str:
    """Return what is kept of a token; it has 192 bits of randomness, so a plain hash is enough."""
    return hashlib.sha256(text.encode()).hexdigest()


def _valid() -> QuerySet[Token]:
    return Token.objects.filter(Q(expires_at=None) | Q(expires_at__gt=clock.now()))
