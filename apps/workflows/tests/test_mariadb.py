"""What is MariaDB's alone: machines and networks that vanish without a word, on either side."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection

from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.tests import flows
from apps.workflows.tests.conftest import Process, Until, database_url
from unkey.database import IDLE_TRANSACTION_SECONDS

pytestmark = [pytest.mark.services, pytest.mark.django_db(transaction=True)]


class Cable:
    """Carries connections to the database, until it is cut: then nothing more arrives on those that there are."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._cut = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let what is connected now hang for ever; new connections are carried again."""
        self._cut.set()
        self._cut = threading.Event()

    def close(self) -> None:
        """End everything."""
        for each in (self._server, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self._address)
            except OSError:
                return
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(*pair, self._cut), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, cut: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if cut.is_set():
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def cable() -> Iterator[Cable]:
    """A cable to the test's database."""
    parts = urlsplit(database_url())
    assert parts.hostname is not None
    made = Cable((parts.hostname, parts.port or 3306))
    yield made
    made.close()


def test_w01_a_worker_whose_database_stops_answering_connects_anew(
    cable: Cable, process: Callable[..., Process], until: Until
) -> None:
    parts = urlsplit(database_url())
    through = parts._replace(
        netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{cable.port}", query="read_timeout=1"
    )
    process(database=urlunsplit(through))
    before = start(flows.Three, {"k": "a", "name": "before"})
    until(lambda: WorkflowRun.objects.get(id=before.id).state == State.SUCCEEDED)
    cable.cut()
    after = start(flows.Three, {"k": "a", "name": "after"})
    until(lambda: WorkflowRun.objects.get(id=after.id).state == State.SUCCEEDED)
    assert flows.effects() == [
        f"{run}.{name}" for run in ("before", "after") for name in ("one", "two", "three")
    ]


def test_w01_a_worker_that_vanishes_in_a_recording_part_is_made_up_for(
    process: Callable[..., Process], until: Until, tmp_path: Path
) -> None:
    parts = urlsplit(database_url())
    hasty = urlunsplit(parts._replace(query="init_command=SET%20idle_transaction_timeout=1"))
    run = start(flows.Reaches, {"k": "a", "name": "r", "room": str(tmp_path), "gates": ["inside"]})
    vanished = process(database=hasty)
    until((tmp_path / "inside.reached").exists)
    vanished.pause()
    (tmp_path / "inside.open").touch()
    process()
    until(lambda: WorkflowRun.objects.get(id=run.id).state == State.SUCCEEDED)
    vanished.go_on()
    assert flows.effects() == [f"{run.id}.inside", f"{run.id}.outside", "r.last"]


def test_every_connection_lets_go_of_its_locks_when_its_client_has_vanished() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@idle_transaction_timeout, @@sql_mode")
        seconds, mode = cursor.fetchone()
    assert seconds == IDLE_TRANSACTION_SECONDS
    assert "STRICT_TRANS_TABLES" in mode
