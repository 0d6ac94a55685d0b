"""A store with two tenants' events, and the real engine over it."""

from collections.abc import Iterator

import pytest

from apps.analytics.embedded import Embedded
from apps.analytics.engines import Chdb
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts, ratelimit_facts
from unkey import clock

OURS, THEIRS = "ws_ours", "ws_theirs"
SECRET = "theirs0secret"  # in every text of the other tenant's events


def record(store: Embedded, workspace: str, mark: str, count: int) -> None:
    """Record verifications, rate limits and requests of a workspace whose every text has this mark."""
    telemetry = Telemetry(store.spool, region="local")
    now = clock.now_ms()
    for number in range(count):
        outcome = b"VALID" if number % 3 else b"RATE_LIMITED"
        space = f"ks_{mark}_{number % 2}"
        facts = key_facts(workspace, space, f"id_{mark}", f"user {mark}", f"key_{mark}_{number % 2}")
        tags = b'["%b"]' % mark.encode()
        telemetry.record_verification(
            f"req_{mark}".encode(), now - number, facts, outcome, spent=1, latency=0.5, tags=tags
        )
        limited = ratelimit_facts(workspace, f"rlns_{mark}", f"who {mark}")
        telemetry.record_ratelimit(b"req_1", now - number, limited, number % 2 == 0, 5, 4, now, cost=2)
    telemetry.stop()
    store.take()


@pytest.fixture(scope="session")
def two_tenants(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """Twelve events of ours, thirty of theirs."""
    store = Embedded(tmp_path_factory.mktemp("analytics"))
    record(store, OURS, "ours", 12)
    record(store, THEIRS, SECRET, 30)
    return store


@pytest.fixture(scope="session")
def engine(two_tenants: Embedded) -> Iterator[Chdb]:
    """The real engine, in its own process."""
    made = Chdb(two_tenants)
    yield made
    made.close()
