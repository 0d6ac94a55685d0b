"""Makes what runs equal to what should run, one keeper per deployment, level-triggered.

A keeper never reacts to a change as such: it compares what should run with what does, and moves one
towards the other, so a lost, doubled or late message costs nothing but time. Health, restarts and
reports are the same for every runtime.

    pending  → running    the instance answers
    running  → failed     it ended or is not well any more; it is started again, later each time
    pending  → failed     it did not become well: the deployment's owner must mend it
    any      → draining   it should not run any more

An instance that should not run any more is reported first; once every edge knows of it, and what they had
begun to ask it is answered, it is told to end, and killed if it does not. A crash is made good at once the
first time; one that follows within ten minutes of running is a crash loop, waited out for 10 s, 20 s, up to
5 minutes. What an agent that cannot reach the control plane needs to go on, it knows: topologies from its
disk, variables from its memory only.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from agent import health, metrics
from agent.autoscale import Load, Wish, decide
from agent.control_plane import ControlPlane, Refused, Unreachable
from agent.desired import Desired, Past
from agent.runtimes.base import Observed, Order, Runtime, StartFailed, Usage
from agent.wire import InstanceState, LogLine, Settings, Status, Topology
from unkey import clock, ids

LAST_LINES = 20
MAX_MESSAGE = 4000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the agent waits for what, in seconds.

    Args:
        start_deadline: for an instance to become well, unless its health check says otherwise.
        drain: at most between the report of `draining` and the signal, for edges to stop sending and for
            what they have begun to be answered.
        grace: between the signal and the kill.
        max_restarts: within seconds, of a program that was never well.
        first_restart: pause before another attempt of a program that was never well, or that could not be
            started through no fault of its own; doubled each time.
        slowest_restart: the longest of these pauses.
        first_crash: pause after the second crash in a row; doubled each time. There is none after the first.
        slowest_crash: the longest of these pauses.
        poll_starting: between two looks at an instance that starts.
        poll_running: between two looks whether its process runs.
        default_interval: between two health checks, where the environment names none.
        default_threshold: failed health checks in a row that end an instance, likewise.
        settled: after running this long an instance's earlier crashes are forgotten.
        report_delivery: how long the end of an agent waits for the control plane to know of its instances.
        linger: between the last edge's word and the look at open connections, for what is on its way.
        scale: between two looks at the load.
        calm: so long fewer instances must be enough before there are fewer.
    """

    start_deadline: float = 60.0
    drain: float = 10.0
    grace: float = 10.0
    max_restarts: int = 3
    first_restart: float = 0.5
    slowest_restart: float = 10.0
    first_crash: float = 10.0
    slowest_crash: float = 300.0
    poll_starting: float = 0.05
    poll_running: float = 0.25
    default_interval: float = 10.0
    default_threshold: int = 3
    settled: float = 600.0
    report_delivery: float = 3.0
    linger: float = 0.1
    scale: float = 15.0
    calm: float = 60.0


