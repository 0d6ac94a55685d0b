"""The policy engine: a deployment's policies, compiled once per version, asked in order for each request.

    engine = compile_policies(sentinel.policies, workspace_id=…, verifier=…, limiter=…, open_keys=…)
    decision = engine.decide(call)            # Allow | Refuse, awaitable if a key must be read first

What is enabled and cannot be evaluated fails closed: every request is refused by 422.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from edge.sentinel.basicauth import BasicAuth
from edge.sentinel.decision import Allow, Call, Decision, Refuse, Rule, State, Unsupported
from edge.sentinel.iprules import IpRules
from edge.sentinel.jwtauth import JwtAuth, OpenKeys, StaticKeys
from edge.sentinel.keyauth import Keyauth, Note, Verify
from edge.sentinel.match import Condition, compile_match
from edge.sentinel.ratelimit import Ratelimit
from edge.verify.limiter import Limiter
from unkey import clock
from unkey.errors import Fault, FirewallDenied, InvalidConfiguration

ALLOW = Allow()
_DESCRIPTION = frozenset({"id", "name", "enabled", "match", "type"})


class _Firewall:
    def apply(self, call: Call, state: State) -> Fault | None:
        return FirewallDenied("Forbidden")


class _Policy:
    __slots__ = ("conditions", "rule")

    def __init__(self, conditions: tuple[Condition, ...], rule: Rule) -> None:
        self.conditions = conditions
        self.rule = rule


class Engine:
    """The compiled policies of one deployment.

    Args:
        policies: in order.
        broken: why the configuration cannot be evaluated; empty if it can.
    """

    def __init__(self, policies: tuple[_Policy, ...], broken: str = "") -> None:
        self._policies = policies
        self.broken = broken

    def decide(self, call: Call) -> Decision | Awaitable[Decision]:
        """Ask the policies that match, in order; the first refusal ends."""
        if self.broken:
            return Refuse(InvalidConfiguration(f"The gateway policies cannot be evaluated: {self.broken}."))
        if not self._policies:
            return ALLOW
        state = State()
        for index, policy in enumerate(self._policies):
            for condition in policy.conditions:
                if not condition(call):
                    break
            else:
                outcome = policy.rule.apply(call, state)
                if outcome is None:
                    continue
                if isinstance(outcome, Fault):
                    return _refusal(outcome, state)
                return self._decide_later(outcome, call, state, index + 1)
        return _admission(state)

    async def _decide_later(
        self, waiting: Awaitable[Fault | None], call: Call, state: State, index: int
    ) -> Decision:
        fault = await waiting
        if fault is not None:
            return _refusal(fault, state)
        for policy in self._policies[index:]:
            if not all(condition(call) for condition in policy.conditions):
                continue
            outcome = policy.rule.apply(call, state)
            if outcome is not None and not isinstance(outcome, Fault):
                outcome = await outcome
            if outcome is not None:
                return _refusal(outcome, state)
        return _admission(state)


def _admission(state: State) -> Allow:
    if state.rate is None:
        return Allow(state.request_lines) if state.request_lines else ALLOW
    return Allow(state.request_lines, state.rate.lines(clock.now_ms()))


def _refusal(fault: Fault, state: State) -> Refuse:
    return Refuse(fault, state.rate.lines(clock.now_ms()) if state.rate is not None else b"")


def compile_policies(
    policies: Sequence[Any],
    *,
    workspace_id: str,
    verifier: Verify,
    limiter: Limiter,
    open_keys: OpenKeys,
    note: Note | None = None,
) -> Engine:
    """Compile what `gateway.setPolicies` stored; policies that are not enabled are left out.

    Args:
        policies: in order.
        workspace_id: whose counters the rate limits are.
        verifier: finds and verifies API keys.
        limiter: holds the counters.
        open_keys: where the key sets of tokens are fetched.
        note: is told each verification of a key; None: nobody is.
    """
    compiled = []
    for policy in policies:
        if not isinstance(policy, dict):
            return Engine((), "a policy is not an object")
        if policy.get("enabled") is not True:
            continue
        try:
            rule = _rule(policy, workspace_id, verifier, limiter, open_keys, note)
            if rule is not None:
                compiled.append(_Policy(compile_match(policy.get("match")), rule))
        except Unsupported as error:
            return Engine((), f"policy {policy.get('name') or policy.get('id')!r}: {error}")
    return Engine(tuple(compiled))


def why_unsupported(kind: str, body: Any) -> str:
    """Return why no edge can evaluate a `jwtauth`, `basicauth` or `ipRules` policy; empty if every one can."""
    try:
        _OF_A_REQUEST[kind](body, lambda url, issuer, cache_ms: StaticKeys(()))
    except Unsupported as error:
        return str(error)
    return ""


_OF_A_REQUEST: dict[str, Callable[[Any, OpenKeys], Rule]] = {
    "jwtauth": JwtAuth,
    "basicauth": lambda body, _: BasicAuth(body),
    "ipRules": lambda body, _: IpRules(body),
}


def _rule(
    policy: dict[str, Any],
    workspace_id: str,
    verifier: Verify,
    limiter: Limiter,
    open_keys: OpenKeys,
    note: Note | None,
) -> Rule | None:
    kinds = [kind for kind, body in policy.items() if kind not in _DESCRIPTION and body is not None]
    if len(kinds) != 1:
        raise Unsupported(f"it needs exactly one kind, not {', '.join(kinds) or 'none'}")
    kind = kinds[0]
    body = policy[kind]
    if not isinstance(body, dict):
        raise Unsupported(f"{kind} is not an object")
    if kind == "keyauth":
        return Keyauth(body, verifier, note)
    if kind in _OF_A_REQUEST:
        return _OF_A_REQUEST[kind](body, open_keys)
    if kind == "ratelimit":
        return Ratelimit(body, str(policy.get("id") or policy.get("name")), workspace_id, limiter)
    if kind == "firewall":
        if body.get("action") not in ("ACTION_DENY", 1):
            raise Unsupported(f"the firewall action {body.get('action')!r} is not known")
        return _Firewall()
    if kind == "logging":
        return None  # says what to record, and refuses nobody
    raise Unsupported(f"this edge cannot evaluate {kind}")
