"""Sliding windows: exact arithmetic, all-or-nothing, bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.verify.limiter import Limit, Limiter, Outcome

MINUTE = 60_000
START = 1_700_000_040_000 // MINUTE * MINUTE


def limit(limit=10, cost=1, name="tokens", who="key_1", duration=MINUTE):
    return Limit(("ws_1", name, who, duration), limit, cost)


def test_a_window_is_aligned_to_the_epoch_and_its_end_is_the_reset():
    limiter = Limiter()
    outcome = limiter.check(limit(3), START + 59_999)
    assert outcome == Outcome(True, 3, 2, START + MINUTE)


def test_the_limit_is_reached_exactly_and_a_denial_counts_nothing():
    limiter = Limiter()
    remaining = [limiter.check(limit(3), START + at).remaining for at in range(3)]
    assert remaining == [2, 1, 0]
    assert limiter.check(limit(3), START + 3) == Outcome(False, 3, 0, START + MINUTE)
    assert limiter.check(limit(4), START + 4) == Outcome(True, 4, 0, START + MINUTE)


def test_the_previous_window_weighs_what_is_left_of_it_rounded_down():
    limiter = Limiter()
    for _ in range(7):
        limiter.check(limit(10), START)
    # half of 7 is 3.5, of which 3 count
    assert limiter.check(limit(10), START + MINUTE + 30_000).remaining == 10 - 3 - 1
    assert limiter.check(limit(10), START + 3 * MINUTE).remaining == 9


def test_cost_zero_looks_without_counting():
    limiter = Limiter()
    limiter.check(limit(2), START)
    assert limiter.check(limit(2, cost=0), START).remaining == 1
    limiter.check(limit(2), START)
    assert limiter.check(limit(2, cost=0), START) == Outcome(True, 2, 0, START + MINUTE)
    assert limiter.check(limit(1, cost=0), START) == Outcome(False, 1, 0, START + MINUTE)


def test_a_limit_of_zero_denies():
    assert not Limiter().check(limit(0), START).passed


@pytest.mark.parametrize("bad", [limit(-1), limit(cost=-1), limit(duration=999)])
def test_nonsense_is_an_error_and_not_a_denial(bad):
    with pytest.raises(ValueError, match="cost"):
        Limiter().check(bad, START)
    with pytest.raises(ValueError, match="cost"):
        Limiter().check_all([limit(), bad], START)


def test_of_several_limits_all_count_or_none():
    limiter = Limiter()
    tight, wide = limit(2, name="tight"), limit(10, cost=3, name="wide")
    assert limiter.check_all([tight, wide], START) == (
        True,
        [Outcome(True, 2, 1, START + MINUTE), Outcome(True, 10, 7, START + MINUTE)],
    )
    limiter.check(tight, START)
    passed, outcomes = limiter.check_all([tight, wide], START)
    assert not passed
    assert outcomes == [Outcome(False, 2, 0, START + MINUTE), Outcome(True, 10, 7, START + MINUTE)]
    assert limiter.check(limit(10, cost=0, name="wide"), START).remaining == 7


def test_two_limits_of_one_counter_add_up():
    limiter = Limiter()
    passed, outcomes = limiter.check_all([limit(3, cost=2), limit(3, cost=2)], START)
    assert not passed
    assert [outcome.passed for outcome in outcomes] == [False, False]
    assert limiter.check_all([limit(4, cost=2), limit(4, cost=2)], START)[0]


def test_a_clock_that_goes_back_never_gives_more():
    limiter = Limiter()
    for _ in range(4):
        limiter.check(limit(4), START)
    assert limiter.check(limit(4), START + MINUTE) == Outcome(False, 4, 0, START + 2 * MINUTE)
    assert not limiter.check(limit(4), START).passed


def test_the_sweep_forgets_only_what_weighs_nothing():
    limiter = Limiter()
    limiter.check(limit(who="old"), START)
    limiter.check(limit(who="new"), START + MINUTE)
    assert limiter.sweep(START + MINUTE) == 0
    assert limiter.sweep(START + 2 * MINUTE) == 1
    assert len(limiter) == 1


def test_memory_is_bounded():
    limiter = Limiter(capacity=100)
    for number in range(1000):
        limiter.check(limit(who=f"key_{number}"), START)
    assert len(limiter) <= 100
    assert limiter.forgotten >= 900


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 4)), max_size=60),
    st.integers(1, 8),
)
def test_no_window_ever_admits_more_than_its_limit(steps, most):
    limiter, now = Limiter(), START
    admitted: dict[int, int] = {}
    for wait, cost in steps:
        now += wait
        if limiter.check(limit(most, cost=cost, duration=1000), now).passed:
            admitted[now // 1000] = admitted.get(now // 1000, 0) + cost
    assert all(total <= most for total in admitted.values())
