"""The keyauth policy: an API key, taken from the request, must verify (reference, api.md 6.7 and 6.8)."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any, Protocol, cast

import msgspec

from edge.sentinel.credentials import compile_locations
from edge.sentinel.decision import Call, Rate, State, Unsupported
from edge.sentinel.match import field
from edge.sentinel.principal import principal_line
from edge.verify.permissions import Query, parse
from edge.verify.steps import (
    INSUFFICIENT_PERMISSIONS,
    RATE_LIMITED,
    USAGE_EXCEEDED,
    VALID,
    Demand,
    Subject,
    Verdict,
)
from unkey import clock
from unkey.errors import (
    Fault,
    FrontlineInternalError,
    GatewayInsufficientPermissions,
    InvalidKey,
    KeyLookupUnavailable,
    MissingCredentials,
    PermissionsQuerySyntaxError,
    PreconditionFailed,
    RateLimited,
    ServiceUnavailable,
    UsageExceeded,
)

_REMEMBERED = 10_000


class Verify(Protocol):
    """What keyauth needs of `edge.verify.verifier.Verifier`."""

    @property
    def epoch(self) -> int:
        """Changes whenever anything about keys does."""

    def find(self, text: str) -> Subject | Awaitable[Subject | None] | None:
        """Return the key behind a text; awaitable if it was never seen."""

    def verify(
        self,
        subject: Subject,
        *,
        query: Query | None = None,
        demands: tuple[Demand, ...] = (),
        credits: int | None = None,
    ) -> Verdict | Awaitable[Verdict]:
        """Verify it; awaitable if credits must be leased first."""


Note = Callable[[Subject, str, int], object]
"""Told each verification: the key, the outcome, and the credits spent."""


class Keyauth:
    """A compiled keyauth policy.

    Args:
        body: the policy's `keyauth`.
        verifier: finds and verifies keys.
        note: is told each verification; None: nobody is.

    Raises:
        Unsupported: the policy cannot be evaluated.
    """

    def __init__(self, body: Mapping[str, Any], verifier: Verify, note: Note | None = None) -> None:
        self._verifier = verifier
        self._note = note
        spaces = field(body, "keyspaces") or field(body, "keySpaceIds") or []
        if not isinstance(spaces, list) or not spaces or not all(isinstance(each, str) for each in spaces):
            raise Unsupported("keyauth names no key space")
        self._spaces = frozenset(spaces)
        self._locations = compile_locations(body.get("locations"))
        self._query = _query(field(body, "permissionQuery"))
        self._demands = tuple(_demand(each) for each in body.get("ratelimits") or [])
        credits = body.get("credits")
        if credits is not None and (not isinstance(credits, int) or credits < 0):
            raise Unsupported("keyauth credits are not a count")
        self._credits: int | None = credits
        self._principals: dict[Subject, tuple[dict[str, Any], bytes]] = {}
        self._admitted: dict[bytes, tuple[int, float, tuple[dict[str, Any], bytes], Subject]] = {}

    def apply(self, call: Call, state: State) -> Fault | Awaitable[Fault | None] | None:
        """Verify the request's key; nothing to do where an earlier policy has established who calls."""
        if state.principal is not None:
            return None
        for location in self._locations:
            if text := location(call):
                break
        else:
            return MissingCredentials("The request carries no API key.")
        # A key without credits and limits passes until something about keys changes, or it expires.
        digest = hashlib.sha256(text.encode()).digest()
        admitted = self._admitted.get(digest)
        if admitted is not None and admitted[0] == self._verifier.epoch and clock.now_ms() <= admitted[1]:
            state.principal, state.request_lines = admitted[2]
            if self._note is not None:
                self._note(admitted[3], VALID, 0)
            return None
        epoch = self._verifier.epoch
        subject = self._verifier.find(text)
        if subject is None:
            return InvalidKey("The API key is not valid.")
        if isinstance(subject, Subject):
            outcome = self._verify(subject, state)
            if outcome is None and state.principal is not None and self._passes_again(subject):
                if len(self._admitted) >= _REMEMBERED:
                    self._admitted.clear()
                expires_at = inf if subject.key.expires_at is None else subject.key.expires_at
                self._admitted[digest] = epoch, expires_at, (state.principal, state.request_lines), subject
            return outcome
        return self._find_later(subject, state)

    def _passes_again(self, subject: Subject) -> bool:
        return subject.key.remaining is None and not subject.automatic and not self._demands

    async def _find_later(self, finding: Awaitable[Subject | None], state: State) -> Fault | None:
        try:
            subject = await finding
        except ServiceUnavailable:
            # Neither valid nor invalid: whether there is such a key cannot be known at the moment.
            return KeyLookupUnavailable(
                "The key is not known here and cannot be looked up at the moment; try again.",
                headers={"Retry-After": "1"},
            )
        if subject is None:
            return InvalidKey("The API key is not valid.")
        outcome = self._verify(subject, state)
        return outcome if outcome is None or isinstance(outcome, Fault) else await outcome

    def _verify(self, subject: Subject, state: State) -> Fault | Awaitable[Fault | None] | None:
        if subject.key.key_space_id not in self._spaces:
            return InvalidKey("The API key is not valid.")
        try:
            verdict = self._verifier.verify(
                subject, query=self._query, demands=self._demands, credits=self._credits
            )
        except PreconditionFailed as fault:
            return FrontlineInternalError(fault.detail)
        if isinstance(verdict, Verdict):
            return self._judge(verdict, state)
        return self._verify_later(verdict, state)

    async def _verify_later(self, verifying: Awaitable[Verdict], state: State) -> Fault | None:
        try:
            return self._judge(await verifying, state)
        except ServiceUnavailable:
            return KeyLookupUnavailable(
                "The key's credits cannot be read at the moment; try again.", headers={"Retry-After": "1"}
            )

    def _judge(self, verdict: Verdict, state: State) -> Fault | None:
        if self._note is not None:
            self._note(verdict.subject, verdict.code, verdict.spent)
        for counted in verdict.counted:
            limit = counted.applied.limit
            state.rated(Rate(counted.exceeded, limit, counted.remaining, counted.reset))
        code = verdict.code
        if code == VALID:
            state.principal, state.request_lines = self._principal(verdict)
            return None
        if code == INSUFFICIENT_PERMISSIONS:
            return GatewayInsufficientPermissions(verdict.detail or "The key lacks permissions.")
        if code == RATE_LIMITED:
            return RateLimited("The key's rate limit is exceeded.")
        if code == USAGE_EXCEEDED:
            return UsageExceeded("The key has no credits left.")
        return InvalidKey("The API key is not valid.")

    def _principal(self, verdict: Verdict) -> tuple[dict[str, Any], bytes]:
        subject = verdict.subject
        if verdict.credits is not None:  # the balance differs each time
            return _described(subject, verdict.credits)
        known = self._principals.get(subject)
        if known is None:
            if len(self._principals) >= _REMEMBERED:
                self._principals.clear()
            known = self._principals[subject] = _described(subject, None)
        return known


