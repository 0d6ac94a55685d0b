"""Compares two schemas in one direction of traffic: what was narrowed, widened or replaced.

A schema is looked at as the conjunction of plain ones: references are followed and `allOf` is
flattened, so that moving a field into a shared part is no change.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from apps.deployments.openapi.documents import BadDocument, Document
from apps.deployments.openapi.findings import Direction, Effect, Level

MAX_TRIALS = 6
MAX_COMPARISONS = 200_000
MAX_CHANGES = 1_000
_OPAQUE = (
    ("patternProperties", "pattern-properties"),
    ("propertyNames", "property-names"),
    ("dependentRequired", "dependent-required"),
    ("dependentSchemas", "dependent-schemas"),
    ("contains", "contains"),
    ("minContains", "min-contains"),
    ("maxContains", "max-contains"),
    ("unevaluatedProperties", "unevaluated-properties"),
    ("unevaluatedItems", "unevaluated-items"),
    ("not", "not"),
)
_UPPER = (("maxLength", "max-length"), ("maxItems", "max-items"), ("maxProperties", "max-properties"))
_LOWER = (("minLength", "min-length"), ("minItems", "min-items"), ("minProperties", "min-properties"))
_WIDER_FORMAT = {("int32", "int64"), ("float", "double")}
_ANYTHING_PATTERNS = frozenset({".*", "^.*$", "^.*", ".*$", ""})
_SCALARS = frozenset({"integer", "number", "boolean"})


@dataclass(frozen=True, slots=True)
class Change:
    """A change inside a schema; its place is told relative to where the comparison began.

    Args:
        check: end of the check's id: `max-length-decreased`.
        level: how bad.
        says: predicate of the sentence: "became required".
        path: names of properties, `items`, branches; empty: the schema itself.
        pointer: JSON pointer of the changed schema.
        whole: the check's id as it is, where the parts do not make it.
    """

    check: str
    level: Level
    says: str
    path: tuple[str, ...]
    pointer: str
    whole: str = ""

    def under(self, name: str) -> "Change":
        """Return the change as seen from one level above."""
        return replace(self, path=(name, *self.path))


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a message a schema stands.

    Args:
        direction: request or response.
        role: `body`, `parameter` or `header`.
        inner: below the root of it: a property, an item.
        unused: under a property that this direction never carries (`readOnly` in requests,
            `writeOnly` in responses).
        textual: a parameter: everything arrives as text.
    """

    direction: Direction
    role: str
    inner: bool = False
    unused: bool = False
    textual: bool = False

    @property
    def subject(self) -> str:
        """First part of a check's id."""
        kind = self.role if not self.inner else "property" if self.role == "body" else f"{self.role}-property"
        return f"{self.direction.value}-{kind}"

    def below(self, *, unused: bool = False) -> "Place":
        """Return the place of what a schema contains."""
        return Place(self.direction, self.role, True, self.unused or unused)


