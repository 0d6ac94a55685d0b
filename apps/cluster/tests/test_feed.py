"""The watch stream, as a reader over a socket sees it."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from apps.cluster import feed
from apps.deployments.models import Instance

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def feed_url(transactional_db) -> Iterator[str]:
    """The feed process's application, served by uvicorn."""
    from unkey.asgi import application

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
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
        assert synced == {"type": "synced", "version": 1, "full": True}
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
        assert (row["version"], synced) == (1, {"type": "synced", "version": 1, "full": True})


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
