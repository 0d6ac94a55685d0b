"""Texts of a request as values: parameters by their style, forms, and JSON bodies, all read strictly."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_plus

from edge.sentinel.contract import Parameter, Shape

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,200})?(?:[eE][+-]?[0-9]{1,3})?")
_LIST: dict[str, tuple[str, ...]] = {
    "spaceDelimited": ("%20", "+", " "),
    "pipeDelimited": ("%7C", "%7c", "|"),
}

Pair = tuple[str, str]
"""The name of a parameter, and its text as it was sent."""

ABSENT = object()


class Unreadable(ValueError):
    """A text is not what it is said to be; the message is the predicate of a sentence: "is not JSON"."""


def _plain(text: str) -> str:
    return unquote_plus(text) if "%" in text or "+" in text else text


def query_pairs(raw: bytes) -> list[Pair]:
    """Return the pairs of a query or a form; only the names are decoded."""
    pairs = []
    for each in raw.decode("latin-1").split("&"):
        if each:
            name, _, value = each.partition("=")
            pairs.append((_plain(name), value))
    return pairs


def cookie_pairs(headers: Iterable[bytes]) -> list[Pair]:
    """Return the pairs of Cookie headers (RFC 6265, 4.2.1)."""
    pairs = []
    for header in headers:
        for each in header.decode("latin-1").split(";"):
            name, equals, value = each.strip(" \t").partition("=")
            if equals:
                pairs.append((name, value.strip('"')))
    return pairs


def from_pairs(parameter: Parameter, pairs: list[Pair]) -> Any:
    """Return the value of a parameter of the query, a cookie or a form; `ABSENT` where it is not given.

    Raises:
        Unreadable: it is given more than once where one is meant, or cannot be understood.
    """
    shape, name = parameter.shape, parameter.name
    if shape.form == "object" and (parameter.style == "deepObject" or parameter.explode):
        return _spread(parameter, pairs)
    given = [value for key, value in pairs if key == name]
    if shape.form == "list" and not given and parameter.explode:
        given = [value for key, value in pairs if key == f"{name}[]"]
    if not given:
        return ABSENT
    if shape.form == "list" and parameter.explode:
        return [scalar(_plain(each), shape.kinds) for each in given]
    if len(given) > 1:
        raise Unreadable("is given more than once")
    text = given[0]
    if not text and parameter.may_be_empty:
        return ABSENT
    if shape.form == "list":
        return [scalar(_plain(each), shape.kinds) for each in _split(text, parameter.style)]
    if shape.form == "object":
        return _alternating([_plain(each) for each in text.split(",")], shape)
    return _whole(_plain(text), shape)


def _spread(parameter: Parameter, pairs: list[Pair]) -> Any:
    """Return an object whose fields are pairs of their own: `filter[a]=1`, or `a=1`."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        field = key
        if parameter.style == "deepObject":
            before, bracket, rest = key.partition("[")
            if before != parameter.name or not bracket or not rest.endswith("]") or "[" in rest:
                continue
            field = rest[:-1]
        elif key not in parameter.shape.fields:
            continue
        if field in found:
            raise Unreadable(f"has the field {field[:64]!r} more than once")
        found[field] = scalar(_plain(value), parameter.shape.fields.get(field, ()))
    return found or ABSENT


def _split(text: str, style: str) -> list[str]:
    if not text:
        return []
    separators = _LIST.get(style, (",",))
    for separator in separators[:-1]:
        text = text.replace(separator, separators[-1])
    return text.split(separators[-1])


def from_path(parameter: Parameter, text: str) -> Any:
    """Return the value of what stands in a path's place.

    Raises:
        Unreadable: it is not written in the parameter's style.
    """
    style, shape = parameter.style, parameter.shape
    separator = ","
    if style == "label":
        if not text.startswith("."):
            raise Unreadable("does not begin with a dot")
        text = text[1:]
        separator = "." if parameter.explode else ","
    elif style == "matrix":
        if not text.startswith(";"):
            raise Unreadable("does not begin with a semicolon")
        if not (parameter.explode and shape.form != "text"):
            name, _, text = text[1:].partition("=")
            if name != parameter.name:
                raise Unreadable("has another name in the path")
        elif shape.form == "list":
            parts = [each.partition("=") for each in text[1:].split(";")]
            if any(name != parameter.name for name, _, _ in parts):
                raise Unreadable("has another name in the path")
            return [scalar(each, shape.kinds) for _, _, each in parts]
        else:
            text, separator = text[1:], ";"
    return _inline(text, separator, parameter)


