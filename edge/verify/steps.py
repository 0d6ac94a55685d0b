"""The steps of a verification, on plain inputs: status, IP list, permissions, rate limits, credits.

The edge gives them records from memory, web the same records made from its rows:

    subject = Subject(key, workspace, api, identity, roles)
    verdict = verify(subject, Request(query=parse("a AND b")), limiter, now_ms)
    cost = credit_cost(verdict, None)      # not None: spend it, then set verdict.credits and verdict.code
    body = render(verdict)

Source: reference, api.md 2.3 and 2.4.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from edge.store.records import Api, Identity, KeyRecord, Ratelimit, Role, Workspace
from edge.telemetry.facts import key_facts
from edge.verify.limiter import Limit, Limiter
from edge.verify.permissions import Query
from unkey.errors import PreconditionFailed

log = structlog.get_logger("edge")

VALID = "VALID"
NOT_FOUND = "NOT_FOUND"
FORBIDDEN = "FORBIDDEN"
INSUFFICIENT_PERMISSIONS = "INSUFFICIENT_PERMISSIONS"
USAGE_EXCEEDED = "USAGE_EXCEEDED"
RATE_LIMITED = "RATE_LIMITED"
DISABLED = "DISABLED"
EXPIRED = "EXPIRED"

_encode = msgspec.json.encode


class Applied(Limit, frozen=True, gc=False, kw_only=True):
    """A configured or ad-hoc limit as it is asked; its `id` is empty if it is ad hoc."""

    ratelimit: Ratelimit

    @property
    def id(self) -> str:
        """The limit's id, empty for ad-hoc ones."""
        return self.ratelimit.id

    @property
    def name(self) -> str:
        """The limit's name: also the name space that it is counted in."""
        return self.ratelimit.name

    def costing(self, cost: int) -> "Applied":
        """Return the same limit with another cost."""
        return Applied(self.counter, self.limit, cost, ratelimit=self.ratelimit)


def _applied(ratelimit: Ratelimit, workspace_id: str, identifier: str, cost: int = 1) -> Applied:
    counter = (workspace_id, ratelimit.name, identifier, ratelimit.duration)
    return Applied(counter, ratelimit.limit, cost, ratelimit=ratelimit)


class Grants:
    """What keys with the same permissions and roles have in common.

    Args:
        permissions: slugs given directly.
        roles: whose slugs count as well.
    """

    __slots__ = ("permissions", "role_names", "roles", "text")

    def __init__(self, permissions: Sequence[str], roles: Sequence[Role]) -> None:
        self.roles = tuple(roles)
        self.role_names = tuple(sorted(role.name for role in roles))
        self.permissions = frozenset(permissions).union(*(role.permissions for role in roles))
        #: Their part of an answer, as JSON.
        self.text = b'"permissions":%b,"roles":%b' % (
            _encode(sorted(self.permissions)),
            _encode(self.role_names),
        )


class Holder:
    """What the keys of an identity have in common.

    Args:
        identity: as the store has it.
    """

    __slots__ = ("_facts", "identity", "limits", "text")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._facts = ("", b"")
        self.limits = tuple(
            _applied(each, identity.workspace_id, identity.id) for each in identity.ratelimits
        )
        #: Its part of an answer, as JSON.
        self.text = b',"identity":' + _encode(_identity(identity))

    def facts(self, key: KeyRecord) -> bytes:
        """Return the columns that every event of a verification of one of its keys has."""
        identity, (space, begin) = self.identity, self._facts
        if space != key.key_space_id:
            all_but_key = key_facts(key.workspace_id, key.key_space_id, identity.id, identity.external_id)
            begin = all_but_key.removesuffix(b'""')
            self._facts = key.key_space_id, begin
        return b'%b"%b"' % (begin, key.id.encode())


