"""Counters of one machine: several processes admit together what one would."""

import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.store import counters
from edge.store.counters import Counters, NoSeat
from edge.verify.limiter import Limit, Limiter, Window

SECOND = 1000
START = 1_700_000_000_000
SMALL = 64  # buckets


@pytest.fixture
def sit(tmp_path):
    """Take a seat, as a process that starts does; all are left at the end."""
    taken = []

    def take(buckets=SMALL):
        taken.append(Counters(tmp_path / "counters", buckets))
        return taken[-1]

    yield take
    for seat in taken:
        if seat.seat is not None:
            seat.close()


def limit(most, cost=1, who="user", duration=SECOND):
    return Limit(("ws_1", "rlns_1", who, duration), most, cost)


def test_what_one_process_counts_the_others_see_at_once(sit):
    first, second = Limiter(sharing=sit()), Limiter(sharing=sit())
    assert [first.check(limit(5), START).remaining for _ in range(2)] == [4, 3]
    assert [second.check(limit(5), START).remaining for _ in range(2)] == [2, 1]
    assert first.check(limit(5), START).remaining == 0
    assert not second.check(limit(5), START).passed
    # In the next window all five weigh, less what has passed of it, wherever they were counted.
    assert [each.check(limit(9), START + 1400).remaining for each in (first, second)] == [5, 4]
    assert second.check_all([limit(9, 3), limit(9, 1)], START + 1400)[0]
    assert not first.check(limit(9), START + 1400).passed


def test_a_counter_that_is_forgotten_because_there_are_many_is_found_where_it_is_written(sit, monkeypatch):
    monkeypatch.setattr("edge.verify.limiter._KEPT_OF_SHARED", 20)
    small, all_of_them = Limiter(sharing=sit()), Limiter()
    chance = random.Random(4)
    # Who holds windows of its own does not count on in one that was forgotten.
    held: dict[str, list[Window]] = {}
    now = START
    for _ in range(5000):
        now += chance.randrange(5)
        who = f"user_{min(chance.randrange(80), chance.randrange(80))}"
        asked = [limit(30, who=who), limit(50, 2, who=who, duration=2 * SECOND)]
        expected = all_of_them.take(asked, [], now)
        if chance.random() < 0.7:
            assert small.take(asked, held.setdefault(who, []), now) == expected
        else:
            passed, outcomes = small.check_all(asked, now)
            assert passed == (expected is not None)
            if expected is not None:
                assert [each.remaining for each in outcomes] == expected[::2]
    assert len(small) <= 25
    assert len(all_of_them) > 100
    assert small.forgotten == 0


def test_a_process_that_takes_a_seat_goes_on_with_its_counts(sit):
    seat = sit()
    Limiter(sharing=seat).check(limit(9, 3), START - SECOND)
    Limiter(sharing=seat).check(limit(9, 4), START)
    number = seat.seat
    seat.close()
    seat.seat = None
    again = sit()
    assert again.seat == number
    assert Limiter(sharing=again).check(limit(9, 0), START).remaining == 9 - 4 - 3
    assert Limiter(sharing=sit()).check(limit(9, 0), START).remaining == 9 - 4 - 3


def test_a_place_is_given_to_another_counter_once_its_windows_weigh_nothing(sit):
    seat = sit(buckets=1)
    limiter = Limiter(sharing=seat)
    for number in range(8):
        limiter.check(limit(9, who=str(number)), START)
    assert seat.crowded == 0
    limiter.check(limit(9, who="one too many"), START + 1999)
    assert seat.crowded == 1
    other = Limiter(sharing=sit(buckets=1))
    assert other.check(limit(9, 0, who="one too many"), START + 1999).remaining == 9
    assert limiter.check(limit(9, who="later"), START + 2000).remaining == 8
    assert other.check(limit(9, who="later"), START + 2000).remaining == 7
    assert seat.crowded == 1


def test_there_is_an_end_of_seats_and_another_format_is_refused(sit, tmp_path, monkeypatch):
    sit()
    with pytest.raises(NoSeat, match="another version"):
        Counters(tmp_path / "counters", SMALL * 2)
    monkeypatch.setattr(counters, "SEATS", 1)
    with pytest.raises(NoSeat, match="taken"):
        sit()


class Reference:
    """One counter in one place, as the reference says it: api.md 3.1."""

    def __init__(self):
        self.counts = {}

    def check(self, most, cost, duration, now):
        sequence = now // duration
        current = self.counts.get((duration, sequence), 0)
        previous = self.counts.get((duration, sequence - 1), 0)
        effective = current + int(previous * (duration - now % duration) // duration) + cost
        if effective > most:
            return False, 0
        self.counts[duration, sequence] = current + cost
        return True, most - effective


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # process
        st.integers(0, 700),  # milliseconds since the last step
        st.integers(0, 3),  # cost
        st.sampled_from((SECOND, 3 * SECOND)),
        st.integers(0, 12),  # limit
        st.booleans(),  # the process is a new one
    ),
    max_size=60,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS)
def test_processes_that_take_turns_answer_as_one(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("counters")
    seats = [Counters(folder, SMALL) for _ in range(4)]
    limiters = [Limiter(sharing=seat) for seat in seats]
    reference, now = Reference(), START
    try:
        for which, wait, cost, duration, most, anew in steps:
            now += wait
            if anew:
                limiters[which] = Limiter(sharing=seats[which])
            outcome = limiters[which].check(limit(most, cost, duration=duration), now)
            assert (outcome.passed, outcome.remaining) == reference.check(most, cost, duration, now)
    finally:
        for seat in seats:
            seat.close()


_HAMMER = """
import sys
from pathlib import Path
from edge.store.counters import Counters
from edge.verify.limiter import Limit, Limiter, Window

limiter = Limiter(sharing=Counters(Path(sys.argv[1]), 64))
print("ready", flush=True)
sys.stdin.readline()
asked = Limit(("ws_1", "rlns_1", "user", 3_600_000), 5000)
print(sum(limiter.check(asked, 1_700_000_000_000).passed for _ in range(4000)))
"""


def test_processes_at_once_admit_at_most_one_more_each_than_one_would(tmp_path):
    command = [sys.executable, "-c", _HAMMER, str(tmp_path / "counters")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    admitted = sum(int(process.communicate()[0]) for process in processes)
    assert 5000 <= admitted <= 5000 + 3
