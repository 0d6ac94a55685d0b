"""Reads OpenAPI documents of strangers: JSON or YAML, with limits on depth and size after expansion."""

import json
import math
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml

MAX_DEPTH = 100
MAX_NODES = 500_000
MAX_NUMBER = 128  # characters; reading YAML's numbers to the base of 60 takes time by the square of them
_OPERATIONS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")


class BadDocument(ValueError):
    """A text is no OpenAPI document that could be compared; the message says why."""


@dataclass(frozen=True, slots=True)
class Document:
    """An OpenAPI document as plain JSON values.

    Args:
        root: the whole of it; every key is a text.
        modern: version 3.1 or later, whose schemas are JSON Schema proper.
    """

    root: dict[str, Any]
    modern: bool

    def at(self, reference: str) -> Any:
        """Return what a local reference (`#/components/…`) points to.

        Raises:
            BadDocument: it leads out of the document, or to nothing.
        """
        if not reference.startswith("#"):
            raise BadDocument(f"the reference {reference!r} leads out of the document; include what it means")
        found: Any = self.root
        for part in unquote(reference[1:]).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and _is_index(key) and int(key) < len(found):
                found = found[int(key)]
            else:
                raise BadDocument(f"the reference {reference!r} leads to nothing")
        return found

    def follow(self, value: Any, pointer: str) -> tuple[dict[str, Any], str]:
        """Return an object behind references, and its pointer; what is no object is an empty one."""
        seen: set[str] = set()
        while isinstance(value, dict) and isinstance(value.get("$ref"), str):
            reference = value["$ref"]
            if reference in seen:
                return {}, pointer
            seen.add(reference)
            value, pointer = self.at(reference), reference
        return (value if isinstance(value, dict) else {}), pointer

    def paths(self) -> dict[str, dict[str, Any]]:
        """Return the path items by template."""
        return self._items("paths")

    def webhooks(self) -> dict[str, dict[str, Any]]:
        """Return the path items of webhooks by name."""
        return self._items("webhooks")

    def component(self, kind: str) -> dict[str, Any]:
        """Return the components of one kind by name."""
        components = self.root.get("components")
        found = components.get(kind) if isinstance(components, dict) else None
        return found if isinstance(found, dict) else {}

    def _items(self, name: str) -> dict[str, dict[str, Any]]:
        found = self.root.get(name)
        if not isinstance(found, dict):
            return {}
        items = ((path, self.follow(item, "")[0]) for path, item in found.items())
        return {path: item for path, item in items if not path.startswith("x-")}


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= len(str(MAX_NODES))


