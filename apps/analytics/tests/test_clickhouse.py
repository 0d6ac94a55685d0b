"""ClickHouse: what is shipped arrives once, is counted by its views, and is asked as the embedded store is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.analytics.clickhouse import ClickHouse, migrate, statements
from apps.analytics.embedded import Embedded
from apps.analytics.gateway import Scope, confine
from apps.analytics.schema import SOURCES, VERIFICATION_SOURCES
from apps.analytics.tests.conftest import OURS, SECRET, THEIRS, record
from edge.telemetry.clickhouse import Refused, Server, Shipper, Unreachable
from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts
from edge.telemetry.spool import Spool
from edge.telemetry.tables import RATELIMITS, VERIFICATIONS
from unkey import clock, errors


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    program = Path(__file__).with_name("clickhouse_server.py")
    with subprocess.Popen([sys.executable, "-I", str(program)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        yield f"http://unkey:pass%2Fword@127.0.0.1:{port}/default"
        child.kill()


@pytest.fixture(scope="module")
def both(url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClickHouse, Embedded]:
    """Both stores with the same events; the server was sent every segment twice."""
    server = Server(url)
    names = [name for name, _ in statements()]
    assert migrate(server) == names
    assert migrate(server) == []
    embedded = Embedded(tmp_path_factory.mktemp("analytics"))
    taken: dict[Path, bytes] = {}
    take = embedded.take
    embedded.take = lambda: 0  # type: ignore[method-assign]
    record(embedded, OURS, "ours", 12)
    record(embedded, THEIRS, SECRET, 30)
    for table in (VERIFICATIONS, RATELIMITS):
        taken |= {path: path.read_bytes() for path in embedded.spool.segments(table.name)}
    assert len(taken) == 4
    ship = Shipper(server)
    for _ in range(2):
        for path, content in taken.items():
            path.write_bytes(content)
        ship(embedded.spool)
        assert not [*embedded.spool.segments(VERIFICATIONS.name), *embedded.spool.segments(RATELIMITS.name)]
    for path, content in taken.items():
        path.write_bytes(content)
    take()
    return ClickHouse(server), embedded


def test_both_stores_answer_alike(both: tuple[ClickHouse, Embedded]):
    clickhouse, embedded = both
    now = clock.now_ms()
    period = clock.from_ms(now - 30).strftime("%Y-%m")
    assert clickhouse.usage(period) == embedded.usage(period) == {OURS: (8, 6), THEIRS: (20, 15)}
    start, end = now - now % 86_400_000 - 86_400_000, now + 1
    keys = ["key_ours_0", "key_ours_1", "it's \\ nobody's"]
    for bucket in ("minute", "hour", "day"):
        filters: tuple[dict[str, list[str]], ...] = (
            {},
            {"key_id": keys[1:]},
            {"key_space_id": ["ks_ours_0"]},
            {"external_id": []},
        )
        for only in filters:
            asked = (OURS, bucket, start, end, only)
            assert clickhouse.verifications(*asked) == embedded.verifications(*asked)
            assert clickhouse.usage_by_key(*asked) == embedded.usage_by_key(*asked)
    assert clickhouse.verifications(OURS, "day", start, end, {}) != []
    first = embedded.verifications(OURS, "minute", start, end, {})[0][0]
    for since, until in ((start, first), (start, first + 1), (first, first + 1), (first + 1, end)):
        asked = (OURS, "minute", since, until, {})
        assert clickhouse.verifications(*asked) == embedded.verifications(*asked), until - first
    assert clickhouse.last_used(OURS, keys) == embedded.last_used(OURS, keys)
    assert len(clickhouse.last_used(OURS, keys)) == 2
    assert clickhouse.last_used(THEIRS, keys) == {}
    assert clickhouse.used_since(now - 600_000) == embedded.used_since(now - 600_000) != {}
    assert clickhouse.used_since(now + 60_000) == embedded.used_since(now + 60_000) == {}


def test_confined_sql_is_run_on_the_server(both: tuple[ClickHouse, Embedded]):
    clickhouse, _ = both
    scope = Scope(OURS, VERIFICATION_SOURCES, 30)
    for table in (
        "key_verifications_v1",
        *(f"key_verifications_per_{bucket}_v1" for bucket in ("minute", "month")),
    ):
        measure = "count()" if table == "key_verifications_v1" else "sum(count)"
        assert clickhouse.run(confine(f"SELECT {measure} AS n FROM {table}", scope), 10) == [{"n": 12}]
    with pytest.raises(errors.InvalidAnalyticsQuery):
        clickhouse.run(confine("SELECT nothing FROM key_verifications_v1", scope), 10)
    for alias in SOURCES:
        clickhouse.run(confine(f"SELECT * FROM {alias}", Scope(OURS, SOURCES, 30)), 100)


def test_a_server_that_is_away_keeps_what_is_spooled_and_is_said_to_be_away(tmp_path: Path):
    nobody = Server("http://127.0.0.1:1/default", seconds=1)
    embedded = Embedded(tmp_path)
    embedded.take = lambda: 0  # type: ignore[method-assign]
    record(embedded, OURS, "ours", 2)
    before = list(embedded.spool.segments(VERIFICATIONS.name))
    Shipper(nobody)(embedded.spool)
    assert list(embedded.spool.segments(VERIFICATIONS.name)) == before
    with pytest.raises(errors.AnalyticsConnectionFailed):
        ClickHouse(nobody).run("SELECT 1", 1)
    with pytest.raises(Unreachable):
        nobody.run("SELECT 1")


def test_who_may_not_is_told_by_the_servers_code(url: str):
    with pytest.raises(Refused) as caught:
        Server(url.replace("pass%2Fword", "wrong")).run("SELECT 1")
    assert caught.value.code == 516


def test_only_ones_own_segments_are_sent_at_once(url: str, tmp_path: Path):
    spool = Spool(tmp_path)
    embedded = Embedded(tmp_path)
    embedded.take = lambda: 0  # type: ignore[method-assign]
    record(embedded, OURS, "ours", 1)
    (path,) = embedded.spool.segments(VERIFICATIONS.name)
    Shipper(Server("http://127.0.0.1:1"))(embedded.spool, "nobody")  # nothing to send: nobody is asked
    assert path.exists()
    assert list(spool.segments(VERIFICATIONS.name)) == []


@pytest.mark.parametrize("url", ["", "clickhouse://a", "http://"])
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(ValueError, match="CLICKHOUSE_URL"):
        Server(url)


def test_a_process_that_stops_has_sent_everything(url: str, tmp_path: Path, both: object):
    telemetry = Telemetry(Spool(tmp_path), region="local", ship=Shipper(Server(url)))
    telemetry.start()
    for _ in range(3):
        facts = key_facts("ws_stopping", "ks", "", "", "key")
        telemetry.record_verification(b"req_1", clock.now_ms(), facts, b"VALID")
    telemetry.stop()
    assert list(telemetry._spool.segments(VERIFICATIONS.name)) == []
    count = f"SELECT count() FROM {VERIFICATIONS.name} WHERE workspace_id = 'ws_stopping' FORMAT TabSeparated"
    assert Server(url).run(count) == b"3\n"
