"""The steps of a verification, on plain inputs: status, IP list, permissions, rate limits, credits.

The edge gives them records from memory, web the same records made from its rows:

    subject = Subject(key, workspace, api, identity, roles)
    verdict = verify(subject, Request(query=parse("a AND b")), limiter, now_ms)
    cost = credit_cost(verdict, None)      # not None: spend it, then set verdict.credits and verdict.code
    body = render(verdict)

Source: reference, api.md 2.3 and 2.4.
"""

from collections.abc import Sequence
from functools import cached_property
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec
from msgspec import Struct

from edge.store.records import Api, Identity, KeyRecord, Ratelimit, Role, Workspace
from edge.telemetry.facts import key_facts
from edge.verify.limiter import Limit, Limiter
from edge.verify.permissions import Query
from unkey.errors import PreconditionFailed

VALID = "VALID"
NOT_FOUND = "NOT_FOUND"
FORBIDDEN = "FORBIDDEN"
INSUFFICIENT_PERMISSIONS = "INSUFFICIENT_PERMISSIONS"
USAGE_EXCEEDED = "USAGE_EXCEEDED"
RATE_LIMITED = "RATE_LIMITED"
DISABLED = "DISABLED"
EXPIRED = "EXPIRED"

_encode = msgspec.json.encode


class Applied(Struct, frozen=True):
    """A configured or ad-hoc limit and the counter that it is counted on; `id` is empty for ad-hoc ones."""

    id: str
    name: str
    auto_apply: bool
    limit: Limit
    head: bytes

    def costing(self, cost: int) -> "Applied":
        """Return the same limit with another cost."""
        limit = self.limit
        return msgspec.structs.replace(self, limit=Limit(limit.counter, limit.limit, cost))


def _applied(ratelimit: Ratelimit, workspace_id: str, identifier: str, cost: int = 1) -> Applied:
    head = _encode(
        {
            "id": ratelimit.id,
            "name": ratelimit.name,
            "limit": ratelimit.limit,
            "duration": ratelimit.duration,
            "autoApply": ratelimit.auto_apply,
        }
    )
    counter = (workspace_id, ratelimit.name, identifier, ratelimit.duration)
    return Applied(
        ratelimit.id, ratelimit.name, ratelimit.auto_apply, Limit(counter, ratelimit.limit, cost), head[:-1]
    )


class Subject:
    """A key with everything that its verification needs, joined once and reused while nothing changed.

    Args:
        key: the key.
        workspace: whose it is.
        api: the API of its key space.
        identity: who holds it, None if nobody or deleted.
        roles: the key's roles.
        generation: the caller's mark of when it was joined.
    """

    def __init__(
        self,
        key: KeyRecord,
        workspace: Workspace,
        api: Api,
        identity: Identity | None,
        roles: Sequence[Role],
        generation: int = 0,
    ) -> None:
        self.key = key
        self.workspace = workspace
        self.api = api
        self.identity = identity
        self.generation = generation
        self.role_names = tuple(sorted(role.name for role in roles))
        self.permissions = frozenset(key.permissions).union(*(role.permissions for role in roles))
        self.limits: dict[str, Applied] = {}
        if identity is not None:
            for ratelimit in identity.ratelimits:
                self.limits[ratelimit.name] = _applied(ratelimit, key.workspace_id, identity.id)
        for ratelimit in key.ratelimits:
            self.limits[ratelimit.name] = _applied(ratelimit, key.workspace_id, key.id)
        self.automatic = tuple(applied for applied in self.limits.values() if applied.auto_apply)
        self.blocked = _blocked(key, workspace, api)

    def status(self, now_ms: int) -> str:
        """Return the code that the key loads with, in the order of the reference, 2.3."""
        if self.blocked:
            return self.blocked
        expires = self.key.expires_at
        if expires is not None and now_ms > expires:
            return EXPIRED
        return VALID

    @cached_property
    def head(self) -> bytes:
        """The fields of an answer that do not change between verifications, as JSON without braces."""
        key = self.key
        fields: dict[str, Any] = {"keyId": key.id, "keyspaceId": key.key_space_id}
        if key.name:
            fields["name"] = key.name
        if key.meta:
            fields["meta"] = key.meta
        if key.expires_at is not None:
            fields["expires"] = key.expires_at
        fields["enabled"] = key.enabled
        fields["permissions"] = sorted(self.permissions)
        fields["roles"] = self.role_names
        if self.identity is not None:
            fields["identity"] = _identity(self.identity)
        return _encode(fields)[1:-1]

    @cached_property
    def facts(self) -> bytes:
        """The columns that every event of a verification of this key has."""
        key, identity = self.key, self.identity
        holder = (identity.id, identity.external_id) if identity is not None else ("", "")
        return key_facts(key.workspace_id, key.key_space_id, *holder, key.id)

    @cached_property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The addresses that may use the key; entries that cannot be read admit nobody."""
        found = []
        for entry in self.api.ip_whitelist:
            try:
                found.append(ip_network(entry, strict=False))
            except ValueError:
                continue
        return tuple(found)

    def admits(self, remote_ip: str) -> bool:
        """Say whether the API's IP list, if it has one, lets an address pass."""
        if not self.api.ip_whitelist:
            return True
        try:
            address = ip_address(remote_ip)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


