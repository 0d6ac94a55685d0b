"""The SQL gateway: what may be asked is answered with one's own rows alone; all else is refused in words."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.analytics import gateway
from apps.analytics.embedded import Embedded
from apps.analytics.engines import Chdb
from apps.analytics.gateway import Scope, confine
from apps.analytics.schema import RATELIMIT_SOURCES, SOURCES, VERIFICATION_SOURCES
from apps.analytics.tests.conftest import OURS, SECRET, record
from apps.analytics.tests.escapes import ESCAPES
from unkey import clock, errors
from unkey.errors import Fault

SCOPE = Scope(OURS, VERIFICATION_SOURCES, 30)
T = "key_verifications_v1"


def ask(engine: Chdb, query: str, scope: Scope = SCOPE) -> list[dict[str, Any]]:
    return engine.run(confine(query, scope), scope.rows)


QUESTIONS = [
    (f"SELECT count() AS n FROM {T}", [{"n": 12}]),
    (f"SELECT count(*) AS n, countIf(outcome = 'VALID') AS v FROM {T}", [{"n": 12, "v": 8}]),
    (
        f"SELECT outcome, count() AS n FROM {T} GROUP BY outcome ORDER BY n DESC",
        [{"outcome": "VALID", "n": 8}, {"outcome": "RATE_LIMITED", "n": 4}],
    ),
    (f"SELECT DISTINCT workspace_id FROM {T}", [{"workspace_id": OURS}]),
    (f"SELECT v.key_id AS k FROM {T} AS v WHERE v.key_id IN ('key_ours_1') LIMIT 1", [{"k": "key_ours_1"}]),
    (f"WITH a AS (SELECT key_id FROM {T}) SELECT count() AS n FROM a", [{"n": 12}]),
    (
        f"WITH a AS (SELECT key_id FROM {T}), b AS (SELECT key_id FROM a) SELECT count() AS n FROM b",
        [{"n": 12}],
    ),
    (f"SELECT count() AS n FROM (SELECT key_id FROM {T} LIMIT 5)", [{"n": 5}]),
    (f"SELECT count() AS n FROM {T} a JOIN {T} b ON a.time = b.time", [{"n": 12}]),
    (f"SELECT count() AS n FROM {T} a LEFT JOIN {T} b USING (time)", [{"n": 12}]),
    (f"SELECT 1 AS n FROM {T} LIMIT 1 UNION ALL SELECT 2 AS n FROM {T} LIMIT 1", [{"n": 1}, {"n": 2}]),
    (f"SELECT key_id FROM {T} EXCEPT SELECT key_id FROM {T}", []),
    (
        f"SELECT count() AS n FROM {T} WHERE key_id IN (SELECT key_id FROM {T} WHERE outcome = 'VALID')",
        [{"n": 12}],
    ),
    (f"SELECT sumIf(spent_credits, outcome = 'VALID') AS n FROM {T}", [{"n": 8}]),
    (
        f"SELECT uniq(key_id) AS a, uniqExact(tags) AS b, any(region) AS c FROM {T}",
        [{"a": 2, "b": 1, "c": "local"}],
    ),
    (f"SELECT quantile(0.5)(latency) AS q, round(avg(latency), 1) AS a FROM {T}", [{"q": 0.5, "a": 0.5}]),
    (f"SELECT length(groupArray(3)(key_id)) AS n FROM {T}", [{"n": 3}]),
    (f"SELECT lower('ÄB') AS a, concat('a', 'b') AS b, substring('abc', 2, 1) AS c FROM {T} LIMIT 1", None),
    (
        f"SELECT count() AS n FROM {T} WHERE time >= toUnixTimestamp64Milli(now64(3) - INTERVAL 1 DAY)",
        [{"n": 12}],
    ),
    (f"SELECT count() AS n FROM {T} WHERE has(tags, 'ours')", [{"n": 12}]),
    (f"SELECT arrayJoin(tags) AS t, count() AS n FROM {T} GROUP BY t", [{"t": "ours", "n": 12}]),
    (f"SELECT if(count() > 5, 'many', 'few') AS a FROM {T}", [{"a": "many"}]),
    (f"SELECT CASE WHEN count() > 5 THEN 1 ELSE 0 END AS a FROM {T}", [{"a": 1}]),
    (
        f"SELECT count() AS n FROM {T} WHERE external_id LIKE 'user%' AND NOT (latency < 0 OR key_id = '')",
        [{"n": 12}],
    ),
    (f"SELECT 0 / 0 AS a, 1 / 0 AS b FROM {T} LIMIT 1", [{"a": None, "b": None}]),
    (
        f"SELECT '\\\\' AS a, 'it''s' AS b, 'it\\'s' AS c FROM {T} LIMIT 1",
        [{"a": "\\", "b": "it's", "c": "it's"}],
    ),
    ("SELECT sum(count) AS n FROM key_verifications_per_minute_v1 WHERE outcome = 'VALID'", [{"n": 8}]),
    (
        "SELECT sum(count) AS n, sum(spent_credits) AS s FROM key_verifications_per_hour_v1",
        [{"n": 12, "s": 12}],
    ),
    ("SELECT sum(count) AS n FROM key_verifications_per_day_v1 WHERE time >= today() - 7", [{"n": 12}]),
    ("SELECT sum(count) AS n FROM key_verifications_per_month_v1", [{"n": 12}]),
    (f"SELECT count() AS n FROM {T} HAVING n > 100", []),
    ("SELECT 1 AS n", [{"n": 1}]),
]


@pytest.mark.parametrize(("query", "answer"), QUESTIONS, ids=[query[:70] for query, _ in QUESTIONS])
def test_what_may_be_asked_is_answered_with_ones_own_rows(
    query: str, answer: list[dict[str, Any]] | None, engine: Chdb
):
    found = ask(engine, query)
    if answer is not None:
        assert found == answer
    assert SECRET not in json.dumps(found)


def test_every_table_answers_all_of_its_columns(engine: Chdb):
    for alias, source in SOURCES.items():
        rows = ask(engine, f"SELECT * FROM {alias} LIMIT 1", Scope(OURS, SOURCES, 30))
        if alias.startswith(("key_verifications", "ratelimits")):
            assert tuple(rows[0]) == source.columns
        else:
            assert rows == []


def test_a_caller_of_some_key_spaces_sees_only_theirs(engine: Chdb):
    some = Scope(OURS, VERIFICATION_SOURCES, 30, only=("ks_ours_1", f"ks_{SECRET}_1"))
    assert ask(engine, f"SELECT DISTINCT key_space_id FROM {T}", some) == [{"key_space_id": "ks_ours_1"}]
    assert ask(
        engine, f"SELECT count() AS n FROM {T} a, {T} b WHERE a.key_space_id != b.key_space_id", some
    ) == [{"n": 0}]
    assert ask(engine, f"SELECT count() AS n FROM {T}", Scope(OURS, VERIFICATION_SOURCES, 30, only=())) == [
        {"n": 0}
    ]


def test_rate_limits_are_asked_by_their_own_tables(engine: Chdb):
    limits = Scope(OURS, RATELIMIT_SOURCES, 30)
    assert ask(engine, "SELECT countIf(passed) AS p, sum(tokens) AS t FROM ratelimits_v1", limits) == [
        {"p": 6, "t": 24}
    ]
    rows = ask(engine, "SELECT sum(passed) AS p, sum(total) AS n FROM ratelimits_per_hour_v1", limits)
    assert rows == [{"p": 6, "n": 12}]


def test_an_answer_has_at_most_the_rows_that_are_allowed(engine: Chdb):
    few = Scope(OURS, VERIFICATION_SOURCES, 30, rows=3)
    assert len(ask(engine, f"SELECT time FROM {T}", few)) == 3
    assert len(ask(engine, f"SELECT time FROM {T} LIMIT 100", few)) == 3
    assert len(ask(engine, f"SELECT time FROM {T} LIMIT 2", few)) == 2
    assert len(ask(engine, f"SELECT time FROM {T} UNION ALL SELECT time FROM {T}", few)) == 3
    # A subquery is not cut short: what is counted is all.
    assert ask(engine, f"SELECT count() AS n FROM (SELECT time FROM {T})", few) == [{"n": 12}]


REFUSED = [
    ("", errors.InvalidAnalyticsQuery),
    ("SELEC 1", errors.InvalidAnalyticsQuery),
    ("SELECT (", errors.InvalidAnalyticsQuery),
    ("SELECT " + "(" * 3000 + "1" + ")" * 3000, errors.InvalidAnalyticsQuery),
    ("SELECT '" + "a" * 17_000 + "'", errors.InvalidAnalyticsQuery),
    ("SELECT " + ", ".join(f"1 AS a{n}" for n in range(65)), errors.InvalidAnalyticsQuery),
    ("SELECT " + " + ".join(["1"] * 1500), errors.InvalidAnalyticsQuery),
    ("DROP TABLE key_verifications_v1", errors.InvalidAnalyticsQueryType),
    ("SELECT 1; SELECT 2", errors.InvalidAnalyticsQueryType),
    ("SELECT * FROM ratelimits_v1", errors.InvalidAnalyticsTable),
    ("SELECT sleep(1)", errors.InvalidAnalyticsFunction),
    (f"SELECT * FROM {T} WHERE time > 1600000000000", errors.QueryRangeExceedsRetention),
    (
        f"SELECT * FROM {T} WHERE time >= toUnixTimestamp64Milli(now64() - INTERVAL 90 DAY)",
        errors.QueryRangeExceedsRetention,
    ),
    (f"SELECT * FROM {T} WHERE 1600000000000 < time", errors.QueryRangeExceedsRetention),
    (
        f"SELECT * FROM {T} WHERE time BETWEEN 1600000000000 AND 1700000000000",
        errors.QueryRangeExceedsRetention,
    ),
    (
        "SELECT * FROM key_verifications_per_day_v1 WHERE time >= '2020-01-01'",
        errors.QueryRangeExceedsRetention,
    ),
    (
        "SELECT * FROM key_verifications_per_day_v1 WHERE time >= toDate('2020-01-01')",
        errors.QueryRangeExceedsRetention,
    ),
    (
        "SELECT * FROM key_verifications_per_day_v1 WHERE time >= today() - toIntervalYear(1)",
        errors.QueryRangeExceedsRetention,
    ),
]


@pytest.mark.parametrize(("query", "fault"), REFUSED, ids=[query[:60] for query, _ in REFUSED])
def test_what_may_not_be_asked_is_refused_by_its_own_code(query: str, fault: type[Fault]):
    with pytest.raises(fault) as caught:
        confine(query, SCOPE)
    assert caught.value.detail.endswith((".", "."))
    assert "sqlglot" not in caught.value.detail


def refused(call: Callable[[], Any]) -> tuple[Any, Fault | None]:
    """Return what a call returns, or the fault that it raises."""
    try:
        return call(), None
    except Fault as fault:
        return None, fault


@pytest.mark.parametrize("query", ESCAPES)
def test_no_escape_succeeds(query: str, engine: Chdb):
    """Refused; or run on a store with another tenant's rows, it shows and counts none of them."""
    text, fault = refused(lambda: confine(query, SCOPE))
    if fault is None:
        found, fault = refused(lambda: engine.run(text, SCOPE.rows))
    if fault is not None:
        assert fault.kind.status in (400, 422)
        assert SECRET not in fault.detail
        return
    # Constants of the attempt itself are no leak; what is theirs, or a count of all, is.
    values = [value for row in found for value in row.values()]
    assert not {30, 42}.intersection(value for value in values if isinstance(value, int)), text
    for foreign in (SECRET, "root:", "/etc", '"default"'):
        assert foreign not in json.dumps(values), text