class Node:
    """A schema as the conjunction of plain ones, without references and `allOf`."""

    def __init__(self, document: Document, parts: "tuple[tuple[str, Any], ...]") -> None:
        self.document = document
        self.atoms: list[tuple[str, dict[str, Any]]] = []
        self.never = False
        waiting = list(reversed(parts))
        seen: set[str] = set()
        while waiting:
            pointer, raw = waiting.pop()
            if raw is False:
                self.never = True
            if not isinstance(raw, dict) or pointer in seen:
                continue
            seen.add(pointer)
            below: list[tuple[str, Any]] = []
            reference = raw.get("$ref")
            if isinstance(reference, str):
                below.append((reference, document.at(reference)))
                raw = {name: each for name, each in raw.items() if name != "$ref"} if document.modern else {}
            whole = raw.get("allOf")
            if isinstance(whole, list):
                below += [(f"{pointer}/allOf/{place}", each) for place, each in enumerate(whole)]
                raw = {name: each for name, each in raw.items() if name != "allOf"}
            for kind in ("anyOf", "oneOf"):
                only = _only_branch(raw.get(kind))
                if only is not None:  # "X or null" is X that may be null
                    below.append((f"{pointer}/{kind}/{only}", raw[kind][only]))
                    raw = {name: each for name, each in raw.items() if name != kind} | {"nullable": True}
            if raw:
                self.atoms.append((pointer, raw))
            waiting += reversed(below)
        self.key = (tuple(pointer for pointer, _ in self.atoms), self.never)
        self.pointer = parts[0][0] if parts else ""

    def values(self, name: str) -> "list[Any]":
        """Return what each part says of one keyword."""
        return [raw[name] for _, raw in self.atoms if name in raw]

    def first(self, name: str) -> Any:
        """Return what the first part that has a keyword says."""
        return next(iter(self.values(name)), None)

    def child(self, name: str, *more: str) -> "Node | None":
        """Return the conjunction of what the parts have under a keyword; None: nothing is said."""
        found: list[tuple[str, Any]] = []
        for pointer, raw in self.atoms:
            value: Any = raw
            for part in (name, *more):
                value = value.get(part) if isinstance(value, dict) else None
                pointer = f"{pointer}/{escape(part)}"
            if isinstance(value, dict | bool):
                found.append((pointer, value))
        return Node(self.document, tuple(found)) if found else None

    @cached_property
    def nullable(self) -> bool:
        """Whether null is allowed, as far as types say."""
        said = [kinds for raw in self.atoms if (kinds := _types(raw[1])) is not None]
        if any(raw.get("nullable") is True for _, raw in self.atoms):
            said = [kinds | {"null"} for kinds in said]
        return all("null" in kinds for kinds in said)

    @cached_property
    def types(self) -> frozenset[str] | None:
        """The allowed types beside null; None: any."""
        allowed: frozenset[str] | None = None
        for _, raw in self.atoms:
            kinds = _types(raw)
            if kinds is not None:
                kinds -= {"null"}
                allowed = kinds if allowed is None else _both(allowed, kinds)
        return allowed

    @cached_property
    def shape(self) -> frozenset[str] | None:
        """The types, or what the other keywords let one suppose."""
        if self.types is not None:
            return self.types
        if self.properties or self.required:
            return frozenset({"object"})
        if self.child("items") or self.values("prefixItems"):
            return frozenset({"array"})
        allowed = self.allowed
        if allowed:
            return frozenset(kind for value in allowed.values() if (kind := _type_of(value)) != "null")
        return None

    @cached_property
    def properties(self) -> tuple[str, ...]:
        """Names of the described properties, in order of appearance."""
        found: dict[str, None] = {}
        for said in self.values("properties"):
            if isinstance(said, dict):
                found.update(dict.fromkeys(said))
        return tuple(found)

    @cached_property
    def required(self) -> frozenset[str]:
        """Names of the properties that must be there."""
        lists = (said for said in self.values("required") if isinstance(said, list))
        return frozenset(name for said in lists for name in said if isinstance(name, str))

    @cached_property
    def closed(self) -> bool:
        """Whether properties that are not described are refused."""
        return any(said is False for said in self.values("additionalProperties"))

    @cached_property
    def allowed(self) -> dict[str, Any] | None:
        """The values of `enum` or `const` beside null, by their JSON; None: any."""
        found: dict[str, Any] | None = None
        lists = [said for said in self.values("enum") if isinstance(said, list)]
        for said in [*lists, *([value] for value in self.values("const"))]:
            these = {canonical(value): value for value in said if value is not None}
            found = (
                these if found is None else {text: value for text, value in found.items() if text in these}
            )
        return found

    @cached_property
    def unions(self) -> list[tuple[str, "list[Node]"]]:
        """The alternatives of each `oneOf` and `anyOf`, those that only add null aside."""
        found: list[tuple[str, list[Node]]] = []
        for pointer, raw in self.atoms:
            for kind in ("oneOf", "anyOf"):
                said = raw.get(kind)
                if isinstance(said, list):
                    found.append(
                        (
                            kind,
                            [
                                Node(self.document, ((f"{pointer}/{kind}/{place}", each),))
                                for place, each in enumerate(said)
                            ],
                        )
                    )
        return found

    @property
    def bare(self) -> bool:
        """Whether nothing but alternatives and annotations is said."""
        said = {name for _, raw in self.atoms for name in raw}
        return not said - _ANNOTATIONS - {"oneOf", "anyOf", "discriminator"}

    def bound(self, name: str, *, upper: bool) -> float | None:
        """Return the strictest of what the parts say of a bound."""
        said = [value for value in self.values(name) if _is_number(value)]
        return (min(said) if upper else max(said)) if said else None

    def limit(self, *, upper: bool) -> tuple[float, bool] | None:
        """Return the bound of a number, and whether the bound itself is excluded."""
        name, exclusive = ("maximum", "exclusiveMaximum") if upper else ("minimum", "exclusiveMinimum")
        said: list[tuple[float, bool]] = []
        for _, raw in self.atoms:
            if _is_number(raw.get(name)):
                said.append((raw[name], raw.get(exclusive) is True))
            if _is_number(raw.get(exclusive)):
                said.append((raw[exclusive], True))
        if not said:
            return None
        strictest = min(said) if upper else max(said)
        # Of two equal ones the excluding one counts.
        return strictest[0], any(value == strictest[0] and excluded for value, excluded in said)

    @property
    def name(self) -> str:
        """What people call it: the component's name, or its title."""
        for pointer in (self.pointer, *(pointer for pointer, _ in self.atoms)):
            if pointer.startswith("#/components/schemas/") and pointer.count("/") == 3:
                return pointer.rsplit("/", 1)[1]
        title = self.first("title")
        return title if isinstance(title, str) else ""