class Subject:
    """A key with everything that its verification needs, joined once and reused while nothing changed.

    Args:
        key: the key.
        workspace: whose it is.
        api: the API of its key space.
        identity: who holds it, None if nobody or deleted.
        roles: the key's roles.
        grants, holder: what others of the same permissions, or of the same identity, have made already.

    Attributes:
        epoch: the caller's mark of when what was joined was last known to be current.
    """

    __slots__ = (
        "_own", "api", "automatic", "blocked", "epoch", "grants", "holder", "key", "limits", "workspace",
    )  # fmt: skip

    def __init__(
        self,
        key: KeyRecord,
        workspace: Workspace,
        api: Api,
        identity: Identity | None,
        roles: Sequence[Role],
        *,
        grants: Grants | None = None,
        holder: Holder | None = None,
    ) -> None:
        self.key = key
        self.workspace = workspace
        self.api = api
        self.epoch = 0
        self._own = b""
        self.grants = Grants(key.permissions, roles) if grants is None else grants
        self.holder = Holder(identity) if holder is None and identity is not None else holder
        self.limits: tuple[Applied, ...] = () if self.holder is None else self.holder.limits
        if key.ratelimits:
            # A limit of the key stands in the place of its identity's of the same name.
            named = {applied.name: applied for applied in self.limits}
            named |= {each.name: _applied(each, key.workspace_id, key.id) for each in key.ratelimits}
            self.limits = tuple(named.values())
        automatic = tuple(applied for applied in self.limits if applied.ratelimit.auto_apply)
        self.automatic = self.limits if automatic == self.limits else automatic
        self.blocked = _blocked(key, workspace, api)

    @property
    def identity(self) -> Identity | None:
        """Who holds the key."""
        return None if self.holder is None else self.holder.identity

    @property
    def role_names(self) -> tuple[str, ...]:
        """The names of the key's roles, sorted."""
        return self.grants.role_names

    @property
    def permissions(self) -> frozenset[str]:
        """The key's own slugs and those of its roles."""
        return self.grants.permissions

    def status(self, now_ms: int) -> str:
        """Return the code that the key loads with, in the order of the reference, 2.3."""
        if self.blocked:
            return self.blocked
        expires = self.key.expires_at
        if expires is not None and now_ms > expires:
            return EXPIRED
        return VALID

    @property
    def own(self) -> bytes:
        """What an answer says of the key itself, as JSON; the grants' and the holder's texts follow it."""
        return self._own or self._written()

    @property
    def head(self) -> bytes:
        """The fields of an answer that do not change between verifications, as JSON without braces."""
        holder = self.holder
        return b"%b%b%b" % (self.own, self.grants.text, b"" if holder is None else holder.text)

    def _written(self) -> bytes:
        """Write what an answer says of the key itself, and keep it."""
        key = self.key
        own = b'"keyId":"%b","keyspaceId":"%b"' % (key.id.encode(), key.key_space_id.encode())
        if key.name:
            own += b',"name":%b' % _encode(key.name)
        if key.meta:
            own += b',"meta":%b' % _encode(key.meta)
        if key.expires_at is not None:
            own += b',"expires":%d' % key.expires_at
        own += b',"enabled":true,' if key.enabled else b',"enabled":false,'
        self._own = own
        return own

    @property
    def facts(self) -> bytes:
        """The columns that every event of a verification of this key has."""
        key = self.key
        if self.holder is not None:
            return self.holder.facts(key)
        return key_facts(key.workspace_id, key.key_space_id, key_id=key.id)

    def admits(self, remote_ip: str) -> bool:
        """Say whether the API's IP list, if it has one, lets an address pass."""
        listed = self.api.ip_whitelist
        if not listed:
            return True
        try:
            address = ip_address(remote_ip)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in _networks(listed))


