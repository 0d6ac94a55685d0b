"""A namespace of standalone rate limits with its overrides: which limit counts for an identifier."""

from bisect import insort
from collections.abc import Callable, Iterable

from edge.store.records import Namespace, Override

_RESOLVED = 20_000


class Space:
    """A namespace as a limiter sees it; overrides may be known before the namespace itself is."""

    __slots__ = ("_exact", "_known", "_patterns", "_resolved", "record")

    def __init__(self, record: Namespace | None = None, overrides: Iterable[Override] = ()) -> None:
        self.record = record
        self._known: dict[str, Override] = {}
        self._exact: dict[str, Override] = {}
        self._patterns: list[tuple[int, str, Callable[[str], bool], Override]] = []
        # Which pattern matched an identifier of late: a namespace may have thousands of patterns.
        self._resolved: dict[str, Override | None] = {}
        for override in overrides:
            self.apply(override)

    def rename(self, record: Namespace) -> bool:
        """Take in the namespace itself, unless what is known is newer; say whether it was taken in."""
        if self.record is not None and self.record.version >= record.version:
            return False
        self.record = record
        return True

    def apply(self, override: Override) -> bool:
        """Take in an override, or its end, unless what is known is newer; say whether it was taken in."""
        known = self._known.get(override.id)
        if known is not None and known.version >= override.version:
            return False
        self._known[override.id] = override
        self._resolved.clear()
        if known is not None and not known.deleted:
            self._exact.pop(known.identifier, None)
            self._patterns = [entry for entry in self._patterns if entry[1] != known.id]
        if not override.deleted:
            self._exact[override.identifier] = override
            if "*" in override.identifier:
                matches = pattern(override.identifier)
                entry = (override.made_at, override.id, matches, override)
                insort(self._patterns, entry, key=lambda each: each[:2])
        return True

    @property
    def id(self) -> str:
        """Id of the namespace; empty while only overrides are known."""
        return "" if self.record is None else self.record.id

    @property
    def overrides(self) -> Iterable[Override]:
        """Every override that is known, deleted ones too."""
        return self._known.values()

    def resolve(self, identifier: str) -> Override | None:
        """Return the override for an identifier: of exactly its text, else the oldest pattern that matches."""
        found = self._exact.get(identifier)
        if found is not None or not self._patterns:
            return found
        if identifier in self._resolved:
            return self._resolved[identifier]
        found = next((entry[3] for entry in self._patterns if entry[2](identifier)), None)
        if len(self._resolved) >= _RESOLVED:
            self._resolved.clear()
        self._resolved[identifier] = found
        return found


def pattern(text: str) -> Callable[[str], bool]:
    """Return a test for whole texts: `*` stands for any text, also none, everything else for itself.

    It takes time in proportion to the text and the pattern, whatever they are.
    """
    first, *middle, last = text.split("*")
    parts = [part for part in middle if part]
    shortest = len(first) + len(last)

    def matches(identifier: str) -> bool:
        if len(identifier) < shortest or not identifier.startswith(first) or not identifier.endswith(last):
            return False
        at, end = len(first), len(identifier) - len(last)
        for part in parts:
            found = identifier.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return matches
