"""Key verification on the edge: `keys.verifyKey` and the gateway's `keyauth`, answered from the store.

subject = verifier.find(text)
if isawaitable(subject):              # a key never seen before
    subject = await subject
verdict = verifier.verify(subject, query=parse("docs.read"), credits=1)
if isawaitable(verdict):              # credits must be leased first
    verdict = await verdict
"""

import hashlib
from binascii import b2a_base64
from collections.abc import Awaitable, Mapping, Sequence
from math import inf
from random import Random
from time import perf_counter
from typing import Protocol

import msgspec

from edge.store.records import Absence, KeyRecord, RootKey
from edge.store.state import Lru
from edge.store.store import Store
from edge.telemetry.facts import key_facts, source_facts
from edge.verify import permissions
from edge.verify.limiter import Limit, Limiter
from edge.verify.permissions import Query
from edge.verify.request import VerifyBody, read
from edge.verify.steps import (
    BARE_NOT_FOUND,
    USAGE_EXCEEDED,
    Demand,
    Prepared,
    Request,
    Subject,
    Verdict,
    credit_cost,
    render,
    verify,
)
from unkey import clock, errors, ids
from unkey.errors import Fault, Violation
from unkey.rpc.grants import grants

Answer = tuple[int, bytes, dict[str, str]]

_JSON = {"content-type": "application/json"}
_MINUTE = 60_000
_FROM_API = source_facts()
_PROBLEM = {"content-type": "application/problem+json"}
# Request ids are no secrets: one draw of a generator that the system seeded, each octet to a letter.
_randbytes = Random().randbytes  # noqa: S311
_LETTERS = (ids.ALPHABET * 5)[:256].encode()
_NO_HEADER = Violation(
    "the Authorization header is required",
    "header.Authorization",
    "Send 'Authorization: Bearer <root key>'.",
)


class Recorder(Protocol):
    """What verifications are told to: `edge.telemetry.events.Telemetry`."""

    def record_verification(
        self,
        request_id: bytes,
        time: int,
        facts: bytes,
        outcome: bytes,
        *,
        spent: int = 0,
        latency: float = 0.0,
        tags: bytes = b"[]",
        source: bytes = b'"api",""',
    ) -> None:
        """Note that a key was verified."""


def digest_of(text: str) -> str:
    """Return the hash that a key's row is found by: base64(SHA-256(text))."""
    return b2a_base64(hashlib.sha256(text.encode()).digest(), newline=False).decode()


class Caller:
    """A root key as a caller: what it may verify."""

    __slots__ = ("everything", "no_key", "permissions", "record", "requests_per_minute")

    def __init__(self, record: RootKey, requests_per_minute: int | None) -> None:
        self.record = record
        self.requests_per_minute = requests_per_minute
        self.permissions = frozenset(record.permissions)
        self.everything = "api.*.verify_key" in self.permissions
        # What events say of a key that is not there, or must not be known of.
        self.no_key = key_facts(record.workspace_id, "")

    def may_verify(self, key: KeyRecord) -> bool:
        """Say whether the caller may verify a key of its workspace."""
        return (
            self.everything
            or f"api.{key.api_id}.verify_key" in self.permissions
            or grants(
                self.permissions,
                f"unkey:v1:{key.workspace_id}:keyspaces/{key.key_space_id}/keys/{key.id}#verify_key",
            )
        )


