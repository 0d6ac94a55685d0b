"""What callers do to runs: start, cancel, call a child and wait for it, send one and go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction

from apps.workflows import rows, wakeups
from apps.workflows.cancelling import request_cancel
from apps.workflows.definition import Run, Terminal, Wait, Workflow, own_key
from apps.workflows.models import State, WorkflowRun
from apps.workflows.payload import BadPayload, encode
from apps.workflows.topics import child_topic
from unkey import clock, ids


class IdempotencyConflict(ValueError):
    """An idempotency key was used before, with another input."""


def start(
    workflow: type[Workflow],
    input: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    workspace_id: str | None = None,
    urgent: bool | None = None,
    at: datetime | None = None,
    parent_id: str | None = None,
) -> WorkflowRun:
    """Create a run in the caller's transaction; it is woken when that commits.

    Args:
        workflow: the class.
        input: plain JSON by field name, at most 256 KiB.
        idempotency_key: names the cause. A second start with it returns the first run, also when
            two callers race.
        workspace_id: whose run it is; its steps see this workspace only.
        urgent: go before other ready runs of the key; default: the class's.
        at: not before this time.
        parent_id: run that waits for this one.

    Raises:
        BadPayload: the input is not plain JSON, or lacks the field that is the key.
        IdempotencyConflict: the idempotency key stands for another input.
    """
    text = encode(dict(input), f"input of {workflow.service}")
    run_id = ids.new("run")
    row = WorkflowRun(
        id=run_id,
        service=workflow.service,
        key=_key(workflow, input, run_id),
        queue=workflow.queue,
        workspace_id=workspace_id,
        parent_id=parent_id,
        idempotency_key=idempotency_key,
        input=dict(input),
        step_names=workflow.step_names(),
        exclusive=workflow.exclusive,
        urgent=workflow.urgent if urgent is None else urgent,
        next_at=at or clock.now(),
    )
    if idempotency_key is not None:
        if not 0 < len(idempotency_key) <= 255:
            raise BadPayload("an idempotency key has 1 to 255 characters")
        _refuse_space(idempotency_key, "an idempotency key")
        first = _first(row, text)
        if first is not None:
            return first
    try:
        # Only what may be refused needs a savepoint, which costs two statements.
        with transaction.atomic(savepoint=idempotency_key is not None):
            rows.insert_run(row, text)
            wakeups.after_commit(row.key, row.queue, due=at)
            return row
    except IntegrityError:
        first = _first(row, text) if idempotency_key is not None else None
        if first is None:
            raise
        return first


def _key(workflow: type[Workflow], input: Mapping[str, Any], run_id: str) -> str:
    if workflow.key is None:
        return own_key(workflow.key_space, run_id)
    value = input.get(workflow.key)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise BadPayload(f"input of {workflow.service} needs {workflow.key}, text or a number: its key")
    key = f"{workflow.key_space}:{value}"
    if len(key) > 255:
        raise BadPayload(f"the key of {workflow.service} has more than 255 characters")
    _refuse_space(key, f"the key of {workflow.service}")
    return key


def _refuse_space(text: str, what: str) -> None:
    """Refuse what MariaDB compares as if it ended sooner: two keys would be one, and one of them never found."""
    if text.endswith(" "):
        raise BadPayload(f"{what} must not end in a space")


def _first(row: WorkflowRun, text: str) -> WorkflowRun | None:
    found = WorkflowRun.objects.filter(service=row.service, idempotency_key=row.idempotency_key).first()
    if found is not None and (
        found.workspace_id != row.workspace_id or encode(found.input, f"input of {row.service}") != text
    ):
        raise IdempotencyConflict(
            f"{row.service} was started before with idempotency key {row.idempotency_key!r} and another input"
        )
    return found


def cancel(run_id: str) -> bool:
    """Ask a run to stop, in the caller's transaction: at its next boundary, or at once if it waits.

    What it did is compensated, then its failure hook runs with the code `cancelled`. One that never began
    does not wait for its turn on its key: it ends right after the commit.

    Returns:
        False when there was nothing to cancel: unknown, ended, or already on its way back.
    """
    with transaction.atomic():
        row = WorkflowRun.objects.filter(id=run_id).first()
        return row is not None and request_cancel(row)


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that succeeded.

    Args:
        id: its run.
        result: result of its last step.
    """

    id: str
    result: Any


def call(
    run: Run, workflow: type[Workflow], input: Mapping[str, Any], *, deadline: float | None = None
) -> Wait | Finished:
    """Start a child once and wait for it, from a recording part; the same call returns its result later.

        @step
        def build(run: Run) -> JSON | Wait:
            child = call(run, Build, {"deployment_id": run.input["deployment_id"]})
            return child if isinstance(child, Wait) else child.result

    A cancel or failure of the parent cancels a child that still runs. The child of an urgent run is urgent.

    Args:
        run: the parent.
        workflow: the child's class.
        input: the child's input.
        deadline: seconds after which `run.wait_expired` is set and the step runs again.

    Raises:
        Terminal: the child failed, with its code and message, or was cancelled.
    """
    row = start(
        workflow,
        input,
        idempotency_key=f"{run.id}/{run.step}/{workflow.service}",
        workspace_id=run.workspace_id,
        urgent=run.urgent or workflow.urgent,
        parent_id=run.id,
    )
    if row.state == State.SUCCEEDED:
        last = row.journal.order_by("-position").values_list("result", flat=True).first()
        return Finished(row.id, last)
    if row.state in (State.FAILED, State.CANCELLED):
        raise Terminal(row.error_code, row.error_message)
    return Wait(event=child_topic(row.id), deadline=deadline)


def send(
    run: Run,
    workflow: type[Workflow],
    input: Mapping[str, Any],
    *,
    at: datetime | None = None,
    name: str = "",
) -> WorkflowRun:
    """Start another run once, from a recording part, and go on without it.

    Args:
        run: the sender; a step that runs again does not send again.
        workflow: the class to start.
        input: its input.
        at: not before this time.
        name: tells apart several runs of one workflow that one step sends.
    """
    return start(
        workflow,
        input,
        idempotency_key=f"{run.id}/{run.step}/{workflow.service}/{name}",
        workspace_id=run.workspace_id,
        at=at,
    )
