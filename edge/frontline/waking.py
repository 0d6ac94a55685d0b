"""Requests for sleeping deployments: held, bounded, while the control plane wakes the deployment.

However many requests there are for a deployment, it is asked for once. Each is let go when there is an
instance, when its own time is over, when the deployment cannot be woken, or when its client leaves.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum

import httpx
import msgspec

from edge.http.request import Request
from edge.sentinel.decision import Allow
from edge.store.records import Sentinel
from unkey.errors import DeploymentOffline, DeploymentWaking, Fault

log = logging.getLogger(__name__)

ASKING_SECONDS = 5.0  # how long web may take for one answer
_SWEEP_SECONDS = 0.25
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
_ASK_AGAIN_SECONDS = 3.0  # after an answer that nothing followed
_REFUSED_SECONDS = 5.0
_REMEMBERED = 10_000

Use = Callable[[Request, str, Allow, bytes], None]
"""Sends a request on to a deployment that is awake, with headers for the answer."""
Refuse = Callable[[Request, Fault, bytes], None]


class Reply(msgspec.Struct, frozen=True):
    """What the control plane says to the wish to wake a deployment; see `apps.deployments.standby`.

    Args:
        answer: `waking`, `stopped`, `resting`, `stale` or `unknown`.
        retry_after: seconds after which asking again makes sense.
    """

    answer: str
    retry_after: float = msgspec.field(name="retryAfterSeconds", default=0.0)


Ask = Callable[[str, int], Awaitable[Reply | None]]
"""Deployment and the version of its sentinel row to a reply; None: the control plane did not answer."""


class Doze(Enum):
    """Whether a deployment's requests can be served."""

    AWAKE = "there is an instance"
    WAKING = "it is being started"
    ASLEEP = "somebody has to wake it"
    STOPPED = "requests do not wake it"


class ControlPlane:
    """Web, as edges ask it: with a time-out, and without throwing.

    Args:
        url: base URL of web.
        token: what edges show there.
        edge_id: who asks.
    """

    def __init__(self, url: str, token: str, edge_id: str) -> None:
        self._edge_id = edge_id
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=ASKING_SECONDS,
            trust_env=False,
        )

    async def wake(self, deployment_id: str, sleep: int) -> Reply | None:
        """Ask for a deployment to be woken; may be repeated. None: no usable answer."""
        body = {"edge": self._edge_id, "deploymentId": deployment_id, "sleep": sleep}
        try:
            answer = await self._client.post("/internal/deployments/wake", json=body)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=Reply)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            log.warning("web did not wake %s: %s %s", deployment_id, type(error).__name__, error)
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class Held:
    """A request that waits.

    Args:
        decision: what the policies said of it, once and for all.
        since, until: monotonic seconds.
    """

    __slots__ = ("decision", "request", "since", "until")

    def __init__(self, request: Request, decision: Allow, since: float, until: float) -> None:
        self.request = request
        self.decision = decision
        self.since = since
        self.until = until

    @property
    def left(self) -> bool:
        """Whether the client is gone. One that closes its side only cannot be told from one that leaves."""
        connection = self.request.connection
        return connection.request is not self.request or connection.eof


