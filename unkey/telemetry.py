"""The events of a Django process: `if (events := telemetry()) is not None: events.record_request(…)`."""

import atexit
from functools import cache

from edge.telemetry.events import Telemetry, telemetry_of
from unkey.env import env


@cache
def telemetry() -> Telemetry | None:
    """Return this process's events, written from now on and to the last when it ends; None: TELEMETRY is off."""
    if not env.TELEMETRY:
        return None
    events = telemetry_of(env)
    events.start()
    atexit.register(events.stop)
    return events
