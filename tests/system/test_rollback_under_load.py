"""A rollback under load fails no request, and nothing of the old version is answered after the switch."""

import http.client
import threading
import time
from collections.abc import Callable

import pytest

from scripts.demo import Visitor
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]

CONNECTIONS = 32


class Caller(threading.Thread):
    """One keep-alive connection that calls without pause and keeps `(sent at, version)` of every answer."""

    def __init__(self, visitor: Visitor, stop: threading.Event) -> None:
        super().__init__()
        self.answers: list[tuple[float, str]] = []
        self.failures: list[str] = []
        self._visitor = visitor
        self._stopped = stop

    def run(self) -> None:
        connection = self._visitor.connect()
        while not self._stopped.is_set():
            sent = time.monotonic()
            try:
                status, body = self._visitor.fetch(connection, "/", None)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                connection = self._visitor.connect()
                continue
            if status == 200:
                self.answers.append((sent, body["version"]))
            else:
                self.failures.append(f"status {status}")
        connection.close()


def test_rollback_under_load_of_32_connections(project: Callable[[], Deployed]) -> None:
    app = project()
    first = app.deploy("1")
    second = app.deploy("2")
    visitor = app.visitor(second)
    visitor.until_version("2", None)

    stop = threading.Event()
    callers = [Caller(visitor, stop) for _ in range(CONNECTIONS)]
    for caller in callers:
        caller.start()
    try:
        time.sleep(0.5)
        app.platform.unkey("rollback", first["deploymentId"], "--project", app.project)
        visitor.until_version("1", None)
        switched = time.monotonic()
        time.sleep(1)
    finally:
        stop.set()
        for caller in callers:
            caller.join()

    assert [failure for caller in callers for failure in caller.failures] == []
    answers = [answer for caller in callers for answer in caller.answers]
    assert {version for _, version in answers} == {"1", "2"}
    assert {version for sent, version in answers if sent > switched} == {"1"}
    row = app.platform.call("apps.getApp", {"project": app.project, "app": "default"})
    assert (row["currentDeploymentId"], row["isRolledBack"]) == (first["deploymentId"], True)
