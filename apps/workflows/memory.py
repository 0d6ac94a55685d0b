"""What this process remembers of the runs that it drives: results of finished steps, as JSON text.

Only what was committed is kept, and only while it is the whole of what the run has: a run that was
driven elsewhere meanwhile stands further along than what is remembered, and is read anew.
"""

import json
import threading
from collections import OrderedDict
from typing import Any

from apps.workflows import rows

MAX_BYTES = 32 * 1024 * 1024
OVERHEAD = 512


class Memory:
    """Results by run, up to a total size; the runs that were not used for longest are forgotten first."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._size = 0

    def find(self, run_id: str, finished: int) -> dict[str, str] | None:
        """Return the results of a run of which so many steps are finished, or None if they are not known."""
        if finished == 0:
            return {}
        with self._guard:
            kept = self._kept.get(run_id)
            if kept is None or len(kept) != finished:
                return None
            self._kept.move_to_end(run_id)
            return dict(kept)

    def add(self, run_id: str, finished: int, name: str, text: str) -> None:
        """Remember the result of one more step, if those of the `finished` ones before it are known."""
        with self._guard:
            kept = self._kept.get(run_id)
            if finished == 0:
                self._drop(run_id)
                kept = self._kept[run_id] = {}
                self._size += OVERHEAD
            elif kept is None or len(kept) != finished:
                self._drop(run_id)
                return
            kept[name] = text
            self._size += _size(name, text)
            while self._size > MAX_BYTES:
                self._drop(next(iter(self._kept)))

    def forget(self, run_id: str) -> None:
        """Forget a run."""
        with self._guard:
            self._drop(run_id)

    def _drop(self, run_id: str) -> None:
        dropped = self._kept.pop(run_id, None)
        if dropped is not None:
            self._size -= OVERHEAD + sum(_size(*each) for each in dropped.items())


def _size(name: str, text: str) -> int:
    return len(name) + len(text) + 128


def decoded(results: dict[str, str]) -> dict[str, Any]:
    """Return results as steps see them: a copy of their own."""
    return {name: json.loads(text) for name, text in results.items()}


def read(run_id: str) -> dict[str, Any]:
    """Read the results of a run from its journal."""
    return decoded(rows.results(run_id))
