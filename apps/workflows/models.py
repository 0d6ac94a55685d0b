"""Tables of the workflow engine: runs, their journal, keys (who may step), topics (who is woken)."""

import threading
from datetime import timedelta
from typing import Any

from django.db import models

from unkey import clock
from unkey.models import id_field

_arrival_lock = threading.Lock()
_last_arrival = 0


def next_arrival() -> int:
    """Return a number that grows with every call in this process: microseconds of the clock, or one more."""
    global _last_arrival
    with _arrival_lock:
        _last_arrival = max(_last_arrival + 1, (clock.now() - clock.EPOCH) // timedelta(microseconds=1))
        return _last_arrival


class State(models.TextChoices):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPENSATING = "compensating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NEEDS_ATTENTION = "needs_attention"


ACTIVE = (State.PENDING, State.RUNNING, State.WAITING, State.COMPENSATING)
ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Kind(models.TextChoices):
    """What a row of the journal records."""

    STEP = "step"
    COMPENSATION = "compensation"
    ON_FAILURE = "on_failure"


class WorkflowRun(models.Model):
    """One invocation of a workflow.

    `next_at` is when it wants to be driven: in the past while it is ready or in a step, in the
    future for a timer or a retry, null when only an event can wake it or it has ended. What may
    change a run is the holder of its key's row lock; `cancel` and `notify` touch only
    `cancel_requested_at` and `next_at`. `undo` lists the steps to compensate, last first, once the
    run has turned round; `journaled` says that the current step has a row of failed attempts. `trail`
    is what the timeline shows besides the journal (see `apps.workflows.trail`).
    """

    id = id_field("run")
    arrival = models.BigIntegerField(default=next_arrival, editable=False)
    service = models.CharField(max_length=64)
    key = models.CharField(max_length=255)
    queue = models.CharField(max_length=64)
    workspace_id = models.CharField(max_length=48, null=True, blank=True, db_index=True)
    parent_id = models.CharField(max_length=48, null=True, blank=True, db_index=True)
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)
    input = models.JSONField(default=dict)
    step_names = models.JSONField(default=list)
    exclusive = models.BooleanField(default=True)
    urgent = models.BooleanField(default=False)

    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    step_index = models.PositiveIntegerField(default=0)
    undo = models.JSONField(null=True, blank=True)
    undo_index = models.PositiveIntegerField(default=0)
    failures = models.PositiveIntegerField(default=0)
    journaled = models.BooleanField(default=False)
    outside_started = models.BooleanField(default=False)
    step_started_at = models.DateTimeField(null=True, blank=True)
    next_at = models.DateTimeField(null=True, blank=True)
    wait_topic = models.CharField(max_length=255, blank=True, default="")
    wait_deadline = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    error_code = models.CharField(max_length=64, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    trail = models.JSONField(null=True, blank=True, editable=False)

    created_at = models.DateTimeField(default=clock.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["service", "idempotency_key"], name="workflows_run_idempotency"),
        ]
        indexes = [
            models.Index(fields=["next_at"], name="workflows_run_due"),
            models.Index(fields=["key", "next_at"], name="workflows_run_key_due"),
            models.Index(fields=["service", "state"], name="workflows_run_service"),
            models.Index(fields=["state", "finished_at"], name="workflows_run_finished"),
            models.Index(fields=["wait_topic"], name="workflows_run_topic"),
        ]

    def __str__(self) -> str:
        return f"{self.service} {self.id} ({self.state}{self._where()})"

    def _where(self) -> str:
        step = self.current_step
        return f" at {step}" if step else ""

    @property
    def current_step(self) -> str:
        """Name of the step, or of the step being compensated, that comes next; empty at the end."""
        if self.undo is not None:
            return self.undo[self.undo_index] if self.undo_index < len(self.undo) else ""
        return self.step_names[self.step_index] if self.step_index < len(self.step_names) else ""


class WorkflowStep(models.Model):
    """The journal: one row for each step, compensation or failure hook of a run.

    `ended_at` is null while attempts fail and more are to come; then `error` is the latest one.
    """

    # Found by the constraint's index, which begins with it: one more would be written at every step.
    run: Any = models.ForeignKey(
        WorkflowRun, on_delete=models.CASCADE, related_name="journal", db_index=False
    )
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.STEP)
    name = models.CharField(max_length=128)
    position = models.PositiveIntegerField()
    attempts = models.PositiveIntegerField(default=1)
    result = models.JSONField(null=True, blank=True)
    error = models.TextField(blank=True, default="")
    started_at = models.DateTimeField(default=clock.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "kind", "name"], name="workflows_step_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of {self.run_id}"


class WorkflowKey(models.Model):
    """Who may step on a key: the row that is locked to take the key and to give it back.

    A lease (`lease_expires_at`) stands for an outside part in flight; `epoch` grows with every lease,
    and a commit under an older one is refused. An exclusive run stays `holder` between its steps.
    """

    key = models.CharField(max_length=255, primary_key=True)
    epoch = models.BigIntegerField(default=next_arrival)
    holder = models.CharField(max_length=48, blank=True, default="")
    exclusive = models.BooleanField(default=False)
    lease_expires_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.key} held by {self.holder or 'nobody'} (epoch {self.epoch})"


class WorkflowTopic(models.Model):
    """A topic that runs wait for; `sequence` grows with every `notify`."""

    name = models.CharField(max_length=255, primary_key=True)
    sequence = models.BigIntegerField(default=next_arrival)
    notified_at = models.DateTimeField(default=clock.now, db_index=True)

    def __str__(self) -> str:
        return f"{self.name} at {self.sequence}"