def _blocked(key: KeyRecord, workspace: Workspace, api: Api) -> str:
    if not workspace.enabled:
        return FORBIDDEN
    if key.deleted or api.deleted:
        return NOT_FOUND
    return "" if key.enabled else DISABLED


def _identity(identity: Identity) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": identity.id, "externalId": identity.external_id}
    if identity.meta:
        fields["meta"] = identity.meta
    if identity.ratelimits:
        fields["ratelimits"] = [
            {
                "id": one.id,
                "name": one.name,
                "limit": one.limit,
                "duration": one.duration,
                "autoApply": one.auto_apply,
            }
            for one in identity.ratelimits
        ]
    return fields


class Demand(Struct, frozen=True):
    """A rate limit that a request asks for: by name, or ad hoc with both `limit` and `duration` (ms)."""

    name: str
    cost: int = 1
    limit: int | None = None
    duration: int | None = None


class Request(Struct, frozen=True):
    """What a verification asks besides the key.

    Args:
        query: permissions that the key must have.
        demands: rate limits besides those that apply by themselves.
        remote_ip: the caller's address.
        check_ip: whether the API's IP list counts; the gateway does not ask it.
    """

    query: Query | None = None
    demands: tuple[Demand, ...] = ()
    remote_ip: str = ""
    check_ip: bool = False


class Counted(Struct, frozen=True, gc=False):
    """The outcome of one rate limit that was asked."""

    applied: Applied
    exceeded: bool
    remaining: int
    reset: int


class Verdict(Struct, gc=False):
    """The outcome of a verification.

    Args:
        code: one of the public codes.
        detail: why not, in words, where there is more to say than the code.
        counted: the rate limits that were asked.
        credits: balance after this request; None: unlimited or not known.
        spent: credits that this request cost.
    """

    subject: Subject
    code: str
    detail: str = ""
    counted: tuple[Counted, ...] = ()
    credits: int | None = None
    spent: int = 0

    @property
    def valid(self) -> bool:
        """Whether the key may be used."""
        return self.code == VALID