def _described(subject: Subject, credits: int | None) -> tuple[dict[str, Any], bytes]:
    """Return the principal, and the header that tells it to the app."""
    key = subject.key
    source: dict[str, Any] = {"keyId": key.id, "keySpaceId": key.key_space_id}
    if key.name:
        source["name"] = key.name
    if key.expires_at is not None:
        source["expiresAt"] = key.expires_at
    if credits is not None:
        source["credits"] = credits
    source["meta"] = key.meta or {}
    if subject.role_names:
        source["roles"] = list(subject.role_names)
    if subject.permissions:
        source["permissions"] = sorted(subject.permissions)
    principal: dict[str, Any] = {"version": "v1", "subject": key.id, "type": "API_KEY"}
    if subject.identity is not None:
        principal["subject"] = subject.identity.external_id
        principal["identity"] = {
            "externalId": subject.identity.external_id,
            "meta": subject.identity.meta or {},
        }
    principal["source"] = {"key": source}
    return principal, principal_line(principal)


def _query(text: Any) -> Query | None:
    if not text:
        return None
    try:
        return parse(cast(str, text))
    except (PermissionsQuerySyntaxError, TypeError) as error:
        raise Unsupported(f"the permission query cannot be read: {error}") from None


def _demand(body: Any) -> Demand:
    try:
        return msgspec.convert(
            {key: value for key, value in body.items() if value is not None}, Demand, strict=True
        )
    except (msgspec.ValidationError, AttributeError) as error:
        raise Unsupported(f"a keyauth rate limit cannot be read: {error}") from None
