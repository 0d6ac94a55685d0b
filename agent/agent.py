"""One region's agent: reads the watch stream, lets the reconciler work, says that it lives."""

import asyncio
import random
import time
from contextlib import suppress
from pathlib import Path

import structlog

from agent import metrics, wire
from agent.control_plane import ControlPlane, Refused, Unreachable
from agent.desired import Desired
from agent.reconciler import Reconciler, Timing
from agent.runtimes.base import Runtime

HEARTBEAT_SECONDS = 5.0
DRIFT_SECONDS = 60.0
WHOLE_SECONDS = 600.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

log = structlog.get_logger(__name__)


class Agent:
    """The agent of one region.

    Args:
        root: folder of the region; `state.json` is kept there.
        runtime: what runs instances.
        control: the control plane.
        url: where the agent's own server answers.
        timing: how long to wait for what.
        drift_seconds: between two passes that correct drift.
        whole_seconds: after so long the whole state is asked for once more, in case a row was lost.
    """

    def __init__(
        self,
        *,
        root: Path,
        runtime: Runtime,
        control: ControlPlane,
        url: str,
        timing: Timing,
        drift_seconds: float = DRIFT_SECONDS,
        whole_seconds: float = WHOLE_SECONDS,
    ) -> None:
        self._control = control
        self._url = url
        self._drift_seconds = drift_seconds
        self._whole_seconds = whole_seconds
        self._whole_at = self._next_whole()
        self._stream = f"topologies:{control.region}"
        self._desired = Desired(root / "state.json")
        self._scale_seconds = timing.scale
        self.reconciler = Reconciler(runtime, control, timing, self._desired, self._save)
        self.is_ready = False
        self._beat = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; instances run on then."""
        await self.reconciler.recover()
        for topology in list(self._desired.topologies.values()):
            self.reconciler.apply(topology)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_watching())
                tasks.create_task(self._keep_beating())
                tasks.create_task(self._keep_correcting())
                tasks.create_task(self._keep_scaling())
        finally:
            await self.reconciler.leave()

    async def _keep_watching(self) -> None:
        pause = FIRST_PAUSE
        while True:
            before = asyncio.get_running_loop().time()
            try:
                await self._watch()
                log.info("watch_ended")
            except Unreachable as error:
                log.warning("watch_lost", error=str(error))
            metrics.CONNECTED.set(0)
            lasted = asyncio.get_running_loop().time() - before
            pause = FIRST_PAUSE if lasted > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)

    async def _watch(self) -> None:
        """Read the stream until it ends, or until it is time for the whole state."""
        version = self._desired.version
        if time.monotonic() >= self._whole_at:
            version, self._whole_at = 0, self._next_whole()
        self._desired.begin()
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(self._whole_at - time.monotonic()),
                self._control.watch(version) as lines,
            ):
                metrics.CONNECTED.set(1)
                async for line in lines:
                    try:
                        event = wire.decode(line)
                    except wire.BadRow as error:
                        await self._skip(error)
                        continue
                    self._apply(event)

    def _next_whole(self) -> float:
        # Not all agents of a control plane that was away at the same time.
        return time.monotonic() + self._whole_seconds * random.uniform(0.8, 1.2)  # noqa: S311  (no secret)

    def _apply(self, event: wire.Event) -> None:
        if isinstance(event, wire.Topology):
            metrics.ROWS.labels("applied").inc()
            self._desired.apply(event)
            self.reconciler.apply(event)
        elif isinstance(event, wire.Synced):
            if event.reason not in ("", "new"):
                log.warning("whole_state_was_needed", reason=event.reason, version=event.version)
            for deployment_id in self._desired.synced(event.version, full=event.full):
                log.info("not_wanted_any_more", deployment=deployment_id)
            self.reconciler.stop_all_but(self._desired.kept)
            self.reconciler.report_all()
            self.is_ready = True
        else:
            return
        self._save()

    async def _skip(self, error: wire.BadRow) -> None:
        """Report a row that cannot be applied, and go past it: it must not block those behind it."""
        metrics.ROWS.labels("skipped").inc()
        log.error("row_skipped", version=error.version, row=error.row, error=str(error))
        self._desired.skip(error.version, error.row)
        self._save()
        try:
            await self._control.problem(self._stream, error.version, error.row, str(error))
        except (Unreachable, Refused) as problem:
            log.warning("problem_not_heard", error=str(problem))

    async def _keep_beating(self) -> None:
        while True:
            self._beat.clear()
            try:
                await self._control.heartbeat(self._url, {self._stream: self._desired.version})
            except (Unreachable, Refused) as error:
                log.warning("heartbeat_not_heard", error=str(error))
            # A new version is told at once, but not more than ten times a second.
            await asyncio.sleep(0.1)
            # Not wait_for: in Python 3.11 it takes no notice of a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._beat.wait()

    async def _keep_correcting(self) -> None:
        while True:
            await asyncio.sleep(self._drift_seconds)
            for deployment_id in self.reconciler.drop_empty():
                self._desired.forget(deployment_id)
            self._save()
            self.reconciler.correct_drift()
            try:
                await self.reconciler.tidy()
            except OSError as error:
                log.error("not_tidied", error=str(error))

    async def _keep_scaling(self) -> None:
        while True:
            await asyncio.sleep(self._scale_seconds)
            await self.reconciler.scale()

    def _save(self) -> None:
        metrics.APPLIED.set(self._desired.version)
        self._beat.set()
        try:
            self._desired.save()
        except OSError as error:
            # The next start reads more of the stream again; nothing is lost.
            log.error("state_not_saved", error=str(error))
