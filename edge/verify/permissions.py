"""The permission query language: `documents.read AND (billing.read OR admin)`.

Identifiers are letters, digits and `. _ - * : /`; AND binds tighter than OR; both in any case.
`*` is a character like any other. Source: reference, api.md 2.5.
"""

import re
from collections.abc import Container
from functools import lru_cache

from msgspec import Struct

from unkey.errors import Fault, PermissionsQuerySyntaxError

_TOKEN = re.compile(r"[A-Za-z0-9._\-*:/]+|[()]")
_SPACE = " \t\n\r\f\v"


class Query(Struct, frozen=True):
    """A condition on a set of permissions."""

    def lacks(self, granted: Container[str]) -> str:
        """Return what is missing, in words, or the empty text if the condition holds."""
        raise NotImplementedError

    def written(self) -> str:
        """Return the query as error messages show it."""
        raise NotImplementedError


class Leaf(Query, frozen=True):
    """One permission, by its exact slug."""

    slug: str

    def lacks(self, granted: Container[str]) -> str:
        return "" if self.slug in granted else f"Missing permission: '{self.slug}'"

    def written(self) -> str:
        return self.slug


class Both(Query, frozen=True):
    """All of several conditions; the first that fails is the one that is told."""

    parts: tuple[Query, ...]

    def lacks(self, granted: Container[str]) -> str:
        for part in self.parts:
            if missing := part.lacks(granted):
                return missing
        return ""

    def written(self) -> str:
        return " and ".join(part.written() for part in self.parts)


class Either(Query, frozen=True):
    """Any of several conditions; if none holds, all of them are told."""

    parts: tuple[Query, ...]

    def lacks(self, granted: Container[str]) -> str:
        for part in self.parts:
            if not part.lacks(granted):
                return ""
        return f"Missing one of these permissions: {self.written()}"

    def written(self) -> str:
        return " or ".join(part.written() for part in self.parts)


class _Group:
    """What has been read between two parentheses: alternatives, each a chain of conditions."""

    def __init__(self, opened_at: int) -> None:
        self.opened_at = opened_at
        self.alternatives: list[list[Query]] = [[]]

    def add(self, query: Query) -> None:
        self.alternatives[-1].append(query)

    def closed(self) -> Query:
        chains = [chain[0] if len(chain) == 1 else Both(tuple(chain)) for chain in self.alternatives]
        return chains[0] if len(chains) == 1 else Either(tuple(chains))


@lru_cache(maxsize=4096)
def parse(text: str) -> Query:
    """Parse a permission query.

    Raises:
        PermissionsQuerySyntaxError: naming the offending token and its byte position from 0.
    """
    if not text.strip(_SPACE):
        raise PermissionsQuerySyntaxError("The permission query is empty.")
    # A stack of our own: a thousand parentheses must not exhaust the interpreter's.
    groups = [_Group(-1)]
    operand_next = True
    previous = ""
    position, end = 0, len(text)
    while position < end:
        if text[position] in _SPACE:
            position += 1
            continue
        found = _TOKEN.match(text, position)
        if not found:
            raise _refusal(f"invalid character '{text[position]}'", position)
        part = found[0]
        word = part.upper()
        if part == "(" and operand_next:
            groups.append(_Group(position))
        elif part == ")" and not operand_next and len(groups) > 1:
            groups[-2].add(groups.pop().closed())
        elif word in ("AND", "OR") and not operand_next:
            operand_next = True
            if word == "OR":
                groups[-1].alternatives.append([])
        elif operand_next and part != ")" and word not in ("AND", "OR"):
            groups[-1].add(Leaf(part))
            operand_next = False
        elif part == ")" and previous == "(":
            raise _refusal("empty parentheses", groups[-1].opened_at)
        elif operand_next:
            raise _refusal(f"unexpected '{part}', a permission or '(' must stand here", position)
        else:
            raise _refusal(f"unexpected '{part}', AND or OR must stand here", position)
        previous = part
        position = found.end()
    if operand_next:
        raise _refusal(f"unexpected end after '{previous}'", end)
    if len(groups) > 1:
        raise _refusal("missing ')' for '('", groups[-1].opened_at)
    return groups[0].closed()


def _refusal(what: str, position: int) -> Fault:
    # Up to an offence every character is ASCII, so a position in characters is one in bytes.
    return PermissionsQuerySyntaxError(
        f"Syntax error in the permission query: {what} at position {position}."
    )
