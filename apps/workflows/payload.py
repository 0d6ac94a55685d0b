"""What may be written to the journal: plain JSON up to a size, and no secret."""

import json
import math
from typing import TypeAlias

JSON: TypeAlias = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class BadPayload(ValueError):
    """An input or a result is not plain JSON, is too large, or holds a secret."""


class Secret:
    """Text that must not reach a journal, a log or a message: refuses to be serialised.

    Args:
        text: what is kept; `reveal()` returns it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise BadPayload("a Secret cannot be serialised")


def encode(value: object, what: str) -> str:
    """Return canonical JSON text (sorted names, no spaces).

    Args:
        value: dicts with text names, lists, tuples, text, numbers, booleans, None.
        what: names the value in the error: `input of deploy`.

    Raises:
        BadPayload: says where and why.
    """
    _check(value, what, 0)
    text = _ENCODER.encode(value)
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise BadPayload(f"{what} has {len(text.encode())} bytes; at most {MAX_BYTES} are kept")
    return text


def _check(value: object, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadPayload(f"{where} is nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool:
        return
    if kind is int:
        if not -(2**63) <= value < 2**64:  # type: ignore[operator]
            raise BadPayload(f"{where} is a number of more than 64 bits")
        return
    if isinstance(value, str):
        if not _is_whole(value):
            raise BadPayload(f"{where} is text with a lone surrogate")
        return
    if kind is float:
        if not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise BadPayload(f"{where} is {value}, which JSON cannot hold")
        return
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise BadPayload(f"{where} has the name {name!r}, which is not text")
            if not _is_whole(name):
                raise BadPayload(f"{where} has the name {name!r}, which is text with a lone surrogate")
            _check(item, f"{where}.{name}", depth + 1)
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]", depth + 1)
        return
    if isinstance(value, Secret):
        raise BadPayload(f"{where} is a Secret, which must not be written to the journal")
    raise BadPayload(f"{where} is a {kind.__name__}, not plain JSON")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
