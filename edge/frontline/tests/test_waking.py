"""Requests for sleeping deployments: held, asked for once, let go when there is an instance."""

import json
import threading
import time

import pytest

from edge.frontline.frontline import Frontline
from edge.frontline.tests.conftest import NoKeys
from edge.frontline.waking import ControlPlane, Reply
from edge.http.tests.rig import PATIENCE
from edge.store.records import Sentinel
from edge.verify.limiter import Limiter

HOST = "shop.test"
GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"


class Sleeper:
    """A frontline with one deployment that sleeps, and a control plane that answers as a test says."""

    def __init__(self, rig, records, **options):
        self.rig = rig
        self.records = records
        self.asked: list[tuple[str, int]] = []
        self.replies: list[Reply | None] = []
        self.asking = threading.Event()
        options.setdefault("wake", self.wake)
        self.role = Frontline(
            records, NoKeys(), Limiter(), rig.pool, edge_id="edge-1", region="local", **options
        )
        self.server = rig.serve(self.role.handle)
        self.waker = self.role.waker
        records.switch(HOST, "d_1")
        self.state("standby", 1)

    async def wake(self, deployment_id, sleep):
        self.asked.append((deployment_id, sleep))
        self.asking.set()
        return self.replies.pop(0) if self.replies else Reply("waking")

    def state(self, desired, version, *policies):
        row = Sentinel("d_1", "ws_1", "env_1", list(policies), "http1", desired, version)
        self.records.sentinels["d_1"] = row
        self.rig.loop.call(lambda: self.records._tell("sentinels", row))

    def run(self, *origins):
        self.rig.loop.call(lambda: self.records.run("d_1", *origins))

    def send(self, raw=GET):
        return self.rig.client(self.server).send(raw)

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not self.rig.loop.call(condition):
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture(autouse=True)
def _long_memory(monkeypatch):
    """Keep what is repeated or forgotten after seconds out of a test that a busy machine slows down."""
    monkeypatch.setattr("edge.frontline.waking._ASK_AGAIN_SECONDS", 600)
    monkeypatch.setattr("edge.frontline.waking._REFUSED_SECONDS", 600)


@pytest.fixture
def sleeper(rig, records):
    """Make a sleeping deployment; keyword arguments reach the frontline."""
    return lambda **options: Sleeper(rig, records, **options)


def refused(client):
    status, headers, body = client.answer()
    return status, json.loads(body)["error"]["code"].rpartition(":")[2], headers


def test_many_first_requests_wake_a_deployment_once_and_all_are_answered(rig, sleeper):
    asleep = sleeper()
    clients = [asleep.send() for _ in range(20)]
    asleep.until(lambda: asleep.waker.count == 20)
    asleep.state("waking", 2)
    later = asleep.send()
    asleep.until(lambda: asleep.waker.count == 21)
    origin = rig.origin()
    asleep.run(origin)
    for client in [*clients, later]:
        status, headers, body = client.answer()
        assert (status, body) == (200, b"GET / 0")
        assert headers["x-unkey-wake"].endswith("s")
        assert float(headers["x-unkey-wake"][:-1]) >= 0
    assert asleep.asked == [("d_1", 1)]
    assert len(origin.seen) == 21
    assert asleep.waker.count == 0
    assert asleep.waker.outcomes == {"woken": 21}
    assert asleep.role.used == {"d_1"}
    status, headers, _ = clients[0].send(GET).answer()
    assert status == 200
    assert "x-unkey-wake" not in headers


def test_a_request_is_held_for_its_time_and_told_when_that_is_over(rig, sleeper):
    asleep = sleeper(hold_seconds=0.3)
    client = asleep.send()
    status, code, headers = refused(client)
    assert (status, code) == (503, "deployment_waking")
    assert headers["x-unkey-wake"] == "timeout"
    assert headers["retry-after"] == "5"
    assert asleep.waker.count == 0
    asleep.state("running", 2)
    asleep.run(rig.origin())
    assert client.send(GET).answer()[0] == 200  # on the same connection


