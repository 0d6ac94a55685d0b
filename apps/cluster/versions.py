"""Monotonic versions per stream: the row lock makes commit order equal version order.

A transaction that stamps rows of several streams locks them in the order of the streams' names, so that
two of them never wait for each other. Where its writes come in another order, or several rows of
changing streams are written one after the other, it calls `hold` first.
"""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import structlog
from django.conf import settings
from django.db import connection

from apps.cluster.models import Stream
from unkey.models import Versioned
from unkey.sharing import OutOfOrder, is_shared

log = structlog.get_logger(__name__)

# Streams that a transaction holds, by its outermost atomic block.
_held: "WeakKeyDictionary[object, set[str]]" = WeakKeyDictionary()


class StreamsOutOfOrder(OutOfOrder):
    """A transaction took a stream whose name comes before one that it held: two of these can deadlock."""


def next_version(stream: str) -> int:
    """Return the next version of a stream, holding the stream's row until the transaction ends.

    A reader that has seen version N has therefore seen every row up to N.

    Raises:
        RuntimeError: called outside a transaction.
        StreamsOutOfOrder: see `hold`; in production, where the transaction is not shared, it is logged
            and the transaction goes on.
    """
    _take(stream)
    version = _raised(stream)
    if version is None:
        _create(stream)
        version = _raised(stream)
    assert version is not None
    return version


# A database says what it wrote in the answer to the statement that wrote it, each in its own way.
_RAISE = {
    "mysql": "UPDATE cluster_stream SET version = LAST_INSERT_ID(version + 1) WHERE name = %s",
    "sqlite": "UPDATE cluster_stream SET version = version + 1 WHERE name = %s RETURNING version",
}


def _raised(stream: str) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute(_RAISE[connection.vendor], [stream])
        if connection.vendor == "mysql":
            return int(cursor.lastrowid) if cursor.rowcount else None
        row = cursor.fetchone()
    return row[0] if row else None


def hold(streams: Iterable[str]) -> None:
    """Lock streams until the transaction ends, in their one order; versions are taken of them later.

    Lock rows of other tables before this, not after it: whoever stamps holds its rows already.

    Raises:
        RuntimeError: called outside a transaction.
        StreamsOutOfOrder: one comes before a stream that is held already.
    """
    for stream in sorted(set(streams)):
        _take(stream)
        if not Stream.objects.select_for_update().filter(name=stream).exists():
            _create(stream)
            Stream.objects.select_for_update().get(name=stream)


def stamp(row: Versioned) -> int:
    """Give a row the next version of its stream; the caller saves `version` in this transaction."""
    row.version = next_version(row.stream)
    return row.version


# Django's own ways to insert what may be there take a shared lock on MySQL when it is; two that wait for
# the same row would then keep each other from writing it.
_CREATE = {
    "mysql": "INSERT INTO cluster_stream (name, version, compacted) VALUES (%s, 0, 0) "
    "ON DUPLICATE KEY UPDATE version = version",
    "sqlite": "INSERT INTO cluster_stream (name, version, compacted) VALUES (%s, 0, 0) ON CONFLICT DO NOTHING",
}


def _create(stream: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_CREATE[connection.vendor], [stream])


def _take(stream: str) -> None:
    if not connection.in_atomic_block:
        raise RuntimeError(f"a version of {stream} was taken outside a transaction")
    blocks = [block for block in connection.atomic_blocks if not block._from_testcase]  # type: ignore[attr-defined]
    held = _held.setdefault(blocks[0], set()) if blocks else set()
    if stream not in held and any(stream < other for other in held):
        others = ", ".join(sorted(other for other in held if stream < other))
        # SQLite has one writer, who never waits for another.
        if settings.TESTING or (is_shared() and connection.vendor != "sqlite"):
            raise StreamsOutOfOrder(
                f"stream {stream} was taken after {others}: call versions.hold(…) with all of them first"
            )
        log.error("streams_out_of_order", stream=stream, held=others)
    held.add(stream)
