"""What edges tell of the requests that they saw: complete, or known to be incomplete."""

from datetime import timedelta

import pytest

from apps.cluster.models import Edge
from apps.routing.models import Sentinel
from unkey import clock

pytestmark = pytest.mark.django_db


def last_request(site):
    return Sentinel.objects.get(pk=site.deployment.id).last_request_at


def told_of(column):
    """Return a column of the edge's row; None while there is no row yet."""
    return Edge.objects.values_list(column, flat=True).first()


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """Let edges beat and tell all the time."""
    monkeypatch.setattr("edge.store.store.BEAT_SECONDS", 0.0)
    monkeypatch.setattr("edge.store.store.USE_SECONDS", 0.0)


def test_an_edge_tells_which_deployments_had_requests_and_that_there_were_no_others(start, site):
    used: set[str] = set()
    edge = start()
    edge.get(lambda store: store.report_use_of(used, tuple))
    told = edge.eventually(lambda: told_of("counted_at"))
    assert last_request(site) is None
    edge.get(lambda store: used.add(site.deployment.id))
    seen = edge.eventually(lambda: last_request(site))
    assert seen > told
    assert used == set()
    edge.eventually(lambda: Edge.objects.get().counted_at > seen)
    assert last_request(site) == seen  # told once


def test_a_request_that_is_open_for_hours_is_use(start, site):
    edge = start()
    edge.get(lambda store: store.report_use_of(set(), lambda: ["127.0.0.1:1", "127.0.0.1:21390"]))
    first = edge.eventually(lambda: last_request(site))
    edge.eventually(lambda: last_request(site) > first)


def test_what_could_not_be_told_is_told_later(start, site, outage):
    used: set[str] = set()
    edge = start()
    edge.get(lambda store: store.report_use_of(used, tuple))
    edge.eventually(lambda: told_of("counted_at"))
    with outage():
        edge.until(lambda store: not store.connected)
        edge.get(lambda store: used.add(site.deployment.id))
    edge.eventually(lambda: last_request(site))
    assert Edge.objects.get().count_lost_at is None


def test_a_clean_stop_tells_all_and_a_kill_is_known_to_have_lost_something(start, site, monkeypatch):
    monkeypatch.setattr("edge.store.store.USE_SECONDS", 3600.0)
    used: set[str] = set()
    edge = start()
    edge.get(lambda store: store.report_use_of(used, tuple))
    edge.eventually(lambda: told_of("counted_at"))
    edge.get(lambda store: used.add(site.deployment.id))
    edge.stop()
    assert last_request(site) is not None
    assert not Edge.objects.exists()
    killed = start()
    killed.eventually(lambda: told_of("counted_at"))
    assert Edge.objects.get().count_lost_at is None
    killed.kill()
    again = start()
    lost = again.eventually(lambda: told_of("count_lost_at"))
    assert clock.now() - lost < timedelta(minutes=1)
