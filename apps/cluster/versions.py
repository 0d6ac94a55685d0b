"""Monotonic versions per stream: the row lock makes commit order equal version order."""

from django.db import IntegrityError, connection, transaction
from django.db.models import F

from apps.cluster.models import Stream
from unkey.models import Versioned


def next_version(stream: str) -> int:
    """Return the next version of a stream, holding the stream's row until the transaction ends.

    A reader that has seen version N has therefore seen every row up to N.

    Raises:
        RuntimeError: called outside a transaction.
    """
    if not connection.in_atomic_block:
        raise RuntimeError(f"a version of {stream} was taken outside a transaction")
    if not Stream.objects.filter(name=stream).update(version=F("version") + 1):
        try:
            with transaction.atomic():
                Stream.objects.create(name=stream, version=1)
                return 1
        except IntegrityError:
            Stream.objects.filter(name=stream).update(version=F("version") + 1)
    return Stream.objects.values_list("version", flat=True).get(name=stream)


def stamp(row: Versioned) -> int:
    """Give a row the next version of its stream; the caller saves `version` in this transaction.

    Transactions that stamp rows of several streams take them in the order of the streams' names,
    so that two of them never wait for each other.
    """
    row.version = next_version(row.stream)
    return row.version
