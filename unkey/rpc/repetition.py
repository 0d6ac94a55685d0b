"""Names that a JSON object has twice: which of the values counts is nobody's to guess (RFC 8259, section 4)."""

import json
from collections.abc import Iterator
from typing import Any

from unkey.errors import Violation
from unkey.rpc.schema import location


class _Twice(dict[str, Any]):
    """An object with a name that it has more than once."""

    __slots__ = ("name",)

    def __init__(self, pairs: list[tuple[str, Any]], name: str) -> None:
        super().__init__(pairs)
        self.name = name


def repeated_names(text: bytes) -> list[Violation]:
    """Return the faults of a valid JSON text whose objects have names twice, the first for each object."""
    found = False

    def pairs_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        found = True
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        return _Twice(pairs, name)

    try:
        value = json.loads(text, object_pairs_hook=pairs_of)
    except (RecursionError, ValueError):
        return []  # what it is that is wrong, the schema says
    return list(_faults(value, [])) if found else []


def _faults(value: Any, path: list[str | int]) -> Iterator[Violation]:
    if isinstance(value, _Twice):
        yield Violation(
            f"{value.name[:64]} is given twice", location([*path, value.name]), "Leave one of them out."
        )
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _faults(item, [*path, name])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, [*path, index])
