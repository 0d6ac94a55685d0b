"""Frontline: every request of a deployed app, from its host name to one of its instances.

The route is looked up for each request, also on a kept connection: a switch of routes holds for the
next request, and a request in flight ends where it began.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from edge.frontline.jwks import KeySets
from edge.frontline.lookup import Lookup
from edge.frontline.regions import Regions
from edge.frontline.waking import Ask, Doze, Waker, offline
from edge.http.h2c import H2cConnection
from edge.http.proxy import Exchange, forward
from edge.http.recorded import recorded
from edge.http.request import Request
from edge.http.upstream import Pool, UpstreamConnection
from edge.sentinel.barrier import Barrier
from edge.sentinel.debugging import Debugging, trace_line
from edge.sentinel.decision import Allow, Decision, Read, Refuse, State
from edge.sentinel.engine import Engine, compile_policies
from edge.sentinel.jwtauth import OpenKeys
from edge.sentinel.keyauth import Note, Verify
from edge.sentinel.openapi import document_of
from edge.store.records import Barrier as BarrierRecord
from edge.store.records import Sentinel
from edge.verify.limiter import Limiter
from edge.verify.steps import Subject
from unkey import clock
from unkey.errors import (
    ConfigNotFound,
    Fault,
    FrontlineInternalError,
    InvalidConfiguration,
    NoRunningInstances,
)

log = logging.getLogger(__name__)

_ACME = b"/.well-known/acme-challenge/"
_HEALTH = b"/_unkey/internal/health"
_REMEMBERED = 20_000
_AWAKE = Doze.AWAKE
_PROTOCOLS: dict[str, type[UpstreamConnection]] = {"http1": UpstreamConnection, "h2c": H2cConnection}
_ANSWERING = ("running", "standby", "waking")


class Gate:
    """What stands before one deployment: its compiled policies and where its instances are.

    `addresses` are those of this region, then those of the next one, and so on; `kind` speaks the app's
    protocol.
    """

    __slots__ = (
        "addresses",
        "barrier",
        "deployment_id",
        "doze",
        "engine",
        "environment_id",
        "kind",
        "refusal",
    )

    def __init__(
        self,
        deployment_id: str,
        environment_id: str,
        engine: Engine,
        addresses: tuple[tuple[str, ...], ...],
        refusal: Fault | None,
        doze: Doze,
        barrier: Barrier | None,
        kind: type[UpstreamConnection],
    ) -> None:
        self.deployment_id = deployment_id
        self.kind = kind
        self.barrier = barrier
        self.environment_id = environment_id
        self.engine = engine
        self.addresses = addresses
        self.refusal = refusal
        self.doze = doze


class Frontline:
    """Serves requests of deployed apps.

    Args:
        store: routes, sentinels and instances, from memory.
        verifier: of keys, for keyauth.
        limiter: counters of ratelimit policies.
        pool: connections to instances.
        edge_id: told to apps and clients.
        region: told to apps and clients; instances elsewhere are a second choice.
        redirect_port: answer plain HTTP by a redirect to HTTPS on this port; None: serve it.
        wake: asks the control plane to wake a sleeping deployment; None: nobody does.
        hold_seconds: how long a request for one is held.
        hold_most: how many such requests are held at once.
        nearest: the other regions by their distance from each region, where that is configured.
        open_keys: where key sets of tokens are fetched; None: from public addresses.
        note_use: is told each verification of a key, last the app; None: nobody is.
        debugging: knows who may watch what policies do; None: nobody may.

    Attributes:
        used: deployments that requests were sent to; whoever reports them empties it.
        waker: holds requests for sleeping deployments.
    """

    def __init__(
        self,
        store: Lookup,
        verifier: Verify,
        limiter: Limiter,
        pool: Pool,
        *,
        edge_id: str,
        region: str,
        redirect_port: int | None = None,
        wake: Ask | None = None,
        hold_seconds: float = 30,
        hold_most: int = 500,
        open_keys: OpenKeys | None = None,
        nearest: Mapping[str, tuple[str, ...]] | None = None,
        note_use: Callable[[Subject, str, int, str], object] | None = None,
        debugging: Debugging | None = None,
    ) -> None:
        self.used: set[str] = set()
        self.refusals: dict[str, int] = {}
        self.forwarded = 0
        self._store = store
        self._verifier = verifier
        self._limiter = limiter
        self._pool = pool
        self._open_keys = open_keys or KeySets().open
        self._regions = Regions(region, nearest or {})
        self._redirect_port = redirect_port
        self._lines = f"X-Unkey-Frontline-Id: {edge_id}\r\nX-Unkey-Region: {region}\r\n".encode()
        self._gates: dict[str, Gate] = {}
        self._engines: dict[str, Engine] = {}
        self._barriers: dict[str, tuple[BarrierRecord, Barrier]] = {}
        self._apps: dict[str, str] = {}
        self._note_use = note_use
        self._debugging = debugging
        self._deciding: set[asyncio.Task[None]] = set()
        self.waker = Waker(
            self._doze,
            store.sentinel,
            wake,
            use=self._forward_woken,
            refuse=self._refuse,
            seconds=hold_seconds,
            most=hold_most,
        )
        store.on_change(self._changed)

    def handle(self, request: Request) -> None:
        """Route one request; a `Server` calls this."""
        target = request.target
        if target.startswith(b"/."):
            if target.startswith(_ACME):
                return self._refuse(request, ConfigNotFound("There is no such challenge."))
        elif target == _HEALTH:
            return request.respond(200, b"content-type: text/plain\r\n", b"OK")
        if self._redirect_port is not None and not request.secure:
            return self._redirect(request)
        route = self._store.route(request.host)
        if route is None or route.deleted:
            return self._refuse(request, ConfigNotFound(f"No app answers to {request.host}."))
        self._apps[route.deployment_id] = route.app_id
        gate = self._gates.get(route.deployment_id) or self._gate(route.deployment_id)
        if gate.barrier is not None and (fault := gate.barrier.refuse(request.peer)) is not None:
            return self._refuse(request, fault)
        if gate.refusal is not None:
            return self._refuse(request, gate.refusal)
        debug = request.header(b"x-unkey-debug")
        timed = debug is not None and self._may_watch(debug, gate.environment_id)
        self._act(request, gate, gate.engine.decide(request, timed=timed))

    def _may_watch(self, signed: bytes, environment_id: str) -> bool:
        """Say whether a header lets its sender see what the policies of an environment do."""
        watching = self._debugging
        return watching is not None and watching.allows(signed, environment_id, clock.now_ms())

    def _act(self, request: Request, gate: Gate, decision: Decision | Awaitable[Decision]) -> None:
        """Do what was decided of a request."""
        if isinstance(decision, Allow):
            request.found = decision.found
            self._forward(request, gate, decision, trace_line(decision.found))
        elif isinstance(decision, Refuse):
            request.found = decision.found
            lines = decision.response_lines + trace_line(decision.found)
            self._refuse(request, decision.fault, lines)
        elif isinstance(decision, Read):
            request.read_body(decision.limit, partial(self._judge, gate, decision), self._refuse)
        else:
            task = asyncio.get_running_loop().create_task(self._decide_later(request, gate, decision))
            self._deciding.add(task)
            task.add_done_callback(self._deciding.discard)

    def _judge(self, gate: Gate, reading: Read, request: Request, body: bytes) -> None:
        """Decide on a request whose body had to be read; it is sent on as it came."""
        request.keep_body(body)
        self._act(request, gate, reading.go_on(body))

    async def _decide_later(self, request: Request, gate: Gate, deciding: Awaitable[Decision]) -> None:
        try:
            decision = await deciding
            if request.connection.request is request:  # else the client left meanwhile
                self._act(request, gate, decision)
        except Exception:
            log.exception("a request could not be decided", extra={"request_id": request.id})
            self._refuse(request, FrontlineInternalError("The edge failed to handle this request."))

    def _forward(self, request: Request, gate: Gate, decision: Allow, response_lines: bytes = b"") -> None:
        if gate.doze is not _AWAKE:
            return self.waker.hold(request, gate.deployment_id, decision)
        self.forwarded += 1
        self.used.add(gate.deployment_id)
        id_line = b"X-Unkey-Request-Id: %b\r\n" % request.id.encode()
        lines = self._lines + id_line
        forward(
            request,
            self._pool,
            self._pool.choose(gate.addresses),
            request_lines=lines + decision.request_lines,
            response_lines=lines + response_lines + decision.response_lines,
            refuse=self._refuse,
            record=_record(decision.found),
            kind=gate.kind,
        )

    def _forward_woken(self, request: Request, deployment_id: str, decision: Allow, lines: bytes) -> None:
        """Send a request on that was held until its deployment was awake."""
        gate = self._gates.get(deployment_id) or self._gate(deployment_id)
        if gate.refusal is not None:
            return self._refuse(request, gate.refusal)
        self._forward(request, gate, decision, lines)

    def _refuse(self, request: Request, fault: Fault, lines: bytes = b"") -> None:
        code = fault.kind.code
        self.refusals[code] = self.refusals.get(code, 0) + 1
        request.refuse(fault, headers=self._lines + lines)

    def _redirect(self, request: Request) -> None:
        port = "" if self._redirect_port == 443 else f":{self._redirect_port}"
        location = b"https://%b%b%b" % (request.host.encode(), port.encode(), request.target)
        request.respond(308, b"location: %b\r\n" % location, b"")

    def _gate(self, deployment_id: str) -> Gate:
        """Put together what stands before a deployment, and remember it until something changes."""
        if len(self._gates) >= _REMEMBERED:
            self._gates.clear()
            self._engines.clear()
            self._barriers.clear()
            self._apps.clear()
        sentinel = self._store.sentinel(deployment_id)
        running: dict[str, list[str]] = {}
        for instance in self._store.instances(deployment_id):
            if instance.status == "running":
                running.setdefault(instance.region, []).append(instance.address)
        addresses = tuple(tuple(running[region]) for region in self._regions.in_order(running))
        engine = Engine(())
        refusal: Fault | None = None
        doze = Doze.AWAKE
        if sentinel is None:
            # Without its policies a deployment must not be reachable at all.
            refusal = NoRunningInstances("The deployment is not known here yet; try again in a moment.")
            doze = Doze.STOPPED
        elif sentinel.desired_state not in _ANSWERING:
            refusal = offline()
            doze = Doze.STOPPED
        elif sentinel.upstream_protocol not in _PROTOCOLS:
            refusal = InvalidConfiguration(f"This edge cannot speak {sentinel.upstream_protocol} to the app.")
        elif sentinel.desired_state == "standby":
            doze = Doze.ASLEEP
        elif not addresses:
            doze = Doze.WAKING
            if sentinel.desired_state == "running":
                refusal = NoRunningInstances("The app has no running instance.")
        if sentinel is not None and refusal is None:
            engine = self._engines.get(deployment_id) or self._compile(sentinel)
        environment_id = "" if sentinel is None else sentinel.environment_id
        barrier = self._barrier(environment_id)
        kind = _PROTOCOLS.get(sentinel.upstream_protocol if sentinel is not None else "", UpstreamConnection)
        gate = Gate(deployment_id, environment_id, engine, addresses, refusal, doze, barrier, kind)
        self._gates[deployment_id] = gate
        return gate

    def _barrier(self, environment_id: str) -> Barrier | None:
        """Return what is refused before an environment's deployments, compiled; None if nothing is."""
        record = self._store.barrier(environment_id)
        if record is None or not (record.blocked or record.maintenance):
            return None
        known = self._barriers.get(environment_id)
        if known is None or known[0] is not record:
            known = self._barriers[environment_id] = record, Barrier(record)
        return known[1]

    def _compile(self, sentinel: Sentinel) -> Engine:
        """Compile what is enforced before a deployment; once, however often its instances change."""
        deployment_id = sentinel.deployment_id
        engine = self._engines[deployment_id] = compile_policies(
            sentinel.policies,
            workspace_id=sentinel.workspace_id,
            verifier=self._verifier,
            limiter=self._limiter,
            open_keys=self._open_keys,
            note=self._note_for(deployment_id),
            document=document_of(self._store.contract(deployment_id)),
        )
        return engine

    def _note_for(self, deployment_id: str) -> Note | None:
        told = self._note_use
        if told is None:
            return None
        return lambda subject, code, spent: told(subject, code, spent, self._apps.get(deployment_id, ""))

    def _doze(self, deployment_id: str) -> Doze:
        return (self._gates.get(deployment_id) or self._gate(deployment_id)).doze

    def _changed(self, stream: str, records: Sequence[Any]) -> None:
        if stream in ("sentinels", "instances"):
            for record in records:
                if isinstance(record, BarrierRecord):
                    self._gates.clear()  # seldom: the engines stay
                    continue
                self._gates.pop(record.deployment_id, None)
                if stream == "sentinels":
                    self._engines.pop(record.deployment_id, None)
                self._apps.pop(record.deployment_id, None)
                self.waker.changed(record.deployment_id)


def _record(found: State | None) -> Callable[[type[Exchange]], Callable[..., Exchange]] | None:
    """Return what makes an exchange of a kind that tells what passes; None: nobody asked for it."""
    if found is None or found.recorder is None or not found.recorder.watches:
        return None
    tap = found.recorder

    def make(kind: type[Exchange]) -> Callable[..., Exchange]:
        def build(*arguments: Any) -> Exchange:
            exchange = recorded(kind)(*arguments)
            exchange.tap = tap  # type: ignore[attr-defined]
            return exchange

        return build

    return make