class _Plan:
    """A request that was read: good while the store's epoch is the same and the root key has not expired."""

    __slots__ = (
        *("caller", "credits", "epoch", "expires_at", "facts", "good_until", "limit", "prepared", "tags"),
        "template",
    )

    def __init__(
        self,
        prepared: Prepared | None,
        credits: int | None,
        caller: Caller,
        epoch: int,
        tags: Sequence[str] = (),
    ) -> None:
        self.prepared = prepared
        # What events of it say.
        self.facts = caller.no_key if prepared is None else prepared.subject.facts
        self.tags = msgspec.json.encode(tags) if tags else b"[]"
        self.credits = credits
        self.caller = caller
        self.expires_at = inf if caller.record.expires_at is None else caller.record.expires_at
        self.epoch = epoch
        # For a success from memory alone: until when, the one limit, and what the answer reads like.
        self.template = b""
        self.good_until = self.expires_at
        self.limit: Limit | None = None
        if prepared is not None and caller.requests_per_minute is None:
            self.template = prepared.template
            if self.template:
                self.template = b'{"meta":{"requestId":"%%b"},"data":%b}' % self.template
            key_expires_at = prepared.subject.key.expires_at
            if key_expires_at is not None:
                self.good_until = min(self.good_until, key_expires_at)
            self.limit = prepared.limits[0] if prepared.limits else None


# What events say of a key, the request's tags, and the outcome; None: not found.
_Found = tuple[bytes, bytes, Verdict | None]


