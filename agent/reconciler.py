"""Makes what runs equal to what should run, one keeper per deployment, level-triggered.

A keeper never reacts to a change as such: it compares what should run with what does, and moves one
towards the other, so a lost, doubled or late message costs nothing but time. Health, restarts and
reports are the same for every runtime.

    pending  → running    the instance answers
    running  → failed     it ended or is not well any more; it is started again, later each time
    pending  → failed     it never became well and was given up: the deployment's owner must mend it
    any      → draining   it should not run any more: reported first, then stopped
"""

import asyncio
import random
from collections.abc import Callable, Container, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from agent import health
from agent.control_plane import ControlPlane, Refused, Unreachable
from agent.runtimes.base import Observed, Order, Runtime, StartFailed
from agent.wire import InstanceState, LogLine, Settings, Status, Topology
from unkey import ids

LAST_LINES = 20
MAX_MESSAGE = 4000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the agent waits for what, in seconds.

    Args:
        start_deadline: for an instance to become well, unless its health check says otherwise.
        drain: between the report of `draining` and the signal, for edges to stop sending.
        grace: between the signal and the kill.
        max_restarts: of an instance that was never well.
        first_restart: pause before the first restart; doubled each time.
        slowest_restart: the longest pause.
        poll_starting: between two looks at an instance that starts.
        poll_running: between two looks whether its process runs.
        default_interval: between two health checks, where the environment names none.
        default_threshold: failed health checks in a row that end an instance, likewise.
        settled: after running this long an instance's earlier failures are forgotten.
        report_delivery: how long a stop waits for the control plane to know of it.
    """

    start_deadline: float = 60.0
    drain: float = 2.0
    grace: float = 10.0
    max_restarts: int = 3
    first_restart: float = 0.5
    slowest_restart: float = 60.0
    poll_starting: float = 0.05
    poll_running: float = 0.25
    default_interval: float = 10.0
    default_threshold: int = 3
    settled: float = 60.0
    report_delivery: float = 3.0


class Keeper:
    """Keeps one deployment as it should be in this region.

    Args:
        deployment_id: the deployment.
        runtime: what runs its instances.
        control: whom to report to, and where its variables come from.
        timing: how long to wait for what.
        on_proven: called when one of its instances has become well for the first time.
    """

    def __init__(
        self,
        deployment_id: str,
        runtime: Runtime,
        control: ControlPlane,
        timing: Timing,
        on_proven: Callable[[str], None],
    ) -> None:
        self.deployment_id = deployment_id
        self.topology: Topology | None = None
        self.is_proven = False
        self._on_proven = on_proven
        self._runtime = runtime
        self._control = control
        self._timing = timing
        self._replicas: dict[str, Replica] = {}
        self._reporter = Reporter(deployment_id, control, self.states)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the deployment is left, and the control plane knows."""
        return not self._replicas and self._reporter.is_idle

    @property
    def names(self) -> list[str]:
        """Names of its instances."""
        return list(self._replicas)

    def states(self) -> list[InstanceState]:
        """Return all instances as they are reported."""
        return [replica.state for replica in self._replicas.values()]

    async def adopt(self, found: Observed) -> None:
        """Take over an instance of an earlier agent; one that still answers was never away."""
        replica = self._replicas[found.name] = Replica(found.name, self, found)
        if found.alive and not await health.accepts(found.address):
            replica.state = InstanceState(found.name, found.address, Status.RUNNING)

    def prove(self) -> None:
        """Take note that the program can run: from now on it is never given up."""
        if not self.is_proven:
            self.is_proven = True
            self._on_proven(self.deployment_id)

    def apply(self, topology: Topology | None) -> None:
        """Take over what should run; None: nothing any more."""
        self.topology = topology
        self.reconcile()
        self._reporter.soon()

    def reconcile(self) -> None:
        """Compare what should run with what does, and begin whatever is needed."""
        topology = self.topology
        wanted = topology.replicas if topology is not None and topology.desired == "running" else 0
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
        self.state = InstanceState(name=name, address=found.address if found else "", status=Status.PENDING)
        self._keeper = keeper
        self._runtime = keeper._runtime
        self._timing = keeper._timing
        self._found = found
        self._task: asyncio.Task[None] | None = None
        self._failures = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done about it."""
        return self._task is None or self._task.done()

    def keep(self) -> None:
        """Begin to keep it running, unless that is being done or was given up."""
        if self.is_idle and self.state.status is not Status.FAILED:
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
        state = InstanceState(self.state.name, address, status, message[:MAX_MESSAGE])
        if state != self.state:
            log.info(
                "instance",
                deployment=self._keeper.deployment_id,
                name=state.name,
                status=state.status.value,
                address=state.address,
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
        if found is not None and not found.alive:
            await self._runtime.note(self.state.name, "started again: it ended while no agent was there")
            found = None
        while True:
            try:
                observed = await (self._start() if found is None else self._resume(found))
            except StartFailed as error:
                going_on = await self._after_failure(str(error), transient=error.again, final=not error.again)
            else:
                if observed.alive:
                    await self._watch(observed)
                    going_on = True
                else:
                    going_on = await self._after_failure(await self._last_words(observed.ended))
            if not going_on:
                return
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
        variables: dict[str, str] = {}
        if topology.variables:
            try:
                variables = await self._keeper._control.secrets(topology.deployment_id)
            except Unreachable as error:
                raise StartFailed(f"The variables cannot be fetched now: {error}", again=True) from error
            except Refused as error:
                raise StartFailed(f"The variables cannot be fetched: {error}") from error
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
            if loop.time() - begun > self._timing.settled:
                self._failures = 0
            await asyncio.sleep(self._timing.poll_running)
        self._is_now(Status.FAILED, await self._last_words(f"{why}; it is started again"))
        if observed.alive:
            # Edges have been told; what it was still answering may end.
            await self._runtime.stop(observed.name, self._signal, self._timing.grace)
        await self._pause_before_restart(why)

    async def _after_failure(self, message: str, *, transient: bool = False, final: bool = False) -> bool:
        """Wait before the next attempt, or give up: return whether to try again.

        A program that never ran is given up after some attempts, so that its deployment fails with the
        reason. One that did run is tried for as long as it is wanted.

        Args:
            message: what happened; its first line is a sentence, the rest the last lines of the log.
            transient: it was not the program's fault.
            final: no attempt can help.
        """
        attempt = self._failures + 1
        hopeless = final or (not transient and self._failures >= self._timing.max_restarts)
        if hopeless and not self._keeper.is_proven:
            tried = f"given up after {attempt} attempts: " if attempt > 1 else ""
            await self._runtime.note(self.state.name, f"{tried}{message.partition(chr(10))[0]}")
            await self._clear()
            self._is_now(Status.FAILED, f"{tried}{message}")
            return False
        status = Status.FAILED if self._keeper.is_proven else Status.PENDING
        self._is_now(status, f"attempt {attempt} failed, it is started again: {message}")
        await self._pause_before_restart(message)
        return True

    async def _pause_before_restart(self, why: str) -> None:
        await self._clear()
        pause = min(self._timing.first_restart * 2.0**self._failures, self._timing.slowest_restart)
        self._failures = min(self._failures + 1, 30)
        await self._runtime.note(
            self.state.name, f"{why.partition(chr(10))[0]}; started again in {pause:g} s"
        )
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  (no secret)

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
            await self._keeper.delivered()
            await asyncio.sleep(self._timing.drain)
        with suppress(KeyError):
            await self._runtime.stop(self.state.name, signal, self._timing.grace)
        await self._runtime.remove(self.state.name)
        self._keeper.forget(self.state.name)


class Reporter:
    """Tells the control plane of a deployment's instances until it has heard; the newest state wins.

    Args:
        deployment_id: the deployment.
        control: whom to tell.
        states: returns its instances as they are at that moment.
    """

    FIRST_PAUSE = 0.2
    LONGEST_PAUSE = 10.0

    def __init__(
        self, deployment_id: str, control: ControlPlane, states: Callable[[], list[InstanceState]]
    ) -> None:
        self._deployment_id = deployment_id
        self._control = control
        self._states = states
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
                await self._control.report(self._deployment_id, self._states())
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
        proven: deployments of which an instance has been well before.
        on_proven: called with each further one.
    """

    def __init__(
        self,
        runtime: Runtime,
        control: ControlPlane,
        timing: Timing,
        proven: Container[str],
        on_proven: Callable[[str], None],
    ) -> None:
        self._proven = proven
        self._on_proven = on_proven
        self._runtime = runtime
        self._control = control
        self._timing = timing
        self._keepers: dict[str, Keeper] = {}

    async def recover(self) -> None:
        """Find the instances of an earlier agent again; nothing is decided about them yet."""
        for found in await self._runtime.recover():
            await self._keeper(found.deployment_id).adopt(found)

    def apply(self, topology: Topology) -> None:
        """Take over what should run of a deployment."""
        self._keeper(topology.deployment_id).apply(topology)

    def stop_all_but(self, deployment_ids: set[str]) -> None:
        """Stop what runs of deployments that should not run here; called once the whole state is known."""
        for deployment_id, keeper in self._keepers.items():
            if deployment_id not in deployment_ids:
                keeper.apply(None)

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
        """Return the last lines of a deployment's instances; none if nothing of it runs here."""
        keeper = self._keepers.get(deployment_id)
        return await keeper.logs(tail) if keeper is not None else []

    async def leave(self) -> None:
        """Stop watching; instances run on."""
        for keeper in self._keepers.values():
            await keeper.leave()

    async def stop_all(self) -> None:
        """Stop every instance gracefully."""
        await asyncio.gather(*(keeper.stop_all() for keeper in self._keepers.values()))

    def _keeper(self, deployment_id: str) -> Keeper:
        if deployment_id not in self._keepers:
            keeper = Keeper(deployment_id, self._runtime, self._control, self._timing, self._on_proven)
            keeper.is_proven = deployment_id in self._proven
            self._keepers[deployment_id] = keeper
        return self._keepers[deployment_id]