_ANNOTATIONS = frozenset(
    {
        "title",
        "description",
        "example",
        "examples",
        "default",
        "deprecated",
        "externalDocs",
        "xml",
        "nullable",
    }
    | {"readOnly", "writeOnly", "$comment", "$schema", "$id"}
)


@dataclass(frozen=True, slots=True)
class Link:
    """Two schemas inside those that are being compared, to be compared in their turn."""

    name: str
    old: Node
    new: Node
    place: Place


class Comparison:
    """Compares schemas of two documents; remembers what it has compared.

    Every pair of schemas is compared once by itself, without what it contains, and is told of once
    for each place where a comparison began, at the shortest path: schemas may contain themselves.

    Args:
        old, new: the documents.
    """

    def __init__(self, old: Document, new: Document) -> None:
        self.old, self.new = old, new
        self._known: dict[Any, tuple[tuple[Change, ...], tuple[Link, ...]]] = {}
        self._same: set[Any] = set()
        self._trials = 0
        self._left = MAX_COMPARISONS

    def schemas(
        self, old: Any, new: Any, place: Place, old_pointer: str, new_pointer: str
    ) -> tuple[Change, ...]:
        """Compare two raw schemas.

        Args:
            old, new: as their documents have them.
            place: where in a message.
            old_pointer, new_pointer: where in the documents.

        Raises:
            BadDocument: a reference leads nowhere, or the schemas are too entangled.
        """
        return self.nodes(Node(self.old, ((old_pointer, old),)), Node(self.new, ((new_pointer, new),)), place)

    def nodes(self, old: Node, new: Node, place: Place) -> tuple[Change, ...]:
        """Compare two schemas with all that they contain; see `schemas`."""
        waiting: deque[tuple[tuple[str, ...], Link]] = deque([((), Link("", old, new, place))])
        seen: set[Any] = set()
        found: list[Change] = []
        while waiting:
            path, link = waiting.popleft()
            key = (link.old.key, link.new.key, link.place)
            if key in seen or key in self._same:
                continue
            seen.add(key)
            changes, links = self._own(key, link)
            found += (replace(change, path=path + change.path) for change in changes)
            waiting += (((*path, below.name), below) for below in links)
        if not found:
            self._same |= seen
        found = list(dict.fromkeys(found))
        if len(found) > MAX_CHANGES:
            found.sort(key=lambda change: -change.level)
        return tuple(found[:MAX_CHANGES])

    def _own(self, key: Any, link: Link) -> tuple[tuple[Change, ...], tuple[Link, ...]]:
        known = self._known.get(key)
        if known is None:
            self._left -= 1
            if self._left < 0:
                raise BadDocument("its schemas are too entangled to be compared")
            found = list(self._compare(link.old, link.new, link.place))
            known = (
                tuple(each for each in found if isinstance(each, Change)),
                tuple(each for each in found if isinstance(each, Link)),
            )
            self._known[key] = known
        return known

    def _compare(self, old: Node, new: Node, place: Place) -> Iterator[Change | Link]:
        tell = _Teller(place, new.pointer or old.pointer)
        if old.never != new.never:
            yield tell("type-changed", Effect.NARROWS if new.never else Effect.WIDENS, "allows other types")
            return
        if not old.unions and len(new.unions) == 1 and new.bare and not old.bare:
            yield from self._wrapped(old, new, place, tell)
            return
        if len(old.unions) == 1 and old.bare and not new.unions and not new.bare:
            yield from self._unwrapped(old, new, place, tell)
            return
        yield from _annotations(old, new, tell)
        types = list(_type_changes(old, new, place, tell))
        yield from types
        if any(change.check == "type-changed" and change.level is Level.ERROR for change in types):
            return
        yield from _value_changes(old, new, tell)
        yield from _bound_changes(old, new, tell)
        yield from _opaque_changes(old, new, tell)
        yield from self._objects(old, new, place, tell)
        yield from self._arrays(old, new, place, tell)
        yield from self._unions(old, new, place, tell)

    def _objects(self, old: Node, new: Node, place: Place, tell: "_Teller") -> Iterator[Change | Link]:
        request = place.direction is Direction.REQUEST
        for name in old.properties:
            if name not in new.properties:
                gone = _Teller(place.below(unused=_unused(old, name, place)), _pointer_of(old, name))
                if request:
                    effect = Effect.NARROWS if new.closed else Effect.UNKNOWN
                    yield gone("removed", effect, "was removed").under(name)
                else:
                    required = name in old.required
                    kind = "required" if required else "optional"
                    effect = Effect.WIDENS if required else Effect.UNKNOWN
                    yield gone.whole(
                        f"response-{kind}-property-removed", effect, "was removed from the response"
                    ).under(name)
        for name in new.properties:
            unused = _unused(new, name, place)
            below = place.below(unused=unused)
            added = _Teller(below, _pointer_of(new, name))
            if name not in old.properties:
                yield self._added(new, name, name in old.required, request, added).under(name)
                continue
            before, after = old.child("properties", name), new.child("properties", name)
            if before is None or after is None:
                continue
            if name in new.required and name not in old.required:
                default = "-with-default" if request and after.first("default") is not None else ""
                yield added(f"became-required{default}", Effect.NARROWS, "became required").under(name)
            elif name in old.required and name not in new.required:
                yield added("became-optional", Effect.WIDENS, "became optional").under(name)
            kind = "required" if name in new.required else "optional"
            for change in _carried(before, after, kind, place.direction, added):
                yield change.under(name)
            yield Link(name, before, after, below)
        for name in sorted(new.required - old.required):
            if name not in new.properties and name not in old.properties:
                bare = _Teller(place.below(), new.pointer)
                yield bare("became-required", Effect.NARROWS, "became required").under(name)
        if new.closed and not old.closed:
            yield tell(
                "additional-properties-forbidden",
                Effect.NARROWS,
                "no longer allows properties of other names",
            )
        elif old.closed and not new.closed:
            effect = Effect.WIDENS if request else Effect.UNKNOWN
            yield tell("additional-properties-allowed", effect, "allows properties of other names")
        elif not old.closed:
            before = old.child("additionalProperties")
            after = new.child("additionalProperties")
            if before is not None or after is not None:
                yield self._either("*", before, after, place.below())

    def _added(self, new: Node, name: str, was_required: bool, request: bool, tell: "_Teller") -> Change:
        required = name in new.required and not was_required
        kind = "required" if name in new.required else "optional"
        if not request:
            return tell.whole(f"response-{kind}-property-added", Effect.NARROWS, "was added to the response")
        if not required:
            return tell.whole("new-optional-request-property", Effect.NONE, "was added")
        described = new.child("properties", name)
        default = described is not None and described.first("default") is not None
        check = f"new-required-{tell.place.subject}"
        return tell.whole(
            f"{check}-with-default" if default else check, Effect.NARROWS, "was added and is required"
        )

    def _arrays(self, old: Node, new: Node, place: Place, tell: "_Teller") -> Iterator[Change | Link]:
        before, after = _prefix(old), _prefix(new)
        for index, (left, right) in enumerate(zip(before, after, strict=False)):
            yield Link(f"[{index}]", left, right, place.below())
        request = place.direction is Direction.REQUEST
        if len(after) > len(before):
            yield tell(
                "prefix-items-added",
                Effect.NONE if request else Effect.WIDENS,
                "describes more leading items",
            )
        elif len(before) > len(after):
            yield tell(
                "prefix-items-removed",
                Effect.NARROWS if request else Effect.NONE,
                "describes fewer leading items",
            )
        left_items, right_items = old.child("items"), new.child("items")
        if left_items is not None or right_items is not None:
            yield self._either("items", left_items, right_items, place.below())

    def _either(self, name: str, old: Node | None, new: Node | None, place: Place) -> Link:
        """Link two schemas of which one may be missing, which means: anything."""
        return Link(name, old or Node(self.old, ()), new or Node(self.new, ()), place)

    def _unions(self, old: Node, new: Node, place: Place, tell: "_Teller") -> Iterator[Change | Link]:
        for (_, before), (kind, after) in zip(old.unions, new.unions, strict=False):
            yield from self._branches(before, after, kind, place, tell)
        check = {"oneOf": "one-of", "anyOf": "any-of"}
        for kind, _ in new.unions[len(old.unions) :]:
            yield tell(f"{check[kind]}-set", Effect.NARROWS, f"must match one of the alternatives of {kind}")
        for kind, _ in old.unions[len(new.unions) :]:
            yield tell(
                f"{check[kind]}-unset", Effect.WIDENS, f"need not match an alternative of {kind} any more"
            )

    def _branches(
        self, old: list[Node], new: list[Node], kind: str, place: Place, tell: "_Teller"
    ) -> Iterator[Change | Link]:
        check = "one-of" if kind == "oneOf" else "any-of"
        pairs, gone, added = self._pair(old, new, place)
        for before, after in pairs:
            name = after.name or f"{kind}[{new.index(after)}]"
            yield Link(f"<{name}>", before, after, place)
        for branch in gone:
            name = branch.name or f"the alternative {old.index(branch) + 1}"
            yield tell(f"{check}-removed", Effect.NARROWS, f"no longer may be {name} ({kind})")
        for branch in added:
            name = branch.name or f"the alternative {new.index(branch) + 1}"
            yield tell(f"{check}-added", Effect.WIDENS, f"may also be {name} ({kind})")

    def _pair(
        self, old: list[Node], new: list[Node], place: Place
    ) -> tuple[list[tuple[Node, Node]], list[Node], list[Node]]:
        """Say which alternatives are the same ones: by name, by content, and what is left by exclusion."""
        pairs: list[tuple[Node, Node]] = []
        left, right = list(old), list(new)
        for alike in (_same_name, lambda one, other: self._is_same(one, other, place)):
            for before in list(left):
                after = next((each for each in right if alike(before, each)), None)
                if after is not None:
                    pairs.append((before, after))
                    left.remove(before)
                    right.remove(after)
        if len(left) == len(right) == 1 and not (left[0].name and right[0].name):
            pairs.append((left.pop(), right.pop()))
        return pairs, left, right

    def _is_same(self, old: Node, new: Node, place: Place) -> bool:
        return not self._try(old, new, place)

    def _breaks(self, old: Node, new: Node, place: Place) -> bool:
        return any(change.level is Level.ERROR for change in self._try(old, new, place))

    def _try(self, old: Node, new: Node, place: Place) -> tuple[Change, ...]:
        """Compare alternatives with each other, which may need alternatives inside them to be compared."""
        if self._trials >= MAX_TRIALS:
            same = canonical([raw for _, raw in old.atoms]) == canonical([raw for _, raw in new.atoms])
            return () if same else (Change("type-changed", Level.ERROR, "differs", (), new.pointer),)
        self._trials += 1
        try:
            return self.nodes(old, new, place)
        finally:
            self._trials -= 1

    def _wrapped(self, old: Node, new: Node, place: Place, tell: "_Teller") -> Iterator[Change | Link]:
        kind, branches = new.unions[0]
        check = f"wrapped-in-{'one-of' if kind == 'oneOf' else 'any-of'}"
        fits = [not self._breaks(old, branch, place) for branch in branches]
        if any(fits) if place.direction is Direction.REQUEST else all(fits):
            yield tell(
                f"{check}-original-preserved", Effect.NONE, f"became one of the alternatives of {kind}"
            )
        else:
            yield tell(check, Effect.REPLACES, f"was replaced by alternatives ({kind})")

    def _unwrapped(self, old: Node, new: Node, place: Place, tell: "_Teller") -> Iterator[Change | Link]:
        kind, branches = old.unions[0]
        check = f"{'one-of' if kind == 'oneOf' else 'any-of'}-removed"
        lost = [branch for branch in branches if self._breaks(branch, new, place)]
        if place.direction is Direction.RESPONSE and len(lost) < len(branches):
            lost = []
        if not lost:
            yield tell(check, Effect.NONE, f"is one schema instead of alternatives ({kind})")
        for branch in lost:
            name = branch.name or f"the alternative {branches.index(branch) + 1}"
            yield tell(check, Effect.REPLACES, f"no longer may be {name} ({kind})")


