"""Where a request carries its credential: the bearer token, a header or a query parameter."""

from collections.abc import Callable
from typing import Any

from edge.sentinel.decision import Call, Unsupported
from edge.sentinel.match import field, query_values

Location = Callable[[Call], str | None]


def compile_locations(locations: Any) -> tuple[Location, ...]:
    """Compile a policy's `locations`; none given: the bearer token.

    Raises:
        Unsupported: a location that is not known.
    """
    if locations is not None and not isinstance(locations, list):
        raise Unsupported("locations is not a list")
    return tuple(_location(each) for each in locations or [{"bearer": {}}])


def _location(location: Any) -> Location:
    if not isinstance(location, dict):
        raise Unsupported("a location is not an object")
    if location.get("bearer") is not None:
        return _bearer
    header = location.get("header")
    if isinstance(header, dict) and isinstance(header.get("name"), str):
        return _in_header(header["name"], field(header, "stripPrefix") or "")
    query = field(location, "queryParam")
    if isinstance(query, dict) and isinstance(query.get("name"), str):
        return _in_query(query["name"])
    raise Unsupported("a location is neither bearer nor header nor queryParam")


def _bearer(call: Call) -> str | None:
    value = call.header(b"authorization")
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return value[7:].strip(b" \t").decode("latin-1")


def _in_header(name: str, prefix: str) -> Location:
    lower = name.lower().encode("latin-1", "replace")
    folded = prefix.lower()

    def look(call: Call) -> str | None:
        value = call.header(lower)
        if value is None:
            return None
        text = value.decode("latin-1")
        if not folded:
            return text
        return text[len(folded) :] if text.lower().startswith(folded) and len(text) > len(folded) else None

    return look


def _in_query(name: str) -> Location:
    def look(call: Call) -> str | None:
        return next((value for value in query_values(call.query, name) if value), None)

    return look
