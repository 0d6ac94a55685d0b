"""The policy engine: a deployment's policies, compiled once per version, asked in order for each request.

    engine = compile_policies(sentinel.policies, workspace_id=…, verifier=…, limiter=…, open_keys=…)
    decision = engine.decide(call)            # Allow | Refuse, awaitable if a key must be read first

What is enabled and cannot be evaluated fails closed: every request is refused by 422.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from edge.sentinel.basicauth import BasicAuth
from edge.sentinel.decision import (
    Allow,
    Body,
    Call,
    Decision,
    Outcome,
    Read,
    Refuse,
    Rule,
    State,
    Unsupported,
)
from edge.sentinel.iprules import IpRules
from edge.sentinel.jwtauth import JwtAuth, OpenKeys, StaticKeys
from edge.sentinel.keyauth import Keyauth, Note, Verify
from edge.sentinel.match import Condition, compile_match, field
from edge.sentinel.openapi import Document, OpenApi
from edge.sentinel.ratelimit import Ratelimit
from edge.sentinel.recording import Logging
from edge.verify.limiter import Limiter
from unkey import clock
from unkey.errors import Fault, FirewallDenied, InvalidConfiguration

ALLOW = Allow()
_DESCRIPTION = frozenset({"id", "name", "enabled", "match", "type"})


class _Deny:
    passed = "passed"

    def apply(self, call: Call, state: State) -> Fault | None:
        return FirewallDenied("Forbidden")


class _Watch:
    """A firewall policy that is tried out: what it matches is told in the log, and passes."""

    passed = "matched"

    def apply(self, call: Call, state: State) -> None:
        return None


class _Policy:
    __slots__ = ("conditions", "label", "passed", "rule", "skipped")

    def __init__(
        self, policy: dict[str, Any], kind: str, conditions: tuple[Condition, ...], rule: Rule
    ) -> None:
        self.conditions = conditions
        self.rule = rule
        self.label = f"{_token(policy.get('id') or policy.get('name'))} {kind}"
        self.passed = f"{self.label} {getattr(rule, 'passed', 'passed')}"
        self.skipped = f"{self.label} skipped"


class Engine:
    """The compiled policies of one deployment.

    Args:
        policies: in order.
        broken: why the configuration cannot be evaluated; empty if it can.
        hidden: names of headers and of query parameters that hold credentials, in lower case.
    """

    def __init__(
        self,
        policies: tuple[_Policy, ...],
        broken: str = "",
        hidden: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
    ) -> None:
        self._policies = policies
        self.broken = broken
        self._hidden_headers, self._hidden_query = hidden

    def decide(self, call: Call, *, timed: bool = False) -> Decision | Awaitable[Decision]:
        """Ask the policies that match, in order; the first refusal ends.

        Args:
            call: the request.
            timed: note in `State.times` how long each takes.
        """
        if self.broken:
            return Refuse(InvalidConfiguration(f"The gateway policies cannot be evaluated: {self.broken}."))
        if not self._policies:
            return ALLOW
        return self._go_on(call, State(timed, self._hidden_query), 0)

    def _go_on(self, call: Call, state: State, index: int) -> Decision | Awaitable[Decision]:
        """Ask the policies from a place on."""
        note = state.trace.append if state.times is None else state.note
        for policy in self._policies[index:] if index else self._policies:
            for condition in policy.conditions:
                if not condition(call):
                    note(policy.skipped)
                    break
            else:
                outcome = policy.rule.apply(call, state)
                if outcome is None:
                    note(policy.passed)
                else:
                    return self._settle(outcome, call, state)
        if state.recorder is not None:
            state.recorder.hide(self._hidden_headers, state.secret)
        if state.rate is None:
            return Allow(state.request_lines, b"", state)
        return Allow(state.request_lines, state.rate.lines(clock.now_ms()), state)

    def _settle(
        self, outcome: Outcome | Awaitable[Outcome], call: Call, state: State
    ) -> Decision | Awaitable[Decision]:
        """Go on from what came of the policy that is next in the trace."""
        index = len(state.trace)
        if outcome is None:
            state.note(self._policies[index].passed)
            return self._go_on(call, state, index + 1)
        if isinstance(outcome, Fault):
            code = outcome.kind.code.rpartition(":")[2]
            state.note(f"{self._policies[index].label} refused {code}")
            if state.recorder is not None:
                state.recorder.hide(self._hidden_headers, state.secret)
            lines = state.rate.lines(clock.now_ms()) if state.rate is not None else b""
            return Refuse(outcome, lines, state)
        if isinstance(outcome, Body):
            judge = outcome.judge
            return Read(outcome.limit, lambda body: self._settle(judge(body), call, state))
        return self._settle_later(outcome, call, state)

    async def _settle_later(self, waiting: Awaitable[Outcome], call: Call, state: State) -> Decision:
        decision = self._settle(await waiting, call, state)
        return decision if isinstance(decision, Allow | Refuse | Read) else await decision


def _token(name: Any) -> str:
    """Return a policy's id so that it may stand in a header, among others."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in str(name))


