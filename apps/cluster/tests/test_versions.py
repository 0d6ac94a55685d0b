"""The law of the change feed, with real connections: whoever sees version N has seen everything up to N."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction

from apps.cluster import versions
from apps.cluster.models import Stream
from apps.workspaces.models import Workspace
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db(transaction=True)


def on_connections(*works: Callable[[], None]) -> None:
    """Run functions side by side, each on a connection of its own."""

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(run, work) for work in works]:
            done.result(60)


def test_no_version_without_a_transaction():
    with pytest.raises(RuntimeError, match="outside a transaction"):
        versions.next_version("routes")
    with pytest.raises(RuntimeError, match="outside a transaction"):
        versions.hold(["routes"])
    assert not Stream.objects.exists()


def test_second_writer_gets_its_version_only_after_the_first_has_committed():
    holds, asks, may_commit, stamped = (threading.Event() for _ in range(4))
    order: list[str] = []

    def first() -> None:
        with transaction.atomic():
            assert versions.next_version("routes") == 1
            holds.set()
            may_commit.wait(30)
            order.append("first commits")

    def second() -> None:
        holds.wait(30)
        asks.set()
        with transaction.atomic():
            assert versions.next_version("routes") == 2
            order.append("second has its version")
            stamped.set()

    def judge() -> None:
        asks.wait(30)
        try:
            assert not stamped.wait(0.2)
        finally:
            may_commit.set()

    on_connections(first, second, judge)
    assert order == ["first commits", "second has its version"]


def test_version_of_a_transaction_that_rolls_back_is_given_to_the_next():
    with transaction.atomic():
        versions.next_version("routes")
        transaction.set_rollback(True)
    with transaction.atomic():
        assert versions.next_version("routes") == 1


def test_reader_that_sees_a_head_sees_every_row_up_to_it():
    writers, each = 4, 15
    finished = threading.Event()

    def write(name: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(each):
                with transaction.atomic(), unscoped("test"):
                    version = versions.next_version("some")
                    Workspace.objects.create(slug=f"w{name}-{number}", name="w", version=version)

        return work

    def read() -> None:
        try:
            while not finished.is_set():
                head = Stream.objects.filter(name="some").values_list("version", flat=True).first() or 0
                seen = set(Workspace.objects.values_list("version", flat=True))
                assert set(range(1, head + 1)) <= seen
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as reading:
        reader = reading.submit(read)
        on_connections(*(write(name) for name in range(writers)))
        finished.set()
        reader.result(60)
    assert Stream.objects.get(name="some").version == writers * each


def test_streams_are_taken_in_the_order_of_their_names():
    with transaction.atomic():
        versions.next_version("instances")
        versions.next_version("routes")
        versions.next_version("instances")
    with transaction.atomic():
        versions.next_version("routes")
        with pytest.raises(versions.StreamsOutOfOrder, match="stream instances was taken after routes"):
            versions.next_version("instances")
    with transaction.atomic():
        versions.hold(["routes", "instances"])
        assert (versions.next_version("routes"), versions.next_version("instances")) == (3, 3)


def test_transactions_that_hold_what_they_write_in_any_order_never_wait_for_each_other_in_a_ring():
    rounds = 15

    def write(*streams: str) -> Callable[[], None]:
        def work() -> None:
            for _ in range(rounds):
                with transaction.atomic():
                    versions.hold(streams)
                    for stream in streams:
                        versions.next_version(stream)

        return work

    on_connections(write("a", "b", "c"), write("c", "b", "a"), write("b", "a", "c"))
    assert dict(Stream.objects.values_list("name", "version")) == dict.fromkeys("abc", 3 * rounds)
