"""Sliding windows: exact arithmetic, all-or-nothing, bounded memory."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.store.counters import Counters
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


def test_what_weighs_nothing_goes_as_others_come_and_nobody_waits_for_all_of_them():
    limiter = Limiter()
    for number in range(5000):
        limiter.check(limit(who=f"key_{number}"), START)
    most = 0
    for number in range(5000):
        before = len(limiter)
        limiter.check(limit(who=f"later_{number}"), START + 2 * MINUTE)
        most = max(most, before - len(limiter))
    assert most <= 2
    assert len(limiter) <= 7500
    assert limiter.forgotten == 0
    assert limiter.check(limit(who="later_0"), START + 2 * MINUTE).remaining == limit().limit - 2
    for _ in range(40):
        limiter.sweep(START + 2 * MINUTE)
    assert len(limiter) == 5000


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


class Machine:
    """A limiter of a machine of its own, and what it had heard of the others, by counter and window."""

    def __init__(self, name):
        self.name = name
        self.limiter = Limiter(far=True)
        self.heard = {}

    def exchange(self, told, most=100):
        """Exchange what is due as Redis does: totals by machine, of which each only grows."""
        for counter, sequence, current, previous in self.limiter.due(most):
            far = []
            for window, count in ((sequence, current), (sequence - 1, previous)):
                counts = told.setdefault((counter, window), {})
                counts[self.name] = max(counts.get(self.name, 0), count)
                far.append(sum(count for name, count in counts.items() if name != self.name))
                self.heard[counter, window] = far[-1]
            self.limiter.learn(counter, sequence, *far)


SCHEDULE = st.lists(
    st.tuples(
        st.integers(0, 2),  # machine
        st.integers(0, 400),  # milliseconds since the last step
        st.integers(0, 3),  # cost
        st.sampled_from(("user_1", "user_2")),
        st.booleans(),  # the machine exchanges afterwards
    ),
    max_size=80,
)


@given(SCHEDULE, st.integers(1, 12))
def test_machines_admit_beyond_a_limit_only_what_they_have_not_heard_of(steps, most):
    machines, now = [Machine(name) for name in "abc"], START
    told: dict[Any, Any] = {}
    admitted: dict[tuple[Any, int], dict[str, int]] = {}
    for which, wait, cost, who, exchanges in steps:
        now += wait
        machine, asked = machines[which], limit(most, cost=cost, who=who, duration=1000)
        window = (asked.counter, now // 1000)
        if machine.limiter.check(asked, now).passed:
            counts = admitted.setdefault(window, {})
            counts[machine.name] = counts.get(machine.name, 0) + cost
            # What it has counted, and what it has heard of, is within the limit; the rest is the overshoot.
            assert counts[machine.name] + machine.heard.get(window, 0) <= most
        if exchanges:
            machine.exchange(told)


@given(SCHEDULE, st.integers(1, 12))
def test_machines_that_have_heard_of_everything_admit_as_one_would(steps, most):
    machines, now, alone = [Machine(name) for name in "abc"], START, Limiter()
    told: dict[Any, Any] = {}
    for which, wait, cost, who, _ in steps:
        now += wait
        asked = limit(most, cost=cost, who=who, duration=1000)
        for _ in range(2):  # who tells, and who hears
            for machine in machines:
                machine.limiter.check(limit(most, cost=0, who=who, duration=1000), now)
                machine.exchange(told)
        assert machines[which].limiter.check(asked, now) == alone.check(asked, now)


def test_what_could_not_be_exchanged_is_due_again_behind_what_waits_already():
    limiter = Limiter(far=True)
    for who in ("a", "b", "c"):
        limiter.check(limit(who=who), START)
    taken = limiter.due(2)
    assert [due.counter[2] for due in taken] == ["a", "b"]
    limiter.postpone(taken)
    assert [due.counter[2] for due in limiter.due(9)] == ["c", "a", "b"]
    assert limiter.due(9) == []


def test_counts_that_were_overtaken_on_their_way_change_nothing():
    limiter = Limiter(far=True)
    limiter.check(limit(10), START)
    counter, sequence = limit().counter, START // MINUTE
    limiter.learn(counter, sequence, 5, 0)
    limiter.learn(counter, sequence, 4, 0)
    limiter.learn(("ws_1", "tokens", "nobody", MINUTE), sequence, 9, 9)
    assert limiter.check(limit(10, cost=0), START).remaining == 10 - 1 - 5
    # The window turned while Redis was asked: what was the current one is the one before.
    limiter.check(limit(10, cost=0), START + MINUTE)
    limiter.learn(counter, sequence, 7, 0)
    assert limiter.check(limit(10, cost=0), START + MINUTE).remaining == 10 - 1 - 7


@pytest.mark.parametrize("shared", [False, True])
def test_a_limit_that_was_reached_opens_in_its_time_although_the_clock_was_set_back(shared, tmp_path):
    seat = Counters(tmp_path, buckets=16) if shared else None
    limiter = Limiter(sharing=seat)
    limit = Limit(("ws", "ns", "me", 60_000), 3, 1)
    start = 3_600_000 * 1000
    limiter.sweep(start)
    assert [limiter.check(limit, start).passed for _ in range(4)] == [True, True, True, False]
    early = start - 3_600_000
    limiter.sweep(early)
    assert not limiter.check(limit, early).passed  # what was given is not given again
    assert limiter.check(limit, early).reset == early + 60_000
    assert [limiter.check(limit, early + 120_000).passed for _ in range(4)] == [True, True, True, False]
    if seat is not None:
        seat.close()


def test_a_clock_that_is_adjusted_by_a_little_changes_no_window():
    limiter = Limiter()
    limit = Limit(("ws", "ns", "me", 1000), 1, 1)
    limiter.sweep(10_000)
    assert limiter.check(limit, 10_000).passed
    limiter.sweep(9_500)
    assert not limiter.check(limit, 9_500).passed
    assert limiter.check(limit, 9_500).reset == 11_000
