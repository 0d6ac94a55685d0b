"""Writes of an environment's policies: what its deployments' edges enforce, in order.

Kept on the environment as a list of objects in the form of the API; a deployment copies them when it is
created. A key space may be named by its own id or by its API's, and is kept by its own.
"""

from typing import Any

import re2
from django.db import transaction
from django.db.models import Q

from apps.audit import services as audit
from apps.keys.models import KeySpace
from apps.projects.models import Environment
from edge.sentinel.engine import why_unsupported
from unkey import clock, errors, ids
from unkey.actors import Actor
from unkey.errors import Violation

KINDS = ("keyauth", "jwtauth", "basicauth", "ipRules", "ratelimit", "firewall", "openapi", "logging")

Policy = dict[str, Any]


def set_policies(environment: Environment, policies: list[Policy], *, actor: Actor) -> list[Policy]:
    """Replace the whole list; every policy gets a new id.

    Args:
        environment: whose.
        policies: in order of evaluation, already of the right shape.
        actor: who does it.

    Raises:
        errors.InvalidInput: a policy has not exactly one rule, or a pattern is no regular expression.
        errors.KeySpaceNotFound: a key space is not the workspace's.
    """
    faults = [
        fault
        for place, policy in enumerate(policies)
        for fault in _faults(policy, f"body.policies[{place}]", needs_rule=True)
    ]
    _refuse(faults)
    with transaction.atomic():
        row = _locked(environment)
        before = _outline(row)
        row.policies = [{"id": ids.new("pol"), **policy} for policy in _with_key_spaces(policies)]
        _save(row, before, {"policies": [policy["id"] for policy in row.policies]}, actor)
    stored: list[Policy] = row.policies
    return stored


def update_policy(environment: Environment, policy_id: str, changes: Policy, *, actor: Actor) -> Policy:
    """Change those fields of one policy that are given; it keeps its id and its place.

    Args:
        environment: whose.
        policy_id: `pol_…`.
        changes: `name`, `enabled`, `match` (None clears it) and at most one rule, which replaces the
            policy's rule and may be of another kind.
        actor: who does it.

    Raises:
        errors.PolicyNotFound, errors.InvalidInput, errors.KeySpaceNotFound
    """
    with transaction.atomic():
        row = _locked(environment)
        before = _outline(row)
        place = next((at for at, policy in enumerate(row.policies) if policy["id"] == policy_id), None)
        if place is None:
            raise errors.PolicyNotFound("The requested policy does not exist.")
        _refuse(_faults(changes, "body", needs_rule=False))
        (changed,) = _with_key_spaces([changes])
        policy = dict(row.policies[place])
        if any(kind in changed for kind in KINDS):
            policy = {name: value for name, value in policy.items() if name not in KINDS}
        policy |= changed
        if policy.get("match") is None:
            policy.pop("match", None)
        row.policies[place] = policy
        _save(row, before, {"policy": policy_id, "fields": sorted(changes)}, actor)
    return policy


def _locked(environment: Environment) -> Environment:
    row = Environment.objects.select_for_update().filter(pk=environment.pk).first()
    if row is None:
        raise errors.EnvironmentNotFound("The requested environment does not exist.")
    return row


def _outline(row: Environment) -> dict[str, Any]:
    """Return what the audit log tells of policies before and after a change."""
    outline = [
        {"id": policy["id"], "name": policy["name"], "enabled": policy["enabled"]} for policy in row.policies
    ]
    return {"policies": outline}


def _save(row: Environment, before: dict[str, Any], meta: dict[str, Any], actor: Actor) -> None:
    row.updated_at = clock.now()
    row.save(update_fields=["policies", "updated_at"])
    audit.record(
        "environment.update",
        actor=actor,
        workspace_id=row.workspace_id,
        targets=[row],
        before=before,
        after=_outline(row),
        meta={"gateway": meta},
    )


def _refuse(faults: list[Violation]) -> None:
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=tuple(faults))


def _faults(policy: Policy, here: str, *, needs_rule: bool) -> list[Violation]:
    """Return what a schema cannot say: the number of rules, and what no edge could evaluate."""
    found: list[Violation] = []
    rules = [kind for kind in KINDS if kind in policy]
    if len(rules) > 1 or (needs_rule and not rules):
        found.append(
            Violation(
                f"a policy has exactly one of {', '.join(KINDS)}",
                here,
                "Split it into several policies." if rules else "Add the rule that it should enforce.",
            )
        )
    for kind in ("jwtauth", "basicauth", "ipRules", "logging"):
        if policy.get(kind) is not None and (reason := why_unsupported(kind, policy[kind])):
            found.append(Violation(reason, f"{here}.{kind}"))
    matches = policy.get("match")
    for place, match in enumerate(matches if isinstance(matches, list) else []):
        for field, key in (("path", "path"), ("header", "value"), ("queryParam", "value")):
            pattern = match.get(field, {}).get(key, {}).get("regex")
            if pattern is not None and (reason := _broken(pattern)):
                found.append(
                    Violation(
                        f"the regular expression does not compile: {reason}",
                        f"{here}.match[{place}].{field}.{key}.regex",
                        "Use RE2 syntax: no look-around, no back-references.",
                    )
                )
    return found


def _broken(pattern: str) -> str:
    """Return why RE2 does not take a pattern, or the empty text."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        return error.args[0].decode() if isinstance(error.args[0], bytes) else str(error.args[0])
    return ""


def _with_key_spaces(policies: list[Policy]) -> list[Policy]:
    """Return the policies with key spaces by their own ids, in the caller's workspace scope."""
    named = {
        name
        for policy in policies
        if isinstance(rule := policy.get("keyauth"), dict)
        for name in rule["keyspaces"]
    }
    if not named:
        return policies
    found = KeySpace.objects.filter(Q(pk__in=named) | Q(api__id__in=named), api__deleted_at=None)
    own: dict[str, str] = {}
    for space, api in found.values_list("id", "api__id"):
        own |= {space: space, api: space}
    for name in sorted(named - own.keys()):
        raise errors.KeySpaceNotFound(f"The key space '{name}' does not exist.")
    written: list[Policy] = []
    for policy in policies:
        rule = policy.get("keyauth")
        if isinstance(rule, dict):
            spaces = list(dict.fromkeys(own[name] for name in rule["keyspaces"]))
            policy = {**policy, "keyauth": {**rule, "keyspaces": spaces}}
        written.append(policy)
    return written
