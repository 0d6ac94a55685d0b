"""How a workflow is written: steps, retries, waits, and the class that lists them."""

import inspect
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, overload

from unkey.tenancy import unscoped, workspace_scope

CANCELLED = "cancelled"


class Terminal(Exception):
    """Fails the run at once, without another attempt.

    Args:
        code: short and stable, for programs: `build_failed`.
        message: a sentence for people: what is wrong and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a step that raised is tried again.

    Args:
        attempts: in all, with the first one.
        initial: seconds before the second attempt.
        factor: what the delay is multiplied by each time.
        cap: most seconds between two attempts.
        jitter: share of the delay that is random, 0 to 1.
    """

    attempts: int = 5
    initial: float = 0.2
    factor: float = 2.0
    cap: float = 30.0
    jitter: float = 0.2

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after this many failures (1 or more)."""
        exponent = min(failures - 1, 64)
        seconds = min(self.cap, self.initial * self.factor**exponent)
        return seconds * (1 - self.jitter * random.random())  # noqa: S311 - spreads load, guards nothing


@dataclass(frozen=True, slots=True)
class Wait:
    """What a step returns to be run again later; holds no worker meanwhile.

    Level-triggered: the same step runs again from its start and checks its condition anew.

    Args:
        seconds: run again after this long.
        until: run again at this time.
        event: run again when `notify(event)` is committed; the step then also runs once more
            right after the wait is armed, so that no notification is lost.
        deadline: seconds from the first wait of this step, or a time; run again then at the latest,
            with `run.wait_expired`.
    """

    seconds: float | None = None
    until: datetime | None = None
    event: str | None = None
    deadline: float | datetime | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.until is None and not self.event:
            raise ValueError("Wait needs seconds, until or event")
        if self.seconds is not None and self.until is not None:
            raise ValueError("Wait takes seconds or until, not both")
        for moment in (self.until, self.deadline):
            if isinstance(moment, datetime) and moment.tzinfo is None:
                raise ValueError("Wait needs an aware datetime")
        if self.event is not None and not 0 < len(self.event) <= 255:
            raise ValueError("the topic of a Wait has 1 to 255 characters")


@dataclass(slots=True)
class Run:
    """What a step sees of its run.

    Args:
        id: `run_…`.
        service: name of the workflow.
        key: what the run serialises on, with its key space.
        workspace_id: whose run it is, or None.
        urgent: it goes before other ready runs of its key; so do the children that it calls.
        input: what `start` was given.
        step: name of the step that runs.
        token: `<run id>/<step>`, the same in every attempt: the outside world is idempotent by it.
        attempt: 1 for the first, one more after each failure.
        wait_expired: the time of the wait has passed (its deadline, if it has one).
        created_at, started_at, step_started_at: aware times.
    """

    id: str
    service: str
    key: str
    workspace_id: str | None
    urgent: bool
    input: dict[str, Any]
    step: str
    token: str
    attempt: int
    wait_expired: bool
    created_at: datetime
    started_at: datetime
    step_started_at: datetime
    _load: Callable[[], dict[str, Any]] = field(repr=False)
    _results: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def results(self) -> dict[str, Any]:
        """Results of the finished steps, by name."""
        if self._results is None:
            self._results = self._load()
        return self._results

    def scope(self) -> AbstractContextManager[None]:
        """Open the run's workspace, or lift the scope when it has none."""
        return (
            workspace_scope(self.workspace_id) if self.workspace_id else unscoped(f"workflow {self.service}")
        )


Recording = Callable[..., Any]
Outside = Callable[[Run], Any]


@dataclass(frozen=True)
class Step:
    """One step: an optional outside part, and the recording part.

    Args:
        name: the recording function's own.
        record: `(run)` or, with an outside part, `(run, what it returned)`; returns JSON or a `Wait`;
            runs inside the transaction that also writes the journal and advances the run.
        outside: `(run)`; talks to the world while no transaction is held. May run again after a
            crash, with the same `run.token`.
        retry: policy for exceptions of either part.
        timeout: seconds after which an outside part counts as failed. Its thread is left to end by
            itself, so it needs time-outs of its own too.
    """

    name: str
    record: Recording
    outside: Outside | None
    retry: Retry
    timeout: float | None

    def __call__(self, *args: Any) -> Any:
        """Call the recording part, as tests of a single step do."""
        return self.record(*args)