class Verifier:
    """Verifies keys against a store; one per edge process.

    Args:
        store: where records and credits come from.
        limiter: the process's counters; the gateway's own limits share it.
        subjects: most keys kept joined with what they refer to.
        telemetry: is told every verification; None: nobody is.
    """

    def __init__(
        self,
        store: Store,
        limiter: Limiter | None = None,
        subjects: int = 100_000,
        telemetry: Recorder | None = None,
    ) -> None:
        self.store = store
        self._telemetry = telemetry
        self.limiter = Limiter() if limiter is None else limiter
        self._subjects: Lru[str, Subject] = Lru(subjects)
        self._callers: Lru[str, Caller] = Lru(10_000)
        self._plans: Lru[bytes, _Plan] = Lru(subjects)
        store.on_tick(lambda: self.limiter.sweep(clock.now_ms()))

    # Keys

    @property
    def epoch(self) -> int:
        """A number that changes whenever anything about keys, their holders or workspaces does."""
        return self.store.epoch

    def find(self, text: str) -> Subject | Awaitable[Subject | None] | None:
        """Return the key behind a presented text, None if there is none; awaitable if it must be read.

        Awaiting raises `ServiceUnavailable` when the database does not answer.
        """
        digest = digest_of(text)
        record = self.store.key(digest)
        if record is Absence.UNKNOWN:
            return None
        if isinstance(record, KeyRecord):
            subject = self._joined(record)
            if subject is not None:
                return subject
        return self._fetched(digest)

    async def _fetched(self, digest: str) -> Subject | None:
        record = await self.store.fetch_key(digest)
        if record is None:
            return None
        subject = self._joined(record)
        if subject is None:
            raise errors.ServiceUnavailable("The key cannot be verified at the moment. Please try again.")
        return subject

    def _joined(self, record: KeyRecord) -> Subject | None:
        store = self.store
        generation = store.generation(record.workspace_id)
        subject = self._subjects.peek(record.id)
        if subject is not None and subject.key is record and subject.generation == generation:
            return subject
        workspace = store.workspace(record.workspace_id)
        api = store.api(record.api_id)
        roles = [role for role_id in record.role_ids if (role := store.role_record(role_id))]
        identity = store.identity(record.identity_id) if record.identity_id else None
        complete = len(roles) == len(record.role_ids) and (identity is not None) == bool(record.identity_id)
        if workspace is None or api is None or not complete:
            return None
        if identity is not None and identity.deleted:
            identity = None
        subject = Subject(record, workspace, api, identity, roles, generation)
        self._subjects.put(record.id, subject)
        return subject

    # Verification

    def verify(
        self,
        subject: Subject,
        *,
        query: Query | None = None,
        demands: tuple[Demand, ...] = (),
        credits: int | None = None,
        remote_ip: str = "",
        check_ip: bool = False,
    ) -> Verdict | Awaitable[Verdict]:
        """Run the verification steps on a key; awaitable only while credits must be leased.

        Args:
            query: permissions that the key must have.
            demands: rate limits besides those that apply by themselves.
            credits: cost; None: 1 if the key has a finite balance.
            remote_ip: the caller's address.
            check_ip: whether the API's IP list counts; the gateway does not ask it.

        Raises:
            PreconditionFailed: the request names a limit that neither key nor identity has.
        """
        request = Request(query, demands, remote_ip, check_ip)
        verdict = verify(subject, request, self.limiter, clock.now_ms())
        return self._charged(verdict, credits)

    def _charged(self, verdict: Verdict, credits: int | None) -> Verdict | Awaitable[Verdict]:
        key = verdict.subject.key
        if key.remaining is None:
            return verdict
        cost = credit_cost(verdict, credits)
        wallet = self.store.wallet
        if not cost:
            verdict.credits = wallet.balance(key)
            return verdict
        balance = wallet.spend(key, cost)
        if balance is None:
            if not wallet.refuses(key, cost):
                return self._drawn(verdict, cost)
            return self._exhausted(verdict)
        verdict.credits = balance
        verdict.spent = cost
        return verdict

    async def _drawn(self, verdict: Verdict, cost: int) -> Verdict:
        balance = await self.store.wallet.draw(verdict.subject.key, cost)
        if balance is None:
            return self._exhausted(verdict)
        verdict.credits = balance
        verdict.spent = cost
        return verdict

    def _exhausted(self, verdict: Verdict) -> Verdict:
        verdict.code = USAGE_EXCEEDED
        verdict.credits = self.store.wallet.balance(verdict.subject.key)
        return verdict

    # keys.verifyKey

    def quick_verify_key(self, authorization: bytes, remote_ip: bytes, body: bytes) -> bytes | None:
        """Answer a request that was read before and succeeds from memory alone: the JSON body.

        None: nothing was decided, counted or spent; `handle_verify_key` is to be asked.
        """
        started = perf_counter()
        plan = self._plans.peek(_mark(authorization, remote_ip, body))
        if plan is None or not plan.template or plan.epoch != self.store.epoch:
            return None
        now = clock.now_ms()
        prepared = plan.prepared
        if now > plan.good_until or prepared is None:
            return None
        key = prepared.subject.key
        limit = plan.limit
        request_id = _request_id()
        cost = 0
        if key.remaining is None:
            if limit is None:
                answer = plan.template % request_id
            else:
                outcome = self.limiter.check(limit, now)
                if not outcome.passed:
                    return None
                answer = plan.template % (request_id, outcome.remaining, outcome.reset)
        else:
            cost = 1 if plan.credits is None else plan.credits
            wallet = self.store.wallet
            lease = wallet.holding(key, cost)
            if not cost or lease is None:
                return None
            if limit is None:
                answer = plan.template % (request_id, wallet.spend_from(lease, key, cost))
            else:
                outcome = self.limiter.check(limit, now)
                if not outcome.passed:
                    return None
                balance = wallet.spend_from(lease, key, cost)
                answer = plan.template % (request_id, balance, outcome.remaining, outcome.reset)
        telemetry = self._telemetry
        if telemetry is not None:
            latency = (perf_counter() - started) * 1000
            telemetry.record_verification(
                request_id, now, plan.facts, b"VALID", spent=cost, latency=latency, tags=plan.tags
            )
        return answer

    def handle_verify_key(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> Answer | Awaitable[Answer]:
        """Answer `POST /v2/keys.verifyKey`: status, JSON body, extra headers.

        Args:
            headers: `authorization` and `accept` are read; names in lower case.
            body: the whole request body.
            remote_ip: address of the caller, for the API's list.
        """
        told: dict[str, str] = {}
        started = perf_counter()
        request_id = _request_id()
        try:
            authorization = headers.get("authorization", "")
            mark = _mark(authorization.encode("latin-1", "replace"), remote_ip.encode(), body)
            plan = self._plans.peek(mark)
            now = clock.now_ms()
            if plan is None or plan.epoch != self.store.epoch or now > plan.expires_at:
                found = self._plan(authorization, body, remote_ip, mark, told)
                if not isinstance(found, _Plan):
                    return self._later(headers, found, told, request_id, started)
                plan = found
            self._admit(plan.caller, now, told)
            if plan.prepared is None:
                self._note(request_id, plan.facts, None, plan.tags, started)
                return self._success(BARE_NOT_FOUND, told, request_id)
            verdict = self._charged(plan.prepared.verify(self.limiter, now), plan.credits)
            if isinstance(verdict, Verdict):
                self._note(request_id, plan.facts, verdict, plan.tags, started)
                return self._success(render(verdict), told, request_id)
            return self._later(headers, self._with(plan, verdict), told, request_id, started)
        except Fault as fault:
            return self._failure(headers, fault, told, request_id)

    def _note(
        self,
        request_id: bytes,
        facts: bytes,
        verdict: Verdict | None,
        tags: bytes,
        started: float,
        source: bytes = _FROM_API,
    ) -> None:
        """Tell telemetry of a verification; a verdict of None: the key was not found."""
        if self._telemetry is None:
            return
        self._telemetry.record_verification(
            request_id,
            clock.now_ms(),
            facts,
            b"NOT_FOUND" if verdict is None else verdict.code.encode(),
            spent=0 if verdict is None else verdict.spent,
            latency=(perf_counter() - started) * 1000,
            tags=tags,
            source=source,
        )

    @staticmethod
    async def _with(plan: _Plan, verifying: Awaitable[Verdict]) -> _Found:
        return plan.facts, plan.tags, await verifying

    def _admit(self, caller: Caller, now: int, told: dict[str, str]) -> None:
        """Count a request against its workspace's limit, if there is one; `told` takes the headers."""
        most = caller.requests_per_minute
        if most is None:
            return
        workspace_id = caller.record.workspace_id
        counter = (workspace_id, "workspace.ratelimit", workspace_id, _MINUTE)
        outcome = self.limiter.check(Limit(counter, most), now)
        seconds = str(-(-(outcome.reset - now) // 1000))
        told["RateLimit-Limit"] = str(most)
        told["RateLimit-Remaining"] = str(outcome.remaining)
        told["RateLimit-Reset"] = seconds
        if not outcome.passed:
            told["Retry-After"] = seconds
            raise errors.WorkspaceRateLimited(
                f"This workspace may make {most} management requests per minute. Retry in {seconds} s."
            )

    def _plan(
        self, authorization: str, body: bytes, remote_ip: str, mark: bytes, told: dict[str, str]
    ) -> _Plan | Awaitable[_Found]:
        """Read a request and decide what depends on neither time nor counters; keep that if it may recur."""
        asked = read(body) if authorization else read(body, (_NO_HEADER,))
        scheme, _, text = authorization.partition(" ")
        text = text.strip(" ")
        if not text or " " in text or scheme.lower() != "bearer":
            raise errors.AuthenticationMalformed("The Authorization header must read 'Bearer <root key>'.")
        digest = digest_of(text)
        root_key = self.store.root_key(digest)
        if root_key is Absence.UNKNOWN:
            raise _unknown_root_key()
        if not isinstance(root_key, RootKey):
            return self._verify_slowly(asked, remote_ip, digest, None, told)
        caller = self._caller(root_key)
        subject = self.find(asked.key)
        if not isinstance(subject, Subject | None):
            return self._verify_slowly(asked, remote_ip, digest, subject, told)
        prepared = self._prepared(caller, subject, asked, remote_ip)
        plan = _Plan(prepared, asked.cost, caller, self.store.epoch, asked.tags)
        if plan.prepared is not None:
            self._plans.put(mark, plan)
        return plan

    async def _verify_slowly(
        self,
        asked: VerifyBody,
        remote_ip: str,
        digest: str,
        finding: Awaitable[Subject | None] | None,
        told: dict[str, str],
    ) -> _Found:
        """Verify with a root key or a key that has to be read from the database."""
        subject = self.find(asked.key) if finding is None else finding
        if not isinstance(subject, Subject | None):
            subject = await subject
        found = self.store.root_key(digest)
        root_key = found if isinstance(found, RootKey) else await self.store.fetch_root_key(digest)
        if root_key is None:
            raise _unknown_root_key()
        caller = self._caller(root_key)
        self._admit(caller, clock.now_ms(), told)
        prepared = self._prepared(caller, subject, asked, remote_ip)
        tags = msgspec.json.encode(asked.tags)
        if prepared is None:
            return caller.no_key, tags, None
        verdict = self._charged(prepared.verify(self.limiter, clock.now_ms()), asked.cost)
        return prepared.subject.facts, tags, verdict if isinstance(verdict, Verdict) else await verdict

    async def _later(
        self,
        headers: Mapping[str, str],
        verifying: Awaitable[_Found],
        told: dict[str, str],
        request_id: bytes,
        started: float,
    ) -> Answer:
        try:
            facts, tags, verdict = await verifying
        except Fault as fault:
            return self._failure(headers, fault, told, request_id)
        self._note(request_id, facts, verdict, tags, started)
        return self._success(BARE_NOT_FOUND if verdict is None else render(verdict), told, request_id)

    def _prepared(
        self, caller: Caller, subject: Subject | None, asked: VerifyBody, remote_ip: str
    ) -> Prepared | None:
        """Return the request against its key, None where the caller must not learn that there is one."""
        if subject is None:
            return None
        key = subject.key
        if key.workspace_id != caller.record.workspace_id or subject.api.deleted or key.deleted:
            return None
        if not caller.may_verify(key) or not asked.admits(key.key_space_id):
            return None
        text = asked.permissions
        query = permissions.parse(text) if isinstance(text, str) else None
        return Prepared(subject, Request(query, asked.demands, remote_ip, True))

    def _caller(self, record: RootKey) -> Caller:
        workspace = self.store.workspace(record.workspace_id)
        if workspace is None or not workspace.enabled:
            raise errors.WorkspaceDisabled("The workspace of this root key is disabled.")
        if not record.enabled:
            raise errors.KeyDisabled("The root key is disabled.")
        if record.expires_at is not None and clock.now_ms() > record.expires_at:
            raise errors.Forbidden("The root key has expired.")
        caller = self._callers.peek(record.hash)
        if (
            caller is None
            or caller.record is not record
            or caller.requests_per_minute != workspace.requests_per_minute
        ):
            caller = Caller(record, workspace.requests_per_minute)
            self._callers.put(record.hash, caller)
        return caller

    def _success(self, payload: bytes, told: dict[str, str], request_id: bytes) -> Answer:
        content = b'{"meta":{"requestId":"%b"},"data":%b}' % (request_id, payload)
        return 200, content, {**_JSON, **told} if told else _JSON

    def _failure(
        self, headers: Mapping[str, str], fault: Fault, told: dict[str, str], request_id: bytes
    ) -> Answer:
        error: dict[str, object] = {
            "title": fault.kind.title,
            "detail": fault.detail,
            "status": fault.kind.status,
            "type": fault.kind.url,
        }
        if fault.kind.status == 400:
            # The published clients require the list in every 400.
            error["errors"] = [
                {"message": one.message, "location": one.location} | ({"fix": one.fix} if one.fix else {})
                for one in fault.violations
            ]
        content = {"meta": {"requestId": request_id.decode()}, "error": error}
        problem = not fault.violations and _takes_problems(headers.get("accept", ""))
        kind = _PROBLEM if problem else _JSON
        return fault.kind.status, msgspec.json.encode(content), {**kind, **told}


def _mark(authorization: bytes, remote_ip: bytes, body: bytes) -> bytes:
    # Texts of keys are not kept: a request that comes again is known by its digest.
    return hashlib.sha256(b"%b\0%b\0%b" % (authorization, remote_ip, body)).digest()


def _unknown_root_key() -> Fault:
    return errors.RootKeyNotFound("The provided root key is invalid.")


def _request_id() -> bytes:
    return b"req_" + _randbytes(ids.LENGTH).translate(_LETTERS)


def _takes_problems(accept: str) -> bool:
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint({"application/problem+json", "application/*", "*/*"})