def test_the_corpus_of_escapes_is_large():
    assert len(set(ESCAPES)) >= 100


@given(st.text())
@settings(max_examples=25, deadline=None)
def test_any_text_is_confined_or_refused(text: str):
    for query in (
        text,
        f"SELECT {text} FROM {T}",
        f"SELECT * FROM {text}",
        f"SELECT * FROM {T} WHERE a = '{text}'",
    ):
        confined, fault = refused(partial(confine, query, SCOPE))
        assert fault is not None or OURS in confined or "default." not in confined


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
@settings(max_examples=25, deadline=None)
def test_a_literal_stays_the_text_that_it_was(text: str):
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    confined = confine(f"SELECT count() FROM {T} WHERE external_id = '{quoted}'", SCOPE)
    constants = gateway._constants(gateway._parsed(confined))
    assert sorted([OURS, text]) == constants


def test_the_engines_refusals_are_told_in_our_own_words(engine: Chdb):
    with pytest.raises(errors.InvalidAnalyticsQuery) as caught:
        ask(engine, f"SELECT no_such_column FROM {T}")
    assert caught.value.detail == "The query names a column or alias that does not exist."
    with pytest.raises(errors.QueryMemoryLimitExceeded):
        engine.run("SELECT repeat('a', 1000000) FROM numbers(100)", 10_000)
    with pytest.raises(errors.QueryRowsLimitExceeded):
        engine.run("SELECT number FROM numbers(100)", 10)
    # It answers on afterwards.
    assert ask(engine, f"SELECT count() AS n FROM {T}") == [{"n": 12}]


def test_the_engine_itself_reads_no_file_but_the_stores(engine: Chdb):
    """What would be left if the gateway let something pass."""
    for text in (
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "CREATE TABLE t (a Int8) ENGINE = Memory",
    ):
        with pytest.raises(Fault):
            engine.run(text, 10)


def test_what_is_recorded_later_is_seen(tmp_path: Path):
    store = Embedded(tmp_path)
    engine = Chdb(store)
    try:
        assert ask(engine, f"SELECT count() AS n FROM {T}") == [{"n": 0}]
        record(store, OURS, "ours", 2)
        assert ask(engine, f"SELECT count() AS n FROM {T}") == [{"n": 2}]
        with clock.shifted(clock.from_ms(31 * 86_400_000) - clock.EPOCH):
            assert ask(engine, f"SELECT count() AS n FROM {T}") == [{"n": 0}]
    finally:
        engine.close()
