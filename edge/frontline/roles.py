"""One edge process: its listeners, what they share, and how they start and stop."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import structlog

from edge.frontline.api import Api
from edge.frontline.frontline import Frontline
from edge.frontline.jwks import KeySets
from edge.frontline.operations import Operations
from edge.frontline.requests import Requests
from edge.frontline.waking import ControlPlane
from edge.http.limits import Limits
from edge.http.request import Request
from edge.http.server import LATENCY_BUCKETS, Handler, Quick, Refuse, Server
from edge.http.tickets import TicketKeys
from edge.http.tls import Certificates
from edge.http.upstream import Pool
from edge.sentinel.debugging import Debugging
from edge.store.counters import Counters, open_counters
from edge.store.exchange import Exchange
from edge.store.store import Store
from edge.telemetry.events import telemetry_of
from edge.telemetry.metrics import Registry, Sample, histogram
from edge.verify.limiter import Limiter
from edge.verify.ratelimits import Ratelimits
from edge.verify.verifier import Verifier
from edge.worker import Inheritance

log = structlog.get_logger("edge")


class CannotListen(Exception):
    """A port cannot be listened on; the text names it and its setting."""


class Edge:
    """Store, verifier and listeners of one process.

    Args:
        env: the settings; `EDGE_ROLE` says which listeners there are.
        inherited: what a worker has from its supervisor; None: this edge has none.
    """

    def __init__(self, env: Any, inherited: Inheritance | None = None) -> None:
        self._inherited = inherited or Inheritance()
        self.store = Store()
        self.telemetry = telemetry_of(env) if env.TELEMETRY else None
        self.verifier = Verifier(self.store, Limiter(far=bool(env.REDIS_URL)), telemetry=self.telemetry)
        self.limits = Limits.of(env)
        self.pool = Pool(self.limits)
        self.registry = Registry()
        self.servers: dict[str, Server] = {}
        self._env = env
        self._started = False
        self._ports: list[tuple[Server, str]] = []
        self._seat: Counters | None = None
        self._exchange: Exchange | None = None
        self._exchanging: asyncio.Task[None] | None = None
        self._certificates = Certificates(self.store.certificate, env.DEFAULT_DOMAIN)
        self._tls: ssl.SSLContext | None = None
        self._tickets = TicketKeys(env.tickets_folder)
        self._frontline: Frontline | None = None
        self._control_plane: ControlPlane | None = None
        self._add("metrics", "EDGE_METRICS_PORT", Operations(self.registry, self._is_ready).handle)
        if "api" in env.EDGE_ROLE:
            limits = Ratelimits(self.verifier, self.telemetry)
            api = Api(self.verifier, limits, self.pool, env.web_url)
            self._add("api", "EDGE_API_PORT", api.handle, quick=api.quick, refuse=api.refuse)
        if "frontline" in env.EDGE_ROLE:
            self._control_plane = ControlPlane(
                env.web_url, env.secret("AGENT_TOKEN"), self._inherited.edge or env.EDGE_ID
            )
            frontline = self._frontline = Frontline(
                self.store,
                self.verifier,
                self.verifier.limiter,
                self.pool,
                edge_id=env.EDGE_ID,
                region=env.REGION,
                redirect_port=env.EDGE_HTTPS_PORT if env.EDGE_HTTPS_REDIRECT else None,
                wake=self._control_plane.wake,
                hold_seconds=env.EDGE_WAKE_SECONDS,
                hold_most=env.EDGE_WAKE_REQUESTS,
                nearest=env.NEAREST_REGIONS,
                open_keys=KeySets(private=env.EDGE_JWKS_PRIVATE).open,
                note_use=self.verifier.note_use,
                debugging=Debugging([env.secret("AGENT_TOKEN"), *env.AGENT_PREVIOUS_TOKENS]),
            )
            self.store.report_use_of(frontline.used, self._addresses_in_use)
            noted = None
            if self.telemetry is not None:
                noted = Requests(self.store, self.telemetry, env.EDGE_ID, env.REGION)
            self._add("http", "EDGE_HTTP_PORT", frontline.handle, observe=noted)
            self._add("https", "EDGE_HTTPS_PORT", frontline.handle, tls=True, observe=noted)
        self._measure()

    def _add(
        self,
        name: str,
        setting: str,
        handle: Handler,
        *,
        tls: bool = False,
        quick: Quick | None = None,
        refuse: Refuse = Request.refuse,
        observe: Requests | None = None,
    ) -> None:
        context = self._certificates.listener_context() if tls else None
        self._tls = self._tls or context
        server = self.servers[name] = Server(
            name,
            handle,
            self.limits,
            tls=context,
            quick=quick,
            refuse=refuse,
            observe=observe,
            proxied=self._env.EDGE_PROXY_PROTOCOL and name != "metrics",
        )
        self._ports.append((server, setting))

    def _is_ready(self) -> bool:
        return self._started and self.store.ready

    async def start(self) -> None:
        """Open the health listener, fill the store, then open the others.

        Raises:
            CannotListen: a port is taken.
        """
        self.pool.start()
        if self.telemetry is not None:
            self.telemetry.start()
        self._share_counts()
        if self._tls is not None:
            self._tickets.keep(self._tls)
        await self._listen(*self._ports[0])
        await self.store.start()
        for server, setting in self._ports[1:]:
            await self._listen(server, setting)
        self._started = True
        log.info("edge.started", **{name: server.port for name, server in self.servers.items()})

    def _share_counts(self) -> None:
        """Count rate limits together with the machine's other processes, and with other machines by Redis."""
        limiter = self.verifier.limiter
        seat = limiter.sharing = self._seat = open_counters(self._env.limits_folder)
        if self._env.REDIS_URL:
            self._exchange = Exchange(self._env.REDIS_URL, limiter, seat)
            self._exchanging = asyncio.create_task(self._exchange.run())

    async def _listen(self, server: Server, setting: str) -> None:
        port = getattr(self._env, setting)
        try:
            await server.start(
                self._env.BIND,
                port,
                reuse_port=self._env.EDGE_REUSE_PORT,
                listening=self._inherited.listener(server.name),
            )
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {self._env.BIND}:{port} ({setting}): {error.strerror or error}"
            ) from None

    async def stop(self, *, gently: bool = False) -> None:
        """Drain every listener, health last, then let the store write what it knows.

        Args:
            gently: see `Server.stop`.
        """
        self._started = False
        health, *others = (server for server, _ in self._ports)
        await asyncio.gather(*(server.stop(gently=gently) for server in others))
        await health.stop()
        self.pool.stop()
        self._tickets.stop()
        if self._exchange is not None and self._exchanging is not None:
            self._exchanging.cancel()
            await self._exchange.close()
        if self._control_plane is not None:
            await self._control_plane.close()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.stop)
        await self.store.stop()
        log.info("edge.stopped")

    def _addresses_in_use(self) -> set[str]:
        """Return the instances that requests, or tunnels that began as requests, are open to."""
        return {address for address, endpoint in self.pool.endpoints.items() if endpoint.outstanding}

    # -- metrics

    def _measure(self) -> None:
        add = self.registry.add
        add("unkey_edge_requests_total", "counter", "Requests answered.", self._requests)
        self.registry.add_histogram(
            "unkey_edge_request_seconds",
            "Time from a request's head to the end of its answer.",
            self._latencies,
        )
        for name, kind, text, read in self._gauges():
            add(name, kind, text, read)
        add(
            "unkey_frontline_refusals_total",
            "counter",
            "Requests that the gateway refused, by code.",
            lambda: self._by_label("unkey_frontline_refusals_total", "code", self._refusals()),
        )
        add(
            "unkey_frontline_held_total",
            "counter",
            "Requests for sleeping deployments, by what became of them.",
            lambda: self._by_label("unkey_frontline_held_total", "outcome", self._outcomes()),
        )
        for name, text, count in (
            ("unkey_edge_telemetry_recorded_total", "Events taken from memory.", self._recorded),
            ("unkey_edge_telemetry_dropped_total", "Events that there was no room for.", self._dropped),
        ):
            add(name, "counter", text, partial(self._by_table, name, count))
        add(
            "unkey_edge_store_events_total",
            "counter",
            "What the store counted.",
            lambda: self._by_label("unkey_edge_store_events_total", "event", dict(self.store.counters)),
        )

    def _gauges(self) -> Iterator[tuple[str, str, str, Callable[[], list[Sample]]]]:
        def of_servers(name: str, read: Callable[[Server], float]) -> Callable[[], list[Sample]]:
            return lambda: [(name, {"listener": each.name}, read(each)) for each in self.servers.values()]

        def plain(name: str, read: Callable[[], float]) -> Callable[[], list[Sample]]:
            return lambda: [(name, {}, read())]

        name = "unkey_edge_connections"
        yield name, "gauge", "Open client connections.", of_servers(name, lambda each: len(each.connections))
        name = "unkey_edge_refused_heads_total"
        yield name, "counter", "Heads that were no valid HTTP.", of_servers(name, lambda each: each.refused)
        name = "unkey_edge_crowded_total"
        yield (
            name,
            "counter",
            "Connections beyond the bound, of all or of an address.",
            of_servers(name, lambda each: each.crowded),
        )
        name = "unkey_edge_slow_readers_total"
        yield (
            name,
            "counter",
            "Clients that did not take their answers.",
            of_servers(name, lambda each: each.slow),
        )
        name = "unkey_edge_aborted_total"
        yield name, "counter", "Requests whose client left.", of_servers(name, lambda each: each.aborted)
        name = "unkey_edge_upstream_connections"
        yield name, "gauge", "Open upstream connections.", plain(name, lambda: len(self.pool.open))
        name = "unkey_edge_upstream_dials_total"
        yield name, "counter", "Upstream connections begun.", plain(name, lambda: self.pool.dials)
        name = "unkey_edge_upstream_dial_failures_total"
        yield name, "counter", "Upstream connections failed.", plain(name, lambda: self.pool.dial_failures)
        name = "unkey_edge_upstream_down"
        yield (
            name,
            "gauge",
            "Addresses that accept no connection, or are on trial.",
            plain(name, lambda: len(self.pool.suspects)),
        )
        name = "unkey_edge_unknown_server_names_total"
        yield (
            name,
            "counter",
            "Handshakes without certificate.",
            plain(name, lambda: self._certificates.unknown),
        )
        name = "unkey_frontline_holding"
        yield name, "gauge", "Requests that wait for a sleeping deployment.", plain(name, self._holding)
        name = "unkey_edge_limit_counters"
        yield name, "gauge", "Counters of rate limits.", plain(name, lambda: len(self.verifier.limiter))
        name = "unkey_edge_limit_unshared_total"
        yield (
            name,
            "counter",
            "Counters that other processes of this machine could not be shown.",
            plain(name, lambda: self._seat.crowded if self._seat is not None else 0),
        )
        name = "unkey_edge_limit_exchanged_total"
        yield (
            name,
            "counter",
            "Counters exchanged with other machines.",
            plain(name, lambda: self._exchange.exchanged if self._exchange is not None else 0),
        )
        name = "unkey_edge_limit_exchange_failures_total"
        yield (
            name,
            "counter",
            "Exchanges that Redis did not answer.",
            plain(name, lambda: self._exchange.failures if self._exchange is not None else 0),
        )
        name = "unkey_edge_ready"
        yield name, "gauge", "1: there is something to serve from.", plain(name, self._is_ready)

    def _requests(self) -> Iterator[Sample]:
        for server in self.servers.values():
            server.settle()
            for status, count in sorted(server.statuses.items()):
                yield (
                    "unkey_edge_requests_total",
                    {"listener": server.name, "status": str(status or "none")},
                    count,
                )

    def _latencies(self) -> list[str]:
        lines: list[str] = []
        for server in self.servers.values():
            server.settle()
            labels = {"listener": server.name}
            lines += histogram(
                "unkey_edge_request_seconds", labels, LATENCY_BUCKETS, server.latencies, server.latency_sum
            )
        return lines

    def _refusals(self) -> dict[str, int]:
        return self._frontline.refusals if self._frontline is not None else {}

    def _holding(self) -> int:
        return self._frontline.waker.count if self._frontline is not None else 0

    def _outcomes(self) -> dict[str, int]:
        return self._frontline.waker.outcomes if self._frontline is not None else {}

    def _recorded(self) -> dict[str, int]:
        return self.telemetry.recorded if self.telemetry is not None else {}

    def _dropped(self) -> dict[str, int]:
        return dict(self.telemetry.dropped) if self.telemetry is not None else {}

    def _by_table(self, name: str, count: Callable[[], dict[str, int]]) -> list[Sample]:
        return self._by_label(name, "table", count())

    @staticmethod
    def _by_label(name: str, label: str, counts: dict[str, int]) -> list[Sample]:
        return [(name, {label: text}, count) for text, count in sorted(counts.items())]
