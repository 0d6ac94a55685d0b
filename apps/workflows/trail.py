"""What happened to a run besides its finished steps: failed attempts, waits, turns, what operators did.

Kept in the run's own row, so that it costs no statement: whoever writes the row writes the trail with
it. A run without failures and waits has an empty one.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from unkey import clock

LIMIT = 60
KEPT_FROM_START = 10
TEXT_LIMIT = 500


class What(StrEnum):
    """Kinds of entries."""

    FAILED = "failed"
    WAIT = "wait"
    UNDO = "undo"
    ATTENTION = "attention"
    LAPSED = "lapsed"
    RESUMED = "resumed"
    GIVEN_UP = "given_up"
    RETRY_OF = "retry_of"
    RETRIED_AS = "retried_as"
    OMITTED = "omitted"


def added(
    trail: list[dict[str, Any]] | None,
    what: What,
    at: datetime,
    step: str = "",
    text: str = "",
    until: datetime | None = None,
    run_id: str = "",
) -> list[dict[str, Any]]:
    """Return the trail with one more entry.

    A wait right after a wait of the same step for the same thing is counted in the entry before it;
    beyond `LIMIT` entries the middle is left out and counted.

    Args:
        trail: the run's; None: nothing yet.
        what: kind of entry.
        at: when.
        step: name of the step or compensation; empty: none.
        text: the error, the topic, or who did it; cut to `TEXT_LIMIT` characters.
        until: when a wait or a pause between attempts ends at the latest, if ever.
        run_id: another run that the entry speaks of.
    """
    trail = trail or []
    entry: dict[str, Any] = {"at": clock.to_ms(at), "what": what.value}
    if step:
        entry["step"] = step
    if text:
        entry["text"] = text[:TEXT_LIMIT]
    if until is not None:
        entry["until"] = clock.to_ms(until)
    if run_id:
        entry["run"] = run_id
    last = trail[-1] if trail else None
    if (
        what is What.WAIT
        and last is not None
        and (last["what"], last.get("step"), last.get("text")) == (what.value, step or None, text or None)
    ):
        merged = {**last, "again": last.get("again", 0) + 1, "last": entry["at"]}
        merged.pop("until", None)
        return [*trail[:-1], merged | ({"until": entry["until"]} if "until" in entry else {})]
    return _shortened([*trail, entry])


def _shortened(trail: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(trail) <= LIMIT:
        return trail
    start, rest = trail[:KEPT_FROM_START], trail[KEPT_FROM_START:]
    gone = 0
    while rest and (rest[0]["what"] == What.OMITTED or len(start) + len(rest) >= LIMIT):
        gone += rest[0].get("count", 1)
        rest = rest[1:]
    omitted = {"at": rest[0]["at"], "what": What.OMITTED.value, "count": gone}
    return [*start, omitted, *rest]
