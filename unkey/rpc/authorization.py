"""Permission rules of operations, written as the reference writes them.

    READ_KEY = T("api.{api}.read_key") | U("keyspaces/{keyspace}/keys/{key}#read_key")

`T` is a legacy tuple: `{api}` stands for the id or a literal `*`. `U` is a URN grant relative to
the caller's workspace. `|` and `&` combine; the same tree answers and explains.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unkey import errors
from unkey.actors import Principal
from unkey.rpc.grants import grants

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a principal's permissions; combine with `|` and `&`."""

    def __or__(self, other: "Rule") -> "Rule":
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __and__(self, other: "Rule") -> "Rule":
        return AllOf((*_parts(self, AllOf), *_parts(other, AllOf)))

    def lacks(self, principal: Principal, ids: Mapping[str, str]) -> str:
        """Return what is missing, in words, or the empty text if the rule is satisfied."""
        raise NotImplementedError

    def wants(self, principal: Principal, ids: Mapping[str, str]) -> list[str]:
        """Return the permissions that would satisfy the rule, as alternatives."""
        raise NotImplementedError

    @property
    def placeholders(self) -> frozenset[str]:
        """Names of the ids that the rule must be given."""
        raise NotImplementedError


def _parts(rule: Rule, kind: "type[AnyOf] | type[AllOf]") -> tuple[Rule, ...]:
    return rule.rules if isinstance(rule, kind) else (rule,)


@dataclass(frozen=True, slots=True)
class _Leaf(Rule):
    template: str

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(_PLACEHOLDER.findall(self.template))

    def _filled(self, ids: Mapping[str, str]) -> str:
        return _PLACEHOLDER.sub(lambda found: ids[found[1]], self.template)

    def __str__(self) -> str:
        return self.template


@dataclass(frozen=True, slots=True)
class T(_Leaf):
    """A legacy tuple `type.{id}.action`; satisfied by the concrete id or by a literal `*`."""

    def lacks(self, principal: Principal, ids: Mapping[str, str]) -> str:
        wanted = self.wants(principal, ids)
        return "" if any(permission in principal.permissions for permission in wanted) else _missing(wanted)

    def wants(self, principal: Principal, ids: Mapping[str, str]) -> list[str]:
        star = _PLACEHOLDER.sub("*", self.template)
        filled = self._filled(ids)
        return [star] if filled == star else [star, filled]


@dataclass(frozen=True, slots=True)
class U(_Leaf):
    """A URN grant `path#action` of the caller's workspace; grants may hold `*` and `**`."""

    def lacks(self, principal: Principal, ids: Mapping[str, str]) -> str:
        wanted = self.wants(principal, ids)
        return "" if grants(principal.permissions, wanted[0]) else _missing(wanted)

    def wants(self, principal: Principal, ids: Mapping[str, str]) -> list[str]:
        return [f"unkey:v1:{principal.workspace_id}:{self._filled(ids)}"]


@dataclass(frozen=True, slots=True)
class AnyOf(Rule):
    """Any of several rules suffices."""

    rules: tuple[Rule, ...]

    def lacks(self, principal: Principal, ids: Mapping[str, str]) -> str:
        if any(not rule.lacks(principal, ids) for rule in self.rules):
            return ""
        return _missing(self.wants(principal, ids))

    def wants(self, principal: Principal, ids: Mapping[str, str]) -> list[str]:
        return [text for rule in self.rules for text in rule.wants(principal, ids)]

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset().union(*(rule.placeholders for rule in self.rules))

    def __str__(self) -> str:
        return " or ".join(f"({rule})" if isinstance(rule, AllOf) else str(rule) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class AllOf(Rule):
    """All of several rules are needed."""

    rules: tuple[Rule, ...]

    def lacks(self, principal: Principal, ids: Mapping[str, str]) -> str:
        return next((missing for rule in self.rules if (missing := rule.lacks(principal, ids))), "")

    def wants(self, principal: Principal, ids: Mapping[str, str]) -> list[str]:
        return [" and ".join(_alternatives(rule.wants(principal, ids)) for rule in self.rules)]

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset().union(*(rule.placeholders for rule in self.rules))

    def __str__(self) -> str:
        return " and ".join(f"({rule})" if isinstance(rule, AnyOf) else str(rule) for rule in self.rules)


def _alternatives(wanted: list[str]) -> str:
    return " or ".join(wanted)


def _missing(wanted: list[str]) -> str:
    if len(wanted) == 1 and " and " not in wanted[0]:
        return f"Missing permission: '{wanted[0]}'"
    return f"Missing one of these permissions: {_alternatives(wanted)}"


def authorize(
    principal: Principal,
    rule: Rule,
    ids: Mapping[str, str],
    *,
    masked: Callable[[], errors.Fault] | None = None,
) -> None:
    """Let a principal pass, or refuse.

    Args:
        principal: who asks.
        rule: what is needed.
        ids: a value for each placeholder of the rule.
        masked: makes the "not found" that hides whether the resource exists.

    Raises:
        InsufficientPermissions: or the fault that `masked` makes.
    """
    missing = rule.lacks(principal, ids)
    if missing:
        raise masked() if masked else errors.InsufficientPermissions(missing)
