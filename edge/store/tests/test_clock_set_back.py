"""The machine's clock goes back an hour while an edge serves: nothing is lost, and no bound is passed."""

from datetime import timedelta

import pytest

from apps.keys.values import Credits, NamedLimit
from unkey import clock

HOUR = timedelta(hours=1)


def test_keys_credits_and_expiry_hold_when_the_clock_is_set_back(start, owner):
    _, text = owner.key(credits=Credits(10))
    _, expiring = owner.key(expires_at=clock.now() + timedelta(minutes=5))
    edge = start()
    assert edge.verify(owner.root_key, text)["credits"] == 9
    with clock.shifted(timedelta(minutes=6)):
        assert edge.verify(owner.root_key, expiring)["code"] == "EXPIRED"
    with clock.shifted(-HOUR):
        assert edge.verify(owner.root_key, expiring)["code"] == "VALID"
        left = [edge.verify(owner.root_key, text).get("credits") for _ in range(9)]
        assert left == [8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert edge.verify(owner.root_key, text)["code"] == "USAGE_EXCEEDED"
        edge.stop()
    again = start()
    assert again.verify(owner.root_key, text)["code"] == "USAGE_EXCEEDED"


@pytest.mark.parametrize("duration", [60_000, 3_600_000])
def test_a_limit_is_neither_given_twice_in_a_window_nor_closed_for_an_hour(start, owner, duration):
    limits = [NamedLimit("calls", 3, duration, auto_apply=True)]
    _, text = owner.key(ratelimits=limits)
    edge = start()

    def allowed() -> int:
        return sum(edge.verify(owner.root_key, text)["code"] == "VALID" for _ in range(5))

    assert allowed() == 3
    edge.verifier.limiter.sweep(clock.now_ms())  # as the edge does every half minute
    with clock.shifted(-HOUR):
        edge.verifier.limiter.sweep(clock.now_ms())
        assert allowed() == 0
        with clock.shifted(timedelta(milliseconds=3 * duration)):
            assert allowed() == 3


def test_changes_arrive_and_beats_are_told_when_the_clock_is_set_back(start, owner):
    key, text = owner.key()
    edge = start()
    edge.caught_up()
    with clock.shifted(-HOUR):
        owner.update(key, enabled=False)
        edge.eventually(lambda: edge.verify(owner.root_key, text)["code"] == "DISABLED")
        _, later = owner.key()
        assert edge.verify(owner.root_key, later)["code"] == "VALID"