class Keeper:
    """Keeps one deployment as it should be in this region.

    Args:
        deployment_id: the deployment.
        runtime: what runs its instances.
        control: whom to report to, and where its variables come from.
        timing: how long to wait for what.
        desired: what outlives the agent.
        save: called when that has changed.
    """

    def __init__(
        self,
        deployment_id: str,
        runtime: Runtime,
        control: ControlPlane,
        timing: Timing,
        desired: Desired,
        save: Callable[[], None],
    ) -> None:
        self.deployment_id = deployment_id
        self.topology: Topology | None = None
        self._desired = desired
        self._save = save
        self._runtime = runtime
        self._control = control
        self._timing = timing
        self._replicas: dict[str, Replica] = {}
        self._told = False
        self._count = 0
        self._wishes: tuple[Wish, ...] = ()
        self._measured: dict[str, tuple[float, float]] = {}
        self._variables: dict[str, str] | None = None
        self._reporter = Reporter(deployment_id, control, self.states, self.applied)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the deployment is left, and the control plane knows."""
        return not self._replicas and self._reporter.is_idle

    @property
    def names(self) -> list[str]:
        """Names of its instances."""
        return list(self._replicas)

    @property
    def is_proven(self) -> bool:
        """Whether one of its instances was ever well."""
        return self.deployment_id in self._desired.proven

    @property
    def count(self) -> int:
        """How many instances there should be."""
        return self._count

    def states(self) -> list[InstanceState]:
        """Return all instances as they are reported."""
        return [
            # What has been told to end is on its way, even where its task has not run yet.
            msgspec.structs.replace(replica.state, status=Status.DRAINING)
            if replica.is_stopping
            else replica.state
            for replica in self._replicas.values()
        ]

    def applied(self) -> int:
        """Return the version of the topology that its instances follow; 0: none is known."""
        return self.topology.version if self.topology is not None else 0

    async def adopt(self, found: Observed) -> None:
        """Take over an instance of an earlier agent; one that still answers was never away."""
        self._count += 1
        replica = self._replicas[found.name] = Replica(found.name, self, found)
        if found.alive and not await health.accepts(found.address):
            replica.state = msgspec.structs.replace(replica.state, status=Status.RUNNING, message="")

    def prove(self) -> None:
        """Take note that the program can run: from now on it is never given up."""
        if not self.is_proven:
            self._desired.proven.add(self.deployment_id)
            self._save()

    def past(self, name: str) -> Past:
        """Return what has happened to an instance; `remember` what is changed of it."""
        return self._desired.past.setdefault(name, Past())

    def remember(self) -> None:
        """Keep what has happened to instances, also across restarts of the agent."""
        self._save()

    def apply(self, topology: Topology | None) -> None:
        """Take over what should run; None: nothing any more."""
        self.topology = topology
        self._told = True
        if topology is None or topology.desired == "stopped":
            self._count = 0
            self._wishes = ()
            self._variables = None
        else:
            self._count = min(max(self._count, topology.policy.least), topology.policy.most)
        self.reconcile()
        self._reporter.soon()

    @property
    def is_elastic(self) -> bool:
        """Whether the number of its instances follows their load."""
        topology = self.topology
        return (
            topology is not None
            and topology.desired == "running"
            and topology.policy.least < topology.policy.most
        )

    async def scale(self, usage: Mapping[str, Usage]) -> None:
        """Let the number of instances follow their load.

        Args:
            usage: what instances have used, by name.
        """
        topology = self.topology
        if topology is None or not self.is_elastic:
            self._wishes = ()
            return
        now = asyncio.get_running_loop().time()
        staying = [replica for replica in self._replicas.values() if not replica.is_stopping]
        loads = [
            self._load(replica.state, usage.get(replica.state.name), topology.settings, now)
            for replica in staying
        ]
        self._measured = {
            name: (now, used.cpu_seconds) for name, used in usage.items() if name in self._replicas
        }
        wishes = self._wishes or (Wish(now, self._count),)
        decision = decide(topology.policy, self._count, loads, wishes, now, self._timing.calm)
        self._wishes = decision.wishes
        if decision.count == self._count:
            return
        text = f"scaled from {self._count} to {decision.count} instances: {decision.why}"
        log.info(
            "scaled",
            deployment=self.deployment_id,
            count=decision.count,
            before=self._count,
            why=decision.why,
        )
        self._count = decision.count
        self.reconcile()
        for replica in staying[:1]:
            await self._runtime.note(replica.state.name, text)

    def _load(self, state: InstanceState, used: Usage | None, settings: Settings, now: float) -> Load | None:
        """Return what an instance used since the last look, None if it did not run all the while."""
        before = self._measured.get(state.name)
        if state.status is not Status.RUNNING or used is None or before is None:
            return None
        seconds, cpu_seconds = now - before[0], used.cpu_seconds - before[1]
        if seconds <= 0 or cpu_seconds < 0:
            return None
        return Load(
            cpu=cpu_seconds / seconds * 1000 / settings.cpu_millicores * 100,
            memory=used.memory_octets / (settings.memory_mib * 1024 * 1024) * 100,
        )

    async def variables(self) -> dict[str, str]:
        """Return the decrypted variables; those that are known already, if they cannot be asked for now.

        They are frozen with the deployment, so known ones are right ones. They are kept in memory only.

        Raises:
            StartFailed: they are not to be had.
        """
        topology = self.topology
        if topology is None or not topology.variables:
            return {}
        try:
            self._variables = await self._control.secrets(self.deployment_id)
        except Unreachable as error:
            if self._variables is None:
                raise StartFailed(f"The variables cannot be fetched now: {error}", again=True) from error
            log.warning("variables_from_memory", deployment=self.deployment_id, error=str(error))
        except Refused as error:
            raise StartFailed(f"The variables cannot be fetched: {error}") from error
        return self._variables

    def reconcile(self) -> None:
        """Compare what should run with what does, and begin whatever is needed.

        What runs of a deployment of which nothing has been heard yet is left alone: the control plane may
        be away.
        """
        if not self._told:
            return
        wanted = self._count
        for replica in self._replicas.values():
            if replica.is_stopping and replica.is_idle:
                replica.stop()
        staying = [replica for replica in self._replicas.values() if not replica.is_stopping]
        # The healthiest stay: an instance that runs is worth more than one that does not yet.
        staying.sort(key=lambda replica: replica.state.status is not Status.RUNNING)
        for replica in staying[wanted:]:
            replica.stop()
        for replica in staying[:wanted]:
            replica.keep()
        for _ in range(wanted - len(staying)):
            name = ids.new("i")
            self._replicas[name] = replica = Replica(name, self, None)
            replica.keep()

    def report(self) -> None:
        """Report soon, whatever has been reported before."""
        self._reporter.soon()

    async def delivered(self) -> None:
        """Wait until the control plane knows the present state, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.report_delivery):
                await self._reporter.delivered()

    async def known_to_edges(self) -> None:
        """Wait until every live edge knows the present state; for ever, if the control plane is away."""
        await self._reporter.delivered()
        pause = 0.05
        while True:
            try:
                if await self._control.edges_know(self._reporter.version):
                    return
            except Unreachable as error:
                log.warning("edges_not_asked", deployment=self.deployment_id, error=str(error))
            except Refused:
                return  # an older control plane that cannot be asked
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def leave(self) -> None:
        """Stop watching; instances run on."""
        for replica in self._replicas.values():
            await replica.leave()
        await self._reporter.close()

    async def stop_all(self) -> None:
        """Stop every instance gracefully but without a drain, and wait for it."""
        replicas = list(self._replicas.values())
        for replica in replicas:
            replica.stop(drain=False)
        await asyncio.gather(*(replica.ended() for replica in replicas))
        await self.delivered()

    async def logs(self, tail: int) -> list[LogLine]:
        """Return the last lines of all instances, oldest first."""
        lines = [line for name in self.names for line in await self._runtime.logs(name, tail)]
        return sorted(lines, key=lambda line: line.time)[-tail:]

    def forget(self, name: str) -> None:
        """An instance is gone for good."""
        self._replicas.pop(name, None)
        self._measured.pop(name, None)
        if self._desired.past.pop(name, None) is not None:
            self._save()
        self._reporter.soon()


