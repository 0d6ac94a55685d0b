"""Live progress, as an EventSource over a socket sees it."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from apps.cluster.tests.test_feed import feed_url
from apps.console import live, progress, tickets
from apps.console.live import Log, Poller, Reader, Topic
from apps.console.progress import Place
from apps.console.tests.conftest import Caller, Join
from apps.deployments.tests.conftest import Platform
from apps.workspaces.models import Membership
from unkey import clock, errors
from unkey.rpc.testing import Tenant
from unkey.tenancy import workspace_scope

__all__ = ["feed_url"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(60)]


class Stream:
    """Reads server-sent events one by one."""

    def __init__(self, url: str, query: dict[str, str], **headers: str) -> None:
        self._client = httpx.Client(headers=headers, timeout=30, trust_env=False)
        self._opened = self._client.stream("GET", url, params=query)
        self.response = self._opened.__enter__()
        self._lines = self.response.iter_lines()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.__exit__(None, None, None)
        self._client.close()

    def __iter__(self) -> Iterator[tuple[str, str, Any]]:
        """Yield id, name and data of each event."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
                fields = {}

    def until(self, event: str, **wanted: Any) -> list[tuple[str, str, Any]]:
        """Return the events up to one of this name whose data has these values."""
        seen = []
        for each in self:
            seen.append(each)
            if each[1] == event and all(each[2].get(name) == value for name, value in wanted.items()):
                return seen
        raise AssertionError(f"the stream ended before {event} {wanted}: {seen}")


def events_of(caller: Caller) -> str:
    """Return the path of a workspace's events."""
    return f"/api/workspaces/{caller.workspace.id}/events"


def ticket(caller: Caller, **wanted: Any) -> dict[str, str]:
    """Return the parameters that a page opens a stream by."""
    made = caller("POST", "events/ticket", wanted)
    assert made["url"].startswith(f"http://testserver:8081{events_of(caller)}?ticket=")
    return {"ticket": made["ticket"]}


def test_a_deployment_is_followed_to_the_end_and_resumed_without_loss_or_repetition(
    feed_url: str, owner: Caller, platform: Platform
):
    deployment = platform.create()
    url = feed_url + events_of(owner)
    with Stream(url, ticket(owner, deployment=deployment)) as stream:
        assert stream.response.headers["content-type"] == "text/event-stream"
        begun = stream.until("instances")
        assert [(name, data.get("status")) for _, name, data in begun] == [
            ("deployment", "pending"),
            ("step", "running"),
            ("instances", None),
        ]
        assert begun[0][2] == owner("GET", f"deployments?search={deployment}")["items"][0]
        platform.finish(deployment)
        ended = stream.until("step", step="finalizing", status="done")
        assert "ready" in [data["status"] for _, name, data in ended if name == "deployment"]
    # From where it was when it queued: everything since, nothing again.
    with Stream(url, ticket(owner, deployment=deployment), **{"Last-Event-ID": begun[-1][0]}) as stream:
        missed = stream.until("instances")
    assert [data.get("step") for _, name, data in missed if name == "step"] == [
        "queued",
        "starting",
        "building",
        "deploying",
        "network",
        "finalizing",
    ]
    with Stream(url, ticket(owner, deployment=deployment) | {"lastEventId": missed[-1][0]}) as stream:
        platform.report(deployment, "running", "still well")
        (only,) = stream.until("instances")
        assert only[2]["items"][0]["message"] == "still well"


def test_all_of_a_workspace_is_followed(feed_url: str, owner: Caller, platform: Platform, stranger: Tenant):
    other = Platform(stranger)
    stranger("projects.createProject", {"name": "Shop", "slug": other.project})
    stranger("apps.createApp", {"name": "Default", "slug": other.app, "project": other.project})
    with Stream(feed_url + events_of(owner), ticket(owner)) as stream:
        foreign = other.deploy()
        deployment = platform.deploy()
        seen = stream.until("deployment", id=deployment, status="ready")
    assert foreign not in json.dumps(seen)
    with Stream(feed_url + events_of(owner), ticket(owner), **{"Last-Event-ID": seen[-1][0]}) as stream:
        later = platform.deploy("preview")
        stream.until("deployment", id=later, status="ready")


