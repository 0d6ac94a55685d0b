"""The timeline of a run: its journal, its trail and its children, in the order in which things happened."""

import json
import math
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any

from apps.workflows.definition import CANCELLED
from apps.workflows.models import ENDED, Kind, State, WorkflowRun
from apps.workflows.trail import What
from unkey import clock

RESULT_LIMIT = 2000


@dataclass(slots=True)
class Entry:
    """One line of a timeline.

    Args:
        at: when it began.
        until: when it was over; None: a moment.
        kind: `created`, `step`, `compensation`, `hook`, `failed`, `wait`, `child`, or one of `What`.
        title: what it is.
        tone: `good`, `bad`, `wait` or `plain`.
        detail: the error, the reason, the topic.
        result: JSON text of what a step returned.
        attempts: how many a finished step took.
        run_id: another run that it speaks of.
        going_on: it has not ended.
        start, width: its place in the whole, in percent.
        offset: how long after the first one, in words.
        order: what entries are sorted by: when, in Unix milliseconds, then phase, place and part in it.
    """

    at: datetime
    until: datetime | None
    kind: str
    title: str
    tone: str = "plain"
    detail: str = ""
    result: str = ""
    attempts: int = 1
    run_id: str = ""
    going_on: bool = False
    start: float = 0.0
    width: float = 0.0
    offset: str = ""
    order: tuple[int, ...] = ()

    @property
    def took(self) -> str:
        """How long it took, in words; empty for a moment."""
        return "" if self.seconds is None else duration(self.seconds)

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return None if self.until is None else (self.until - self.at).total_seconds()


