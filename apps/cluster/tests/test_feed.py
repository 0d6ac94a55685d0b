"""The watch stream, as a reader over a socket sees it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from apps.cluster import feed, queries, tokens
from apps.cluster.models import Stream
from apps.deployments.models import Deployment, Instance
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def feed_url(transactional_db) -> Iterator[str]:
    """The feed process's application, served by uvicorn."""
    from unkey.asgi import application

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            http="unkey.streaming:Protocol",
            log_config=None,
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


class Reader:
    """Reads the stream line by line."""

    def __init__(self, url: str, bearer: dict[str, str], region: str = "local", version: int = 0) -> None:
        self._client = httpx.Client(headers=bearer, timeout=10, trust_env=False)
        self._opened = self._client.stream(
            "GET", f"{url}/internal/watch", params={"region": region, "version": version, "agent": "a1"}
        )
        self.response = self._opened.__enter__()
        self._lines = self.response.iter_lines()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.__exit__(None, None, None)
        self._client.close()

    def next(self) -> dict:
        line: dict = json.loads(next(self._lines))
        return line

    def rest(self) -> list[dict]:
        return [json.loads(line) for line in self._lines]

    def until_synced(self) -> list[dict]:
        lines = [self.next()]
        while lines[-1]["type"] != "synced":
            lines.append(self.next())
        return lines


def test_reader_gets_the_state_then_each_change_as_it_commits(feed_url, bearer, place, environment):
    first = place(GREETING="secret value")
    place(region="eu")
    with Reader(feed_url, bearer) as reader:
        row, synced = reader.until_synced()
        assert row == {
            "type": "topology",
            "version": 1,
            "deploymentId": first.deployment_id,
            "environmentId": environment.id,
            "workspaceId": environment.workspace_id,
            "projectId": environment.app.project_id,
            "appId": environment.app_id,
            "desired": "running",
            "replicas": 1,
            "replicasMax": 1,
            "thresholdCpu": 80,
            "thresholdMemory": None,
            "image": "snapshot@sha256:" + "0" * 64,
            "plan": {"kind": "command", "command": ["true"], "install": None},
            "settings": {"memoryMib": 256},
            "variables": ["GREETING"],
        }
        assert synced == {"type": "synced", "version": 1, "full": True, "reason": "new"}
        second = place()
        place(desired="stopped", deployment=first.deployment_id)
        assert [(line["version"], line["deploymentId"], line["desired"]) for line in (reader.next(), reader.next())] == [
            (2, second.deployment_id, "running"),
            (3, first.deployment_id, "stopped"),
        ]  # fmt: skip


def test_reader_resumes_after_the_version_that_it_applied(feed_url, bearer, place):
    rows = [place() for _ in range(4)]
    with Reader(feed_url, bearer, version=2) as reader:
        *lines, synced = reader.until_synced()
        assert [line["deploymentId"] for line in lines] == [row.deployment_id for row in rows[2:]]
        assert synced == {"type": "synced", "version": 4, "full": False}


def test_whole_state_leaves_out_what_is_stopped_and_gone(feed_url, bearer, place):
    running, confirmed, stopping = place(), place(), place()
    for topology, status in ((confirmed, "gone"), (stopping, "draining")):
        place(desired="stopped", deployment=topology.deployment_id)
        Instance.objects.create(
            deployment_id=topology.deployment_id, region=topology.region, name="i", status=status
        )
    with Reader(feed_url, bearer) as reader:
        *lines, synced = reader.until_synced()
        assert [(line["deploymentId"], line["desired"]) for line in lines] == [
            (running.deployment_id, "running"),
            (stopping.deployment_id, "stopped"),
        ]
        assert synced["version"] == 5


def test_version_that_was_never_given_out_gets_the_whole_state(feed_url, bearer, place):
    place()
    with Reader(feed_url, bearer, version=99) as reader:
        row, synced = reader.until_synced()
        assert (row["version"], synced) == (
            1,
            {"type": "synced", "version": 1, "full": True, "reason": "unknown_version"},
        )