def operations(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations of a path item by upper-case method."""
    return {name.upper(): item[name] for name in _OPERATIONS if isinstance(item.get(name), dict)}


def parse(text: str) -> Document:
    """Read an OpenAPI 3 document.

    Args:
        text: JSON or YAML. Aliases count as often as they are used, so a small text cannot expand
            into a large document.

    Raises:
        BadDocument: it is neither, too deep, too large, or not OpenAPI 3.
    """
    try:
        root = _load(text)
        json.dumps(root, ensure_ascii=False).encode()
    except RecursionError:
        raise BadDocument(_TOO_DEEP) from None
    except UnicodeEncodeError:
        raise BadDocument("it has a text with half of a surrogate pair, which is no character") from None
    if not isinstance(root, dict):
        raise BadDocument("it is not an object with the fields openapi, info and paths")
    version = root.get("openapi")
    if not isinstance(version, str) or not version.startswith("3."):
        said = f"OpenAPI {version}" if version else "OpenAPI 2 or something else"
        raise BadDocument(f"it is {said}; documents of OpenAPI 3 can be compared")
    for name in ("paths", "webhooks", "components"):
        if root.get(name) is not None and not isinstance(root[name], dict):
            raise BadDocument(f"its field {name} is not an object")
    return Document(root, _is_modern(root))


def pack(document: Document) -> bytes:
    """Write a document for `unpack`: reading it again costs no parsing of a stranger's text."""
    return zlib.compress(json.dumps(document.root, separators=(",", ":")).encode(), 6)


def unpack(packed: bytes) -> Document:
    """Return the document that `pack` wrote."""
    root = json.loads(zlib.decompress(packed))
    return Document(root, _is_modern(root))


def _is_modern(root: dict[str, Any]) -> bool:
    return not root["openapi"].startswith("3.0")


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
_TOO_LARGE = f"it has more than {MAX_NODES:,} values"


def _load(text: str) -> Any:
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        try:
            return _checked(json.loads(text.lstrip("\ufeff"), parse_constant=_no_constant))
        except BadDocument:
            raise
        except ValueError:
            pass  # flow style of YAML begins with a brace, too
    try:
        return _Builder(text).build()
    except BadDocument:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise BadDocument(f"it is neither JSON nor YAML{line}") from None


class _Loader(yaml.CSafeLoader):
    """Plain YAML of JSON's types: a date stays the text that it is."""


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_MERGE = object()


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet; `nodes` counts what was read before it."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    nodes: int
    height: int = 1
    key: Any = None
    has_key: bool = False
    merged: list[dict[str, Any]] = field(default_factory=list)


class _Builder:
    """Builds values from YAML's events.

    The library's own composer recurses in C, where a deep text ends the process, and its values may
    be far larger than the text once aliases are followed. Here the depth is bounded, and an alias
    counts as much as what it stands for.
    """

    def __init__(self, text: str) -> None:
        self.loader = _Loader(text)
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}
        self.scalars: dict[str, Any] = {}
        self.nodes = 0
        self.documents = 0
        self.root: Any = None

    def build(self) -> Any:
        """Return the one document's value."""
        try:
            while (event := self.loader.get_event()) is not None:
                self._take(event)
        finally:
            self.loader.dispose()
        return self.root

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._count(1)
            value = self._scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1, 1)
            self._add(value, 1)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(self.stack) >= MAX_DEPTH:
                raise BadDocument(_TOO_DEEP)
            made: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self.stack.append(_Open(made, event.anchor, self.nodes))
            self._count(1)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = self.stack.pop()
            if isinstance(ended.value, dict):
                for source in ended.merged:
                    ended.value = {**source, **ended.value}
            if ended.anchor:
                self.anchors[ended.anchor] = (ended.value, self.nodes - ended.nodes, ended.height)
            self._add(ended.value, ended.height)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise BadDocument("an alias stands for nothing, or contains itself")
            value, size, height = self.anchors[event.anchor]
            self._count(size)
            if len(self.stack) + height > MAX_DEPTH:
                raise BadDocument(_TOO_DEEP)
            self._add(value, height)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise BadDocument("it is several YAML documents in one text")

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise BadDocument(_TOO_LARGE)

    def _add(self, value: Any, height: int) -> None:
        top = self.stack[-1] if self.stack else None
        if value is _MERGE and (top is None or isinstance(top.value, list) or top.has_key):
            value = "<<"
        if top is None:
            self.root = value
            return
        top.height = max(top.height, height + 1)
        if isinstance(top.value, list):
            top.value.append(value)
        elif not top.has_key:
            top.key, top.has_key = value if value is _MERGE else _key(value), True
        else:
            top.has_key = False
            if top.key is _MERGE:
                sources = value if isinstance(value, list) else [value]
                top.merged.extend(source for source in sources if isinstance(source, dict))
            else:
                top.value[top.key] = value

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        if not event.implicit[0] or len(event.value) > MAX_NUMBER:
            return event.value
        known = self.scalars.get(event.value, self)
        if known is not self:
            return known
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        value: Any = event.value
        if tag in _PLAIN:
            value = self.loader.construct_object(yaml.ScalarNode(tag, event.value))
            if isinstance(value, float) and not math.isfinite(value):
                raise BadDocument("it has a number that is not finite")
        elif tag == "tag:yaml.org,2002:merge":
            value = _MERGE
        self.scalars[event.value] = value
        return value


def _checked(root: Any) -> Any:
    """Return a JSON value, if it is neither too large nor too deep."""
    left = MAX_NODES

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise BadDocument(_TOO_LARGE)
        if depth > MAX_DEPTH:
            raise BadDocument(_TOO_DEEP)
        if isinstance(value, dict):
            return {key: plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each, depth + 1) for each in value]
        if isinstance(value, float) and not math.isfinite(value):
            raise BadDocument("it has a number that is not finite")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise BadDocument("it has a value that is not JSON")

    return plain(root, 0)


def _key(key: Any) -> str:
    # `200:` is a number in YAML, and a status is a text in OpenAPI.
    if isinstance(key, dict | list):
        raise BadDocument("it has a key that is not a text")
    if isinstance(key, bool):
        return "true" if key else "false"
    return "null" if key is None else str(key)


def _no_constant(name: str) -> Any:
    raise BadDocument(f"it has the number {name}, which is not JSON")