def duration(seconds: float) -> str:
    """Return a length of time for people: `12 ms`, `3.4 s`, `5 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, inner, size, part in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86_400, 3600)):
        if seconds < {"min": 3600, "h": 86_400, "d": math.inf}[unit]:
            whole, rest = divmod(seconds, size)
            return f"{whole:.0f} {unit} {rest // part:.0f} {inner}"
    raise AssertionError("unreachable")


class _Phase(IntEnum):
    """What comes first of what happened in the same millisecond."""

    CREATED = 0
    RUNNING = 1
    UNDOING = 2
    HOOK = 3
    ENDED = 4
    AFTERWARDS = 5


_KINDS = {Kind.STEP: "step", Kind.COMPENSATION: "compensation", Kind.ON_FAILURE: "hook"}


def timeline(run: WorkflowRun) -> list[Entry]:
    """Return what happened to a run, in order; costs two queries."""
    now = clock.now()
    entries = [Entry(run.created_at, None, "created", "created")]
    entries[0].order = (clock.to_ms(run.created_at), _Phase.CREATED)
    done = _from_journal(run)
    entries += done + _from_trail(run, done) + _from_children(run, now)
    if run.cancel_requested_at is not None:
        entries.append(Entry(run.cancel_requested_at, None, "cancel", "cancel was asked for", "bad"))
    if run.finished_at is not None:
        tone = "good" if run.state == State.SUCCEEDED else "bad"
        detail = f"{run.error_code}: {run.error_message}" if run.error_code not in ("", CANCELLED) else ""
        ended = Entry(run.finished_at, None, "ended", run.get_state_display().lower(), tone, detail)
        last = max((entry.until or entry.at for entry in done), default=run.finished_at)
        ended.order = (clock.to_ms(max(run.finished_at, last)), _Phase.ENDED)
        entries.append(ended)
    entries.sort(key=lambda entry: entry.order or (clock.to_ms(entry.at), _Phase.RUNNING))
    _end_waits(entries, run, now)
    _place(entries, run.finished_at or now)
    return entries


def _from_journal(run: WorkflowRun) -> list[Entry]:
    entries = []
    last_step = clock.to_ms(run.created_at)
    for row in run.journal.order_by("id"):
        if row.ended_at is None:
            continue  # its failed attempts are in the trail
        began = max(row.started_at, run.created_at)
        result = "" if row.result is None else json.dumps(row.result, indent=1, ensure_ascii=False)
        ended = max(row.ended_at, began)
        # A step stands where it ended, after its failed attempts; a compensation where it began, before them.
        if row.kind == Kind.STEP:
            last_step = max(last_step, clock.to_ms(ended))
        order = {
            Kind.STEP: (clock.to_ms(ended), _Phase.RUNNING, row.position, 1),
            Kind.COMPENSATION: (max(clock.to_ms(began), last_step), _Phase.UNDOING, row.position, 0),
            Kind.ON_FAILURE: (clock.to_ms(ended), _Phase.HOOK),
        }[Kind(row.kind)]
        entries.append(
            Entry(
                at=began,
                until=ended,
                kind=_KINDS[Kind(row.kind)],
                title=row.name if row.kind != Kind.COMPENSATION else f"undo {row.name}",
                tone="good" if row.kind == Kind.STEP else "plain",
                result=result if len(result) <= RESULT_LIMIT else f"{result[:RESULT_LIMIT]}…",
                attempts=row.attempts,
                order=order,
            )
        )
    return entries


_TITLES = {
    What.FAILED: ("{step} failed", "bad"),
    What.WAIT: ("{step} waits", "wait"),
    What.UNDO: ("turned round: what was done is undone", "bad"),
    What.ATTENTION: ("stopped: needs attention", "bad"),
    What.LAPSED: ("the worker of {step} was lost", "bad"),
    What.RESUMED: ("resumed", "plain"),
    What.GIVEN_UP: ("given up", "bad"),
    What.RETRY_OF: ("started as a retry", "plain"),
    What.RETRIED_AS: ("retried as a new run", "plain"),
}


def _from_trail(run: WorkflowRun, done: list[Entry]) -> list[Entry]:
    entries: list[Entry] = []
    undoing = ""
    order: tuple[int, ...] = ()
    for each in run.trail or []:
        what = What(each["what"])
        undoing = "undo " if what is What.UNDO else undoing
        at = clock.from_ms(each["at"])
        order = max(order, _order_in_trail(run, each, done, undone=bool(undoing)))
        if what is What.OMITTED:
            entries.append(Entry(at, None, what.value, f"{each['count']} more, not kept", order=order))
            continue
        title, tone = _TITLES[what]
        entry = Entry(
            at,
            None,
            what.value,
            title.format(step=f"{undoing}{each.get('step', '')}"),
            tone,
            each.get("text", ""),
            run_id=each.get("run", ""),
            order=order,
        )
        if what is What.WAIT:
            entry.detail = f"for {entry.detail}" if entry.detail else ""
            if "until" in each:
                entry.detail += f" until {clock.from_ms(each['until']):%Y-%m-%d %H:%M:%S}"
            if each.get("again"):
                entry.detail += f"; looked {each['again'] + 1} times"
                entry.until = clock.from_ms(each["last"])
            entry.detail = entry.detail.strip()
        elif what is What.FAILED and "until" in each:
            again = (each["until"] - each["at"]) / 1000
            entry.detail += f" (again after {again:.1f} s)" if again >= 0 else ""
        entries.append(entry)
    return entries


def _order_in_trail(
    run: WorkflowRun, said: dict[str, Any], done: list[Entry], *, undone: bool
) -> tuple[int, ...]:
    """Return where an entry of the trail stands: after the steps that were done before what it speaks of.

    Its time is that of the worker's round, in milliseconds: a step of the same round may have ended later.
    """
    what, step, at = What(said["what"]), said.get("step", ""), said["at"]
    if what is What.RETRIED_AS:
        return (at, _Phase.AFTERWARDS)
    names = list((run.undo or []) if undone else run.step_names)
    index = names.index(step) if step in names else -1
    phase, part = (_Phase.UNDOING, 1) if undone else (_Phase.RUNNING, 0)
    before = len(run.step_names) if undone else index
    ends = [
        entry.order[0]
        for entry in done
        if (entry.kind == "step" and entry.order[2] < before)
        or (entry.kind == "compensation" and undone and entry.order[2] <= index)
    ]
    return (max([at, *ends]), phase, index, part)


def _from_children(run: WorkflowRun, now: datetime) -> list[Entry]:
    entries = []
    for child in WorkflowRun.objects.filter(parent_id=run.id).order_by("arrival"):
        ended = child.state in ENDED
        entries.append(
            Entry(
                at=child.created_at,
                until=child.finished_at if ended else now,
                kind="child",
                title=f"child {child.service}: {child.get_state_display().lower()}",
                tone={State.SUCCEEDED: "good", State.FAILED: "bad", State.CANCELLED: "bad"}.get(
                    State(child.state), "wait"
                ),
                run_id=child.id,
                going_on=not ended,
            )
        )
    return entries


def _end_waits(entries: list[Entry], run: WorkflowRun, now: datetime) -> None:
    """A wait is over when the run does the next thing; the last one may go on."""
    for index, entry in enumerate(entries):
        if entry.kind != What.WAIT:
            continue
        begun = entry.until or entry.at
        after = [
            other.until if other.kind in ("step", "compensation") else other.at
            for other in entries[index + 1 :] + entries[:index]
            if other.kind not in ("child", "created")
        ]
        later = [moment for moment in after if moment is not None and moment > begun]
        entry.going_on = not later and run.state not in ENDED
        entry.until = min(later) if later else (run.finished_at or now)


def _place(entries: list[Entry], end: datetime) -> None:
    begin = min(entry.at for entry in entries)
    end = max([end, *(entry.until or entry.at for entry in entries)])
    whole = max((end - begin).total_seconds(), 0.001)
    for entry in entries:
        entry.start = round(100 * (entry.at - begin).total_seconds() / whole, 3)
        length = (entry.seconds or 0) / whole * 100
        entry.offset = f"+{duration((entry.at - begin).total_seconds())}"
        entry.width = round(min(length, 100 - entry.start), 3)


def as_json(run: WorkflowRun) -> dict[str, Any]:
    """Return a run and its timeline as plain JSON: times in Unix milliseconds."""

    def ms(moment: datetime | None) -> int | None:
        return None if moment is None else clock.to_ms(moment)

    return {
        "id": run.id,
        "service": run.service,
        "state": run.state,
        "step": run.current_step,
        "key": run.key,
        "queue": run.queue,
        "workspaceId": run.workspace_id,
        "parentId": run.parent_id,
        "idempotencyKey": run.idempotency_key,
        "input": run.input,
        "steps": run.step_names,
        "errorCode": run.error_code,
        "errorMessage": run.error_message,
        "createdAt": ms(run.created_at),
        "startedAt": ms(run.started_at),
        "finishedAt": ms(run.finished_at),
        "nextAt": ms(run.next_at),
        "waitsFor": run.wait_topic,
        "timeline": [
            {
                "at": ms(entry.at),
                "until": ms(entry.until),
                "kind": entry.kind,
                "title": entry.title,
                "detail": entry.detail,
                "attempts": entry.attempts,
                "runId": entry.run_id,
                "goingOn": entry.going_on,
            }
            for entry in timeline(run)
        ],
    }
