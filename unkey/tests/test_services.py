"""The brokers and databases of larger installations, for real."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest
import redis
from django.db import connection
from kombu import Connection, Exchange, Queue

from unkey.broker import celery_settings
from unkey.checks import compares_bytewise
from unkey.env import ROOT

pytestmark = pytest.mark.services


@pytest.fixture
def redis_url() -> Iterator[str]:
    url = os.environ["SERVICES_REDIS_URL"]
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url


@pytest.mark.django_db
def test_mariadb_reads_what_was_committed_and_compares_bytewise() -> None:
    assert connection.vendor == "mysql"
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@character_set_connection, @@sql_mode")
        charset, mode = cursor.fetchone()
        # MySQL and newer MariaDB call it transaction_isolation, older MariaDB tx_isolation.
        cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('transaction_isolation', 'tx_isolation')")
        isolation = cursor.fetchone()[1]
    assert (isolation, charset) == ("READ-COMMITTED", "utf8mb4")
    assert "STRICT_TRANS_TABLES" in mode


@pytest.mark.django_db(transaction=True)
def test_a_database_that_ignores_case_is_refused() -> None:
    assert compares_bytewise(["default"]) == []
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} COLLATE utf8mb4_general_ci")
        try:
            (fault,) = compares_bytewise(["default"])
        finally:
            cursor.execute(f"ALTER DATABASE {name} COLLATE utf8mb4_bin")
    assert fault.id == "unkey.E001"
    assert "utf8mb4_general_ci" in fault.msg


def test_redis_carries_messages_by_its_url_alone(redis_url: str) -> None:
    settings = celery_settings(redis_url)
    queue = Queue("workflows", Exchange("unkey"), routing_key="workflows")
    with Connection(settings["broker_url"], transport_options=settings["broker_transport_options"]) as broker:
        broker.Producer().publish({"run": 1}, exchange="unkey", routing_key="workflows", declare=[queue])
        message = queue(broker.channel()).get()
        assert message is not None
        message.ack()
        assert message.payload == {"run": 1}


def test_a_worker_on_redis_gets_ready(redis_url: str, tmp_path: "os.PathLike[str]") -> None:
    ready = os.path.join(tmp_path, uuid.uuid4().hex)
    environ = {**os.environ, "CELERY_BROKER_URL": redis_url, "UNKEY_READY_FILE": ready}
    subprocess.run([sys.executable, "manage.py", "prepare"], cwd=ROOT, env=environ, check=True, timeout=100)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "--quiet", "-A", "unkey", "worker", "-Q", "default"],
        cwd=ROOT,
        env=environ,
    )
    try:
        deadline = time.monotonic() + 60
        while not os.path.exists(ready):
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        worker.terminate()
        worker.wait(30)
    assert worker.returncode == 0