def test_no_reader_misses_or_repeats_a_change_while_it_connects(feed_url, bearer, place):
    stop = threading.Event()
    made: list[str] = []

    def write() -> None:
        from django.db import connection

        while not stop.is_set() and len(made) < 200:
            made.append(place().deployment_id)
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[list[int]] = []
    try:
        for _ in range(5):
            with Reader(feed_url, bearer) as reader:
                lines = [reader.next() for _ in range(15)]
                seen.append([line["version"] for line in lines if line["type"] == "topology"])
    finally:
        stop.set()
        writer.join()
    for versions in seen:
        assert versions == list(range(1, len(versions) + 1))


def test_silent_stream_carries_heartbeats(feed_url, bearer, place, monkeypatch):
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(feed, "TICK_SECONDS", 0.02)
    place()
    with Reader(feed_url, bearer) as reader:
        reader.until_synced()
        assert reader.next() == {"type": "heartbeat", "version": 1}


def test_strangers_and_nonsense_are_refused(feed_url, bearer):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with Reader(feed_url, headers) as reader:
            assert reader.response.status_code == 401
    for query in (
        "region=",
        "region=local&version=-1",
        "region=local&version=x",
        "version=1",
        "region=local&version=" + "9" * 30,
    ):
        answer = httpx.get(f"{feed_url}/internal/watch?{query}", headers=bearer, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["title"]) == (400, "Bad Request")
    assert httpx.post(f"{feed_url}/internal/watch", headers=bearer, trust_env=False).status_code == 405


def test_feed_serves_health_and_nothing_of_web(feed_url):
    for path, status in (
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/health/startup", 200),
        ("/metrics", 401),
        ("/admin/", 404),
        ("/internal/secrets", 404),
    ):
        assert httpx.get(feed_url + path, trust_env=False).status_code == status


def test_backlog_comes_page_by_page_and_changes_after_it(feed_url, bearer, place, monkeypatch):
    monkeypatch.setattr(feed, "PAGE", 3)
    rows = [place() for _ in range(7)]
    place(desired="stopped", deployment=rows[0].deployment_id)
    with Reader(feed_url, bearer) as reader:
        *lines, synced = reader.until_synced()
        assert [line["version"] for line in lines] == [2, 3, 4, 5, 6, 7]
        assert synced == {"type": "synced", "version": 8, "full": True, "reason": "new"}
        place(desired="stopped", deployment=rows[1].deployment_id)
        assert reader.next()["version"] == 9


def test_row_that_stops_while_the_whole_state_is_read_is_told_as_stopped(place):
    first = place()
    head = queries.topology_bounds("local")[0]
    place(desired="stopped", deployment=first.deployment_id)
    lines = queries.topologies_after("local", 0, limit=10, settled=head)
    assert [(line["version"], line["desired"]) for line in lines] == [(2, "stopped")]


def test_reader_that_missed_removed_ends_gets_the_whole_state_and_is_told_why(feed_url, bearer, place):
    place()
    running = place()
    Stream.objects.filter(name="topologies:local").update(compacted=2)
    with Reader(feed_url, bearer, version=1) as reader:
        *lines, synced = reader.until_synced()
        assert [line["version"] for line in lines] == [1, 2]
        assert synced == {"type": "synced", "version": 2, "full": True, "reason": "compacted"}
        assert running.version == 2
    with Reader(feed_url, bearer, version=2) as reader:
        assert reader.until_synced() == [{"type": "synced", "version": 2, "full": False}]


