"""The embedded store: every event counted once, whatever comes twice, late, broken or half done."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.analytics.embedded import DAY, Embedded, Ranges
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts, ratelimit_facts
from edge.telemetry.tables import GATEWAY_REQUESTS, RATELIMITS, VERIFICATIONS
from unkey import clock

NOVEMBER = clock.to_ms(clock.from_ms(1_793_500_000_000).replace(month=11, day=21, hour=12))


@pytest.fixture
def store(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path / "analytics")


def record(store: Embedded, *events: tuple[str, str, int, bytes, bytes], spent: int = 1) -> Telemetry:
    """Record verifications (workspace, key, time, outcome, source) by a writer of their own; spooled."""
    telemetry = Telemetry(store.spool, region="local")
    for workspace, key, time, outcome, source in events:
        facts = key_facts(workspace, "ks_1", "", "", key)
        telemetry.record_verification(b"req_1", time, facts, outcome, spent=spent, source=source)
    telemetry.stop()
    return telemetry


API, GATEWAY = b'"api",""', b'"gateway","app_1"'


def raw(store: Embedded, table: str = VERIFICATIONS.name) -> list[list[object]]:
    lines = [line for path in store.files(table) for line in path.read_bytes().splitlines()[1:]]
    return [msgspec.json.decode(line) for line in lines]


def test_what_is_valid_and_came_by_the_api_is_billed_to_the_month_of_its_time(store: Embedded):
    december = NOVEMBER + 20 * DAY
    record(
        store,
        ("ws_1", "key_1", NOVEMBER, b"VALID", API),
        ("ws_1", "key_1", NOVEMBER + 1, b"RATE_LIMITED", API),
        ("ws_1", "key_2", NOVEMBER + 2, b"VALID", GATEWAY),
        ("ws_1", "key_2", december, b"VALID", API),
        ("ws_2", "key_3", NOVEMBER, b"VALID", API),
    )
    telemetry = Telemetry(store.spool, region="local")
    for passed in (True, True, False):
        telemetry.record_ratelimit(
            b"req_1", NOVEMBER, ratelimit_facts("ws_1", "rlns_1", "user"), passed, 2, 0, NOVEMBER
        )
    telemetry.stop()

    assert store.take() == 8
    assert store.usage("2026-11") == {"ws_1": (1, 2), "ws_2": (1, 0)}
    assert store.usage("2026-12") == {"ws_1": (1, 0)}
    assert len(raw(store, RATELIMITS.name)) == 3


def test_a_segment_that_comes_again_is_neither_counted_nor_kept_again(store: Embedded):
    record(store, ("ws_1", "key_1", NOVEMBER, b"VALID", API), ("ws_1", "key_1", NOVEMBER, b"VALID", API))
    (path,) = store.spool.segments(VERIFICATIONS.name)
    content = path.read_bytes()
    header, first, second = content.splitlines(keepends=True)
    assert store.take() == 2
    path.write_bytes(content)
    assert store.take() == 0
    path.with_name(path.name.replace("-000000000002", "-000000000001")).write_bytes(header + first)
    path.write_bytes(header + second + second + first)
    assert store.take() == 0
    assert store.usage("2026-11") == {"ws_1": (2, 0)}
    assert len(raw(store)) == 2


def test_segments_of_many_writers_in_any_order_add_up(store: Embedded):
    events = [("ws_1", f"key_{n % 3}", NOVEMBER + n * 1000, b"VALID", API) for n in range(60)]
    for start in range(0, 60, 2):
        record(store, *events[start : start + 2])
        if start % 14 == 0:
            store.take()
    store.take()
    assert store.usage("2026-11") == {"ws_1": (60, 0)}
    assert sorted(int(str(row[2])) for row in raw(store)) == [NOVEMBER + n * 1000 for n in range(60)]


def test_many_small_segments_become_one(store: Embedded):
    for n in range(40):
        record(store, ("ws_1", "key_1", NOVEMBER + n, b"VALID", API))
        store.take()
    assert len(store.files(VERIFICATIONS.name)) <= 17
    assert len({row[0] for row in raw(store)}) == len(raw(store)) == 40


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_round_that_ends_in_its_middle_is_made_good_by_the_next(
    store: Embedded, moment: str, monkeypatch: pytest.MonkeyPatch
):
    """Killed before, or after, the transaction: files are not in their places, spooled ones are still there."""
    record(store, ("ws_1", "key_1", NOVEMBER, b"VALID", API))
    killed = (
        "apps.analytics.embedded._add" if moment == "before" else "apps.analytics.embedded.Embedded._publish"
    )

    def kill(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(killed, kill)
        with pytest.raises(KeyboardInterrupt):
            store.take()
    assert raw(store) == []
    store.take()
    assert store.usage("2026-11") == {"ws_1": (1, 0)}
    assert len(raw(store)) == 1
    assert list(store.spool.segments(VERIFICATIONS.name)) == []
    assert not list((store.folder / "segments").glob("*/*/*.part"))


def test_a_segment_that_cannot_be_read_is_put_aside_and_holds_up_no_other(store: Embedded):
    record(store, ("ws_1", "key_1", NOVEMBER, b"VALID", API))
    folder = store.spool.folder / VERIFICATIONS.name
    (folder / "aaa-000000000001-000000000001.ndjson").write_bytes(b"[]\n{not json\n")
    assert store.take() == 1
    assert [path.name for path in folder.iterdir()] == ["aaa-000000000001-000000000001.broken"]


def test_segments_of_before_a_column_was_added_are_taken_and_merged_with_later_ones(store: Embedded):
    columns = list(GATEWAY_REQUESTS.columns)
    old = columns.index("policies")
    place = store.spool.folder / GATEWAY_REQUESTS.name
    place.mkdir(parents=True)
    kept = store.folder / "segments" / GATEWAY_REQUESTS.name / str(NOVEMBER // DAY) / "seg_old.ndjson"
    for number, letter in enumerate("abcdefghijkmnopqr"):
        row = [f"W{letter}-1", "req_1", NOVEMBER, "ws_1", *[""] * (old - 4)]
        names = columns[:old] if number < 16 else columns
        row += [[], [], "", [], ""] if number == 16 else []
        lines = b"".join(msgspec.json.encode(each) + b"\n" for each in (names, row))
        (place / f"W{letter}-000000000001-000000000001.ndjson").write_bytes(lines)
    assert store.take() == 17
    (path,) = store.files(GATEWAY_REQUESTS.name)
    header, *rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert header == columns
    assert len(rows) == 17
    assert {tuple(map(str, row[old:])) for row in rows} == {("[]", "[]", "", "[]", "")}
    # What an earlier version kept is merged, too.
    kept.write_bytes(msgspec.json.encode(columns[:old]) + b"\n" + msgspec.json.encode(rows[0][:old]) + b"\n")
    (line,) = store._lines(GATEWAY_REQUESTS, [str(kept.relative_to(store.folder / "segments"))])
    assert msgspec.json.decode(line) == rows[0]


def test_series_and_keys_are_asked_by_workspace_and_bucket(store: Embedded):
    hour = NOVEMBER - NOVEMBER % 3_600_000
    record(
        store,
        ("ws_1", "key_1", hour + 1, b"VALID", API),
        ("ws_1", "key_1", hour + 2, b"VALID", API),
        ("ws_1", "key_2", hour + 70_000, b"DISABLED", API),
        ("ws_2", "key_3", hour, b"VALID", API),
        spent=5,
    )
    store.take()
    day = (hour, hour + DAY)
    assert store.verifications("ws_1", "hour", *day, {}) == [(hour, "DISABLED", 1, 5), (hour, "VALID", 2, 10)]
    assert store.verifications("ws_1", "minute", *day, {}) == [
        (hour, "VALID", 2, 10),
        (hour + 60_000, "DISABLED", 1, 5),
    ]
    assert store.verifications("ws_1", "minute", *day, {"key_id": ["key_2", "key_3"]}) == [
        (hour + 60_000, "DISABLED", 1, 5)
    ]
    assert store.usage_by_key("ws_1", "hour", *day, {}) == [
        ("key_1", "VALID", 2, 10),
        ("key_2", "DISABLED", 1, 5),
    ]
    assert store.usage_by_key("ws_2", "hour", *day, {"key_space_id": []}) == []
    assert store.last_used("ws_1", ["key_1", "key_3", "key_9"]) == {"key_1": hour + 2}


def test_what_is_older_than_its_table_is_kept_goes_and_its_usage_stays(store: Embedded):
    record(store, ("ws_1", "key_1", NOVEMBER, b"VALID", API))
    store.take()
    before = clock.from_ms(NOVEMBER + 91 * DAY) - clock.now()
    with clock.shifted(before):
        store.take()
        assert store.files(VERIFICATIONS.name) == []
    assert store.usage("2026-11") == {"ws_1": (1, 0)}
    assert not list((store.folder / "segments").glob("*/*/*"))


@given(st.lists(st.integers(1, 40)))
def test_numbers_are_new_exactly_once(numbers: list[int]):
    ranges, seen = Ranges(), set()
    for number in numbers:
        assert ranges.add(number) == (number not in seen)
        seen.add(number)
        flat = [n for first, last in ranges.spans for n in range(first, last + 1)]
        assert flat == sorted(seen)
        assert all(a[1] + 1 < b[0] for a, b in zip(ranges.spans, ranges.spans[1:], strict=False))
