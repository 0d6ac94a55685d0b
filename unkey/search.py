"""The `search` parameter of list operations: a substring, in any case."""

from django.db.models import Q
from django.db.models.functions import Lower
from django.db.models.lookups import Contains


def containing(text: str, *fields: str) -> Q:
    """Return the condition that one of several text columns contains a text, whatever its case.

    `%` and `_` are ordinary characters. MySQL's binary collation makes `icontains` case-sensitive and
    SQLite lowers ASCII only, so both sides are lowered as well as compared as they are.
    """
    condition = Q()
    for field in fields:
        condition |= Q(**{f"{field}__icontains": text}) | Q(Contains(Lower(field), text.lower()))
    return condition