class Prepared:
    """A request against a subject, with all decided that depends on neither time nor counters.

    Attributes:
        refused: code and detail of a refusal by the IP list or the permissions.
        asked: the rate limits to ask.
        absent: why a limit that was asked for by name cannot be.
    """

    __slots__ = ("absent", "asked", "limits", "refused", "subject", "text")

    def __init__(self, subject: Subject, request: Request) -> None:
        self.subject = subject
        self.text: bytes | None = None  # see `template`
        self.refused: tuple[str, str] | None = None
        self.asked = subject.automatic
        self.absent = ""
        if request.check_ip and not subject.admits(request.remote_ip):
            self.refused = (FORBIDDEN, "The address is not on the API's list.")
        elif request.query is not None and (missing := request.query.lacks(subject.permissions)):
            self.refused = (INSUFFICIENT_PERMISSIONS, missing)
        elif request.demands:
            self.asked, self.absent = _asked(subject, request.demands)
        self.limits = [applied.limit for applied in self.asked]

    @property
    def template(self) -> bytes:
        """The answer of a success, with places for what differs: `%d` for credits, remaining and reset.

        Empty: what can be said does not follow from the key alone, or more than one limit is asked.
        """
        text = self.text
        if text is None:
            subject = self.subject
            text = b""
            if not subject.blocked and self.refused is None and not self.absent and len(self.asked) < 2:
                credits = b"" if subject.key.remaining is None else b',"credits":%d'
                rows = b"".join(_escaped(each.head) + _PASSED for each in self.asked)
                limits = b',"ratelimits":[%b]' % rows if rows else b""
                text = b"%b%b%b%b}" % (_TRUE, _escaped(subject.head), credits, limits)
            self.text = text
        return text

    def verify(self, limiter: Limiter, now_ms: int) -> Verdict:
        """Run every step but the credits; each is skipped once one has refused.

        Raises:
            PreconditionFailed: the request names a limit that neither the key nor its identity has.
        """
        subject = self.subject
        code = subject.status(now_ms)
        if code is not VALID:
            return Verdict(subject, code, "", (), subject.key.remaining)
        if self.refused is not None:
            return Verdict(subject, *self.refused, (), subject.key.remaining)
        if self.absent:
            raise PreconditionFailed(self.absent)
        asked = self.asked
        if not asked:
            return Verdict(subject, VALID, "", (), subject.key.remaining)
        if len(asked) == 1:
            outcome = limiter.check(self.limits[0], now_ms)
            one = Counted(asked[0], not outcome.passed, outcome.remaining, outcome.reset)
            code = VALID if outcome.passed else RATE_LIMITED
            return Verdict(subject, code, "", (one,), subject.key.remaining)
        passed, outcomes = limiter.check_all(self.limits, now_ms)
        counted = tuple(
            Counted(applied, not outcome.passed, outcome.remaining, outcome.reset)
            for applied, outcome in zip(asked, outcomes, strict=True)
        )
        return Verdict(subject, VALID if passed else RATE_LIMITED, "", counted, subject.key.remaining)


def verify(subject: Subject, request: Request, limiter: Limiter, now_ms: int) -> Verdict:
    """Run every step but the credits; see `Prepared`.

    Raises:
        PreconditionFailed: the request names a limit that neither the key nor its identity has.
    """
    return Prepared(subject, request).verify(limiter, now_ms)


def _asked(subject: Subject, demands: tuple[Demand, ...]) -> tuple[tuple[Applied, ...], str]:
    asked = {applied.name: applied for applied in subject.automatic}
    for demand in demands:
        if demand.limit is not None and demand.duration is not None:
            ratelimit = Ratelimit("", demand.name, demand.limit, demand.duration, False)
            asked[demand.name] = _applied(ratelimit, subject.key.workspace_id, subject.key.id, demand.cost)
            continue
        configured = subject.limits.get(demand.name)
        if configured is None:
            holder = f" nor identity '{subject.identity.id}'" if subject.identity else ""
            return (), (
                f"The rate limit '{demand.name}' was asked for but does not exist on "
                f"{'neither ' if holder else ''}key '{subject.key.id}'{holder}."
            )
        asked[demand.name] = configured.costing(demand.cost)
    return tuple(asked.values()), ""


def credit_cost(verdict: Verdict, credits: int | None) -> int | None:
    """Return what a verification costs, None if no credits are to be asked.

    Args:
        verdict: after the other steps.
        credits: the request's own cost; None: 1 if the key has a finite balance.
    """
    if verdict.code is not VALID or verdict.subject.key.remaining is None:
        return None
    return 1 if credits is None else credits


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")


_PASSED = b',"exceeded":false,"remaining":%d,"reset":%d}'
_TRUE = b'{"valid":true,"code":"VALID",'
BARE_NOT_FOUND = b'{"valid":false,"code":"NOT_FOUND"}'


def render(verdict: Verdict) -> bytes:
    """Return `data` of the answer of `keys.verifyKey` as JSON."""
    head = _TRUE if verdict.code is VALID else b'{"valid":false,"code":"%b",' % verdict.code.encode()
    credits = b"" if verdict.credits is None else b',"credits":%d' % verdict.credits
    if not verdict.counted:
        return b"%b%b%b}" % (head, verdict.subject.head, credits)
    rows = [
        b'%b,"exceeded":%b,"remaining":%d,"reset":%d}'
        % (one.applied.head, b"true" if one.exceeded else b"false", one.remaining, one.reset)
        for one in verdict.counted
    ]
    return b'%b%b%b,"ratelimits":[%b]}' % (head, verdict.subject.head, credits, b",".join(rows))
