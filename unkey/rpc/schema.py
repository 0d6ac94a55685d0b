"""Builders of request and response schemas, and the compiled form that checks a body.

    BODY = obj({
        "apiId": string(3, 255, pattern=r"^[a-zA-Z0-9_]+$"),
        "limit": optional(integer(1, 100), default=100),
        "name": optional(nullable(string(1, 255))),       # absent, null and a value are three things
    })

A schema is a plain JSON Schema (draft 2020-12) dictionary, so that the OpenAPI document is the
same object that requests are checked against. Objects refuse unknown fields.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from unkey.errors import Violation

Schema = dict[str, Any]

INT64 = 2**63 - 1
_LAST_MOMENT = 4_102_444_800_000
REDACTED = "[REDACTED]"
_REDACT = "x-unkey-redact"
_MAX_VIOLATIONS = 50
_MAX_DEPTH = 64
_ID = r"^[a-zA-Z0-9_]+$"
_HANDLE = r"^[a-zA-Z0-9_-]+$"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object that may be absent."""

    schema: Schema


def optional(schema: Schema, *, default: Any = None) -> Field:
    """Mark a field as one that may be absent; a default that is not None is filled in."""
    return Field(schema if default is None else {**schema, "default": default})


def string(
    shortest: int = 0,
    longest: int | None = None,
    *,
    pattern: str | None = None,
    choices: Sequence[str] | None = None,
    redact: bool = False,
    about: str = "",
) -> Schema:
    """A text; lengths count characters, `redact` keeps it out of logs."""
    schema: Schema = {"type": "string"}
    if shortest:
        schema["minLength"] = shortest
    if longest is not None:
        schema["maxLength"] = longest
    if pattern is not None:
        schema["pattern"] = pattern
    if choices is not None:
        schema["enum"] = list(choices)
    if redact:
        schema[_REDACT] = True
    return _described(schema, about)


def identifier(shortest: int = 3, *, about: str = "") -> Schema:
    """An id such as `api_…`."""
    return string(shortest, 255, pattern=_ID, about=about)


def handle(*, about: str = "") -> Schema:
    """An id or a slug: what people may call a project, an app or an environment by."""
    return string(3, 255, pattern=_HANDLE, about=about)


def integer(least: int | None = None, most: int | None = INT64, *, about: str = "") -> Schema:
    """A whole number, within 64 bits unless said otherwise."""
    schema: Schema = {"type": "integer"}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    if most is None or most > 2**31:
        schema["format"] = "int64"
    return _described(schema, about)


def moment(*, about: str = "") -> Schema:
    """A point in time in Unix milliseconds, until the end of 2099."""
    return integer(0, _LAST_MOMENT, about=about)


def number(least: float | None = None, most: float | None = None, *, about: str = "") -> Schema:
    """A number, whole or not."""
    schema: Schema = {"type": "number", "format": "double"}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    return _described(schema, about)


def boolean(*, about: str = "") -> Schema:
    """True or false."""
    return _described({"type": "boolean"}, about)


def array(items: Schema, least: int = 0, most: int | None = None, *, about: str = "") -> Schema:
    """A list of values of one schema."""
    schema: Schema = {"type": "array", "items": items}
    if least:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    return _described(schema, about)


def obj(
    fields: Mapping[str, Schema | Field],
    *,
    exactly_one: Sequence[str] = (),
    about: str = "",
) -> Schema:
    """An object of these fields and no others.

    Args:
        fields: name to schema; wrap those that may be absent in `optional`.
        exactly_one: names of which exactly one must be present.
    """
    schema: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: field.schema if isinstance(field, Field) else field for name, field in fields.items()
        },
    }
    required = [name for name, field in fields.items() if not isinstance(field, Field)]
    if required:
        schema["required"] = required
    if exactly_one:
        schema["oneOf"] = [{"required": [name]} for name in exactly_one]
    return _described(schema, about)


def anything(most: int | None = None, *, about: str = "") -> Schema:
    """An object whose fields are the caller's own."""
    schema: Schema = {"type": "object", "additionalProperties": True}
    if most is not None:
        schema["maxProperties"] = most
    return _described(schema, about)


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    widened = {**schema, "type": [schema["type"], "null"]}
    if "enum" in widened:
        widened["enum"] = [*widened["enum"], None]
    return widened


def _described(schema: Schema, about: str) -> Schema:
    if about:
        schema["description"] = about
    return schema


