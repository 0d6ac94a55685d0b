"""A workspace's limit on management requests per minute."""

import math

import structlog

from edge.verify.limiter import Limit
from unkey import clock, errors
from unkey.rpc.limiter import process_limiter

log = structlog.get_logger("unkey.rpc")

WINDOW_MS = 60_000


class RequestLimit:
    """Sliding windows of one minute per workspace, counted together with all that this machine answers."""

    def check(self, workspace_id: str, limit: int) -> dict[str, str]:
        """Count one request and return the `RateLimit-*` headers of its answer.

        A limiter that fails lets the request pass, without headers.

        Args:
            limit: requests per minute; 0 refuses all.

        Raises:
            WorkspaceRateLimited: with the headers and `Retry-After`.
        """
        now = clock.now_ms()
        counter = (workspace_id, "workspace.ratelimit", workspace_id, WINDOW_MS)
        try:
            outcome = process_limiter().check(Limit(counter, limit), now)
        except Exception:
            log.exception("limiter.failed", workspace_id=workspace_id)
            return {}
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
