"""The embedded broker: whole messages, in order, each to one taker, across processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError

from unkey.broker import celery_settings
from unkey.env import ROOT, BadSetting

EXCHANGE = Exchange("unkey")
QUEUES = {name: Queue(name, EXCHANGE, routing_key=name) for name in ("workflows", "builds")}


def connect(folder: Path) -> Connection:
    settings = celery_settings(f"filesystem://{folder}")
    return Connection(settings["broker_url"], transport_options=settings["broker_transport_options"])


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    with connect(tmp_path / "broker") as opened:
        yield opened


def drain(connection: Connection, queue: str) -> list[Any]:
    bodies = []
    bound = QUEUES[queue](connection.channel())
    bound.declare()
    while (message := bound.get()) is not None:
        message.ack()
        bodies.append(message.payload)
    return bodies


def publish(connection: Connection, queue: str, body: object) -> None:
    connection.Producer().publish(
        body, exchange=EXCHANGE, routing_key=queue, declare=[QUEUES[queue]], serializer="json"
    )


def test_messages_come_in_order_from_their_own_queue_and_leave_nothing_behind(
    connection: Connection, tmp_path: Path
) -> None:
    for number in range(12):
        publish(connection, "workflows", {"number": number})
    publish(connection, "builds", {"number": 99})

    assert drain(connection, "workflows") == [{"number": number} for number in range(12)]
    assert drain(connection, "workflows") == []
    assert drain(connection, "builds") == [{"number": 99}]
    assert list((tmp_path / "broker" / "messages").iterdir()) == []
    assert list((tmp_path / "broker" / "taken").iterdir()) == []


def test_processes_that_declare_and_publish_at_once_lose_and_double_nothing(
    connection: Connection, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from unkey.tests.test_broker import connect, publish\n"
        "with connect(Path(sys.argv[1])) as c:\n"
        "    for n in range(25): publish(c, 'workflows', [sys.argv[2], n])\n"
    )
    publishers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "broker"), str(who)], cwd=ROOT)
        for who in range(3)
    ]
    assert [publisher.wait() for publisher in publishers] == [0, 0, 0]
    taken = drain(connection, "workflows")
    assert sorted(taken) == [[str(who), number] for who in range(3) for number in range(25)]


def test_a_folder_that_vanished_refuses_the_message(connection: Connection, tmp_path: Path) -> None:
    publish(connection, "workflows", 1)
    (tmp_path / "broker" / "messages").rename(tmp_path / "elsewhere")
    with pytest.raises(ChannelError, match="No such file"):
        publish(connection, "workflows", 2)


def test_other_brokers_are_taken_by_their_url_alone() -> None:
    assert celery_settings("redis://localhost:6380/2") == {
        "broker_url": "redis://localhost:6380/2",
        "broker_transport_options": {
            "max_retries": 1,
            "interval_start": 0.05,
            "interval_max": 0.05,
            "visibility_timeout": 3600,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "socket_keepalive": True,
        },
    }
    assert celery_settings("amqp://guest@localhost//")["broker_url"] == "amqp://guest@localhost//"


def test_a_filesystem_url_without_a_folder_is_a_bad_setting() -> None:
    with pytest.raises(BadSetting, match="CELERY_BROKER_URL lacks the folder"):
        celery_settings("filesystem://")
