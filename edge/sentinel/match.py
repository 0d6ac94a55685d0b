"""Match expressions: which requests a policy is for (reference, api.md 6.7)."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import re2

from edge.sentinel.decision import Call, Unsupported

_REMEMBERED = 512
_SHORT = 256

Condition = Callable[[Call], bool]
Text = Callable[[str], bool]


def field(source: Mapping[str, Any], name: str) -> Any:
    """Return a field written in camelCase, or as snake_case."""
    if name in source:
        return source[name]
    return source.get("".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name))


def compile_match(expressions: Any) -> tuple[Condition, ...]:
    """Compile a policy's `match`; every condition must hold.

    Raises:
        Unsupported: an expression that cannot be evaluated.
    """
    if not expressions:
        return ()
    if not isinstance(expressions, list):
        raise Unsupported("match is not a list")
    return tuple(_condition(expression) for expression in expressions)


def query_values(query: bytes, name: str) -> list[str]:
    """Return the decoded values of a query parameter."""
    if not query:
        return []
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
    return [value for key, value in pairs if key == name]


def path_text(call: Call) -> str:
    """Return the path with percent-encoding undone, so that `/%61dmin` is matched as `/admin`."""
    path = call.path
    return (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace")


def _condition(expression: Any) -> Condition:
    if not isinstance(expression, dict):
        raise Unsupported("a match expression is not an object")
    kinds = {kind: body for kind, body in expression.items() if body is not None}
    if not kinds:
        return _never
    if len(kinds) > 1:
        raise Unsupported(f"a match expression has several kinds: {', '.join(sorted(kinds))}")
    kind, body = next(iter(kinds.items()))
    if not isinstance(body, dict):
        raise Unsupported(f"match {kind} is not an object")
    if kind == "path":
        text = _text(field(body, "path"))
        return lambda call: text(path_text(call))
    if kind == "method":
        return _method(field(body, "methods") or [])
    if kind == "header":
        return _header(body)
    if kind in ("queryParam", "query_param"):
        return _query(body)
    raise Unsupported(f"match kind {kind!r} is not known")


def _never(call: Call) -> bool:
    return False


def _method(methods: list[Any]) -> Condition:
    wanted = frozenset(str(method).upper().encode() for method in methods)
    return lambda call: not wanted or call.method in wanted


def _header(body: Mapping[str, Any]) -> Condition:
    name = _name(body).lower().encode("latin-1", "replace")
    text, present = _presence(body)
    if text is None:
        return lambda call: (call.header(name) is not None) is present
    return lambda call: any(text(value.decode("latin-1")) for value in call.headers(name))


def _query(body: Mapping[str, Any]) -> Condition:
    name = _name(body)
    text, present = _presence(body)
    if text is None:
        return lambda call: bool(query_values(call.query, name)) is present
    return lambda call: any(text(value) for value in query_values(call.query, name))


def _name(body: Mapping[str, Any]) -> str:
    name = body.get("name")
    if not isinstance(name, str) or not name:
        raise Unsupported("a match expression has no name")
    return name


def _presence(body: Mapping[str, Any]) -> tuple[Text | None, bool]:
    value, present = body.get("value"), body.get("present")
    return (None, present is not False) if value is None else (_text(value), True)


def _text(matcher: Any) -> Text:
    if not isinstance(matcher, dict):
        raise Unsupported("a text matcher is not an object")
    folded = bool(field(matcher, "ignoreCase"))
    given = {kind: matcher[kind] for kind in ("exact", "prefix", "regex") if matcher.get(kind) is not None}
    if len(given) != 1 or not isinstance(pattern := next(iter(given.values())), str):
        raise Unsupported("a text matcher needs one of exact, prefix and regex")
    if "regex" in given:
        return _regex(pattern, folded)
    if folded:
        lower = pattern.lower()
        if "exact" in given:
            return lambda text: text.lower() == lower
        return lambda text: text.lower().startswith(lower)
    if "exact" in given:
        return lambda text: text == pattern
    return lambda text: text.startswith(pattern)


def _regex(pattern: str, folded: bool) -> Text:
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not folded
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise Unsupported(f"the regular expression {pattern!r} is not valid: {error}") from None
    remembered = lru_cache(_REMEMBERED)(lambda text: compiled.search(text) is not None)
    return lambda text: remembered(text) if len(text) <= _SHORT else compiled.search(text) is not None
