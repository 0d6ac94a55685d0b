"""Pages of a list by an opaque cursor: the place of the page's last row.

So nothing is shown twice and nothing is missed while rows come and go.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

from django.db import models
from django.db.models import Q

from unkey import clock, errors
from unkey.errors import Violation

LIMIT = 50
LARGEST = 100

_M = TypeVar("_M", bound=models.Model)


def page_of(
    rows: "models.QuerySet[_M]",
    query: dict[str, Any],
    show: Callable[[list[_M]], Iterable[Any]],
    *,
    newest: str = "created_at",
) -> dict[str, Any]:
    """Return a page of rows, the newest first: `{"items": […], "nextCursor": text or None}`.

    Args:
        rows: already filtered; their order is set here.
        query: `limit` and `cursor`, as the caller gave them.
        show: turns the rows of a page into what is shown, all at once so that it can fetch in bulk.
        newest: column that says when a row was made; rows of one moment are told apart by their id.

    Raises:
        InvalidInput: the cursor is none that a page gave.
    """
    limit = query.get("limit", LIMIT)
    if query.get("cursor"):
        at, pk = _decode(query["cursor"])
        rows = rows.filter(Q(**{f"{newest}__lt": at}) | Q(**{newest: at, "pk__lt": pk}))
    found = list(rows.order_by(f"-{newest}", "-pk")[: limit + 1])
    more = len(found) > limit
    page = found[:limit]
    cursor = _encode(getattr(page[-1], newest), page[-1].pk) if more else None
    return {"items": list(show(page)), "nextCursor": cursor}


def _encode(at: datetime, pk: str) -> str:
    microseconds = (at - clock.EPOCH) // _MICROSECOND
    return base64.urlsafe_b64encode(json.dumps([microseconds, pk]).encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        microseconds, pk = json.loads(text)
        if type(microseconds) is not int or not isinstance(pk, str):
            raise ValueError
        return clock.EPOCH + microseconds * _MICROSECOND, pk
    except (ValueError, TypeError, OverflowError, binascii.Error, RecursionError) as error:
        message = "The cursor is not one that a previous page returned."
        raise errors.InvalidInput(message, violations=(Violation(message, "query.cursor"),)) from error


_MICROSECOND = datetime.resolution
