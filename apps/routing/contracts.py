"""Makes of an OpenAPI document what edges check requests against. Pure: no network, no database.

    packed = pack(build(parse(text)))        # see `edge.sentinel.contract`

The document is a stranger's. Of its schemas those are taken over that requests need, as JSON Schema of
draft 2020-12; each is compiled once here, so that an edge meets no surprise, and the work that it may
cause is bounded: how often one place of a value may be visited is counted beforehand, for each height of
the value. An operation that cannot be checked says so, and the others are.
"""

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from apps.deployments.openapi import BadDocument, Document, unpack
from apps.deployments.openapi.documents import operations
from edge.sentinel.contract import (
    MOST_LEVELS,
    MOST_PLAN_BYTES,
    MOST_VISITS,
    Check,
    Contract,
    Media,
    Operation,
    Parameter,
    Shape,
    Unfit,
    compile_check,
    pack,
    read_segment,
)

MOST_OPERATIONS = 5_000
MOST_SCHEMAS = 50_000
MOST_SEGMENTS = 64
MOST_PREFIXES = 10
MOST_SECRET = 1_000
MOST_CHECK_BYTES = 512 * 1024
MOST_TRIED_BYTES = 16 * 1024 * 1024
MOST_STEPS = 2_000_000
MOST_VISITS_OF_ONE = 10_000
MOST_FAULT = 400
_MOST_ALTERNATIVES = 1_000
_ENOUGH = MOST_VISITS + 1
_REDACT = "x-unkey-redact"

_NUMBERS = (
    "multipleOf",
    "maximum",
    "minimum",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "minContains",
    "maxContains",
    "maxProperties",
    "minProperties",
)
_PLAIN = (*_NUMBERS, "enum", "const", "pattern", "uniqueItems", "dependentRequired")
_ONE = (
    "not",
    "if",
    "then",
    "else",
    "items",
    "contains",
    "propertyNames",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "dependentSchemas")
