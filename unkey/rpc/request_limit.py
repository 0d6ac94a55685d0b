"""A workspace's limit on management requests per minute."""

import math
import threading

from unkey import clock, errors

WINDOW_MS = 60_000


class RequestLimit:
    """Sliding windows of one minute per workspace, shared by the threads of a process.

    The arithmetic is the platform's (reference, api.md 3.1): windows aligned to the epoch, the
    previous one weighted by what is left of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}

    def check(self, workspace_id: str, limit: int) -> dict[str, str]:
        """Count one request and return the `RateLimit-*` headers of its answer.

        Raises:
            WorkspaceRateLimited: with the headers and `Retry-After`.
        """
        now = clock.now_ms()
        sequence, elapsed = divmod(now, WINDOW_MS)
        with self._lock:
            self._turn(sequence)
            before = int(self._previous.get(workspace_id, 0) * (1 - elapsed / WINDOW_MS))
            effective = self._current.get(workspace_id, 0) + before + 1
            allowed = effective <= limit
            if allowed:
                self._current[workspace_id] = self._current.get(workspace_id, 0) + 1
        reset = math.ceil((WINDOW_MS - elapsed) / 1000)
        headers = {
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": str(limit - effective if allowed else 0),
            "RateLimit-Reset": str(reset),
        }
        if not allowed:
            raise errors.WorkspaceRateLimited(
                f"This workspace may make {limit} management requests per minute. Retry in {reset} s.",
                headers={**headers, "Retry-After": str(reset)},
            )
        return headers

    def _turn(self, sequence: int) -> None:
        if sequence != self._sequence:
            self._previous = self._current if sequence == self._sequence + 1 else {}
            self._current = {}
            self._sequence = sequence
