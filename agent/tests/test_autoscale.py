"""How many instances the load asks for: examples that a reader can check, and what always holds."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.autoscale import GROWTH, TOLERANCE, Decision, Load, Policy, Wish, decide, wanted_by

CALM = 60.0
unhurried = settings(deadline=None)  # a busy machine is no fault


def loads(*cpu):
    return [None if each is None else Load(each) for each in cpu]


@pytest.mark.parametrize(
    ("current", "cpu", "wanted"),
    [
        (1, [80], 1),
        (1, [87], 1),  # within a tenth
        (1, [89], 2),
        (1, [200], 3),
        (2, [160, 160], 4),
        (2, [200, 0], 3),
        (4, [40, 40, 40, 40], 2),
        (3, [0, 0, 0], 1),
        (1, [10_000], 8),
        (2, [], 2),
        (2, [None, None], 2),
        (2, [200, None], 3),  # one that starts counts as idle
        (2, [100, None], 2),  # together they would do
        (3, [10, 10, None], 2),  # and here as busy: (10 + 10 + 80) / 3 of 80
        (2, [0, None], 1),
    ],
)
def test_wanted_instances_follow_the_mean_load(current, cpu, wanted):
    assert wanted_by(Policy(1, 8), current, loads(*cpu))[0] == wanted


def test_the_greater_of_two_loads_decides():
    busy = [Load(cpu=20, memory=160), Load(cpu=20, memory=160)]
    assert wanted_by(Policy(1, 8, memory=80), 2, busy) == (4, "memory at 160 %, 80 % is aimed at")
    assert wanted_by(Policy(1, 8), 2, busy) == (1, "CPU at 20 %, 80 % is aimed at")


def test_more_at_once_but_fewer_only_after_a_calm_minute():
    policy = Policy(1, 4)
    decision = decide(policy, 1, loads(240), (Wish(0.0, 1),), 15.0, CALM)
    assert (decision.count, decision.why) == (3, "CPU at 240 %, 80 % is aimed at")
    counts = []
    for now in (30.0, 45.0, 60.0, 74.0, 75.0, 90.0):
        decision = decide(policy, 3, loads(20, 20, 20), decision.wishes, now, CALM)
        counts.append(decision.count)
    assert counts == [3, 3, 3, 3, 1, 1]


def test_growth_is_bounded_a_time():
    assert decide(Policy(1, 100), 1, loads(9000), (), 0.0, CALM).count == 1 + GROWTH
    assert decide(Policy(1, 100), 10, loads(*[9000] * 10), (), 0.0, CALM).count == 20


def test_new_bounds_hold_at_once():
    assert decide(Policy(3, 5), 1, loads(80), (), 0.0, CALM).count == 3
    assert decide(Policy(1, 2), 5, loads(*[80] * 5), (Wish(0.0, 5),), 1.0, CALM).count == 2


policies = st.integers(1, 20).flatmap(
    lambda least: st.builds(
        Policy,
        least=st.just(least),
        most=st.integers(least, 40),
        cpu=st.integers(1, 200),
        memory=st.none() | st.integers(1, 200),
    )
)
shares = st.floats(0, 10_000, allow_nan=False)
measured = st.lists(st.none() | st.builds(Load, cpu=shares, memory=shares), max_size=20)
histories = st.lists(st.builds(Wish, at=st.floats(0, 1000), count=st.integers(1, 40)), max_size=10)


@unhurried
@given(policies, st.integers(1, 40), measured, histories, st.floats(0, 1000))
def test_the_bounds_always_hold_and_steps_are_small(policy, current, seen, wishes, now):
    decision = decide(policy, current, seen, wishes, now, CALM)
    assert policy.least <= decision.count <= policy.most
    assert decision.count <= max(2 * current, current + GROWTH, policy.least)
    assert all(wish.at > now - CALM for wish in decision.wishes)
    assert bool(decision.why) <= (decision.count != current)


@unhurried
@given(policies, measured, histories, st.floats(0, 1000))
def test_nothing_is_taken_away_that_was_wanted_within_the_calm_time(policy, seen, wishes, now):
    current = policy.most
    decision = decide(policy, current, seen, wishes, now, CALM)
    recent = [wish.count for wish in wishes if wish.at > now - CALM]
    assert decision.count >= min(current, max(recent, default=policy.least))


@unhurried
@given(policies, st.integers(1, 20), st.lists(shares, min_size=1, max_size=20), st.floats(0, 1000))
def test_more_load_never_wants_fewer(policy, current, cpu, more):
    less = wanted_by(policy, current, loads(*cpu))[0]
    assert wanted_by(policy, current, loads(*(each + more for each in cpu)))[0] >= less


@unhurried
@given(st.integers(1, 20), st.integers(1, 100), st.floats(0, 20_000))
def test_a_constant_load_that_instances_share_comes_to_rest(least, threshold, total):
    """Load spreads evenly: the loop must find a number that it then keeps."""
    policy = Policy(least, 200, threshold)
    count, decision = least, Decision(least, ())
    seen = []
    for turn in range(60):
        decision = decide(policy, count, loads(*[total / count] * count), decision.wishes, turn * 15.0, CALM)
        count = decision.count
        seen.append(count)
    assert len(set(seen[-20:])) == 1
    ideal = min(max(math.ceil(total / threshold), least), 200)
    assert count <= max(math.ceil(ideal * (1 + 2 * TOLERANCE)), ideal + 1)
    assert total / count <= threshold * (1 + TOLERANCE) + 1e-6 or count == 200


@unhurried
@given(policies, st.integers(1, 20), st.integers(1, 20), st.lists(shares, min_size=1, max_size=10))
def test_instances_that_cannot_be_measured_never_turn_the_direction(policy, current, unknown, cpu):
    wide = Policy(1, 1000, policy.cpu)
    known = wanted_by(wide, current, loads(*cpu))[0]
    with_unknown = wanted_by(wide, current, loads(*cpu, *[None] * unknown))[0]
    assert (known - current) * (with_unknown - current) >= 0
