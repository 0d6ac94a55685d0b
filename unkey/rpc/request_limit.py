"""A workspace's limit on management requests per minute."""

import math
import threading

from edge.verify.limiter import Limit, Limiter
from unkey import clock, errors

WINDOW_MS = 60_000


class RequestLimit:
    """Sliding windows of one minute per workspace, shared by the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limiter = Limiter()

    def check(self, workspace_id: str, limit: int) -> dict[str, str]:
        """Count one request and return the `RateLimit-*` headers of its answer.

        Args:
            limit: requests per minute; 0 refuses all.

        Raises:
            WorkspaceRateLimited: with the headers and `Retry-After`.
        """
        now = clock.now_ms()
        counter = (workspace_id, "workspace.ratelimit", workspace_id, WINDOW_MS)
        with self._lock:
            outcome = self._limiter.check(Limit(counter, limit), now)
        seconds = str(math.ceil((outcome.reset - now) / 1000))
        headers = {
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": str(outcome.remaining),
            "RateLimit-Reset": seconds,
        }
        if not outcome.passed:
            raise errors.WorkspaceRateLimited(
                f"This workspace may make {limit} management requests per minute. Retry in {seconds} s.",
                headers={**headers, "Retry-After": seconds},
            )
        return headers
