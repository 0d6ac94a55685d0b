"""The one clock: aware UTC in code, Unix milliseconds on the wire, replaceable in tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_offset = timedelta(0)


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC) + _offset


def now_ms() -> int:
    """Return the current time in Unix milliseconds."""
    return to_ms(now())


def to_ms(moment: datetime) -> int:
    """Convert an aware datetime to Unix milliseconds, rounding down."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_ms(milliseconds: int) -> datetime:
    """Convert Unix milliseconds to an aware datetime in UTC."""
    return EPOCH + timedelta(milliseconds=milliseconds)


@contextmanager
def shifted(by: timedelta) -> Iterator[None]:
    """Move this process's clock by an amount of time; for tests."""
    global _offset
    _offset += by
    try:
        yield
    finally:
        _offset -= by


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
