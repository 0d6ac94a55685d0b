"""Namespaces of rate limits as an edge knows them: from the feed, from its snapshot, and read at first use."""

import asyncio

from apps.ratelimits import services as ratelimits
from apps.workspaces.models import shard_of
from edge.store.records import Absence
from unkey.actors import system
from unkey.tenancy import workspace_scope

TESTS = system("tests")


def test_a_namespace_is_forgotten_with_its_shard_and_read_again(start, owner):
    with workspace_scope(owner.workspace.id):
        mails = ratelimits.create_namespace(owner.workspace.id, "mails", actor=TESTS)
        ratelimits.set_override(mails, "user_*", limit=7, duration_ms=1000, actor=TESTS)
    edge = start()
    look = (owner.workspace.id, "mails")
    assert edge.get(lambda store: store.namespace(*look).resolve("user_1").limit) == 7

    def forget(store):
        store._state.forget(owner.workspace.stream, shard_of)
        return store.namespace(*look)

    assert edge.get(forget) is Absence.NOT_LOADED
    edge.until(lambda store: not isinstance(store.namespace(*look), Absence))
    assert edge.get(lambda store: store.namespace(owner.workspace.id, mails.id).resolve("user_1").limit) == 7
    edge.stop()
    again = start()
    assert again.get(lambda store: store.namespace(*look).resolve("user_1").limit) == 7


def test_a_namespace_that_is_not_there_is_asked_for_once(start, owner):
    edge = start()
    edge.caught_up()
    before = edge.store.counters["fetches"]

    async def work():
        asked = [edge.store.fetch_namespace(owner.workspace.id, "mails") for _ in range(20)]
        return await asyncio.gather(*asked)

    assert edge._loop.run(work()) == [None] * 20
    assert edge.store.counters["fetches"] == before + 1
    assert edge.get(lambda store: store.namespace(owner.workspace.id, "mails")) is Absence.UNKNOWN
    with workspace_scope(owner.workspace.id):
        ratelimits.create_namespace(owner.workspace.id, "mails", actor=TESTS)
    edge.until(lambda store: not isinstance(store.namespace(owner.workspace.id, "mails"), Absence))