def test_sessions_and_tokens_open_streams_too(feed_url: str, owner: Caller, platform: Platform):
    deployment = platform.create()
    url, query = feed_url + events_of(owner), {"deployment": deployment}
    with Stream(url, query, Authorization=f"Bearer {owner.token}") as stream:
        assert stream.until("deployment")[0][2]["id"] == deployment
    browser = Client()
    browser.force_login(owner.user)
    cookie = f"sessionid={browser.cookies['sessionid'].value}"
    with Stream(url, query, Cookie=cookie, Origin="http://127.0.0.1:8080") as stream:
        assert stream.until("deployment")[0][2]["id"] == deployment
        assert stream.response.headers["access-control-allow-origin"] == "http://127.0.0.1:8080"
    with Stream(url, query, Cookie=cookie, Origin="http://elsewhere.example") as stream:
        assert "access-control-allow-origin" not in stream.response.headers


def test_whoever_may_not_is_refused(
    feed_url: str, owner: Caller, platform: Platform, stranger: Tenant, join: Join
):
    deployment = platform.create()
    foreign = join(stranger.workspace, "owner")

    def refused(path: str, query: dict[str, str], **headers: str) -> tuple[int, str]:
        answer = httpx.get(feed_url + path, params=query, headers=headers, trust_env=False)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["code"]

    good = ticket(owner, deployment=deployment)
    not_found = (404, "err:unkey:data:workspace_not_found")
    bad = (401, "err:unkey:authentication:invalid_credentials")
    assert refused(events_of(owner), {}) == (401, "err:unkey:authentication:not_signed_in")
    assert refused(events_of(owner), {"ticket": "x"}) == bad
    assert refused(events_of(owner), {"ticket": good["ticket"] + "x"}) == bad
    assert refused(events_of(foreign), good) == not_found
    bearer = {"Authorization": f"Bearer {foreign.token}"}
    assert refused(events_of(owner), {"deployment": deployment}, **bearer) == not_found
    assert refused(events_of(foreign), {"deployment": deployment}, **bearer) == (
        404,
        "err:unkey:data:deployment_not_found",
    )
    foreign.refused("POST", "events/ticket", {"deployment": deployment}, status=404)
    assert httpx.post(feed_url + events_of(owner), trust_env=False).status_code == 405
    with workspace_scope(owner.workspace.id):
        Membership.objects.all().delete()
    assert refused(events_of(owner), good) == not_found


