"""Values made from schemas: the least valid body of an operation, and bodies with one fault each."""

from collections.abc import Iterator
from typing import Any

from unkey.rpc.schema import Schema

SAMPLES = {
    r"^[a-zA-Z0-9_]+$": "a",
    r"^[a-zA-Z0-9_-]+$": "a",
    r"^[a-zA-Z0-9_:\-\.\*]+$": "a",
    r"^[a-zA-Z0-9_.-]+$": "a",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "A",
    r"\S": "a",
    r"^[a-z0-9]+(-[a-z0-9]+)*$": "a",
    # Patterns whose texts cannot be made longer by repetition.
    r"^https://\S+$": "https://a.example",
    r"^https?://\S+$": "http://a.example",
    r"^#[0-9a-fA-F]{6}$": "#1a7f4b",
    r"^(/[\w\-]+)+(\.[\w]+)?$": "/health",
    r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$": "acme/web",
}


def sample(schema: Schema, length: int) -> str:
    """Return a text of a schema's pattern, of this length if the pattern's texts may have any."""
    letter = SAMPLES[schema["pattern"]] if "pattern" in schema else "é"
    return letter * length if len(letter) == 1 else letter


def kind_of(schema: Schema) -> str:
    """Return the type of a schema that may also allow null."""
    kind = schema["type"]
    return str(kind if isinstance(kind, str) else next(one for one in kind if one != "null"))


def least(schema: Schema) -> Any:
    """Return a small valid value."""
    if "enum" in schema:
        return schema["enum"][0]
    match kind_of(schema):
        case "string":
            return sample(schema, max(1, schema.get("minLength", 0)))
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return True
        case "array":
            return [least(schema["items"])] * schema.get("minItems", 0)
        case _:
            required = list(schema.get("required", ()))
            if "oneOf" in schema:
                required += schema["oneOf"][0]["required"]
            if not required and schema.get("minProperties"):
                required = list(schema["properties"])[:1]
            return {name: least(schema["properties"][name]) for name in required}


def beyond(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Yield values just outside what a schema allows, each with the name of the limit that it breaks."""
    kind = kind_of(schema)
    wrong = {"string": 7, "integer": "7", "number": "7", "boolean": "true", "array": {}, "object": []}
    yield "type", wrong[kind]
    if "null" not in schema["type"]:
        yield "null", None
    if "enum" in schema:
        yield "enum", "not-one-of-them" if kind == "string" else -1
    if kind == "string":
        if schema.get("minLength"):
            yield "minLength", "a" * (schema["minLength"] - 1)
        if "maxLength" in schema:
            yield "maxLength", "a" * (schema["maxLength"] + 1)
        if "pattern" in schema:
            yield "pattern", " " * max(1, schema.get("minLength", 1))
    if kind in ("integer", "number"):
        if "minimum" in schema:
            yield "minimum", schema["minimum"] - 1
        if "maximum" in schema:
            yield "maximum", schema["maximum"] + 1
        if kind == "integer":
            yield "fraction", schema.get("minimum", 0) + 0.5
    if kind == "array":
        if schema.get("minItems"):
            yield "minItems", [least(schema["items"])] * (schema["minItems"] - 1)
        if "maxItems" in schema:
            yield "maxItems", [least(schema["items"])] * (schema["maxItems"] + 1)
    if "maxProperties" in schema:
        yield "maxProperties", {f"f{number}": 1 for number in range(schema["maxProperties"] + 1)}
    if kind == "object" and not schema["additionalProperties"]:
        yield "additionalProperties", {**least(schema), "noSuchField": 1}


def edges(schema: Schema) -> Iterator[Any]:
    """Yield the largest and smallest values that a schema allows."""
    kind = kind_of(schema)
    yield least(schema)
    if "null" in schema["type"]:
        yield None
    if kind == "string" and "enum" not in schema:
        yield sample(schema, schema.get("maxLength", 300))
    if kind in ("integer", "number") and "maximum" in schema:
        yield schema["maximum"]
    if kind == "array" and "maxItems" in schema:
        yield [least(schema["items"])] * schema["maxItems"]
    if "maxProperties" in schema:
        yield {f"f{number}": 1 for number in range(schema["maxProperties"])}
    yield from schema.get("enum", ())


def places(schema: Schema, value: Any, path: str = "body") -> Iterator[tuple[str, Schema, Any]]:
    """Yield every place in a body: its location, its schema, and a function that makes the body with a value there.

    Optional objects and lists on the way are filled with their least values.
    """
    yield path, schema, lambda put: put
    if kind_of(schema) == "object":
        base: dict[str, Any] = value if isinstance(value, dict) else least(schema)
        alternatives = {branch["required"][0] for branch in schema.get("oneOf", ())}
        for name, field in schema.get("properties", {}).items():
            # Of fields that exclude each other only this one stays.
            rest = {
                key: item for key, item in base.items() if name not in alternatives or key not in alternatives
            }
            for where, inner, make in places(field, base.get(name), f"{path}.{name}"):
                yield where, inner, _inside(rest, name, make)
    elif kind_of(schema) == "array":
        for where, inner, make in places(schema["items"], None, f"{path}[0]"):
            yield where, inner, _first(make, schema)


def _inside(rest: dict[str, Any], name: str, make: Any) -> Any:
    return lambda put: {**rest, name: make(put)}


def _first(make: Any, schema: Schema) -> Any:
    return lambda put: [make(put), *[least(schema["items"])] * (schema.get("minItems", 1) - 1)]