def test_reader_that_takes_nothing_is_cut_off_and_others_go_on(feed_url, bearer, place, monkeypatch):
    monkeypatch.setattr(feed, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(feed, "PAGE", 20)
    for _ in range(60):
        place()
    with unscoped("test"):
        Deployment.objects.update(settings={"filler": "y" * 200_000})
    address = urlsplit(feed_url)
    before = _cut_off("stalled")
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((address.hostname, address.port))
        deaf.sendall(
            b"GET /internal/watch?region=local&version=0&agent=deaf HTTP/1.1\r\nHost: feed\r\n"
            b"Authorization: %b\r\n\r\n" % bearer["Authorization"].encode()
        )
        deadline = time.monotonic() + 30
        while _cut_off("stalled") == before:
            assert time.monotonic() < deadline, "the deaf reader is still being waited for"
            time.sleep(0.01)
        # Nothing is kept for it: what its kernel had taken comes, then the connection's end.
        deaf.settimeout(10)
        taken = 0
        with contextlib.suppress(ConnectionError):
            while octets := deaf.recv(65536):
                taken += len(octets)
    assert 0 < taken < 12_000_000
    with Reader(feed_url, bearer) as reader:
        assert len(reader.until_synced()) == 61


def _cut_off(why: str) -> float:
    return feed.CUT_OFF.labels(why)._value.get()


def _line(version: int) -> feed.Line:
    return feed.Line(version, b"%d\n" % version)


def test_ring_gives_each_reader_what_follows_its_version():
    ring = feed.Ring(head=10, octets=1000)
    assert ring.after(10) == (b"", 10)
    ring.publish([_line(11), _line(13)], 13)
    ring.publish([_line(14)], 15)
    assert ring.after(10) == (b"11\n13\n14\n", 15)
    assert ring.after(11) == (b"13\n14\n", 15)
    assert ring.after(13) == (b"14\n", 15)
    assert ring.after(15) == (b"", 15)
    assert ring.after(20) == (b"", 20)
    with pytest.raises(feed.FellBehind):
        ring.after(9)


def test_ring_keeps_no_more_than_it_may():
    ring = feed.Ring(head=0, octets=10)
    for version in range(10, 20):
        ring.publish([_line(version)], version)
    assert ring.after(16) == (b"17\n18\n19\n", 19)
    with pytest.raises(feed.FellBehind):
        ring.after(15)
    ring.publish([_line(20), _line(21), _line(22), _line(23)], 23)
    assert ring.after(19) == (b"20\n21\n22\n23\n", 23)


def test_ring_reader_gets_a_long_stretch_in_pieces(monkeypatch):
    monkeypatch.setattr(feed, "CHUNK", 3)
    ring = feed.Ring(head=0, octets=1000)
    for version in (10, 11, 12, 13):
        ring.publish([_line(version)], version)
    assert ring.after(0) == (b"10\n11\n", 11)
    assert ring.after(11) == (b"12\n13\n", 13)


def test_token_of_an_agent_watches_its_own_region_only(feed_url, place):
    place()
    _, text = tokens.create("agent", "a1", "local")
    headers = {"Authorization": f"Bearer {text}"}
    with Reader(feed_url, headers) as reader:
        assert reader.until_synced()[-1]["version"] == 1
    for query, why in (
        ("region=eu&agent=a1", "This token speaks for region local, not for eu: check REGION."),
        ("region=local&agent=a2", "This token is of a1, not of a2: check AGENT_ID."),
        ("region=local", "This token is of a1, not of an unnamed one: check AGENT_ID."),
    ):
        answer = httpx.get(f"{feed_url}/internal/watch?{query}", headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["detail"]) == (403, why)


def test_stream_of_a_token_that_is_revoked_ends(feed_url, place, monkeypatch):
    monkeypatch.setattr(feed, "TOKEN_SECONDS", 0.05)
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(feed, "TICK_SECONDS", 0.02)
    row, text = tokens.create("agent", "a1", "local")
    with Reader(feed_url, {"Authorization": f"Bearer {text}"}) as reader:
        reader.until_synced()
        assert reader.next()["type"] == "heartbeat"
        tokens.revoke(row.id)
        assert {line["type"] for line in reader.rest()} <= {"heartbeat"}
    with Reader(feed_url, {"Authorization": f"Bearer {text}"}) as reader:
        assert reader.response.status_code == 401
