"""When keys were last used, brought from the events to the keys: a minute's delay, and never backwards."""

from django.db.models import Q

from apps.analytics.store import Store, store
from apps.keys.models import Key
from unkey import clock

_BATCH = 500


def sync(since: int, source: Store | None = None) -> int:
    """Write the last use of the keys that were used since a moment; return how many were written.

    Args:
        since: Unix milliseconds.
        source: where to ask; None: the store of the settings.
    """
    used = (source or store()).used_since(since)
    written = 0
    ids = sorted(used)
    for start in range(0, len(ids), _BATCH):
        moments: dict[int, list[str]] = {}
        for key_id in ids[start : start + _BATCH]:
            # To the minute: a busy key is written once a minute, and keys of a minute together.
            moments.setdefault(used[key_id] - used[key_id] % 60_000, []).append(key_id)
        for moment, key_ids in moments.items():
            at = clock.from_ms(moment)
            keys = Key.objects.unscoped("the store says which keys were used").filter(pk__in=key_ids)
            # Neither a version nor an audit row: no edge and nobody's decision depends on it.
            written += keys.filter(Q(last_used_at=None) | Q(last_used_at__lt=at)).update(last_used_at=at)
    return written
