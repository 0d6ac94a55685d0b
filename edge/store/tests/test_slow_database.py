"""A database that takes its time: what is known is answered meanwhile, and what is not waits for it alone."""

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from django.db.backends.utils import CursorWrapper

from edge.store.tests.conftest import PATIENCE, RunningEdge

HOST = "shop.unkey.localhost"


@pytest.fixture
def held(monkeypatch):
    """Hold every query of the edges back for the length of a block, whose value is whether one waits."""
    execute = CursorWrapper.execute

    @contextmanager
    def hold():
        gate, waiting = threading.Event(), threading.Event()

        def later(self, sql, params=None):
            if threading.current_thread().name.startswith("edge-database"):
                waiting.set()
                assert gate.wait(2 * PATIENCE)
            return execute(self, sql, params)

        with monkeypatch.context() as patched:
            patched.setattr(CursorWrapper, "execute", later)
            try:
                assert waiting.wait(PATIENCE)  # the edge asks for changes all the time
                yield
            finally:
                gate.set()

    return hold


def asked(edge: RunningEdge, root_key: str, text: str) -> "Future[tuple[int, Any]]":
    """Verify a key in the background."""
    answer: Future[tuple[int, Any]] = Future()
    threading.Thread(target=lambda: answer.set_result(edge.post(root_key, {"key": text}))).start()
    return answer


def test_what_is_known_is_answered_while_queries_take_their_time_and_changes_arrive_after(
    start, owner, site, held
):
    _, text = owner.key()
    edge = start()
    edge.caught_up()
    with held():
        for _ in range(50):
            assert edge.verify(owner.root_key, text)["code"] == "VALID"
            assert edge.get(lambda store: store.route(HOST)).deployment_id == site.deployment.id
        owner.changed(site.instance, address="127.0.0.1:21391")
        unknown = [asked(edge, owner.root_key, f"never seen before {number}") for number in range(20)]
        assert edge.verify(owner.root_key, text)["code"] == "VALID"
        assert not any(answer.done() for answer in unknown)
    for answer in unknown:
        status, content = answer.result(PATIENCE)
        assert (status, content["data"]["code"]) == (200, "NOT_FOUND")
    edge.until(
        lambda store: [one.address for one in store.instances(site.deployment.id)] == ["127.0.0.1:21391"]
    )


def test_a_key_that_is_made_meanwhile_is_found_when_the_database_has_answered(start, owner, held):
    edge = start()
    edge.caught_up()
    with held():
        _, text = owner.key()
        late = asked(edge, owner.root_key, text)
    status, content = late.result(PATIENCE)
    assert (status, content["data"]["code"]) == (200, "VALID")


def test_an_edge_stops_although_its_last_query_takes_its_time(start, owner, held):
    edge = start()
    edge.caught_up()
    with held():
        stopping = asyncio.run_coroutine_threadsafe(edge.store.stop(), edge._loop.loop)
    stopping.result(PATIENCE)
