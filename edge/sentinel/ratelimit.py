"""The ratelimit policy: counts requests by address, header, principal or path (reference, api.md 6.7)."""

from collections.abc import Callable, Mapping
from typing import Any

from edge.sentinel.decision import Call, Rate, State, Unsupported
from edge.sentinel.match import field, path_text
from edge.verify.limiter import MIN_DURATION_MS, Limit, Limiter
from unkey import clock
from unkey.errors import Fault, RateLimited

Identify = Callable[[Call, State], str | None]


class Ratelimit:
    """A compiled ratelimit policy; its counters belong to the workspace, under the policy's id.

    Raises:
        Unsupported: the policy cannot be evaluated.
    """

    def __init__(self, body: Mapping[str, Any], policy_id: str, workspace_id: str, limiter: Limiter) -> None:
        limit, window = body.get("limit"), field(body, "windowMs")
        if not isinstance(limit, int) or not isinstance(window, int) or limit < 1 or window < 1:
            raise Unsupported("ratelimit needs limit and windowMs")
        given = body.get("identifiers") or [body.get("identifier")]
        self._identify = tuple(_identifier(each) for each in given)
        self._limit = limit
        self._window = max(window, MIN_DURATION_MS)
        self._policy_id = policy_id
        self._workspace_id = workspace_id
        self._limiter = limiter

    def apply(self, call: Call, state: State) -> Fault | None:
        """Count the request, or refuse it."""
        parts = [identify(call, state) for identify in self._identify]
        if not any(parts):
            return RateLimited("The rate limit's identifier cannot be found in this request; see its policy.")
        if len(parts) == 1:
            who = parts[0] or ""
        else:
            who = ":".join((part or "unknown").replace("\\", "\\\\").replace(":", "\\:") for part in parts)
        counter = (self._workspace_id, self._policy_id, who, self._window)
        outcome = self._limiter.check(Limit(counter, self._limit), clock.now_ms())
        state.rated(Rate(not outcome.passed, outcome.limit, outcome.remaining, outcome.reset))
        return None if outcome.passed else RateLimited("Too many requests; try again later.")


def _identifier(body: Any) -> Identify:
    kinds = {kind: rest for kind, rest in body.items() if rest is not None} if isinstance(body, dict) else {}
    if len(kinds) != 1:
        raise Unsupported("a rate limit identifier needs exactly one kind")
    kind, rest = next(iter(kinds.items()))
    if kind in ("remoteIp", "remote_ip"):
        return lambda call, state: call.peer.decode("latin-1")
    if kind == "path":
        return lambda call, state: path_text(call)
    if kind in ("authenticatedSubject", "authenticated_subject"):
        return lambda call, state: state.principal["subject"] if state.principal else None
    if kind == "header" and isinstance(rest, dict) and isinstance(rest.get("name"), str):
        name = rest["name"].lower().encode("latin-1", "replace")
        return lambda call, state: (call.header(name) or b"").decode("latin-1") or None
    if kind in ("principalField", "principal_field") and isinstance(rest, dict) and rest.get("path"):
        steps = str(rest["path"]).split(".")
        return lambda call, state: _walk(state.principal, steps)
    raise Unsupported(f"the rate limit identifier {kind!r} is not known")


def _walk(value: Any, steps: list[str]) -> str | None:
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None
