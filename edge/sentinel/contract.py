"""A deployment's OpenAPI document as edges enforce it: operations, and what their requests must look like.

The control plane makes it of the document (`apps.routing.contracts`): references are resolved, schemas are
JSON Schema (draft 2020-12), and the work that each may cause is bounded. An edge compiles an operation when
it is first asked for, in a thread.

    plan = Plan(contract)
    found = plan.find(b"GET", b"/pets/7")          # an operation, and what stands in its path's places
    validators = found[0].compile(plan)            # takes milliseconds
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import jsonschema_rs
import msgspec
import re2
from msgspec import Raw, Struct

MOST_LEVELS = 64
# Visits of schemas that one request may cause; ten millions take about a second.
MOST_VISITS = 1_000_000
MOST_PLAN_BYTES = 4 * 1024**2
# As many visits may be told of in full: each fault costs more than many visits that find none.
_MOST_TOLD = 4_000
_REGEX_BYTES = 256 * 1024


class Shape(Struct, frozen=True):
    """How a text becomes a value.

    Args:
        form: `text`, `list`, `object` or `json`.
        kinds: JSON types that the text, or each item of a list, may stand for.
        fields: the same for the fields of an object.
    """

    form: str
    kinds: tuple[str, ...] = ()
    fields: dict[str, tuple[str, ...]] = {}


class Parameter(Struct, frozen=True):
    """A parameter of an operation, or a field of a form.

    Args:
        place: `path`, `query`, `header` or `cookie`.
        name: as the document has it.
        style, explode: how lists and objects are written (OpenAPI 3.1, 4.8.12.1).
        shape: what it holds.
        may_be_empty: given without a value, it is not looked at.
    """

    place: str
    name: str
    style: str
    explode: bool
    shape: Shape
    may_be_empty: bool = False


class Check(Struct, frozen=True):
    """A schema that a value has to fit.

    Args:
        schema: JSON Schema, whose references are all `#/$defs/<name>`.
        uses: the definitions that it needs, by name.
        growth: how often at most one place of a value is visited, by the value's height.
    """

    schema: Raw
    uses: tuple[str, ...]
    growth: tuple[int, ...]


class Media(Struct, frozen=True):
    """What a body of some media types has to be.

    Args:
        types: `application/json`, `text/*` or `*/*`, in lower case.
        form: `json`, `form`, `text`, or `opaque`: not looked into.
        check: what it has to fit; None: anything.
        fields: of a form.
    """

    types: str
    form: str
    check: Check | None
    fields: tuple[Parameter, ...] = ()


class Operation(Struct, frozen=True):
    """One operation of the document.

    Args:
        method: upper case.
        path: template.
        parameters: those that are looked at.
        check: of an object that has an object of parameters for each place; None: there are none.
        media: what its body may be; none: its body is not looked at.
        body_required: a request has to have one.
        fault: why requests cannot be checked; empty if they can.
    """

    method: str
    path: str
    parameters: tuple[Parameter, ...]
    check: Check | None
    media: tuple[Media, ...]
    body_required: bool
    fault: str = ""


class Contract(Struct, frozen=True):
    """A whole document.

    Args:
        prefixes: paths that servers have before the templates, without final slash.
        operations: in the document's order.
        definitions: schemas by name.
        secret: names of fields that are marked `x-unkey-redact`.
    """

    prefixes: tuple[str, ...]
    operations: tuple[Operation, ...]
    definitions: dict[str, Raw]
    secret: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(Contract)


class Unfit(ValueError):
    """A contract cannot be enforced; the text says why."""


def pack(contract: Contract) -> bytes:
    """Write a contract for `unpack`.

    Raises:
        Unfit: it is too large.
    """
    text = msgspec.json.encode(contract)
    if len(text) > MOST_PLAN_BYTES:
        raise Unfit(f"what it says of requests has more than {MOST_PLAN_BYTES} octets")
    return zlib.compress(text, 6)


def unpack(packed: bytes) -> Contract:
    """Return the contract that `pack` wrote.

    Raises:
        Unfit: it is not one.
    """
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MOST_PLAN_BYTES)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise Unfit("it is cut off, or too large")
        return _decoder.decode(text)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise Unfit(f"it cannot be read: {error}") from None


def compile_check(check: Check, definitions: dict[str, Raw]) -> "Validator":
    """Compile a schema; patterns run in linear time, and nothing is fetched.

    Raises:
        Unfit: it is no valid schema.
    """
    used = b",".join(b'"%b":%b' % (name.encode(), bytes(definitions[name])) for name in check.uses)
    text = b'{"allOf":[%b],"$defs":{%b}}' % (bytes(check.schema), used)
    try:
        compiled = jsonschema_rs.Draft202012Validator(
            text.decode(),
            validate_formats=True,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(
                size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES // 2
            ),
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise Unfit(_first_line(error)) from None
    return Validator(compiled, check.growth)


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", error)).partition("\n")[0]
    if text.endswith('is not a "regex"'):
        text += ", or one that needs to look around or back, which takes unbounded time"
    return text[:300]


class Validator:
    """A compiled schema, with the bound of the work that it may cause."""

    __slots__ = ("_compiled", "_growth")

    def __init__(self, compiled: Any, growth: Sequence[int]) -> None:
        self._compiled = compiled
        self._growth = growth

    def faults(self, value: Any, size: tuple[int, int]) -> Iterable[Any]:
        """Return the faults of a value, as `jsonschema_rs.ValidationError`.

        Args:
            value: JSON.
            size: how many values it has, itself included, and how many levels below itself.

        Raises:
            Unfit: it is too large or too deep to be checked, or is not right and too large to be told why.
        """
        nodes, height = size
        if height >= len(self._growth) or nodes * self._growth[height] > MOST_VISITS:
            raise Unfit("it is nested too deep, or is too large, to be checked against its schema")
        if self._compiled.is_valid(value):
            return ()
        if nodes * self._growth[height] <= _MOST_TOLD:
            found: Iterable[Any] = self._compiled.iter_errors(value)
            return found
        # The library makes all faults, and those that they are made of, before it tells the first.
        raise Unfit("does not fit its schema; of a smaller value it is told where")


class Compiled(Struct, frozen=True):
    """The validators of an operation."""

    parameters: Validator | None
    media: tuple[Validator | None, ...]


class Entry:
    """An operation of a plan, and its validators once they are compiled."""

    __slots__ = ("compiled", "flat", "operation", "places")

    def __init__(self, operation: Operation, places: tuple[str, ...]) -> None:
        self.operation = operation
        self.places = places
        self.compiled: Compiled | None = None
        self.flat = all(each.shape.form != "json" for each in operation.parameters)

    def compile(self, plan: "Plan") -> Compiled:
        """Compile what was not yet.

        Raises:
            Unfit: it cannot be.
        """
        if self.compiled is None:
            of = self.operation
            definitions = plan.definitions
            self.compiled = Compiled(
                None if of.check is None else compile_check(of.check, definitions),
                tuple(
                    None if each.check is None else compile_check(each.check, definitions)
                    for each in of.media
                ),
            )
        return self.compiled


class _Node:
    """What follows a beginning of a path: a text, a pattern with places, or one place."""

    __slots__ = ("entries", "exact", "patterns", "place")

    def __init__(self) -> None:
        self.exact: dict[str, _Node] = {}
        self.patterns: dict[str, tuple[Any, _Node]] = {}
        self.place: _Node | None = None
        self.entries: dict[bytes, Entry] = {}


class Plan:
    """Finds the operation of a request.

    Args:
        contract: what `unpack` returned.

    Raises:
        Unfit: a path of it cannot be understood.
    """

    def __init__(self, contract: Contract) -> None:
        self.definitions = contract.definitions
        self.secret = frozenset(each.lower() for each in contract.secret)
        self._prefixes = tuple(each.encode() for each in contract.prefixes if each)
        self._root = _Node()
        for operation in contract.operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        node, places = self._root, []
        for segment in operation.path.split("/")[1:]:
            names, pattern = read_segment(segment)
            places += names
            if not names:
                node = node.exact.setdefault(segment, _Node())
            elif not pattern:
                node.place = node.place or _Node()
                node = node.place
            else:
                if pattern not in node.patterns:
                    node.patterns[pattern] = (re2.compile(pattern, _quiet()), _Node())
                node = node.patterns[pattern][1]
        node.entries.setdefault(operation.method.encode(), Entry(operation, tuple(places)))

    def find(self, method: bytes, path: bytes) -> tuple[Entry, dict[str, str]] | None:
        """Return the operation of a request, and the texts in its path's places; exact paths go first."""
        for prefix in self._prefixes:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"/", b""):
                found = self._find(method, path[len(prefix) :] or b"/")
                if found is not None:
                    return found
        return self._find(method, path)

    def _find(self, method: bytes, path: bytes) -> tuple[Entry, dict[str, str]] | None:
        raw = path.split(b"/")
        if raw[0]:
            return None
        # A slash that is written %2F belongs to a text, and separates nothing.
        segments = [_decoded(each) for each in raw[1:]]
        for node, given in self._candidates(segments):
            entry = node.entries.get(method)
            if entry is None and method == b"HEAD":
                entry = node.entries.get(b"GET")
            if entry is not None:
                return entry, dict(zip(entry.places, given, strict=True))
        return None

    def _candidates(self, segments: list[str]) -> Iterable[tuple[_Node, tuple[str, ...]]]:
        """Return the nodes that a path leads to, and what stands in their places; mostly there is one way."""
        node, given = self._root, []
        for text in segments:
            below = node.exact.get(text)
            if node.patterns or (below is not None and node.place is not None):
                return _walk(self._root, segments, 0, ())
            if below is None:
                below = node.place
                if below is None or not text:
                    return ()
                given.append(text)
            node = below
        return ((node, tuple(given)),)