def compile_policies(
    policies: Sequence[Any],
    *,
    workspace_id: str,
    verifier: Verify,
    limiter: Limiter,
    open_keys: OpenKeys,
    note: Note | None = None,
    document: Document | None = None,
) -> Engine:
    """Compile what `gateway.setPolicies` stored; policies that are not enabled are left out.

    Args:
        policies: in order.
        workspace_id: whose counters the rate limits are.
        verifier: finds and verifies API keys.
        limiter: holds the counters.
        open_keys: where the key sets of tokens are fetched.
        note: is told each verification of a key; None: nobody is.
        document: the deployment's OpenAPI document; None: nothing is known of it.
    """
    compiled = []
    for policy in policies:
        if not isinstance(policy, dict):
            return Engine((), "a policy is not an object")
        if policy.get("enabled") is not True:
            continue
        try:
            kind, rule = _rule(policy, workspace_id, verifier, limiter, open_keys, note, document)
            compiled.append(_Policy(policy, kind, compile_match(policy.get("match")), rule))
        except Unsupported as error:
            return Engine((), f"policy {policy.get('name') or policy.get('id')!r}: {error}")
    return Engine(tuple(compiled), hidden=_credentials(policies))


def _credentials(policies: Sequence[Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Return where enabled policies look for credentials: headers and query parameters, in lower case."""
    headers: set[str] = set()
    query: set[str] = set()
    for policy in policies:
        for kind in ("keyauth", "jwtauth"):
            body = policy.get(kind) if policy.get("enabled") is True else None
            for location in (body.get("locations") if isinstance(body, dict) else None) or ():
                if (found := location.get("header")) is not None:
                    headers.add(found["name"].lower())
                if (found := field(location, "queryParam")) is not None:
                    query.add(found["name"].lower())
    return frozenset(headers), frozenset(query)


def why_unsupported(kind: str, body: Any) -> str:
    """Return why no edge can evaluate a policy of one of these kinds: `jwtauth`, `basicauth`, `ipRules`, `logging`.

    Returns:
        the empty text if every edge can.
    """
    try:
        _OF_A_REQUEST[kind](body, lambda url, issuer, cache_ms: StaticKeys(()))
    except Unsupported as error:
        return str(error)
    return ""


_OF_A_REQUEST: dict[str, Callable[[Any, OpenKeys], Rule]] = {
    "jwtauth": JwtAuth,
    "basicauth": lambda body, _: BasicAuth(body),
    "ipRules": lambda body, _: IpRules(body),
    "logging": lambda body, _: Logging(body),
}


def _rule(
    policy: dict[str, Any],
    workspace_id: str,
    verifier: Verify,
    limiter: Limiter,
    open_keys: OpenKeys,
    note: Note | None,
    document: Document | None,
) -> tuple[str, Rule]:
    kinds = [kind for kind, body in policy.items() if kind not in _DESCRIPTION and body is not None]
    if len(kinds) != 1:
        raise Unsupported(f"it needs exactly one kind, not {', '.join(kinds) or 'none'}")
    kind = kinds[0]
    body = policy[kind]
    if not isinstance(body, dict):
        raise Unsupported(f"{kind} is not an object")
    if kind == "keyauth":
        return kind, Keyauth(body, verifier, note)
    if kind in _OF_A_REQUEST:
        return kind, _OF_A_REQUEST[kind](body, open_keys)
    if kind == "ratelimit":
        return kind, Ratelimit(body, str(policy.get("id") or policy.get("name")), workspace_id, limiter)
    if kind == "firewall":
        if body.get("action") in ("ACTION_DENY", 1):
            return kind, _Deny()
        if body.get("action") in ("ACTION_LOG", 2):
            return kind, _Watch()
        raise Unsupported(f"the firewall action {body.get('action')!r} is not known")
    if kind == "openapi":
        return kind, OpenApi(body, document)
    raise Unsupported(f"this edge cannot evaluate {kind}")