# What OpenAPI 3.0 does not have is not a keyword there.
_MODERN_ONLY = frozenset(
    (
        "const",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "prefixItems",
        "patternProperties",
        "dependentSchemas",
        "dependentRequired",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
_REFUSED = ("$dynamicRef", "$recursiveRef", "$id")
_FORMATS = frozenset(
    (
        "date",
        "date-time",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "uuid",
        "json-pointer",
    )
)
_NUMERIC = {
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": {"minimum": -(2**63), "maximum": 2**63 - 1},
}
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_STYLES = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}
# OpenAPI 3.1, 4.8.12.1: these describe other things than parameters.
_NOT_PARAMETERS = frozenset(("accept", "content-type", "authorization"))


def build(document: Document) -> Contract:
    """Return what edges check requests against.

    Raises:
        Unfit: no operation could be checked; the text says why.
    """
    try:
        return _Builder(document).build()
    except BadDocument as error:
        raise Unfit(str(error)) from None


def is_asked_for(policies: Iterable[Any]) -> bool:
    """Say whether a policy that is enabled checks requests against the document."""
    return any(
        isinstance(policy, dict) and policy.get("enabled") is True and policy.get("openapi") is not None
        for policy in policies
    )


def of_document(packed: bytes | None, fault: str) -> tuple[bytes, str]:
    """Return the packed contract of a document, and why requests cannot be checked; one of them is empty.

    Args:
        packed: see `apps.deployments.openapi.pack`; None: it could not be understood.
        fault: why not.
    """
    if packed is None:
        return b"", fault
    try:
        return pack(build(unpack(packed))), ""
    except Unfit as error:
        return b"", str(error)[:MOST_FAULT]


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.names: dict[str, str] = {}  # of definitions, by what was referred to
        self.references: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}
        self.texts: dict[str, msgspec.Raw] = {}
        self.needs: dict[str, tuple[str, ...]] = {}
        self.broken: dict[str, str] = {}
        self.work = _Work(self.definitions)
        self.schemas = self.steps = self.tried = 0

    def build(self) -> Contract:
        """Return the contract of all operations."""
        found: list[Operation] = []
        owners = [self.document.root]
        for path, item in self.document.paths().items():
            if not _is_template(path):
                continue  # no request has such a path
            owners.append(item)
            for method, raw in operations(item).items():
                if len(found) >= MOST_OPERATIONS:
                    raise Unfit(f"it has more than {MOST_OPERATIONS} operations")
                owners.append(raw)
                found.append(self._operation(path, method, item, raw))
        found = self.try_out(found)
        used = {name for operation in found for check in _checks(operation) for name in check.uses}
        return Contract(
            prefixes=_prefixes(owners),
            operations=tuple(found),
            definitions={name: self.texts[name] for name in sorted(used)},
            secret=_secret(self.document),
        )

    def _operation(self, path: str, method: str, item: dict[str, Any], raw: dict[str, Any]) -> Operation:
        try:
            parameters, check = self._parameters(item, raw)
            media, required = self._bodies(raw.get("requestBody"))
        except (BadDocument, Unfit) as error:
            return _faulty(method, path, error)
        return Operation(method, path, parameters, check, media, required)

    # -- parameters

    def _parameters(
        self, item: dict[str, Any], raw: dict[str, Any]
    ) -> tuple[tuple[Parameter, ...], Check | None]:
        chosen: dict[tuple[str, str], dict[str, Any]] = {}
        for owner in (item, raw):
            listed = owner.get("parameters")
            for each in listed if isinstance(listed, list) else ():
                body, _ = self.document.follow(each, "")
                place, name = body.get("in"), body.get("name")
                if not isinstance(name, str) or place not in _STYLES:
                    raise BadDocument("a parameter has no name, or no place (`in`)")
                if place == "header" and name.lower() in _NOT_PARAMETERS:
                    continue
                chosen[place, name.lower() if place == "header" else name] = body
        schema: dict[str, Any] = {}
        found = []
        for (place, _), body in chosen.items():
            parameter, converted = self._parameter(place, body)
            found.append(parameter)
            group = schema.setdefault(place, {"properties": {}, "required": []})
            group["properties"][parameter.name] = converted
            if body.get("required") is True:
                group["required"].append(parameter.name)
        if not found:
            return (), None
        for group in schema.values():
            group["type"] = "object"
        return tuple(found), self._check({"properties": schema})

    def _parameter(self, place: str, body: dict[str, Any]) -> tuple[Parameter, Any]:
        name = body["name"]
        content = body.get("content")
        if isinstance(content, dict) and content:
            kind, media = next(iter(content.items()))
            raw = media.get("schema", {}) if isinstance(media, dict) else {}
            form = "json" if _is_json(kind) else "text"
            parameter = Parameter(place, name, _STYLES[place][0], False, Shape(form, ("string",)))
            return parameter, self._convert(raw)
        raw = body.get("schema", {})
        style = body.get("style", _STYLES[place][0])
        if style not in _STYLES[place]:
            raise BadDocument(f"the parameter {name!r} has the style {style!r}, which is none of its place")
        explode = body.get("explode")
        if not isinstance(explode, bool):
            explode = style == "form"
        empty = body.get("allowEmptyValue") is True
        return Parameter(place, name, style, explode, self._shape(raw), empty), self._convert(raw)

    def _shape(self, raw: Any) -> Shape:
        kinds = self._kinds(raw)
        plain = kinds - {"null"}
        if plain == {"array"}:
            items: Any = next(self._said(raw, "items"), {})
            return Shape("list", tuple(sorted(self._kinds(items))))
        if plain == {"object"}:
            fields: dict[str, tuple[str, ...]] = {}
            for properties in self._said(raw, "properties"):
                for name, each in properties.items() if isinstance(properties, dict) else ():
                    fields[name] = tuple(sorted(self._kinds(each)))
            return Shape("object", (), fields)
        return Shape("text", tuple(sorted(kinds)))

    def _kinds(self, raw: Any) -> set[str]:
        """Return the JSON types that a schema speaks of, wherever it does."""
        found: set[str] = set()
        for part in self._parts(raw):
            kind = part.get("type")
            found.update(
                each for each in (kind if isinstance(kind, list) else [kind]) if isinstance(each, str)
            )
            values = part.get("enum")
            for value in [
                *(values if isinstance(values, list) else ()),
                *([part["const"]] if "const" in part else ()),
            ]:
                if "type" not in part:
                    found.add(_kind_of(value))
            if part.get("nullable") is True:
                found.add("null")
        return found

    def _said(self, raw: Any, keyword: str) -> Iterator[Any]:
        return (part[keyword] for part in self._parts(raw) if keyword in part)

    def _parts(self, raw: Any) -> Iterator[dict[str, Any]]:
        """Return a schema and those that apply in the same place."""
        waiting, seen = [raw], 0
        followed: set[str] = set()
        while waiting:
            part = waiting.pop()
            if not isinstance(part, dict):
                continue
            seen += 1
            if seen > _MOST_ALTERNATIVES:
                raise Unfit("a parameter's schema has too many alternatives")
            reference = part.get("$ref")
            if isinstance(reference, str):
                if reference not in followed:
                    followed.add(reference)
                    waiting.append(self._at(reference))
                if not self.document.modern:
                    continue
            yield part
            for name in ("allOf", "anyOf", "oneOf"):
                if isinstance(part.get(name), list):
                    waiting.extend(part[name])

    # -- bodies

    def _bodies(self, raw: Any) -> tuple[tuple[Media, ...], bool]:
        body, _ = self.document.follow(raw, "")
        content = body.get("content")
        found = []
        for kind, media in content.items() if isinstance(content, dict) else ():
            types = kind.partition(";")[0].strip().lower()
            schema = media.get("schema") if isinstance(media, dict) else None
            if schema is None:
                found.append(Media(types, "opaque", None))
            elif _is_json(types):
                found.append(Media(types, "json", self._check(self._convert(schema))))
            elif types == "application/x-www-form-urlencoded":
                found.append(
                    Media(types, "form", self._check(self._convert(schema)), self._fields(schema, media))
                )
            elif types.startswith("text/") and "string" in self._kinds(schema):
                found.append(Media(types, "text", self._check(self._convert(schema))))
            else:
                found.append(Media(types, "opaque", None))
        return tuple(found), body.get("required") is True

    def _fields(self, schema: Any, media: dict[str, Any]) -> tuple[Parameter, ...]:
        encoding = media.get("encoding")
        fields: dict[str, Parameter] = {}
        for properties in self._said(schema, "properties"):
            for name, raw in properties.items() if isinstance(properties, dict) else ():
                said = encoding.get(name) if isinstance(encoding, dict) else None
                said = said if isinstance(said, dict) else {}
                style = said.get("style", "form")
                if style not in _STYLES["query"]:
                    raise BadDocument(f"the field {name!r} of a form has the unknown style {style!r}")
                explode = said.get("explode")
                shape = self._shape(raw)
                if shape.form == "object" and style == "form":
                    shape = Shape("json")  # OpenAPI 3.1, 4.8.15.1: an object is sent as JSON
                fields[name] = Parameter(
                    "query", name, style, explode if isinstance(explode, bool) else style == "form", shape
                )
        return tuple(fields.values())

    # -- schemas

    def _check(self, schema: Any) -> Check:
        """Write a converted schema down, with what it needs.

        Raises:
            BadDocument: something that it needs cannot be understood.
            Unfit: it is too large, or may cause unbounded work.
        """
        uses, size = self._uses(schema)
        if size > MOST_CHECK_BYTES:
            raise Unfit(f"its schemas have more than {MOST_CHECK_BYTES} octets")
        growth = self.work.growth(schema)
        return Check(msgspec.Raw(msgspec.json.encode(schema)), uses, growth)

    def _uses(self, schema: Any) -> tuple[tuple[str, ...], int]:
        """Return the definitions that a schema needs, and how many octets they have."""
        found: set[str] = set()
        waiting = list(_referred(schema))
        size = 0
        while waiting:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise Unfit("its operations need too many schemas")
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self._define(name))
                size += len(bytes(self.texts[name]))
        return tuple(sorted(found)), size

    def _define(self, name: str) -> tuple[str, ...]:
        """Convert what a definition stands for, if it was not yet; return the definitions that it needs.

        Raises:
            BadDocument, Unfit: it cannot be understood, now and whenever it is asked for again.
        """
        if name in self.broken:
            raise BadDocument(self.broken[name])
        if name not in self.needs:
            try:
                converted = self._convert(self._at(self.references[name]))
                text = msgspec.Raw(msgspec.json.encode(converted))
            except (BadDocument, Unfit) as error:
                self.broken[name] = str(error)
                raise
            self.definitions[name] = converted
            self.texts[name] = text
            self.needs[name] = tuple(_referred(converted))
        return self.needs[name]

    def _at(self, reference: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            raise BadDocument(f"the reference {reference[:100]!r} is not a path into the document")
        return self.document.at(reference)

    def _refer(self, reference: str) -> dict[str, Any]:
        name = self.names.get(reference)
        if name is None:
            name = self.names[reference] = f"d{len(self.names)}"
            self.references[name] = reference
        return {"$ref": f"#/$defs/{name}"}

    def _convert(self, raw: Any) -> Any:
        """Return a schema of OpenAPI 3.0 or 3.1 as JSON Schema, without what only describes."""
        if isinstance(raw, bool):
            return raw
        if not isinstance(raw, dict):
            raise BadDocument("a schema is not an object")
        self.schemas += 1
        if self.schemas > MOST_SCHEMAS:
            raise Unfit(f"it has more than {MOST_SCHEMAS} schemas")
        modern = self.document.modern
        reference = raw.get("$ref")
        if isinstance(reference, str) and not modern:
            return self._refer(reference)  # OpenAPI 3.0, 4.7.23: what stands beside it is ignored
        for name in _REFUSED:
            if name in raw:
                raise BadDocument(f"a schema uses {name}, which is not known here")
        found: dict[str, Any] = {}
        for name in _PLAIN:
            if name in raw and (modern or name not in _MODERN_ONLY):
                found[name] = raw[name]
        for name in _ONE:
            if name in raw and (modern or name not in _MODERN_ONLY):
                found[name] = self._convert(raw[name])
        for name in _SEVERAL:
            if name in raw and (modern or name not in _MODERN_ONLY):
                found[name] = [self._convert(each) for each in _list(raw[name], name)]
        for name in _NAMED:
            if name in raw and (modern or name not in _MODERN_ONLY):
                if not isinstance(raw[name], dict):
                    raise BadDocument(f"{name} is not an object")
                found[name] = {key: self._convert(each) for key, each in raw[name].items()}
        if isinstance(raw.get("required"), list):
            found["required"] = self._required(raw)
        for name, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            said = raw.get(name)
            if said is True and bound in found:
                found[name] = found.pop(bound)
            elif said is not None and not isinstance(said, bool):
                found[name] = said
        also = _of_format(raw.get("format"), found)
        if isinstance(reference, str):
            also.append(self._refer(reference))
        if also:
            found["allOf"] = [*found.get("allOf", ()), *also]
        if "type" in raw:
            found["type"] = raw["type"]
        return _nullable(found) if raw.get("nullable") is True and not modern else found

    def _required(self, raw: dict[str, Any]) -> list[Any]:
        """Return the fields that a request has to have: those that only a response has are left out."""
        fields: dict[str, Any] = {}
        for properties in self._said(raw, "properties"):
            if isinstance(properties, dict):
                fields |= properties
        return [
            name
            for name in raw["required"]
            if not (isinstance(name, str) and True in self._said(fields.get(name), "readOnly"))
        ]

    # -- a trial

    def try_out(self, found: list[Operation]) -> list[Operation]:
        """Compile everything at once; where that fails, one operation after the other, to see which."""
        if sum(len(bytes(text)) for text in self.texts.values()) > MOST_PLAN_BYTES:
            raise Unfit(f"what it says of requests has more than {MOST_PLAN_BYTES} octets")
        checks = [check for operation in found for check in _checks(operation)]
        together = b",".join(bytes(each.schema) for each in checks)
        uses = tuple(sorted({name for each in checks for name in each.uses}))
        try:
            compile_check(
                Check(msgspec.Raw(b'{"allOf":[true,%b]}' % (together or b"true")), uses, ()), self.texts
            )
            return found
        except Unfit:
            return [self._tried(operation) for operation in found]

    def _tried(self, operation: Operation) -> Operation:
        try:
            for check in _checks(operation):
                self.tried += len(bytes(check.schema)) + sum(
                    len(bytes(self.texts[name])) for name in check.uses
                )
                if self.tried > MOST_TRIED_BYTES:
                    raise Unfit("a schema somewhere in the document is not valid")
                compile_check(check, self.texts)
        except Unfit as error:
            return _faulty(operation.method, operation.path, error)
        return operation


def _checks(operation: Operation) -> list[Check]:
    return [
        each for each in (operation.check, *(media.check for media in operation.media)) if each is not None
    ]


def _faulty(method: str, path: str, error: Exception) -> Operation:
    fault = f"{method} {path[:100]}: {error}"[:MOST_FAULT]
    return Operation(method, path, (), None, (), False, fault)


def _is_template(path: str) -> bool:
    segments = path.split("/")
    if segments[0] or not 2 <= len(segments) <= MOST_SEGMENTS:
        return False
    try:
        for segment in segments:
            read_segment(segment)
    except Unfit:
        return False
    return True


class _Work:
    """Counts how often schemas visit one place of a value at most, by how deep the place is.

    Args:
        definitions: converted schemas by name.
    """

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._visits: dict[int, list[int]] = {}
        self._steps: dict[int, tuple[list[Any], list[Any], list[Any]]] = {}
        self._kept: list[Any] = []  # so that no other schema gets the identity of one that was counted

    def growth(self, schema: Any) -> tuple[int, ...]:
        """Return the most visits of one place, for values of height 0, 1, … up to `MOST_LEVELS`.

        Raises:
            Unfit: a schema applies to a value over and over, or too many do.
        """
        new = self._order(schema)
        for level in range(MOST_LEVELS + 1):
            counts = [self._count(each, level) for each in new]  # of all, also where the first is not nothing
            if not any(counts):
                for each in new:
                    self._visits[id(each)].extend([0] * (MOST_LEVELS - level))
                break
        found: list[int] = []
        most = 0
        for visits in self._visits.get(id(schema), [1]):
            most = max(most, visits)
            if most > MOST_VISITS:
                break
            found.append(most)
        if not found or found[0] > MOST_VISITS_OF_ONE:
            raise Unfit("too many schemas apply to one value")
        return tuple(found)

    def _count(self, schema: dict[str, Any], level: int) -> int:
        visits = self._visits[id(schema)]
        inside, named, every = self._steps[id(schema)]
        count = 0 if level else _weight(schema)
        for each in inside:
            count += self._known(each, level)
        if level:
            count += max((self._known(each, level - 1) for each in named), default=0)
            for each in every:
                count += self._known(each, level - 1)
        visits.append(min(count, _ENOUGH))
        return count

    def _known(self, schema: Any, level: int) -> int:
        return self._visits[id(schema)][level] if isinstance(schema, dict) else int(not level)

    def _order(self, schema: Any) -> list[dict[str, Any]]:
        """Return what was not counted yet, so that what applies in the same place comes first."""
        new: dict[int, dict[str, Any]] = {}
        waiting = [schema]
        while waiting:
            each = waiting.pop()
            if isinstance(each, dict) and id(each) not in self._visits and id(each) not in new:
                new[id(each)] = each
                steps = self._steps[id(each)] = self._look(each)
                waiting.extend(below for group in steps for below in group)
        order: list[dict[str, Any]] = []
        begun: set[int] = set()
        done: set[int] = set()
        stack = [(each, False) for each in new.values()]
        while stack:
            each, left = stack.pop()
            if left:
                done.add(id(each))
                order.append(each)
            elif id(each) not in done:
                if id(each) in begun:
                    continue
                begun.add(id(each))
                stack.append((each, True))
                for inner in self._steps[id(each)][0]:
                    if id(inner) in new and id(inner) not in done:
                        if id(inner) in begun:
                            self._forget(new)
                            raise Unfit("a schema refers to itself without anything between")
                        stack.append((inner, False))
        self._kept.append(schema)
        for each in order:
            self._visits[id(each)] = []
        return order

    def _forget(self, new: dict[int, Any]) -> None:
        for identity in new:
            del self._steps[identity]

    def _look(self, schema: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Return the schemas of the same place, those of which one applies below it, and those that all do."""
        inside: list[Any] = [each for name in ("allOf", "anyOf", "oneOf") for each in schema.get(name, ())]
        inside += [schema[name] for name in ("not", "if", "then", "else") if name in schema]
        inside += schema.get("dependentSchemas", {}).values()
        if "$ref" in schema:
            inside.append(self._definitions[schema["$ref"].rpartition("/")[2]])
        named = [*schema.get("properties", {}).values(), *schema.get("prefixItems", ())]
        named += [schema[name] for name in ("items", "additionalProperties") if name in schema]
        every = [*schema.get("patternProperties", {}).values()]
        every += [
            schema[name]
            for name in ("contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
            if name in schema
        ]
        return inside, named, every


def _weight(schema: dict[str, Any]) -> int:
    """Return what looking at one place costs, in visits: long lists and patterns cost more."""
    listed = sum(
        len(schema[name])
        for name in ("enum", "required", "properties", "patternProperties", "dependentRequired")
        if isinstance(schema.get(name), list | dict)
    )
    return 1 + listed // 16 + 4 * ("pattern" in schema) + 4 * len(schema.get("patternProperties", ()))


def _referred(schema: Any) -> Iterator[str]:
    """Return the names of the definitions that a converted schema refers to."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            if "$ref" in each:
                yield each["$ref"].rpartition("/")[2]
            for name, below in each.items():
                if name in _NAMED:
                    waiting.extend(below.values())
                elif name in _ONE or name in _SEVERAL:
                    waiting.append(below)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadDocument(f"{name} is not a list")
    return value


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of OpenAPI 3.0 that takes null, too."""
    kind = schema.get("type")
    if kind is None:
        return {"anyOf": [{"type": "null"}, schema]}
    widened = {**schema, "type": [*(kind if isinstance(kind, list) else [kind]), "null"]}
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        widened["enum"] = [*schema["enum"], None]
    return widened


def _of_format(name: Any, found: dict[str, Any]) -> list[Any]:
    """Note a format that JSON Schema knows; return what another one means as schemas of their own."""
    if not isinstance(name, str):
        return []
    if name in _FORMATS:
        found["format"] = name
    if name in _NUMERIC:
        return [dict(_NUMERIC[name])]
    return [{"pattern": _BASE64}] if name == "byte" else []


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _is_json(media: str) -> bool:
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _prefixes(owners: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return the paths that servers have before the templates, longest first."""
    found: set[str] = set()
    for owner in owners:
        servers = owner.get("servers")
        for server in servers if isinstance(servers, list) else ():
            url = server.get("url") if isinstance(server, dict) else None
            if not isinstance(url, str):
                continue
            variables = server.get("variables")
            for name, each in variables.items() if isinstance(variables, dict) else ():
                default = each.get("default") if isinstance(each, dict) else None
                url = url.replace(f"{{{name}}}", str(default))
            try:
                path = urlsplit(url).path.rstrip("/")
            except ValueError:
                continue
            if path.startswith("/") and "{" not in path and path.isascii() and len(found) < MOST_PREFIXES:
                found.add(path)
    return tuple(sorted(found, key=len, reverse=True))


def _secret(document: Document) -> tuple[str, ...]:
    """Return the names of fields that are marked as not to be logged, in the whole document."""
    found: set[str] = set()
    waiting: list[Any] = [document.root]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            properties = each.get("properties")
            for name, field in properties.items() if isinstance(properties, dict) else ():
                if isinstance(field, dict) and (field.get(_REDACT) is True or _is_marked(document, field)):
                    found.add(name)
            waiting.extend(each.values())
    if len(found) > MOST_SECRET:
        raise Unfit(f"more than {MOST_SECRET} fields are marked {_REDACT}")
    return tuple(sorted(found))


def _is_marked(document: Document, field: dict[str, Any]) -> bool:
    try:
        return document.follow(field, "")[0].get(_REDACT) is True
    except BadDocument:
        return False
