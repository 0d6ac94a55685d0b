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
from collections.abc import Awaitable, Iterator, Mapping
from math import inf
from operator import is_
from random import Random
from time import perf_counter
from typing import Protocol

import msgspec
import structlog

from edge.store.held import Held
from edge.store.records import Absence, KeyName, KeyRecord, RootKey, Workspace
from edge.store.state import Lru
from edge.store.store import Store
from edge.telemetry.facts import key_facts, source_facts
from edge.verify import permissions
from edge.verify.limiter import Limit, Limiter, Window
from edge.verify.permissions import Query
from edge.verify.request import VerifyBody, decode, read
from edge.verify.steps import (
    BARE_NOT_FOUND,
    USAGE_EXCEEDED,
    Demand,
    Grants,
    Holder,
    Prepared,
    Request,
    Subject,
    Verdict,
    credit_cost,
    form,
    render,
    verify,
)
from unkey import clock, errors, ids
from unkey.errors import Fault, Violation
from unkey.rpc.grants import grants

log = structlog.get_logger("edge")

Answer = tuple[int, bytes, dict[str, str]]

_JSON = {"content-type": "application/json"}
_MINUTE = 60_000
_CALLERS = 10_000
_SHARED = 10_000
_NOT_JSON = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_FROM_API = source_facts("api")
_UNTAGGED: list[str] = []
_PROBLEM = {"content-type": "application/problem+json"}
# Request ids are no secrets: one draw of a generator that the system seeded, each octet to a letter.
_randbytes = Random().randbytes  # noqa: S311
_LETTERS = (ids.ALPHABET * 5)[:256].encode()
NO_HEADER = Violation(
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
    """A root key as a caller: what it may verify.

    Args:
        record: the root key.
        workspace: whose it is.
    """

    __slots__ = (
        *("epoch", "everything", "expires_at", "no_key", "permissions", "record", "requests_per_minute"),
        "workspace",
    )

    def __init__(self, record: RootKey, workspace: Workspace) -> None:
        self.record = record
        self.workspace = workspace
        self.requests_per_minute = workspace.requests_per_minute
        self.expires_at = inf if record.expires_at is None else record.expires_at
        self.epoch = -1  # of the store, when it was last known to be current
        self.permissions = frozenset(record.permissions)
        self.everything = "api.*.verify_key" in self.permissions
        # What events say of a key that is not there, or must not be known of.
        self.no_key = key_facts(record.workspace_id, "")

    def may_verify(self, key: KeyRecord | KeyName) -> bool:
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
    """A request that only time, counters and credits can refuse, for the next one like it.

    Args:
        prepared: the request against its key.
        caller: who asked.
        shape: the request's body without key and tags.
        remote_ip: whom it is for, None: anybody.
    """

    __slots__ = ("asked", "caller", "form", "good_until", "remote_ip", "shape", "subject", "windows")

    def __init__(
        self, prepared: Prepared, caller: Caller, shape: VerifyBody, remote_ip: bytes | None
    ) -> None:
        self.subject = prepared.subject
        self.asked = prepared.asked
        self.form = form(prepared.asked)
        self.windows: list[Window] = []
        self.caller = caller
        self.shape = shape
        self.remote_ip = remote_ip
        expires_at = prepared.subject.key.expires_at
        self.good_until = caller.expires_at if expires_at is None else min(expires_at, caller.expires_at)


# What events say of a key, the request's tags, and the outcome; None: not found.
_Found = tuple[bytes, bytes, Verdict | None]


class Verifier:
    """Verifies keys against a store; one per edge process.

    Args:
        store: where records and credits come from.
        limiter: the process's counters; the gateway's own limits share it.
        telemetry: is told every verification; None: nobody is.
    """

    def __init__(
        self,
        store: Store,
        limiter: Limiter | None = None,
        telemetry: Recorder | None = None,
    ) -> None:
        self.store = store
        self._telemetry = telemetry
        self.limiter = Limiter() if limiter is None else limiter
        self._callers: Lru[str, Caller] = Lru(_CALLERS)
        self._presented: Lru[bytes, Caller] = Lru(_CALLERS)
        # What many keys have in common is made once.
        self._grants: Lru[tuple[object, ...], Grants] = Lru(_SHARED)
        self._shapes: Lru[bytes, VerifyBody] = Lru(_SHARED)
        self._last_shape: VerifyBody | None = None
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
        held = self.store.held_key(digest)
        if held is None:
            return None if self.store.key(digest) is Absence.UNKNOWN else self._fetched(digest)
        if held.record.deleted:
            return None
        held.used = True
        subject = self._joined(held)
        return self._fetched(digest) if subject is None else subject

    async def _fetched(self, digest: str) -> Subject | None:
        if await self.store.fetch_key(digest) is None:
            return None
        held = self.store.held_key(digest)
        subject = None if held is None else self._joined(held)
        if subject is None:
            raise errors.ServiceUnavailable("The key cannot be verified at the moment. Please try again.")
        return subject

    def _joined(self, held: Held[KeyRecord]) -> Subject | None:
        """Return a key with what it refers to, None if not all of that is in memory."""
        store, record = self.store, held.record
        subject: Subject | None = held.joined
        if subject is not None and (subject.epoch == store.epoch or self._is_current(subject)):
            return subject
        held.joined = held.plan = None
        workspace = store.workspace(record.workspace_id)
        api = store.api(record.api_id)
        roles = tuple(role for role_id in record.role_ids if (role := store.role_record(role_id)))
        held_by = store.held_identity(record.identity_id) if record.identity_id else None
        complete = len(roles) == len(record.role_ids) and (held_by is not None) == bool(record.identity_id)
        if workspace is None or api is None or not complete:
            return None
        identity = holder = None
        if held_by is not None:
            held_by.used = True
            if not held_by.record.deleted:
                identity = held_by.record
                if held_by.joined is None:
                    held_by.joined = Holder(identity)
                holder = held_by.joined
        granted = (record.permissions, record.role_ids)
        grants = self._grants.peek(granted)
        if grants is None or not all(map(is_, grants.roles, roles)):
            grants = Grants(record.permissions, roles)
            self._grants.put(granted, grants)
        subject = Subject(record, workspace, api, identity, roles, grants=grants, holder=holder)
        subject.epoch = store.epoch
        held.joined = subject
        return subject

    def _is_current(self, subject: Subject) -> bool:
        """Say whether all that a key was joined with still is what the store has."""
        store, key = self.store, subject.key
        if (
            store.workspace(key.workspace_id) is not subject.workspace
            or store.api(key.api_id) is not subject.api
        ):
            return False
        for role in subject.grants.roles:
            if store.role_record(role.id) is not role:
                return False
        if key.identity_id:
            held_by = store.held_identity(key.identity_id)
            if held_by is None:
                return False
            held_by.used = True
            if (None if held_by.record.deleted else held_by.record) is not subject.identity:
                return False
        subject.epoch = store.epoch
        return True

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

    def note_use(self, subject: Subject, code: str, spent: int, app_id: str) -> None:
        """Tell telemetry of a verification that the gateway asked for, before an app."""
        if self._telemetry is not None:
            self._telemetry.record_verification(
                new_request_id(),
                clock.now_ms(),
                subject.facts,
                code.encode(),
                spent=spent,
                source=source_facts("gateway", app_id),
            )

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
        store = self.store
        epoch = store.epoch
        caller = self._presented.peek(authorization)
        if caller is None or (caller.epoch != epoch and not self._stands(caller)):
            return None
        try:
            asked = decode(body)
        except _NOT_JSON:
            return None
        held = store.held_key(digest_of(asked.key))
        if held is None:
            return None
        plan: _Plan | None = held.plan or self._planned(held, caller, asked, remote_ip)
        if plan is None or plan.caller is not caller:
            return None
        tags = asked.tags
        asked.key = ""
        asked.tags = _UNTAGGED
        if asked != plan.shape or (plan.remote_ip is not None and plan.remote_ip != remote_ip):
            return None
        subject = plan.subject
        if subject.epoch != epoch and not self._is_current(subject):
            return None
        now = clock.now_ms()
        if now > plan.good_until:
            return None
        held.used = True
        key = subject.key
        cost, lease = 0, None
        if key.remaining is not None:
            cost = 1 if asked.cost is None else asked.cost
            lease = store.wallet.holding(key, cost)
            if not cost or lease is None:
                return None
        rows: list[bytes | int] = []
        if plan.asked:
            taken = self.limiter.take(plan.asked, plan.windows, now)
            if taken is None:
                return None
            for limit, remaining, reset in zip(plan.asked, taken[::2], taken[1::2], strict=True):
                rows += (limit.ratelimit.id.encode(), remaining, reset)
        credits = b"" if lease is None else b',"credits":%d' % store.wallet.spend_from(lease, key, cost)
        request_id = new_request_id()
        if self._telemetry is not None:
            self._telemetry.record_verification(
                request_id,
                now,
                subject.facts,
                b"VALID",
                cost,
                (perf_counter() - started) * 1000,
                msgspec.json.encode(tags) if tags else b"[]",
            )
        holder = subject.holder
        return plan.form % (
            request_id,
            subject.own,
            subject.grants.text,
            b"" if holder is None else holder.text,
            credits,
            *rows,
        )

    def _planned(
        self, held: Held[KeyRecord], caller: Caller, asked: VerifyBody, remote_ip: bytes
    ) -> _Plan | None:
        """Plan a request for a key that was packed away since it was used, if it may be answered at once."""
        subject = None if held.record.deleted else self._joined(held)
        if subject is None or subject.blocked:
            return None
        try:
            prepared = self._prepared(caller, subject, asked, remote_ip.decode())
        except Fault:
            return None
        if prepared is not None:
            self._keep(prepared, caller, asked, remote_ip.decode())
        plan: _Plan | None = held.plan
        return plan

    def known_caller(self, authorization: bytes) -> Caller | None:
        """Return whom a header presents, if that is known from an earlier request and still is so.

        Whether its root key has expired since is left to be asked.
        """
        caller = self._presented.peek(authorization)
        if caller is None or (caller.epoch != self.store.epoch and not self._stands(caller)):
            return None
        return caller

    def caller(self, authorization: str) -> Caller | Awaitable[Caller]:
        """Return whom a header presents; awaitable if the root key must be read.

        Raises:
            AuthenticationMalformed, RootKeyNotFound, WorkspaceDisabled, KeyDisabled, Forbidden: it may not.
        """
        digest = _root_digest(authorization)
        record = self.store.root_key(digest)
        if record is Absence.UNKNOWN:
            raise _unknown_root_key()
        if not isinstance(record, RootKey):
            return self._fetched_caller(digest)
        caller = self._caller(record)
        if caller.requests_per_minute is None:
            self._presented.put(authorization.encode("latin-1", "replace"), caller)
        return caller

    async def _fetched_caller(self, digest: str) -> Caller:
        record = await self.store.fetch_root_key(digest)
        if record is None:
            raise _unknown_root_key()
        return self._caller(record)

    def _stands(self, caller: Caller) -> bool:
        """Say whether a caller's root key and workspace still are what the store has."""
        store, record = self.store, caller.record
        if (
            store.root_key(record.hash) is not record
            or store.workspace(record.workspace_id) is not caller.workspace
        ):
            return False
        caller.epoch = store.epoch
        return True

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
        request_id = new_request_id()
        try:
            authorization = headers.get("authorization", "")
            asked = read(body) if authorization else read(body, (NO_HEADER,))
            digest = _root_digest(authorization)
            root_key = self.store.root_key(digest)
            if root_key is Absence.UNKNOWN:
                raise _unknown_root_key()
            if not isinstance(root_key, RootKey):
                found = self._verify_slowly(asked, remote_ip, digest, None, told)
                return self._later(headers, found, told, request_id, started)
            caller = self._caller(root_key)
            subject = self.find(asked.key)
            if not isinstance(subject, Subject | None) or (subject is None and asked.migration):
                found = self._verify_slowly(asked, remote_ip, digest, subject, told)
                return self._later(headers, found, told, request_id, started)
            prepared = self._prepared(caller, subject, asked, remote_ip)
            now = clock.now_ms()
            self.admit(caller, now, told)
            tags = _tags(asked)
            if prepared is None:
                self._note(request_id, caller.no_key, None, tags, started)
                return self.success(BARE_NOT_FOUND, told, request_id)
            if self._keep(prepared, caller, asked, remote_ip):
                self._presented.put(authorization.encode("latin-1", "replace"), caller)
            verdict = self._charged(prepared.verify(self.limiter, now), asked.cost)
            facts = prepared.subject.facts
            if isinstance(verdict, Verdict):
                self._note(request_id, facts, verdict, tags, started)
                return self.success(render(verdict), told, request_id)
            return self._later(headers, _with(facts, tags, verdict), told, request_id, started)
        except Fault as fault:
            return self.failure(headers, fault, told, request_id)

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

    def _keep(self, prepared: Prepared, caller: Caller, asked: VerifyBody, remote_ip: str) -> bool:
        """Keep a request for the next one like it, if that may be answered at once; say whether it may."""
        subject = prepared.subject
        held = self.store.held_key(subject.key.hash)
        if caller.requests_per_minute is not None or not prepared.passes:
            return False
        if held is None or held.joined is not subject:
            return False
        shape = msgspec.structs.replace(asked, key="", tags=[])
        if shape != self._last_shape:
            text = msgspec.json.encode(shape)
            known = self._shapes.get(text)
            if known is None:
                self._shapes.put(text, shape)
            self._last_shape = shape if known is None else known
        assert self._last_shape is not None
        listed = remote_ip.encode() if subject.api.ip_whitelist else None
        held.plan = _Plan(prepared, caller, self._last_shape, listed)
        return True

    def admit(self, caller: Caller, now: int, told: dict[str, str]) -> None:
        """Count a request against its workspace's limit, if there is one; `told` takes the headers.

        A limiter that fails lets the request pass, without headers.

        Raises:
            WorkspaceRateLimited: there were too many.
        """
        most = caller.requests_per_minute
        if most is None:
            return
        workspace_id = caller.record.workspace_id
        counter = (workspace_id, "workspace.ratelimit", workspace_id, _MINUTE)
        try:
            outcome = self.limiter.check(Limit(counter, most), now)
        except Exception:
            log.exception("limiter.failed", workspace_id=workspace_id)
            return
        seconds = str(-(-(outcome.reset - now) // 1000))
        told["RateLimit-Limit"] = str(most)
        told["RateLimit-Remaining"] = str(outcome.remaining)
        told["RateLimit-Reset"] = seconds
        if not outcome.passed:
            told["Retry-After"] = seconds
            raise errors.WorkspaceRateLimited(
                f"This workspace may make {most} management requests per minute. Retry in {seconds} s."
            )

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
        self.admit(caller, clock.now_ms(), told)
        if subject is None and asked.migration:
            subject = await self._taken_over(caller, asked)
        prepared = self._prepared(caller, subject, asked, remote_ip)
        tags = _tags(asked)
        if prepared is None:
            return caller.no_key, tags, None
        verdict = self._charged(prepared.verify(self.limiter, clock.now_ms()), asked.cost)
        return prepared.subject.facts, tags, verdict if isinstance(verdict, Verdict) else await verdict

    async def _taken_over(self, caller: Caller, asked: VerifyBody) -> Subject | None:
        digest = digest_of(asked.key)
        workspace_id = caller.record.workspace_id
        record = await self.store.take_over(
            workspace_id, asked.migration, asked.key, digest, caller.may_verify
        )
        held = None if record is None else self.store.held_key(record.hash)
        return None if held is None else self._joined(held)

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
            return self.failure(headers, fault, told, request_id)
        self._note(request_id, facts, verdict, tags, started)
        return self.success(BARE_NOT_FOUND if verdict is None else render(verdict), told, request_id)

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
        if caller is None or caller.record is not record or caller.workspace is not workspace:
            caller = Caller(record, workspace)
            self._callers.put(record.hash, caller)
        return caller

    def success(self, payload: bytes, told: dict[str, str], request_id: bytes) -> Answer:
        """Return the answer of a success; `payload` is its `data` as JSON."""
        content = b'{"meta":{"requestId":"%b"},"data":%b}' % (request_id, payload)
        return 200, content, {**_JSON, **told} if told else _JSON

    def failure(
        self, headers: Mapping[str, str], fault: Fault, told: dict[str, str], request_id: bytes
    ) -> Answer:
        """Return the answer of a refusal, in the form that the caller takes."""
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


def _root_digest(authorization: str) -> str:
    """Return the hash of the root key that a request presents.

    Raises:
        AuthenticationMalformed: it presents none.
    """
    scheme, _, text = authorization.partition(" ")
    text = text.strip(" ")
    if not text or " " in text or scheme.lower() != "bearer":
        raise errors.AuthenticationMalformed("The Authorization header must read 'Bearer <root key>'.")
    return digest_of(text)


def _tags(asked: VerifyBody) -> bytes:
    return msgspec.json.encode(asked.tags) if asked.tags else b"[]"


async def _with(facts: bytes, tags: bytes, verifying: Awaitable[Verdict]) -> _Found:
    return facts, tags, await verifying


def _unknown_root_key() -> Fault:
    return errors.RootKeyNotFound("The provided root key is invalid.")


def _request_ids() -> Iterator[bytes]:
    while True:
        drawn = _randbytes(64 * ids.LENGTH).translate(_LETTERS)
        for start in range(0, len(drawn), ids.LENGTH):
            yield b"req_" + drawn[start : start + ids.LENGTH]


#: Return a fresh `req_…`.
new_request_id = _request_ids().__next__


def _takes_problems(accept: str) -> bool:
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint({"application/problem+json", "application/*", "*/*"})
