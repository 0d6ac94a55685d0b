"""Machines count together through a real Redis, and each for itself without one."""

import asyncio
import os

import pytest
from redis.exceptions import ConnectionError

from edge.store import exchange
from edge.store.counters import Counters
from edge.store.exchange import Exchange
from edge.verify.limiter import Limit, Limiter

MINUTE = 60_000
START = 1_700_000_040_000 // MINUTE * MINUTE


def limit(most, who, cost=1):
    return Limit(("ws_1", "rlns_1", who, MINUTE), most, cost)


@pytest.fixture
def machine(tmp_path):
    """Start a process on a machine: its limiter, and its exchange with the others."""
    seats = []

    def start(url, name):
        seats.append(Counters(tmp_path / name, 64))
        limiter = Limiter(sharing=seats[-1], far=True)
        return limiter, Exchange(url, limiter, seats[-1])

    yield start
    for seat in seats:
        seat.close()


@pytest.mark.services
def test_machines_count_together_through_redis(machine):
    url = os.environ["SERVICES_REDIS_URL"]
    who = os.urandom(8).hex()

    async def work():
        (a1, x1), (a2, x2) = machine(url, "a"), machine(url, "a")
        b, y = machine(url, "b")
        everybody = (x1, x2, y)
        assert [each.check(limit(10, who), START).remaining for each in (a1, a2, b)] == [9, 8, 9]
        for _ in range(2):  # once to tell, once to hear of who told later
            for limiter in (a1, a2, b):
                limiter.check(limit(10, who, cost=0), START)
            for each in everybody:
                await each.round()
        # What processes of one machine see of each other they do not count again.
        assert [each.check(limit(10, who, cost=0), START).remaining for each in (a1, a2, b)] == [7, 7, 7]
        # Told twice is not counted twice; half of the last window weighs wherever it was counted.
        half = START + MINUTE + MINUTE // 2
        assert [each.check(limit(10, who, cost=0), half).remaining for each in (a1, b)] == [9, 9]
        # A machine that comes later hears of the windows that weigh.
        late, z = machine(url, "c")
        late.check(limit(10, who, cost=0), half)
        await z.round()
        assert late.check(limit(10, who, cost=0), half).remaining == 9
        assert z.exchanged == 1
        for each in (*everybody, z):
            await each.close()

    asyncio.run(work())


@pytest.mark.services
def test_what_was_counted_while_redis_was_away_is_told_when_it_is_back(machine):
    url = os.environ["SERVICES_REDIS_URL"]
    who = os.urandom(8).hex()

    async def work():
        limiter, unheard = machine("redis://127.0.0.1:1", "a")
        assert limiter.check(limit(10, who, cost=4), START).remaining == 6
        with pytest.raises(ConnectionError):
            await unheard.round()
        seat = limiter.sharing
        assert isinstance(seat, Counters)
        back = Exchange(url, limiter, seat)
        await back.round()
        other, another = machine(url, "b")
        other.check(limit(10, who, cost=0), START)
        await another.round()
        assert other.check(limit(10, who, cost=0), START).remaining == 6
        for each in (unheard, back, another):
            await each.close()

    asyncio.run(work())


def test_without_redis_checks_go_on_and_the_exchange_tries_again(machine, monkeypatch):
    monkeypatch.setattr(exchange, "TIMEOUT_SECONDS", 0.05)

    async def work():
        writers = []
        silent = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        limiter, unheard = machine(f"redis://127.0.0.1:{port}", "a")
        task = asyncio.create_task(unheard.run())
        while unheard.failures < 1:
            assert limiter.check(limit(1_000_000, "user"), START).passed
            await asyncio.sleep(0.01)
        # It is due still.
        assert [due.counter for due in limiter.due(9)] == [("ws_1", "rlns_1", "user", MINUTE)]
        task.cancel()
        await unheard.close()
        silent.close()
        for writer in writers:
            writer.transport.abort()

    asyncio.run(work())