class Sleep:
    """One deployment's sleep: who waits for its end."""

    __slots__ = ("changed", "held", "task")

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Waker:
    """Holds requests and has their deployments woken.

    What a held request keeps in memory is its head and at most `Limits.buffer_bytes` of its body and
    one read more, then its client is made to wait: `most` of them bound the bytes as well.

    Args:
        doze: whether a deployment's requests can be served, as known now.
        sentinel: its sentinel row, as known now.
        ask: the control plane; None: there is nobody to ask, nothing is held.
        use: sends a held request on.
        refuse: answers a request by an error.
        seconds: how long a request is held.
        most: requests held at once; of one deployment a quarter of them.

    Attributes:
        count: requests that are held now.
        outcomes: held requests by what became of them, for metrics.
    """

    def __init__(
        self,
        doze: Callable[[str], Doze],
        sentinel: Callable[[str], Sentinel | None],
        ask: Ask | None,
        *,
        use: Use,
        refuse: Refuse,
        seconds: float,
        most: int,
    ) -> None:
        self.count = 0
        self.outcomes: dict[str, int] = {}
        self._doze = doze
        self._sentinel = sentinel
        self._ask = ask
        self._use = use
        self._refuse = refuse
        self._seconds = seconds
        self._most = most
        self._most_each = max(most // 4, 1)
        self._sleeps: dict[str, Sleep] = {}
        self._resting: dict[str, tuple[float, str]] = {}  # what not to ask for before when, and the answer
        self._sweeper: asyncio.TimerHandle | None = None

    def hold(self, request: Request, deployment_id: str, decision: Allow) -> None:
        """Hold a request that the policies let through, until its deployment is awake."""
        now = time.monotonic()
        resting = self._resting.get(deployment_id)
        if resting is not None:
            if now < resting[0]:
                return self._turn_away(request, self._fault(*resting, now), "refused")
            del self._resting[deployment_id]
        sleep = self._sleeps.get(deployment_id)
        if self._ask is None:
            return self._turn_away(request, offline(), "refused")
        if self.count >= self._most or (sleep is not None and len(sleep.held) >= self._most_each):
            fault = _waking("Too many requests wait for deployments that are waking up; try again.", 2)
            return self._turn_away(request, fault, "full")
        if sleep is None:
            sleep = self._sleeps[deployment_id] = Sleep()
            sleep.task = asyncio.get_running_loop().create_task(self._run(deployment_id, sleep))
        sleep.held.append(Held(request, decision, now, now + self._seconds))
        self.count += 1
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def changed(self, deployment_id: str) -> None:
        """Look again: something about a deployment has changed."""
        self._resting.pop(deployment_id, None)
        sleep = self._sleeps.get(deployment_id)
        if sleep is not None:
            sleep.changed.set()

    async def _run(self, deployment_id: str, sleep: Sleep) -> None:
        try:
            fault = await self._until_awake(deployment_id, sleep)
        except Exception:
            log.exception("a deployment could not be woken", extra={"deployment_id": deployment_id})
            fault = _waking("The deployment could not be woken; try again in a moment.", 5)
        del self._sleeps[deployment_id]
        held, sleep.held = sleep.held, []
        self.count -= len(held)
        for each in held:
            self._let_go(deployment_id, each, fault)

    async def _until_awake(self, deployment_id: str, sleep: Sleep) -> Fault | None:
        """Return None once there is an instance, or why the deployment is not going to wake."""
        pause, asked = 0.0, -1
        while True:
            sleep.changed.clear()
            doze, sentinel = self._doze(deployment_id), self._sentinel(deployment_id)
            if doze is Doze.AWAKE:
                return None
            if doze is Doze.STOPPED or sentinel is None:
                return offline()
            wait = _ASK_AGAIN_SECONDS
            if doze is Doze.ASLEEP:
                if -1 < asked < sentinel.version:
                    return _waking("The deployment was asleep and did not start; see its logs.", 5)
                reply = await self._ask(deployment_id, sentinel.version) if self._ask else None
                if reply is not None and reply.answer in ("stopped", "resting", "unknown"):
                    return self._rest(deployment_id, reply)
                if reply is not None and reply.answer == "waking":
                    asked = sentinel.version
                else:  # web is away or slow, or has heard of the next sleep before this edge has
                    wait = pause = min(max(pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            with suppress(TimeoutError):
                await asyncio.wait_for(sleep.changed.wait(), wait)

    def _rest(self, deployment_id: str, reply: Reply) -> Fault:
        """Remember an answer, so that not every request asks for it again."""
        if len(self._resting) >= _REMEMBERED:
            self._resting.clear()
        now = time.monotonic()
        seconds = min(max(reply.retry_after, 1.0), 60.0) if reply.answer == "resting" else _REFUSED_SECONDS
        self._resting[deployment_id] = (now + seconds, reply.answer)
        return self._fault(now + seconds, reply.answer, now)

    @staticmethod
    def _fault(until: float, answer: str, now: float) -> Fault:
        if answer != "resting":
            return offline()
        return _waking(
            "The deployment was asleep and did not start when a request last woke it; it is tried "
            "again once a minute. See its logs.",
            math.ceil(until - now),
        )

    def _let_go(self, deployment_id: str, held: Held, fault: Fault | None) -> None:
        """Answer a request that waits no longer."""
        if held.left:
            return self._leave(held)
        if fault is not None:
            return self._turn_away(held.request, fault, "refused")
        self._note("woken")
        waited = time.monotonic() - held.since
        try:
            lines = b"X-Unkey-Wake: %.1fs\r\n" % waited
            self._use(held.request, deployment_id, held.decision, lines)
        except Exception:  # the others wait as well
            log.exception("a held request could not be sent on", extra={"request_id": held.request.id})
            held.request.connection.transport.abort()

    def _leave(self, held: Held) -> None:
        self._note("left")
        if held.request.connection.request is held.request:
            held.request.connection.transport.close()

    def _turn_away(self, request: Request, fault: Fault, outcome: str) -> None:
        self._note(outcome)
        self._refuse(request, fault, b"X-Unkey-Wake: %b\r\n" % outcome.encode())

    def _note(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _sweep(self) -> None:
        """Let go of clients that have left and of those whose time is over."""
        now = time.monotonic()
        for deployment_id, sleep in list(self._sleeps.items()):
            over = [held for held in sleep.held if held.left or now >= held.until]
            if not over:
                continue
            sleep.held = [held for held in sleep.held if not (held.left or now >= held.until)]
            self.count -= len(over)
            for held in over:
                if held.left:
                    self._leave(held)
                else:
                    self._turn_away(held.request, self._late(), "timeout")
            if not sleep.held and sleep.task is not None:
                sleep.task.cancel()  # what was asked for goes on; nobody waits for it here
                del self._sleeps[deployment_id]
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep) if self._sleeps else None

    def _late(self) -> Fault:
        return _waking(
            f"The deployment was asleep and is waking up, but was not ready within {self._seconds:g} s. "
            "Try again in a moment.",
            5,
        )


def offline() -> Fault:
    """Return what is said of a deployment that its owner has stopped: no request wakes it."""
    return DeploymentOffline(
        "The deployment is stopped. Its owner can start it with `unkey start`, or deploy again; who only visits "
        "can ask the owner to."
    )


def _waking(detail: str, retry_after: int) -> Fault:
    return DeploymentWaking(detail, headers={"Retry-After": str(max(retry_after, 1))})
