"""Events: what is recorded is on disk after a stop, whole and once; what there is no room for is counted."""

import json
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.telemetry.events import Telemetry
from edge.telemetry.facts import key_facts, ratelimit_facts
from edge.telemetry.spool import Segment, Spool
from edge.telemetry.tables import API_REQUESTS, RATELIMITS, TABLES, VERIFICATIONS, Table

FACTS = key_facts("ws_1", "ks_1", "id_1", 'user "7"\n', "key_1")


def rows(spool: Spool, table: Table) -> list[dict[str, object]]:
    found = []
    for path in spool.segments(table.name):
        header, *lines = path.read_text().splitlines()
        assert json.loads(header) == list(table.columns)
        found += [dict(zip(table.columns, json.loads(line), strict=True)) for line in lines]
    return found


def test_every_kind_of_event_is_a_row_of_its_table_after_a_stop(tmp_path: Path):
    telemetry = Telemetry(Spool(tmp_path), region="100%d")
    telemetry.start()
    telemetry.record_verification(b"req_1", 1000, FACTS, b"VALID", spent=2, latency=0.25, tags=b'["a"]')
    telemetry.record_verification(b"req_2", 1001, FACTS, b"DISABLED", source=b'"gateway","app_1"')
    telemetry.record_ratelimit(
        b"req_3", 1002, ratelimit_facts("ws_1", "rlns_1", "ünique"), False, 10, 0, 60_000, cost=3
    )
    telemetry.record_request(
        *("req_4", 1003, "ws_1"),
        host="h",
        method="POST",
        path="/v2/a.b",
        status=404,
        error="err:x:y:z",
        latency=7,
        user_agent="u",
        ip_address="::1",
        region="fra",
    )
    telemetry.stop()

    first, second = rows(telemetry._spool, VERIFICATIONS)
    writer, number = str(first.pop("event_id")).split("-")
    assert number == "1"
    assert second.pop("event_id") == f"{writer}-2"
    assert first == {
        **{"request_id": "req_1", "time": 1000, "workspace_id": "ws_1", "key_space_id": "ks_1"},
        **{"identity_id": "id_1", "external_id": 'user "7"\n', "key_id": "key_1", "region": "100%d"},
        **{"source": "api", "app_id": "", "outcome": "VALID", "tags": ["a"]},
        **{"spent_credits": 2, "latency": 0.25},
    }
    assert (second["source"], second["app_id"], second["outcome"]) == ("gateway", "app_1", "DISABLED")
    (limit,) = rows(telemetry._spool, RATELIMITS)
    assert (limit["identifier"], limit["passed"], limit["limit"], limit["tokens"]) == ("ünique", False, 10, 3)
    (told,) = rows(telemetry._spool, API_REQUESTS)
    assert (told["path"], told["response_status"], told["error"]) == ("/v2/a.b", 404, "err:x:y:z")
    assert telemetry.recorded == {
        "key_verifications_raw_v2": 2,
        "ratelimits_raw_v2": 1,
        "api_requests_raw_v2": 1,
        "frontline_requests_raw_v1": 0,
    }
    assert not telemetry.dropped


def test_what_there_is_no_room_for_is_dropped_and_counted(tmp_path: Path):
    telemetry = Telemetry(Spool(tmp_path), region="", most=3)
    for number in range(5):
        telemetry.record_verification(b"req_1", number, FACTS, b"VALID")
    telemetry.stop()
    assert [row["time"] for row in rows(telemetry._spool, VERIFICATIONS)] == [0, 1, 2]
    assert telemetry.dropped == {"key_verifications_raw_v2": 2}


def test_a_segment_that_the_disk_refuses_is_written_later_before_what_came_after_it(tmp_path: Path):
    (tmp_path / "file").write_text("")
    telemetry = Telemetry(Spool(tmp_path / "file"), region="")
    telemetry.record_verification(b"req_1", 1, FACTS, b"VALID")
    telemetry.flush()
    telemetry.record_verification(b"req_2", 2, FACTS, b"VALID")
    telemetry.flush()
    (tmp_path / "file").unlink()
    telemetry.stop()
    found = rows(telemetry._spool, VERIFICATIONS)
    assert [str(row["event_id"]).split("-")[1] for row in found] == ["1", "2"]
    assert [row["time"] for row in found] == [1, 2]


def test_an_event_that_cannot_be_written_is_counted_and_takes_no_other_with_it(tmp_path: Path):
    telemetry = Telemetry(Spool(tmp_path), region="")
    asked = {"method": "GET", "path": "/", "error": "", "user_agent": "", "ip_address": "", "region": ""}
    for host in ("a", "\ud800", "b"):
        telemetry.record_request("req_1", 1, "ws_1", host=host, status=200, latency=0, **asked)
    telemetry.stop()
    assert [row["host"] for row in rows(telemetry._spool, API_REQUESTS)] == ["a", "b"]
    assert telemetry.dropped == {"api_requests_raw_v2": 1}


def test_a_full_spool_refuses_and_the_events_are_counted(tmp_path: Path):
    telemetry = Telemetry(Spool(tmp_path, most=10), region="")
    telemetry.record_verification(b"req_1", 1, FACTS, b"VALID")
    telemetry.stop()
    assert rows(telemetry._spool, VERIFICATIONS) == []
    assert telemetry.dropped == {"key_verifications_raw_v2": 1}


def test_writing_a_segment_twice_leaves_one(tmp_path: Path):
    spool = Spool(tmp_path)
    segment = Segment("ratelimits_raw_v2", "abc", 1, 1, b"[]\n")
    assert spool.write(segment)
    assert spool.write(segment)
    assert [path.name for path in spool.segments("ratelimits_raw_v2")] == [
        "abc-000000000001-000000000001.ndjson"
    ]


def test_threads_that_record_while_segments_are_written_lose_nothing(tmp_path: Path):
    telemetry = Telemetry(Spool(tmp_path), region="")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            telemetry.flush()

    def record(first: int) -> None:
        for number in range(first, first + 500):
            telemetry.record_verification(b"req_1", number, FACTS, b"VALID")

    writer = threading.Thread(target=write)
    recorders = [threading.Thread(target=record, args=(first,)) for first in (0, 500, 1000)]
    for each in (writer, *recorders):
        each.start()
    for each in recorders:
        each.join()
    done.set()
    writer.join()
    telemetry.stop()
    found = rows(telemetry._spool, VERIFICATIONS)
    assert sorted(int(str(row["time"])) for row in found) == list(range(1500))
    assert len({row["event_id"] for row in found}) == 1500


@given(st.lists(st.text(), min_size=5, max_size=5))
def test_texts_of_callers_stay_within_their_columns(texts: list[str]):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    facts = key_facts(*texts)
    assert b"\n" not in facts
    assert json.loads(b"[%b]" % facts) == texts


def test_all_tables_begin_with_the_columns_that_every_reader_needs():
    for table in TABLES:
        assert list(table.columns)[:4] == ["event_id", "request_id", "time", "workspace_id"]