@lru_cache(maxsize=4096)
def _networks(listed: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the addresses of a list; entries that cannot be read admit nobody."""
    found = []
    for entry in listed:
        try:
            found.append(ip_network(entry, strict=False))
        except ValueError:
            continue
    return tuple(found)


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

    __slots__ = ("absent", "asked", "refused", "subject")

    def __init__(self, subject: Subject, request: Request) -> None:
        self.subject = subject
        self.refused: tuple[str, str] | None = None
        self.asked = subject.automatic
        self.absent = ""
        if request.check_ip and not subject.admits(request.remote_ip):
            self.refused = (FORBIDDEN, "The address is not on the API's list.")
        elif request.query is not None and (missing := request.query.lacks(subject.permissions)):
            self.refused = (INSUFFICIENT_PERMISSIONS, missing)
        elif request.demands:
            self.asked, self.absent = _asked(subject, request.demands)

    @property
    def passes(self) -> bool:
        """Whether only time, counters and credits can refuse it."""
        return not self.subject.blocked and self.refused is None and not self.absent

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
        try:
            passed, outcomes = limiter.check_all(asked, now_ms)
        except Exception:
            # Keys work on while limits cannot be counted (reference, api.md 3.6).
            log.exception("limiter.failed", key_id=subject.key.id)
            return Verdict(subject, VALID, "", (), subject.key.remaining)
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
        configured = next((each for each in subject.limits if each.name == demand.name), None)
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


_TRUE = b'{"valid":true,"code":"VALID",'
BARE_NOT_FOUND = b'{"valid":false,"code":"NOT_FOUND"}'


@lru_cache(maxsize=4096)
def _shape(name: str, limit: int, duration: int, auto_apply: bool, exceeded: bytes = b"%b") -> bytes:
    """Return how a limit is shown, with places for its id and for what was counted."""
    fields = _encode({"name": name, "limit": limit, "duration": duration, "autoApply": auto_apply})
    place = fields[1:-1].replace(b"%", b"%%")
    return b'{"id":"%%b",%b,"exceeded":%b,"remaining":%%d,"reset":%%d}' % (place, exceeded)


def shown(ratelimit: Ratelimit, exceeded: bytes, remaining: int, reset: int) -> bytes:
    """Return an entry of `ratelimits` in an answer, as JSON; `exceeded` is its JSON already."""
    shape = _shape(ratelimit.name, ratelimit.limit, ratelimit.duration, ratelimit.auto_apply)
    return shape % (ratelimit.id.encode(), exceeded, remaining, reset)


def form(asked: Sequence[Applied]) -> bytes:
    """Return how a whole success is written, one object for all that look alike.

    Its places: request id; the subject's own, its grants' and its holder's text; credits as
    `,"credits":<n>` or nothing; then for each limit its id, what remains and when its window ends.
    """
    return _form(
        tuple(
            _shape(
                each.name, each.ratelimit.limit, each.ratelimit.duration, each.ratelimit.auto_apply, b"false"
            )
            for each in asked
        )
    )


@lru_cache(maxsize=4096)
def _form(shapes: tuple[bytes, ...]) -> bytes:
    limits = b',"ratelimits":[%b]' % b",".join(shapes) if shapes else b""
    return b'{"meta":{"requestId":"%%b"},"data":%b%%b%%b%%b%%b%b}}' % (_TRUE, limits)


def render(verdict: Verdict) -> bytes:
    """Return `data` of the answer of `keys.verifyKey` as JSON."""
    head = _TRUE if verdict.code is VALID else b'{"valid":false,"code":"%b",' % verdict.code.encode()
    credits = b"" if verdict.credits is None else b',"credits":%d' % verdict.credits
    if not verdict.counted:
        return b"%b%b%b}" % (head, verdict.subject.head, credits)
    rows = [
        shown(one.applied.ratelimit, b"true" if one.exceeded else b"false", one.remaining, one.reset)
        for one in verdict.counted
    ]
    return b'%b%b%b,"ratelimits":[%b]}' % (head, verdict.subject.head, credits, b",".join(rows))