@pytest.mark.parametrize(
    "header",
    [b"Host: [", b"Origin: http://[", b"Cookie: sessionid=\xff", b"Cookie: =;;=", b"Authorization: \xff x"],
)
def test_odd_headers_are_refused_and_no_fault_of_ours(header: bytes, feed_url: str):
    address = urlsplit(feed_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as odd:
        odd.sendall(b"GET /api/workspaces/x/events HTTP/1.1\r\n%b\r\n\r\n" % header)
        assert odd.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_ticket_opens_for_a_minute(monkeypatch: pytest.MonkeyPatch):
    made = tickets.sign(tickets.Ticket(1, "ws_1"))
    assert tickets.read(made) == tickets.Ticket(1, "ws_1")
    assert timedelta(minutes=1) == tickets.LIFE
    monkeypatch.setattr(tickets, "LIFE", timedelta(seconds=-1))
    with pytest.raises(errors.InvalidCredentials, match="older than a minute"):
        tickets.read(made)


def test_a_stream_ends_when_its_person_leaves(
    feed_url: str, owner: Caller, platform: Platform, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.2)
    with Stream(feed_url + events_of(owner), ticket(owner, deployment=platform.create())) as stream:
        stream.until("instances")
        User.objects.filter(pk=owner.user.pk).update(is_active=False)
        assert stream.until("end")[-1][2] == {
            "reason": "You are no longer a member of the workspace, or the token no longer works."
        }


def test_heartbeats_come_while_nothing_happens(
    feed_url: str, owner: Caller, platform: Platform, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.1)
    with Stream(feed_url + events_of(owner), ticket(owner)) as stream:
        lines = stream.response.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(line for line in lines if line) == ": heartbeat"


def test_a_reader_that_takes_nothing_is_cut_off(
    feed_url: str, owner: Caller, platform: Platform, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.01)
    huge = progress.Part("deployment", "aaaaaa", json.dumps({"filler": "y" * 8_000_000}).encode())
    monkeypatch.setattr(
        progress, "of_deployments", lambda asked: {each: {"deployment": huge} for each in asked}
    )
    opened = ticket(owner, deployment=platform.create())
    address = urlsplit(feed_url)
    before = live.STREAMS._value.get()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((address.hostname, address.port))
        request = f"GET {events_of(owner)}?ticket={opened['ticket']} HTTP/1.1\r\nHost: feed\r\n\r\n"
        deaf.sendall(request.encode())
        deadline = time.monotonic() + 30
        opening = True
        while opening or live.STREAMS._value.get() > before:
            opening = opening and live.STREAMS._value.get() == before
            assert time.monotonic() < deadline, "the deaf reader is still being waited for"
            time.sleep(0.001)


def test_the_database_is_asked_equally_often_for_one_reader_and_for_many(owner: Caller, platform: Platform):
    deployments = [platform.create() for _ in range(3)]
    poller = Poller()

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            progress.of_deployments({topic.deployment for topic in poller._topics.values()})
        return len(captured)

    place = Place(owner.user.pk, owner.workspace.id, "")
    for _ in range(50):
        topic = poller.topic(owner.workspace.id, deployments[0], False)
        topic.readers.add(Reader(place, topic, {}, 0, (-1, 0)))
    assert len(poller._topics) == 1
    one = queries()
    for deployment in deployments:
        topic = poller.topic(owner.workspace.id, deployment, False)
        topic.readers.add(Reader(place, topic, {}, 0, (-1, 0)))
    assert len(poller._topics) == 3
    assert queries() == one
    assert one <= 7


def test_one_person_has_so_many_streams_and_no_more(owner: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MOST_OF_ONE", 1)
    served = live.Live()
    wanted = tickets.Ticket(owner.user.pk, owner.workspace.id)
    reader = served._reader(wanted, "")
    reader.topic.readers.add(reader)
    with pytest.raises(Exception, match="1 streams at a time"):
        served._reader(wanted, "")
    served._poller.remove(reader)
    assert served._poller._topics == {}
    served._reader(wanted, "")


# -- logs -----------------------------------------------------------------------------------------------


def line(time: int, text: str, instance: str = "a") -> dict[str, Any]:
    """Return a log line as an agent gives it."""
    return {"time": time, "instance": instance, "region": "local", "text": text}


def texts(events: list[bytes]) -> list[str]:
    """Return the texts of the lines in log events."""
    found = [json.loads(event.split(b"data: ")[1]) for event in events if b"event: log" in event]
    return [each["text"] for data in found for each in data["lines"]]


def follow(topic: Topic, last_id: str = "") -> Reader:
    """Return a reader of a topic that resumes at an id."""
    known, since, seen = live._position(last_id)
    return Reader(Place(1, "ws", ""), topic, known, since, seen)


def test_lines_come_once_whatever_is_fetched_again():
    topic = Topic("d", log=Log())
    assert topic.log is not None
    reader = follow(topic)
    topic.log.take([line(1, "a"), line(1, "b"), line(2, "c")])
    assert texts(list(reader.events())) == ["a", "b", "c"]
    assert topic.log.take([line(1, "b"), line(2, "c")]) is False
    # Of the same moment, of another instance, and of one whose clock is behind.
    assert topic.log.take([line(1, "late", "b"), line(2, "c"), line(2, "d"), line(3, "e")]) is True
    assert texts(list(reader.events())) == ["late", "d", "e"]
    assert list(reader.events()) == []


def test_a_resumed_reader_gets_the_lines_after_its_last_one():
    topic = Topic("d", log=Log())
    assert topic.log is not None
    first = follow(topic)
    topic.log.take([line(1, "a"), line(2, "b"), line(2, "c")])
    last = list(first.events())[-1].decode().split("\n")[0].removeprefix("id: ")
    assert last == "log=2-2"
    topic.log.take([line(1, "a"), line(2, "b"), line(2, "c"), line(2, "d"), line(5, "e")])
    assert texts(list(follow(topic, last).events())) == ["d", "e"]


def test_a_reader_that_falls_behind_is_told_how_many_lines_it_missed():
    topic = Topic("d", log=Log())
    assert topic.log is not None
    reader = follow(topic)
    topic.log.take([line(0, "first")])
    list(reader.events())
    topic.log.take([line(n, str(n)) for n in range(1, live.KEPT_LINES + 11)])
    events = list(reader.events())
    assert json.loads(events[0].split(b"data: ")[1])["missed"] == 10
    assert texts(events)[-1] == str(live.KEPT_LINES + 10)
    assert len(texts(events)) == live.KEPT_LINES


def test_lines_of_the_agents_reach_the_stream(
    feed_url: str, owner: Caller, platform: Platform, monkeypatch: pytest.MonkeyPatch
):
    written = [line(1, "hello")]
    monkeypatch.setattr(live, "LOG_SECONDS", 0.02)
    monkeypatch.setattr(progress, "log_of", lambda _deployment: (list(written), []))
    wanted = ticket(owner, deployment=platform.create(), logs=True)
    with Stream(feed_url + events_of(owner), wanted) as stream:
        first = stream.until("log")[-1]
        assert first[2] == {"lines": [line(1, "hello")], "missed": 0}
        written.append(line(2, "world"))
        assert stream.until("log")[-1][2]["lines"] == [line(2, "world")]


@given(st.text(max_size=200))
def test_any_text_is_a_position(text: str):
    known, since, (moment, count) = live._position(text)
    assert isinstance(known, dict)
    assert since >= 0
    assert (moment, count) >= (-1, 0)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_.]{1,40}", fullmatch=True), st.from_regex(r"[0-9a-f]{6}", fullmatch=True)
    ),
    st.integers(0, 10**15 - 1),
    st.integers(0, 10**6 - 1),
)
def test_what_an_id_says_is_read_back(known: dict[str, str], moment: int, count: int):
    topic = Topic("d", log=Log())
    identifier = Reader(Place(1, "ws", ""), topic, known, 0, (moment, count))._id()
    assert live._position(identifier) == ({**known}, 0, (moment, count))


def test_the_poller_survives_what_nobody_foresaw(owner: Caller, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def broken(asked: Any) -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("unforeseen")
        return {each: {"deployment": progress.Part("deployment", "aaaaaa", b"{}")} for each in asked}

    monkeypatch.setattr(progress, "of_deployments", broken)
    monkeypatch.setattr(live, "POLL_SECONDS", 0.01)

    async def run() -> list[bytes]:
        poller = Poller()
        topic = poller.topic("ws", "d_1", False)
        reader = Reader(Place(owner.user.pk, "ws", ""), topic, {}, clock.now_ms(), (-1, 0))
        poller.add(reader)
        await asyncio.wait_for(reader.news.wait(), 10)
        events = list(reader.events())
        poller.remove(reader)
        await asyncio.gather(*poller._tasks)
        return events

    assert len(asyncio.run(run())) == 1