def test_a_body_is_held_with_its_request_and_arrives_whole(rig, sleeper):
    asleep = sleeper()
    body = b"x" * 300_000
    client = rig.client(asleep.server)
    sending = threading.Thread(
        target=client.send,
        args=(b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 300000\r\n\r\n" + body,),
    )
    sending.start()
    asleep.until(lambda: asleep.waker.count == 1)
    origin = rig.origin()
    asleep.state("running", 2)
    asleep.run(origin)
    status, headers, answer = client.answer()
    sending.join(PATIENCE)
    assert (status, answer) == (200, b"POST / 300000")
    assert "x-unkey-wake" in headers


def test_a_client_that_leaves_is_let_go_and_the_last_one_ends_the_waiting(sleeper):
    asleep = sleeper()
    stays, leaves = asleep.send(), asleep.send()
    asleep.until(lambda: asleep.waker.count == 2)
    leaves.close()
    asleep.until(lambda: asleep.waker.count == 1)
    stays.close()
    asleep.until(lambda: asleep.waker.count == 0)
    assert asleep.waker.outcomes == {"left": 2}
    assert asleep.waker._sleeps == {}


def test_the_number_of_held_requests_is_bounded_in_all_and_for_each_deployment(sleeper):
    asleep = sleeper(hold_most=8)
    for _ in range(2):
        asleep.send()
    asleep.until(lambda: asleep.waker.count == 2)
    status, code, headers = refused(asleep.send())
    assert (status, code, headers["x-unkey-wake"]) == (503, "deployment_waking", "full")
    assert headers["retry-after"] == "2"
    assert asleep.waker.count == 2


def test_what_its_owner_stopped_is_not_asked_for(sleeper):
    asleep = sleeper()
    asleep.state("stopped", 2)
    status, _, body = asleep.send().answer()
    assert (status, json.loads(body)["error"]) == (
        503,
        {
            "code": "err:frontline:capacity:deployment_offline",
            "message": "The deployment is stopped. Its owner can start it with `unkey start`, or deploy again; "
            "who only visits can ask the owner to.",
        },
    )
    assert asleep.asked == []


def test_the_control_planes_no_is_told_and_remembered(sleeper):
    asleep = sleeper()
    asleep.replies = [Reply("stopped")]
    for _ in range(3):
        assert refused(asleep.send())[:2] == (503, "deployment_offline")
    assert len(asleep.asked) == 1
    asleep.state("standby", 3)  # something has changed: ask again
    asleep.replies = [Reply("resting", 42.5)]
    for _ in range(3):
        status, code, headers = refused(asleep.send())
        assert (status, code) == (503, "deployment_waking")
        assert 1 <= int(headers["retry-after"]) <= 43
    assert len(asleep.asked) == 2


def test_a_deployment_that_falls_back_to_sleep_did_not_start(sleeper):
    asleep = sleeper()
    client = asleep.send()
    assert asleep.asking.wait(PATIENCE)
    asleep.state("waking", 2)
    asleep.state("standby", 3)
    status, code, headers = refused(client)
    assert (status, code, headers["x-unkey-wake"]) == (503, "deployment_waking", "refused")
    assert asleep.asked == [("d_1", 1)]


def test_a_stop_by_the_owner_ends_the_waiting(sleeper):
    asleep = sleeper()
    client = asleep.send()
    assert asleep.asking.wait(PATIENCE)
    asleep.state("stopped", 2)
    assert refused(client)[:2] == (503, "deployment_offline")


def test_a_control_plane_that_is_away_is_asked_again_and_the_request_waits(rig, sleeper):
    asleep = sleeper()
    asleep.replies = [None, Reply("stale"), None]
    client = asleep.send()
    asleep.until(lambda: len(asleep.asked) == 4)
    asleep.state("running", 2)
    asleep.run(rig.origin())
    assert client.answer()[0] == 200


def test_somebody_who_may_not_pass_wakes_nobody(sleeper):
    asleep = sleeper()
    guarded = {"name": "keys", "enabled": True, "keyauth": {"keyspaces": ["ks_1"]}}
    asleep.state("standby", 2, guarded)
    assert refused(asleep.send())[:2] == (401, "missing_credentials")
    assert asleep.asked == []
    assert asleep.waker.count == 0


def test_nothing_is_held_where_nobody_can_be_asked(sleeper):
    assert refused(sleeper(wake=None).send())[:2] == (503, "deployment_offline")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'{"answer": "waking"}', Reply("waking")),
        (b'{"answer": "resting", "retryAfterSeconds": 12.5, "more": 1}', Reply("resting", 12.5)),
        (b'{"answer": 7}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_what_web_says_is_read_and_garbage_is_no_answer(rig, answer, expected):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
    origin = rig.origin(lambda seen: head + answer)
    assert ask(rig, origin) == expected
    (seen,) = origin.seen
    assert (seen.method, seen.target) == ("POST", "/internal/deployments/wake")
    assert seen.get("authorization") == ["Bearer secret"]
    assert json.loads(seen.body) == {"edge": "edge-1", "deploymentId": "d_1", "sleep": 7}


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_refusal_of_web_is_no_answer(rig, status):
    origin = rig.origin(lambda seen: b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status)
    assert ask(rig, origin) is None


def test_a_web_that_does_not_answer_in_time_is_no_answer(rig, monkeypatch):
    monkeypatch.setattr("edge.frontline.waking.ASKING_SECONDS", 0.2)
    silent = threading.Event()
    origin = rig.origin(script=lambda client: silent.wait(PATIENCE))
    assert ask(rig, origin) is None
    silent.set()


def ask(rig, origin):
    """Ask a web at the origin's address to wake a deployment."""

    async def work():
        web = ControlPlane(f"http://{origin.address}", "secret", "edge-1")
        try:
            return await web.wake("d_1", 7)
        finally:
            await web.close()

    return rig.loop.run(work())