def from_header(parameter: Parameter, values: list[bytes]) -> Any:
    """Return the value of a header; `ABSENT` where it is not given.

    Raises:
        Unreadable: it cannot be understood.
    """
    if not values:
        return ABSENT
    if len(values) > 1 and parameter.shape.form != "list":
        raise Unreadable("is given more than once")
    text = b",".join(values).decode("utf-8", "replace")
    if parameter.shape.form == "list":
        return [scalar(each.strip(" \t"), parameter.shape.kinds) for each in text.split(",") if each]
    return _inline(text, ",", parameter)


def _inline(text: str, separator: str, parameter: Parameter) -> Any:
    shape = parameter.shape
    if shape.form == "list":
        return [scalar(each, shape.kinds) for each in text.split(separator)]
    if shape.form == "object":
        parts = text.split(separator)
        if parameter.explode:
            parts = [part for each in parts for part in each.partition("=")[::2]]
        return _alternating(parts, shape)
    return _whole(text, shape)


def _alternating(parts: list[str], shape: Shape) -> dict[str, Any]:
    if len(parts) % 2:
        raise Unreadable("is not a list of names and values in turn")
    names = parts[::2]
    if len(set(names)) < len(names):
        raise Unreadable("has a field more than once")
    return {
        name: scalar(text, shape.fields.get(name, ())) for name, text in zip(names, parts[1::2], strict=True)
    }


def _whole(text: str, shape: Shape) -> Any:
    return read_json(text.encode("utf-8", "replace")) if shape.form == "json" else scalar(text, shape.kinds)


def scalar(text: str, kinds: tuple[str, ...]) -> Any:
    """Return the value that a text stands for: of the given JSON types the narrowest that it can be."""
    if "integer" in kinds and _INTEGER.fullmatch(text):
        return int(text)
    if "number" in kinds and _NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    if "null" in kinds and text == "null" and "string" not in kinds:
        return None
    return text


def form_value(fields: Iterable[Parameter], body: bytes) -> dict[str, Any]:
    """Return the object that a form stands for; fields that nobody described are texts.

    Raises:
        Unreadable: one of them cannot be understood.
    """
    pairs = query_pairs(body)
    found: dict[str, Any] = {}
    for field in fields:
        value = from_pairs(field, pairs)
        if value is not ABSENT:
            found[field.name] = value
    for name, text in pairs:
        found.setdefault(name, _plain(text))
    return found


def read_json(raw: bytes) -> Any:
    """Read a JSON text (RFC 8259) so strictly that no two readers can understand it in two ways.

    Raises:
        Unreadable: it is none, is not UTF-8, or an object has a name twice.
    """
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except Unreadable:
        raise
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise Unreadable("is nested too deep") from None
    except ValueError:  # a number of thousands of digits
        raise Unreadable("has a number that is too long") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise Unreadable(f"has the name {name[:64]!r} twice in one object")
            names.add(name)
    return found


def _no_constant(name: str) -> Any:
    raise Unreadable(f"has {name}, which is not JSON")


def measure(value: Any) -> tuple[int, int]:
    """Return how many values a JSON value has, itself included, and how many levels below itself.

    Raises:
        Unreadable: a number is not finite, or a text has half of a surrogate pair.
    """
    nodes = height = 0
    level: list[Any] = [value]
    while level:
        nodes += len(level)
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
                _check_text("".join(each))
            elif isinstance(each, list):
                below.extend(each)
            elif isinstance(each, str):
                _check_text(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise Unreadable("has a number that is too large")
        if below:
            height += 1
        level = below
    return nodes, height


def _check_text(text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise Unreadable("has a text with half of a surrogate pair") from None
