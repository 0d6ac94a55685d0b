"""ClickHouse over its HTTP interface: statements, and segments that are inserted once however often they are sent.

Source: https://clickhouse.com/docs/interfaces/http
"""

import re
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import structlog

from edge.telemetry.spool import Spool
from edge.telemetry.tables import TABLES

log = structlog.get_logger("telemetry")

SECONDS = 10.0
_LONGEST_PAUSE = 60.0
_OTHERS_AFTER = 60.0
_CODE = re.compile(r"Code: (\d+)")


class Refused(Exception):
    """The server answered, and not as asked.

    Attributes:
        code: ClickHouse's number of the error, 0 if it gave none.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(Exception):
    """The server does not answer, or not in time."""


class Server:
    """A ClickHouse server.

    Args:
        url: `http[s]://user:password@host:port/database`.
        seconds: how long it may take to answer.

    Raises:
        ValueError: the URL is not such a one.
    """

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("CLICKHOUSE_URL must be http://user:password@host:port/database")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (8443 if self._secure else 8123)
        self._seconds = seconds
        self._headers = {
            "X-ClickHouse-User": unquote(parts.username or "default"),
            "X-ClickHouse-Key": unquote(parts.password or ""),
        }
        self.database = parts.path.strip("/") or "default"

    def run(self, statement: str, data: bytes = b"") -> bytes:
        """Run a statement and return what the server answers.

        Args:
            statement: one, with its settings and format.
            data: rows of an INSERT.

        Raises:
            Refused, Unreachable: it was not run, or its answer did not come.
        """
        make = HTTPSConnection if self._secure else HTTPConnection
        connection = make(self._host, self._port, timeout=self._seconds)
        path = "/?" + urlencode({"database": self.database, "wait_end_of_query": "1"})
        # A line feed ends the statement; rows come after it.
        body = statement.encode() + (b"\n" + data if data else b"")
        try:
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, HTTPException) as error:
            raise Unreachable(str(error)) from error
        finally:
            connection.close()
        if response.status != 200:
            text = answer.decode("utf-8", "replace")
            found = _CODE.search(text)
            raise Refused(int(found[1]) if found else 0, text[:2000])
        return answer


class Shipper:
    """Sends a spool's segments to a server, and removes each once it is there.

    A segment that is sent again is recognised by its name, for the last ten thousand of a table; so a lost
    answer doubles nothing.

    Args:
        server: where to.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pause = 0.0
        self._not_before = 0.0

    def __call__(self, spool: Spool, writer: str = "") -> None:
        """Send what there is, as long as the server takes it; failing, wait longer each time.

        Args:
            spool: of this process, or of several on this machine.
            writer: whose segments are sent at once; those of others, after a minute in which nobody did.
        """
        if time.monotonic() < self._not_before:
            return
        try:
            for table, path in self._waiting(spool, writer):
                self._send(table, path)
        except (Refused, Unreachable) as error:
            self._pause = min(_LONGEST_PAUSE, max(1.0, self._pause * 2))
            self._not_before = time.monotonic() + self._pause
            log.error("telemetry.not_shipped", reason=str(error)[:200], seconds=self._pause)
        else:
            self._pause = 0.0

    @staticmethod
    def _waiting(spool: Spool, writer: str) -> Iterator[tuple[str, Path]]:
        for table in TABLES:
            for path in spool.segments(table.name):
                try:
                    age = time.time() - path.stat().st_mtime
                except FileNotFoundError:  # another process has sent it
                    continue
                if not writer or path.name.startswith(f"{writer}-") or age > _OTHERS_AFTER:
                    yield table.name, path

    def _send(self, table: str, path: Path) -> None:
        try:
            rows = path.read_bytes()
        except FileNotFoundError:
            return
        self._server.run(
            f"INSERT INTO {table} SETTINGS insert_deduplicate = 1, insert_deduplication_token = '{path.name}', "
            "deduplicate_blocks_in_dependent_materialized_views = 1, async_insert = 0 "
            "FORMAT JSONCompactEachRowWithNames",
            rows,
        )
        path.unlink(missing_ok=True)
