"""Which override counts for an identifier."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from edge.store.records import Namespace, Override
from edge.verify import namespaces
from edge.verify.namespaces import Space, pattern

TEXT = st.text("ab*\n", max_size=12)


@given(TEXT, TEXT)
@example("*", "")
@example("a*a", "a")
@example("a*b*c", "abbc")
def test_a_pattern_matches_as_a_regular_expression_would(text, identifier):
    expected = re.fullmatch(".*".join(map(re.escape, text.split("*"))), identifier, re.DOTALL)
    if "*" in text:
        assert pattern(text)(identifier) == (expected is not None)


def test_a_pattern_of_many_stars_takes_no_longer_than_its_length():
    matches = pattern("*a" * 256)
    assert not matches("a" * 255 + "b" * 257)
    assert matches("b" * 256 + "ba" * 128 + "a" * 128)


def found(space, identifier):
    override = space.resolve(identifier)
    assert override is not None
    return override


def override(name, version=1, *, limit=1, made_at=1, deleted=False, who=None):
    return Override(who or f"rlor_{name}", "ws_1", "rlns_1", name, limit, 1000, made_at, version, deleted)


def test_changes_come_in_any_order_and_the_newest_stays():
    space = Space()
    assert space.apply(override("user_*", 3, limit=3))
    assert not space.apply(override("user_*", 2, limit=2))
    assert found(space, "user_1").limit == 3
    assert space.rename(Namespace("rlns_1", "ws_1", "mails", 4))
    assert not space.rename(Namespace("rlns_1", "ws_1", "old", 1))
    assert space.apply(override("user_*", 5, deleted=True))
    assert space.resolve("user_1") is None
    assert space.resolve("user_1") is None
    assert [one.version for one in space.overrides] == [5]
    assert space.apply(override("user_*", 6, limit=6))
    assert found(space, "user_1").limit == 6


def test_the_very_text_goes_first_then_the_oldest_pattern():
    records = [
        override("*", made_at=3),
        override("a*", made_at=2, who="rlor_2"),
        override("*b", made_at=2, who="rlor_1"),
        override("a*b", made_at=9),
    ]
    space = Space(None, records)
    assert found(space, "a*b").id == "rlor_a*b"
    assert found(space, "axb").id == "rlor_1"
    assert found(space, "ax").id == "rlor_2"
    assert found(space, "x").id == "rlor_*"


def test_what_was_found_is_remembered_for_a_bounded_number_of_identifiers(monkeypatch):
    monkeypatch.setattr(namespaces, "_RESOLVED", 3)
    space = Space(None, [override("a*", limit=5)])
    for _ in range(2):
        assert [space.resolve(f"b{number}") for number in range(9)] == [None] * 9
        assert found(space, "a1").limit == 5
    assert len(space._resolved) <= 3
    space.apply(override("b*", 2, limit=6))
    assert found(space, "b8").limit == 6
