"""Identifiers: `<prefix>_` followed by 16 characters of base58 from the system's random source."""

import secrets
from collections.abc import Callable
from functools import partial

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
LENGTH = 16
_MANY = 58**LENGTH


def new(prefix: str) -> str:
    """Return a fresh identifier such as `proj_4kWx…` (94 bits of randomness)."""
    number = secrets.randbelow(_MANY)
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, 58)
        digits.append(ALPHABET[digit])
    return f"{prefix}_{''.join(digits)}"


def factory(prefix: str) -> Callable[[], str]:
    """Return a default for a primary key column; serialisable in migrations."""
    return partial(new, prefix)


def base58(raw: bytes) -> str:
    """Encode bytes in base58 with the Bitcoin alphabet; each leading zero byte becomes a `1`."""
    number = int.from_bytes(raw, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(ALPHABET[digit])
    leading = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * leading + "".join(reversed(digits))