class Checker:
    """A compiled schema: finds every fault of a value, fills defaults, hides what must not be logged."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        # RegexOptions: patterns run in linear time.
        self._validator = jsonschema_rs.Draft202012Validator(
            schema, pattern_options=jsonschema_rs.RegexOptions()
        )
        self._completes = _mentions(schema, ("default", "integer"))
        self._redacts = _mentions(schema, (_REDACT,))

    def violations(self, value: Any) -> list[Violation]:
        """Return every fault of a decoded JSON value, at most 50 of them, each with its location."""
        if found_first := _flaw(value, _MAX_DEPTH):
            return [found_first]
        if self._validator.is_valid(value):
            return []
        found: list[Violation] = []
        for error in self._validator.iter_errors(value):
            found.extend(_explain(error, self.schema))
            if len(found) >= _MAX_VIOLATIONS:
                break
        return found[:_MAX_VIOLATIONS]

    def complete(self, value: Any) -> Any:
        """Return a valid value with defaults filled in, and whole floats where integers are meant."""
        return _complete(self.schema, value) if self._completes else value

    def redacted(self, value: Any) -> Any:
        """Return a copy of a value that may be logged."""
        return _redact(self.schema, value) if self._redacts else value


def _flaw(value: Any, levels: int) -> Violation | None:
    """Return what keeps a decoded value from being looked at: it is too deep, or a number has no 64 bits."""
    if _deeper(value, levels):
        return Violation(f"the body is nested deeper than {levels} levels", "body")
    path = _oversized(value)
    if path is None:
        return None
    here = location(path)
    return Violation(f"the number at {here} does not fit 64 bits", here, "Send large numbers as texts.")


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper(item, levels - 1) for item in value)
    return False


def _oversized(value: Any) -> list[str | int] | None:
    """Return the path to the first integer beyond 64 bits, None if there is none."""
    if isinstance(value, int):
        return None if -INT64 - 1 <= value <= 2 * INT64 + 1 else []
    entries: Iterable[tuple[str | int, Any]]
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    else:
        return None
    for name, item in entries:
        path = _oversized(item)
        if path is not None:
            return [name, *path]
    return None


def _mentions(schema: Any, words: tuple[str, ...]) -> bool:
    if isinstance(schema, dict):
        return any(key in words or _mentions(value, words) for key, value in schema.items())
    if isinstance(schema, list):
        return any(_mentions(value, words) for value in schema)
    return schema in words


def _complete(schema: Schema, value: Any) -> Any:
    if isinstance(value, dict) and "properties" in schema:
        properties: dict[str, Schema] = schema["properties"]
        filled = {name: _complete(properties[name], item) for name, item in value.items()}
        for name, field in properties.items():
            if name not in filled and "default" in field:
                default = field["default"]
                filled[name] = list(default) if isinstance(default, list) else default
        return filled
    if isinstance(value, list) and "items" in schema:
        return [_complete(schema["items"], item) for item in value]
    if isinstance(value, float) and "integer" in schema.get("type", ()):
        return int(value)
    return value


def _redact(schema: Schema, value: Any) -> Any:
    if schema.get(_REDACT) and value is not None:
        return REDACTED
    if isinstance(value, dict) and "properties" in schema:
        properties = schema["properties"]
        return {name: _redact(properties.get(name, {}), item) for name, item in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [_redact(schema["items"], item) for item in value]
    return value


def location(path: Iterable[str | int], root: str = "body") -> str:
    """Write where a fault is: `body.variables[0].key`."""
    written = root
    for part in path:
        if isinstance(part, int):
            written += f"[{part}]"
        elif _NAME.match(part):
            written += f".{part}"
        else:
            written += f"[{json.dumps(part[:64])}]"
    return written


_KINDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _explain(error: Any, schema: Schema) -> list[Violation]:
    path: list[str | int] = list(error.instance_path)
    keywords: list[str | int] = list(error.schema_path)
    last = max(index for index, part in enumerate(keywords) if isinstance(part, str))
    keyword = keywords[last]
    owner: Any = schema
    for part in keywords[:last]:
        owner = owner[part]
    name = path[-1] if path and isinstance(path[-1], str) else "the value"
    here = location(path)

    def one(message: str, fix: str = "") -> list[Violation]:
        return [Violation(message, here, fix)]

    match keyword:
        case "required":
            missing = error.kind.property
            return [
                Violation(f"{missing} is required", location([*path, missing]), f"Add the field {missing}.")
            ]
        case "additionalProperties":
            known = ", ".join(owner["properties"])
            return [
                Violation(
                    f"{field[:64]} is not a field of this object",
                    location([*path, field]),
                    f"Remove it; the fields are {known}."
                    if known
                    else "Remove it; the object has no fields.",
                )
                for field in error.kind.unexpected
            ]
        case "type":
            kinds = owner["type"] if isinstance(owner["type"], list) else [owner["type"]]
            return one(f"{name} must be {' or '.join(_KINDS[kind] for kind in kinds)}")
        case "minLength":
            length = owner["minLength"]
            return one(f"{name} must have at least {length} character{'' if length == 1 else 's'}")
        case "maxLength":
            return one(f"{name} must have at most {owner['maxLength']} characters")
        case "pattern":
            return one(f"{name} must match {owner['pattern']}")
        case "enum":
            return one(f"{name} must be one of {', '.join(json.dumps(item) for item in owner['enum'])}")
        case "minimum":
            return one(f"{name} must be at least {owner['minimum']}")
        case "maximum":
            return one(f"{name} must be at most {owner['maximum']}")
        case "minItems":
            return one(f"{name} must have at least {owner['minItems']} items")
        case "maxItems":
            return one(f"{name} must have at most {owner['maxItems']} items")
        case "minProperties":
            return one(f"{name} must have at least {owner['minProperties']} of its fields")
        case "maxProperties":
            return one(f"{name} must have at most {owner['maxProperties']} fields")
        case "oneOf":
            names = ", ".join(branch["required"][0] for branch in owner["oneOf"])
            return one(f"exactly one of {names} must be given", "Give one of them and leave out the others.")
    return one(f"{name} is not valid ({keyword})")