@overload
def step(record: Recording, /) -> Step: ...


@overload
def step(
    *, outside: Outside | None = None, retry: Retry | None = None, timeout: float | None = None
) -> Callable[[Recording], Step]: ...


def step(
    record: Recording | None = None,
    /,
    *,
    outside: Outside | None = None,
    retry: Retry | None = None,
    timeout: float | None = None,
) -> Step | Callable[[Recording], Step]:
    """Make a function the recording part of a step; see `Step` for the arguments."""

    def wrap(function: Recording) -> Step:
        return Step(function.__name__, function, outside, retry or Retry(), timeout)

    return wrap if record is None else wrap(record)


def _as_step(function: "Step | Recording") -> Step:
    return function if isinstance(function, Step) else step(function)


class BadWorkflow(TypeError):
    """A workflow class is written wrongly."""


class Workflow:
    """Base of all workflows: an explicit list of steps.

    Attributes:
        service: unique name, kept in every run.
        key: name of the input's field that runs serialise on; None: each run is its own key.
        key_space: workflows with the same one share their keys; default: the service.
        exclusive: a run keeps its key until it ends; otherwise only for a step, not for a wait.
        urgent: goes before other ready runs of its key.
        queue: which workers drive it.
        steps: in order.
        compensations: what undoes a step; run in reverse order after a failure or a cancel, for
            every step that finished, and for the failed one if its outside part was started (then
            `run.results` lacks it).
        on_failure: `(run, code, message)`, in a transaction, after the compensations.
    """

    service: ClassVar[str] = ""
    key: ClassVar[str | None] = None
    key_space: ClassVar[str] = ""
    exclusive: ClassVar[bool] = True
    urgent: ClassVar[bool] = False
    queue: ClassVar[str] = "workflows"
    steps: ClassVar[tuple[Step, ...]] = ()
    compensations: ClassVar[Mapping[Any, Any]] = {}
    on_failure: ClassVar[Any] = None

    by_name: ClassVar[dict[str, Step]]
    undo_by_name: ClassVar[dict[str, Step]]
    failure_step: ClassVar[Step | None]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.service:
            return
        if len(cls.service) > 64:
            raise BadWorkflow(f"{cls.__qualname__}: the service name has more than 64 characters")
        cls.key_space = cls.key_space or cls.service
        cls.by_name = {each.name: each for each in cls.steps}
        if not cls.steps or len(cls.by_name) != len(cls.steps):
            raise BadWorkflow(f"{cls.__qualname__} needs at least one step, and each name once")
        cls.undo_by_name = {}
        for done, undo in cls.compensations.items():
            if not isinstance(done, Step) or cls.by_name.get(done.name) is not done:
                raise BadWorkflow(f"{cls.__qualname__} compensates {done!r}, which is not one of its steps")
            cls.undo_by_name[done.name] = _as_step(undo)
        hook = inspect.getattr_static(cls, "on_failure")
        if isinstance(hook, staticmethod):
            hook = hook.__func__
        cls.failure_step = _as_step(hook) if hook is not None else None
        if cls.failure_step is not None and cls.failure_step.outside is not None:
            raise BadWorkflow(f"{cls.__qualname__}: on_failure cannot have an outside part")
        known = _registry.get(cls.service)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise BadWorkflow(
                f"two workflows are named {cls.service}: {known.__qualname__}, {cls.__qualname__}"
            )
        _registry[cls.service] = cls

    @classmethod
    def step_names(cls) -> list[str]:
        """Names of the steps, in order."""
        return [each.name for each in cls.steps]


_registry: dict[str, type[Workflow]] = {}


def workflow_named(service: str) -> type[Workflow] | None:
    """Return the workflow class with this service name, if the running code has one."""
    return _registry.get(service)


def own_key(service: str, run_id: str) -> str:
    """Key of a run whose workflow serialises on nothing else."""
    return f"{service}:{run_id}"


def workflows() -> dict[str, type[Workflow]]:
    """Return every known workflow by its service name."""
    return dict(_registry)