@dataclass(slots=True)
class _Teller:
    """Makes changes of one schema: level from effect and direction."""

    place: Place
    pointer: str

    def __call__(self, check: str, effect: Effect, says: str) -> Change:
        return Change(check, self._level(effect), says, (), self.pointer)

    def whole(self, check: str, effect: Effect, says: str) -> Change:
        """Make a change with an id of its own."""
        return Change("", self._level(effect), says, (), self.pointer, check)

    def _level(self, effect: Effect) -> Level:
        return Level.INFO if self.place.unused else self.place.direction.level(effect)


def escape(part: str) -> str:
    """Write a name as a part of a JSON pointer (RFC 6901, section 3)."""
    return part.replace("~", "~0").replace("/", "~1")


def canonical(value: Any) -> str:
    """Return a text that is the same for the same JSON value."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def short(value: Any) -> str:
    """Write a value for people."""
    text = canonical(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _type_changes(old: Node, new: Node, place: Place, tell: _Teller) -> Iterator[Change]:
    if old.types is not None and new.types is not None and old.nullable != new.nullable:
        if new.nullable:
            yield tell("became-nullable", Effect.WIDENS, "became nullable")
        else:
            yield tell("became-not-nullable", Effect.NARROWS, "became not nullable")
    before, after = old.types, new.types
    if before is None and after is not None:
        before = old.shape
    if after is None and before is not None:
        after = new.shape
    if before != after:
        yield _type_change(before, after, place, tell)
        return
    if before is not None:
        yield from _format_changes(old, new, place, tell)


def _type_change(
    before: frozenset[str] | None, after: frozenset[str] | None, place: Place, tell: _Teller
) -> Change:
    says = f"has type {_named(after)} instead of {_named(before)}"
    several = max(len(before or ()), len(after or ())) > 1
    if _covers(after, before) or (place.textual and after == {"string"} and (before or set()) <= _SCALARS):
        return tell("list-of-types-widened" if several else "type-generalized", Effect.WIDENS, says)
    if _covers(before, after):
        if several:
            return tell("list-of-types-narrowed", Effect.NARROWS, says)
        request = place.direction is Direction.REQUEST
        return tell("type-changed" if request else "type-specialized", Effect.NARROWS, says)
    return tell("type-changed", Effect.REPLACES, says)


def _format_changes(old: Node, new: Node, place: Place, tell: _Teller) -> Iterator[Change]:
    before, after = old.first("format"), new.first("format")
    if before == after or not all(each is None or isinstance(each, str) for each in (before, after)):
        return
    says = f"has format {after or 'any'} instead of {before or 'any'}"
    if after is None or (before, after) in _WIDER_FORMAT:
        yield tell("type-generalized", Effect.WIDENS, says)
    elif before is None or (after, before) in _WIDER_FORMAT:
        request = place.direction is Direction.REQUEST
        yield tell("type-changed" if request else "type-specialized", Effect.NARROWS, says)
    else:
        yield tell("type-changed", Effect.REPLACES, says)


def _value_changes(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    before, after = old.allowed, new.allowed
    constants = bool(old.values("const") or new.values("const")) and not (
        old.values("enum") or new.values("enum")
    )
    if before is None and after is not None:
        values = ", ".join(short(value) for value in after.values())
        if constants:
            yield tell("const-added", Effect.NARROWS, f"must be {values}")
        else:
            yield tell("became-enum", Effect.NARROWS, f"was restricted to {values}")
    elif before is not None and after is None:
        check = "const-removed" if constants else "became-not-enum"
        yield tell(check, Effect.WIDENS, "is no longer restricted to fixed values")
    elif before is not None and after is not None:
        if constants and before != after:
            yield tell("const-changed", Effect.REPLACES, "must have another fixed value")
            return
        for text in before:
            if text not in after:
                yield tell(
                    "enum-value-removed", Effect.NARROWS, f"no longer has the value {short(before[text])}"
                )
        for text in after:
            if text not in before:
                yield tell("enum-value-added", Effect.WIDENS, f"has the new value {short(after[text])}")


def _bound_changes(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    for upper, word in ((True, "max"), (False, "min")):
        before, after = old.limit(upper=upper), new.limit(upper=upper)
        if before == after:
            continue
        excluded = (after or before or (0, False))[1]
        check = f"exclusive-{word}" if excluded else word
        keyword = ("exclusiveM" if excluded else "m") + ("aximum" if upper else "inimum")
        yield _bound(check, keyword, before, after, upper, tell)
    for names, upper in ((_UPPER, True), (_LOWER, False)):
        for keyword, check in names:
            left, right = old.bound(keyword, upper=upper), new.bound(keyword, upper=upper)
            if not upper:  # at least none is no bound
                left, right = left or None, right or None
            if left != right:
                yield _bound(
                    check,
                    keyword,
                    None if left is None else (left, False),
                    None if right is None else (right, False),
                    upper,
                    tell,
                )
    yield from _pattern_changes(old, new, tell)
    unique = [any(value is True for value in node.values("uniqueItems")) for node in (old, new)]
    if unique == [False, True]:
        yield tell("unique-items-set", Effect.NARROWS, "must have unique items")
    elif unique == [True, False]:
        yield tell("unique-items-unset", Effect.WIDENS, "need not have unique items any more")
    yield from _multiple_changes(old, new, tell)


def _bound(
    check: str,
    keyword: str,
    before: tuple[float, bool] | None,
    after: tuple[float, bool] | None,
    upper: bool,
    tell: _Teller,
) -> Change:
    if before is None:
        assert after is not None
        return tell(f"{check}-set", Effect.NARROWS, f"has the new bound {keyword} {after[0]:g}")
    if after is None:
        return tell(f"{check}-unset", Effect.WIDENS, f"no longer has the bound {keyword} {before[0]:g}")
    # Of two equal bounds the one that excludes its value is the stricter.
    stricter = (after[0], not after[1]) < (before[0], not before[1])
    if not upper:
        stricter = (after[0], after[1]) > (before[0], before[1])
    grew = stricter != upper
    word = "increased" if grew else "decreased"
    said = f"has {keyword} {after[0]:g} instead of {before[0]:g}"
    return tell(f"{check}-{word}", Effect.NARROWS if stricter else Effect.WIDENS, said)


def _pattern_changes(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    before, after = _patterns(old), _patterns(new)
    if before == after:
        return
    written = ", ".join(sorted(after)) or ", ".join(sorted(before))
    if not before:
        yield tell("pattern-added", Effect.NARROWS, f"must match the pattern {written}")
    elif not after:
        yield tell("pattern-removed", Effect.WIDENS, f"need not match the pattern {written} any more")
    elif after <= _ANYTHING_PATTERNS:
        yield tell("pattern-generalized", Effect.WIDENS, f"has the more general pattern {written}")
    else:
        yield tell("pattern-changed", Effect.UNKNOWN, f"must match another pattern, {written}")


def _multiple_changes(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    before, after = (_positive(node.first("multipleOf")) for node in (old, new))
    if before == after:
        return
    if before is None:
        yield tell("multiple-of-set", Effect.NARROWS, f"must be a multiple of {after:g}")
    elif after is None:
        yield tell("multiple-of-unset", Effect.WIDENS, f"need not be a multiple of {before:g} any more")
    else:
        effect = (
            Effect.NARROWS
            if after % before == 0
            else Effect.WIDENS
            if before % after == 0
            else Effect.REPLACES
        )
        yield tell("multiple-of-changed", effect, f"must be a multiple of {after:g} instead of {before:g}")


def _opaque_changes(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    """Compare keywords whose meaning is not looked into: there, gone, or different."""
    for keyword, check in _OPAQUE:
        before = [canonical(value) for value in old.values(keyword) if value not in (True, {})]
        after = [canonical(value) for value in new.values(keyword) if value not in (True, {})]
        if before == after:
            continue
        if not before:
            yield tell(f"{check}-added", Effect.NARROWS, f"has the new condition {keyword}")
        elif not after:
            yield tell(f"{check}-removed", Effect.WIDENS, f"no longer has the condition {keyword}")
        else:
            yield tell(f"{check}-changed", Effect.UNKNOWN, f"has another condition {keyword}")


def _annotations(old: Node, new: Node, tell: _Teller) -> Iterator[Change]:
    before, after = (
        [canonical(value) for value in node.values("default") if value is not None] for node in (old, new)
    )
    if before != after:
        word = "added" if not before else "removed" if not after else "changed"
        value = (after or before)[0]
        yield tell(f"default-value-{word}", Effect.NONE, f"has its default value {word}: {value[:80]}")
    gone, here = old.first("deprecated") is True, new.first("deprecated") is True
    if here and not gone:
        yield tell("deprecated", Effect.NONE, "was deprecated")
    elif gone and not here:
        yield tell("reactivated", Effect.NONE, "is no longer deprecated")
    left, right = old.first("discriminator"), new.first("discriminator")
    if left != right:
        names = [each.get("propertyName") if isinstance(each, dict) else None for each in (left, right)]
        if left is None:
            yield tell("discriminator-added", Effect.NONE, "has a discriminator")
        elif right is None:
            yield tell("discriminator-removed", Effect.NONE, "no longer has a discriminator")
        elif names[0] != names[1]:
            yield tell("discriminator-property-name-changed", Effect.NONE, "has another discriminator")
        else:
            yield tell("discriminator-mapping-changed", Effect.NONE, "has another discriminator mapping")


def _carried(old: Node, new: Node, kind: str, direction: Direction, tell: _Teller) -> Iterator[Change]:
    """Tell of a property that a direction began or ceased to carry."""
    for keyword, word in (("readOnly", "read-only"), ("writeOnly", "write-only")):
        before, after = old.first(keyword) is True, new.first(keyword) is True
        if before == after:
            continue
        check = f"{direction.value}-{kind}-property-became-{'' if after else 'not-'}{word}"
        # A required property that responses left out so far has to be read from now on.
        effect = (
            Effect.UNKNOWN if check == "response-required-property-became-not-write-only" else Effect.NONE
        )
        yield tell.whole(check, effect, f"became {'' if after else 'not '}{word}")


def _only_branch(said: Any) -> int | None:
    """Return the place of the one alternative beside null, if null is the other."""
    if not isinstance(said, list) or len(said) != 2:
        return None
    nulls = [isinstance(each, dict) and each.get("type") == "null" for each in said]
    return nulls.index(False) if nulls.count(True) == 1 else None


def _types(raw: Mapping[str, Any]) -> frozenset[str] | None:
    said = raw.get("type")
    if isinstance(said, str):
        return frozenset({said})
    if isinstance(said, list):
        return frozenset(each for each in said if isinstance(each, str))
    return None


def _both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    both = one & other
    if "number" in one | other and "integer" in one | other:
        both |= {"integer"}
    return both


def _covers(wide: frozenset[str] | None, narrow: frozenset[str] | None) -> bool:
    if wide is None:
        return True
    if narrow is None:
        return False
    return all(kind in wide or (kind == "integer" and "number" in wide) for kind in narrow)


def _named(types: frozenset[str] | None) -> str:
    return "any" if types is None else " or ".join(sorted(types)) or "null"


def _type_of(value: Any) -> str:
    for kind, name in (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (dict, "object"),
    ):
        if isinstance(value, kind):
            return name
    return "array" if isinstance(value, list) else "null"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> float | None:
    return value if _is_number(value) and value > 0 else None


def _patterns(node: Node) -> frozenset[str]:
    return frozenset(value for value in node.values("pattern") if isinstance(value, str))


def _prefix(node: Node) -> list[Node]:
    for pointer, raw in node.atoms:
        said = raw.get("prefixItems")
        if isinstance(said, list):
            return [
                Node(node.document, ((f"{pointer}/prefixItems/{place}", each),))
                for place, each in enumerate(said)
            ]
    return []


def _same_name(one: Node, other: Node) -> bool:
    return bool(one.name) and one.name == other.name


def _unused(node: Node, name: str, place: Place) -> bool:
    described = node.child("properties", name)
    keyword = "readOnly" if place.direction is Direction.REQUEST else "writeOnly"
    return described is not None and described.first(keyword) is True


def _pointer_of(node: Node, name: str) -> str:
    described = node.child("properties", name)
    return described.pointer if described is not None else node.pointer