def _walk(
    node: _Node, segments: list[str], at: int, given: tuple[str, ...]
) -> Iterable[tuple[_Node, tuple[str, ...]]]:
    if at == len(segments):
        yield node, given
        return
    text = segments[at]
    if text in node.exact:
        yield from _walk(node.exact[text], segments, at + 1, given)
    for pattern, below in node.patterns.values():
        found = pattern.fullmatch(text)
        if found is not None:
            yield from _walk(below, segments, at + 1, given + found.groups())
    if node.place is not None and text:
        yield from _walk(node.place, segments, at + 1, (*given, text))


def read_segment(segment: str) -> tuple[list[str], str]:
    """Read a segment of a path template.

    Returns:
        the names of its places, and a pattern with a group for each; the pattern is empty where the
        segment is one place, or has none.

    Raises:
        Unfit: a brace stands alone.
    """
    names: list[str] = []
    pattern = ""
    rest = segment
    while rest:
        before, brace, after = rest.partition("{")
        if "}" in before:
            raise Unfit(f"the path segment {segment!r} has a brace that stands alone")
        pattern += re2.escape(before)
        if not brace:
            break
        name, closing, rest = after.partition("}")
        if not closing or not name or "{" in name:
            raise Unfit(f"the path segment {segment!r} has a brace that stands alone")
        names.append(name)
        pattern += "(.+)"
    return names, "" if not names or segment == f"{{{names[0]}}}" else f"(?s:{pattern})"


def _decoded(raw: bytes) -> str:
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace")


def _quiet() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options