class Replica:
    """One instance through its life; its name stays when it is started again.

    Args:
        name: its name.
        keeper: the deployment that it belongs to.
        found: what an earlier agent left of it, or None for a new one.
    """

    def __init__(self, name: str, keeper: Keeper, found: Observed | None) -> None:
        self.is_stopping = False
        self._past = keeper.past(name)
        waits = self._past.next_try > 0
        self.state = InstanceState(
            name=name,
            address=found.address if found else "",
            status=Status.FAILED if waits else Status.PENDING,
            message=self._past.message if waits else "",
            restarts=self._past.restarts,
        )
        self._keeper = keeper
        self._runtime = keeper._runtime
        self._timing = keeper._timing
        self._found = found
        self._task: asyncio.Task[None] | None = None
        self._attempts = 0
        self._delays = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done about it."""
        return self._task is None or self._task.done()

    def keep(self) -> None:
        """Begin to keep it running, unless that is being done."""
        if self.is_idle:
            self._task = asyncio.get_running_loop().create_task(self._guard(self._run()))

    def stop(self, *, drain: bool = True) -> None:
        """Begin to end it for good.

        Args:
            drain: tell the edges first, and give them time.
        """
        self.is_stopping = True
        running = self._task
        self._task = asyncio.get_running_loop().create_task(self._guard(self._stop(running, drain)))

    async def ended(self) -> None:
        """Wait until what was begun last is done."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def leave(self) -> None:
        """Stop watching it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _is_now(self, status: Status, message: str = "", address: str | None = None) -> None:
        address = self.state.address if address is None else address
        state = InstanceState(self.state.name, address, status, message[:MAX_MESSAGE], self._past.restarts)
        if state != self.state:
            log.info(
                "instance",
                deployment=self._keeper.deployment_id,
                name=state.name,
                status=state.status.value,
                address=state.address,
                restarts=state.restarts,
                message=state.message[:200],
            )
            self.state = state
            self._keeper.report()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Do a piece of work; what nobody foresaw is said and not swallowed, and the drift pass tries again."""
        try:
            await work
        except Exception as error:
            log.exception("instance_work_failed", name=self.state.name)
            self._is_now(Status.PENDING, f"the agent could not go on: {type(error).__name__}: {error}")

    async def _run(self) -> None:
        found, self._found = self._found, None
        if self._past.next_try:  # an earlier agent had begun to wait
            await self._wait_for_next_try()
        elif found is not None and not found.alive:
            await self._runtime.note(self.state.name, "started again: it ended while no agent was there")
            self._past.restarts += 1
            self._keeper.remember()
        if found is not None and not found.alive:
            found = None
        while True:
            try:
                observed = await (self._start() if found is None else self._resume(found))
            except StartFailed as error:
                if error.again:
                    await self._could_not_start(str(error))
                else:
                    await self._after_failure(str(error), final=True)
            else:
                if observed.alive:
                    await self._watch(observed)
                else:
                    await self._after_failure(await self._last_words(observed.ended))
            found = None

    async def _resume(self, found: Observed) -> Observed:
        """Go on with an instance of an earlier agent: it runs, or was about to."""
        topology = self._keeper.topology
        if self.state.status is Status.RUNNING or topology is None:
            self._keeper.prove()
            return found
        return await self._until_well(found, topology.settings)

    async def _start(self) -> Observed:
        """Start it and wait until it is well; an Observed that is not alive says why it is not."""
        topology = self._keeper.topology
        assert topology is not None
        if topology.plan is None:
            raise StartFailed("Nothing was found to run.")
        variables = await self._keeper.variables()
        order = Order(
            name=self.state.name,
            deployment_id=topology.deployment_id,
            environment_id=topology.environment_id,
            region=self._keeper._control.region,
            image=topology.image,
            plan=topology.plan,
            settings=topology.settings,
            variables=variables,
        )
        observed = await self._runtime.start(order)
        return await self._until_well(observed, topology.settings)

    async def _until_well(self, observed: Observed, settings: Settings) -> Observed:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        check = settings.healthcheck
        deadline = self._timing.start_deadline
        if check is not None:
            await self._pause_while_alive(observed, float(check.initial_delay_seconds))
            deadline = max(
                5.0, check.initial_delay_seconds + float(check.interval_seconds * check.failure_threshold)
            )
        why = "it does not listen on its PORT"
        while True:
            observed = await self._runtime.observe(observed.name)
            if not observed.alive:
                return observed
            left = begun + deadline - loop.time()
            if left > 0:
                try:
                    async with asyncio.timeout(left):
                        why = await health.is_ready(observed.address, settings)
                except TimeoutError:
                    left = 0
            if not why:
                self._is_now(Status.RUNNING, "", observed.address)
                self._keeper.prove()
                return observed
            if left <= 0:
                await self._runtime.stop(observed.name, "SIGKILL", 0.0)
                message = await self._last_words(f"it did not become well within {deadline:.0f} s: {why}")
                raise StartFailed(message)
            # Quick at first, since most programs listen within a second; then sparing.
            waited = loop.time() - begun
            await asyncio.sleep(min(max(self._timing.poll_starting, waited / 10), 1.0))

    async def _pause_while_alive(self, observed: Observed, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            if not (await self._runtime.observe(observed.name)).alive:
                return
            await asyncio.sleep(min(self._timing.poll_running, seconds))

    async def _watch(self, observed: Observed) -> None:
        """Return when an instance that runs has ended or is not well any more; it does not run then."""
        topology = self._keeper.topology
        check = topology.settings.healthcheck if topology is not None else None
        interval = float(check.interval_seconds) if check else self._timing.default_interval
        threshold = check.failure_threshold if check else self._timing.default_threshold
        loop = asyncio.get_running_loop()
        begun = loop.time()
        next_check = begun + interval
        failed_checks = 0
        why = ""
        while True:
            observed = await self._runtime.observe(observed.name)
            if not observed.alive:
                why = observed.ended
                break
            if loop.time() >= next_check:
                why = await health.is_well(observed.address, check)
                failed_checks = failed_checks + 1 if why else 0
                if failed_checks >= threshold:
                    why = f"{why} ({failed_checks} health checks in a row failed)"
                    break
                next_check = loop.time() + interval
            if self._past.crashes and loop.time() - begun > self._timing.settled:
                self._past.crashes = 0
                self._keeper.remember()
            await asyncio.sleep(self._timing.poll_running)
        await self._crashed(await self._last_words(why), Status.FAILED, still_runs=observed.alive)

    async def _after_failure(self, message: str, *, final: bool = False) -> None:
        """Wait before the next attempt to start a program that did not become well.

        One that never ran is tried some times within seconds and then reported as failed, so that its
        deployment fails with the reason. Where it is wanted all the same, as in a region that may be
        missing, it is tried on, as one that crashes.

        Args:
            message: what happened; its first line is a sentence, the rest the last lines of the log.
            final: another attempt at once cannot help.
        """
        if self._keeper.is_proven:
            first = self._past.crashes == 0
            await self._crashed(message, Status.PENDING if first else Status.FAILED)
            return
        self._attempts += 1
        if self._past.crashes:
            await self._crashed(message, Status.FAILED)
            return
        if final or self._attempts > self._timing.max_restarts:
            tried = f"it did not run after {self._attempts} attempts: " if self._attempts > 1 else ""
            await self._crashed(f"{tried}{message}", Status.FAILED)
            return
        self._past.restarts += 1
        self._is_now(Status.PENDING, f"attempt {self._attempts} failed, it is started again: {message}")
        await self._pause(message, self._attempts)

    async def _could_not_start(self, message: str) -> None:
        """Wait before the next attempt: that there was none was not the program's fault."""
        self._delays = min(self._delays + 1, 30)
        status = Status.FAILED if self.state.status is Status.FAILED else Status.PENDING
        self._is_now(status, f"it is tried again: {message}")
        await self._pause(message, self._delays)

    async def _pause(self, message: str, attempt: int) -> None:
        await self._clear()
        pause = min(self._timing.first_restart * 2.0 ** (attempt - 1), self._timing.slowest_restart)
        await self._runtime.note(self.state.name, f"{_sentence(message)}; started again in {pause:g} s")
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  (no secret)

    async def _crashed(self, message: str, status: Status, *, still_runs: bool = False) -> None:
        """Report a crash and wait, longer each time; not after the first one of a program that has run."""
        past, timing = self._past, self._timing
        past.crashes += 1
        past.restarts += 1
        metrics.RESTARTS.inc()
        why, _, lines = message.partition("\n")
        doubled = past.crashes - 2 if self._keeper.is_proven else past.crashes - 1
        pause = (
            min(timing.first_crash * 2.0 ** min(doubled, 30), timing.slowest_crash) if doubled >= 0 else 0.0
        )
        if past.crashes > 1:
            said = f"crash loop: {why}, {past.crashes} times; next try in {pause:g} s"
        else:
            said = f"{why}; it is started again at once" if self._keeper.is_proven else why
        past.message = f"{said}\n{lines}"[:MAX_MESSAGE] if lines else said[:MAX_MESSAGE]
        past.next_try = clock.now_ms() / 1000 + pause if pause else 0.0
        self._keeper.remember()
        self._is_now(status, past.message)
        if still_runs:
            # Edges have been told; what it was still answering may end.
            with suppress(KeyError):
                await self._runtime.stop(self.state.name, self._signal, self._timing.grace)
        await self._clear()
        await self._runtime.note(self.state.name, said)
        await self._wait_for_next_try()

    async def _wait_for_next_try(self) -> None:
        """Sleep until then; a clock that was set back must not make that long."""
        pause = self._past.next_try - clock.now_ms() / 1000
        await asyncio.sleep(min(max(pause, 0.0), self._timing.slowest_crash))
        if self._past.next_try:
            self._past.next_try = 0.0
            self._keeper.remember()

    async def _clear(self) -> None:
        """End what a dead leader has left of its group."""
        with suppress(KeyError):
            await self._runtime.stop(self.state.name, "SIGKILL", 0.0)

    async def _last_words(self, why: str) -> str:
        lines = await self._runtime.logs(self.state.name, LAST_LINES)
        return "\n".join([why, *(line.text for line in lines if line.stream != "agent")])

    @property
    def _signal(self) -> str:
        topology = self._keeper.topology
        return topology.settings.shutdown_signal if topology is not None else "SIGTERM"

    async def _stop(self, running: "asyncio.Task[None] | None", drain: bool) -> None:
        signal = self._signal
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        was_serving = self.state.status is Status.RUNNING
        self._is_now(Status.DRAINING)
        if was_serving and drain:
            await self._drain()
        with suppress(KeyError):
            await self._runtime.stop(self.state.name, signal, self._timing.grace)
        await self._runtime.remove(self.state.name)
        self._keeper.forget(self.state.name)

    async def _drain(self) -> None:
        """Wait until no edge sends any more and what they have sent is answered, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.drain):
                await self._keeper.known_to_edges()
                await asyncio.sleep(self._timing.linger)
                while await self._runtime.connections(self.state.name):
                    await asyncio.sleep(self._timing.poll_starting)


def _sentence(message: str) -> str:
    return message.partition("\n")[0]


class Reporter:
    """Tells the control plane of a deployment's instances until it has heard; the newest state wins.

    Args:
        deployment_id: the deployment.
        control: whom to tell.
        states: returns its instances as they are at that moment.
        applied: returns the version of what should run that they follow at that moment.
    """

    FIRST_PAUSE = 0.2
    LONGEST_PAUSE = 10.0

    def __init__(
        self,
        deployment_id: str,
        control: ControlPlane,
        states: Callable[[], list[InstanceState]],
        applied: Callable[[], int],
    ) -> None:
        self._deployment_id = deployment_id
        self._control = control
        self._states = states
        self._applied = applied
        self.version = 0
        self._wanted = 0
        self._done = 0
        self._heard = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all has been heard."""
        return self._done == self._wanted

    def soon(self) -> None:
        """Report as soon as can be; several wishes in one moment become one report."""
        self._wanted += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send())

    async def delivered(self) -> None:
        """Wait until all that was wished so far has been heard."""
        wanted = self._wanted
        async with self._heard:
            await self._heard.wait_for(lambda: self._done >= wanted)

    async def close(self) -> None:
        """Stop reporting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _send(self) -> None:
        pause = self.FIRST_PAUSE
        while self._done != self._wanted:
            wanted = self._wanted
            try:
                self.version = await self._control.report(
                    self._deployment_id, self._states(), self._applied()
                )
            except Unreachable as error:
                log.warning("report_not_heard", deployment=self._deployment_id, error=str(error))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)
                pause = min(pause * 2, self.LONGEST_PAUSE)
                continue
            except Refused as error:
                # Such as a deployment that was deleted: no later attempt would be heard either.
                log.warning("report_refused", deployment=self._deployment_id, error=str(error))
            pause = self.FIRST_PAUSE
            async with self._heard:
                self._done = wanted
                self._heard.notify_all()


class Reconciler:
    """All keepers of a region.

    Args:
        runtime: what runs instances.
        control: the control plane.
        timing: how long to wait for what.
        desired: what outlives the agent.
        save: called when that has changed.
    """

    def __init__(
        self,
        runtime: Runtime,
        control: ControlPlane,
        timing: Timing,
        desired: Desired,
        save: Callable[[], None],
    ) -> None:
        self._desired = desired
        self._save = save
        self._runtime = runtime
        self._control = control
        self._timing = timing
        self._keepers: dict[str, Keeper] = {}

    async def recover(self) -> None:
        """Find the instances of an earlier agent again; nothing is decided about them yet."""
        recovered = await self._runtime.recover()
        for found in recovered:
            await self._keeper(found.deployment_id).adopt(found)
        for name in self._desired.past.keys() - {found.name for found in recovered}:
            del self._desired.past[name]

    def apply(self, topology: Topology) -> None:
        """Take over what should run of a deployment."""
        self._keeper(topology.deployment_id).apply(topology)

    def stop_all_but(self, deployment_ids: set[str]) -> None:
        """Stop what runs of deployments that should not run here; called once the whole state is known."""
        for deployment_id, keeper in self._keepers.items():
            if deployment_id not in deployment_ids:
                keeper.apply(None)

    async def scale(self) -> None:
        """Measure what instances use, and let their numbers follow."""
        elastic = [keeper for keeper in self._keepers.values() if keeper.is_elastic]
        usage = await self._runtime.usage() if elastic else {}
        for keeper in list(self._keepers.values()):
            await keeper.scale(usage)

    def counts(self) -> dict[str, int]:
        """Return how many instances there should be, by deployment."""
        return {each.deployment_id: each.count for each in self._keepers.values()}

    def correct_drift(self) -> None:
        """Compare everything once more, and report everything once more."""
        for keeper in self._keepers.values():
            keeper.reconcile()
            keeper.report()

    def report_all(self) -> None:
        """Report everything once more: the control plane was away, or is another one."""
        for keeper in self._keepers.values():
            keeper.report()

    def drop_empty(self) -> list[str]:
        """Forget keepers with nothing to keep; return their deployments."""
        gone = [
            keeper.deployment_id
            for keeper in self._keepers.values()
            if keeper.is_empty and (keeper.topology is None or keeper.topology.desired == "stopped")
        ]
        for deployment_id in gone:
            del self._keepers[deployment_id]
        return gone

    def states(self) -> dict[str, list[InstanceState]]:
        """Return all instances by deployment."""
        return {each.deployment_id: each.states() for each in self._keepers.values()}

    async def tidy(self) -> None:
        """Let the runtime drop what is not needed any more."""
        images = {keeper.topology.image for keeper in self._keepers.values() if keeper.topology is not None}
        await self._runtime.tidy(images)

    async def logs(self, deployment_id: str, tail: int) -> list[LogLine]:
        """Return the last lines of a deployment's instances, also of those that are gone since a while."""
        keeper = self._keepers.get(deployment_id)
        lines = await self._runtime.last_logs(deployment_id, tail)
        lines += await keeper.logs(tail) if keeper is not None else []
        return sorted(lines, key=lambda line: line.time)[-tail:]

    async def leave(self) -> None:
        """Stop watching; instances run on."""
        for keeper in self._keepers.values():
            await keeper.leave()

    async def stop_all(self) -> None:
        """Stop every instance gracefully."""
        await asyncio.gather(*(keeper.stop_all() for keeper in self._keepers.values()))

    def _keeper(self, deployment_id: str) -> Keeper:
        if deployment_id not in self._keepers:
            self._keepers[deployment_id] = Keeper(
                deployment_id, self._runtime, self._control, self._timing, self._desired, self._save
            )
        return self._keepers[deployment_id]
