"""The one clock: aware UTC in code, Unix milliseconds on the wire, replaceable in tests."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_offset = timedelta(0)
_offset_ns = 0


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC) + _offset


def now_ms() -> int:
    """Return the current time in Unix milliseconds."""
    return (time.time_ns() + _offset_ns) // 1_000_000


def to_ms(moment: datetime) -> int:
    """Convert an aware datetime to Unix milliseconds, rounding down."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_ms(milliseconds: int) -> datetime:
    """Convert Unix milliseconds to an aware datetime in UTC."""
    return EPOCH + timedelta(milliseconds=milliseconds)


@contextmanager
def shifted(by: timedelta) -> Iterator[None]:
    """Move this process's clock by an amount of time; for tests."""
    global _offset, _offset_ns
    before = _offset, _offset_ns
    _offset += by
    _offset_ns += by // timedelta(microseconds=1) * 1000
    try:
        yield
    finally:
        _offset, _offset_ns = before


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
