"""What runs a confined query: chDB over the embedded store's segments, in a process of its own."""

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import msgspec

from apps.analytics.embedded import Embedded
from apps.analytics.schema import DATABASE, ROLLUPS, RUNTIME_LOG_COLUMNS, RUNTIME_LOGS, rollup_select
from apps.analytics.store import embedded
from edge.telemetry.clickhouse import Server
from edge.telemetry.tables import TABLES
from unkey import errors
from unkey.env import env

SECONDS = 10
MEMORY_BYTES = 1_000_000_000
RESULT_BYTES = 4 * 1024 * 1024
_START_SECONDS = 30
_PROGRAM = Path(__file__).with_name("chdb_process.py")
_SPECIAL = re.compile(r"[*?{}\[\]\\',]")
_CODE = re.compile(r"Code: (\d+)")

Rows = list[dict[str, Any]]


class Engine(Protocol):
    """Runs SQL that the gateway has confined.

    Attributes:
        database: where it has its tables.
    """

    database: str

    def run(self, sql: str, rows: int) -> Rows:
        """Return the rows of an answer.

        Args:
            sql: as `apps.analytics.gateway.confine` returned it.
            rows: most of them.

        Raises:
            Fault: why there is no answer, in words for the caller.
        """


def limits(rows: int) -> dict[str, str]:
    """Return the settings that every query is run with, as ClickHouse calls them."""
    return {
        "max_execution_time": str(SECONDS),
        "max_memory_usage": str(MEMORY_BYTES),
        "max_result_rows": str(rows),
        "max_result_bytes": str(RESULT_BYTES),
        "result_overflow_mode": "throw",
        "max_ast_depth": "100",
        "max_threads": "2",
        "union_default_mode": "DISTINCT",
        "session_timezone": "UTC",
        "output_format_json_quote_64bit_integers": "0",
        "output_format_json_quote_denormals": "0",
    }


def read_rows(text: str) -> Rows:
    """Read an answer in the format JSONEachRow."""
    return msgspec.json.Decoder(dict[str, Any]).decode_lines(text)


def refusal(code: int, text: str) -> errors.Fault:
    """Return what the caller is told when the database has refused to run a query; never its own words.

    Args:
        code: ClickHouse's code, 0 if unknown.
        text: what it said.
    """
    said_of = text.lower()
    if code in (159, 394):
        return errors.QueryExecutionTimeout(
            "The query took too long. Please ask for a shorter time, or use the tables per hour or day."
        )
    # One code for both: the text says which.
    if code in (158, 198) or (code == 396 and "max rows" in said_of):
        return errors.QueryRowsLimitExceeded("The query reads or returns too many rows. Please narrow it.")
    if code in (241, 396):
        return errors.QueryMemoryLimitExceeded(
            "The query needs too much memory. Please ask for a shorter time or fewer groups."
        )
    if code in (201, 202):
        return errors.QueryQuotaExceeded("The workspace has used its queries of this hour. Please wait.")
    said = {
        16: "The query names a column that is not available.",
        46: "The query calls an unknown function.",
        47: "The query names a column or alias that does not exist.",
        62: "The query has invalid SQL syntax.",
    }
    return errors.InvalidAnalyticsQuery(said.get(code, "The query cannot be run as it is written."))


class Chdb:
    """ClickHouse in a child process, over segment files; one query at a time.

    Args:
        store: whose segments.
        seconds: how long a query may take.
    """

    def __init__(self, store: Embedded, seconds: float = SECONDS) -> None:
        self.database = DATABASE
        self._store = store
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, sql: str, rows: int) -> Rows:
        """See `Engine`."""
        settings = ", ".join(f"{name} = '{value}'" for name, value in limits(rows).items())
        request = {
            "prepare": self._tables(),
            # Last, so that what comes before it may still be set.
            "sql": f"{sql} SETTINGS {settings}, readonly = 1",
            "most_bytes": RESULT_BYTES,
        }
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in answer:
            text = str(answer["error"])
            found = _CODE.search(text)
            raise refusal(int(found[1]) if found else 0, text)
        return read_rows(answer["rows"])

    def _tables(self) -> list[str]:
        """Return the statements that make the tables of what the store has now."""
        folder = self._store.folder / "segments"
        if _SPECIAL.search(str(folder)):
            raise errors.AnalyticsNotConfigured(
                "UNKEY_VAR has characters that the query engine reads as a pattern; use another folder."
            )
        statements: list[str] = []
        for table in TABLES:
            columns = ", ".join(f"`{name}` {kind}" for name, kind in table.columns.items())
            names = [str(path.relative_to(folder)) for path in self._store.files(table.name)]
            engine = "Memory"
            if names:
                files = f"{{{','.join(names)}}}" if len(names) > 1 else names[0]
                engine = f"File('JSONCompactEachRowWithNames', '{folder}/{files}')"
            name = f"{DATABASE}.{table.name}"
            statements += [
                f"DROP TABLE IF EXISTS {name}",
                f"CREATE TABLE {name} ({columns}) ENGINE = {engine}",
            ]
        logs = ", ".join(f"{name} {kind}" for name, kind in RUNTIME_LOG_COLUMNS.items())
        statements.append(f"CREATE TABLE IF NOT EXISTS {DATABASE}.{RUNTIME_LOGS} ({logs}) ENGINE = Memory")
        for rollup in ROLLUPS:
            for bucket in rollup.buckets:
                select = rollup_select(rollup, bucket, f"{DATABASE}.{rollup.raw}")
                statements.append(f"CREATE VIEW IF NOT EXISTS {DATABASE}.{rollup.table(bucket)} AS {select}")
        return statements

    def _ask(self, line: bytes) -> dict[str, Any]:
        child = self._child
        if child is None or child.poll() is not None:
            child = self._child = self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
        except BrokenPipeError:  # it was idle and has just ended
            child = self._child = self._started()
            assert child.stdin is not None
            child.stdin.write(line)
            child.stdin.flush()
        answer = self._read(child)
        if answer is None:
            self.close()
            raise refusal(159, "")
        if not answer.endswith(b"\n"):
            self.close()
            raise refusal(241, "the engine has ended")
        found: dict[str, Any] = msgspec.json.decode(answer)
        return found

    def _read(self, child: "subprocess.Popen[bytes]") -> bytes | None:
        """Return an answer's line, what there is of it if the engine has ended, or None if it takes too long."""
        assert child.stdout is not None
        until = time.monotonic() + self._seconds + _START_SECONDS
        parts: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                if not selector.select(left):
                    break
                part = os.read(child.stdout.fileno(), 1 << 20)
                parts.append(part)
                if not part or part.endswith(b"\n"):
                    return b"".join(parts)
        return None

    @staticmethod
    def _started() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            env={"PATH": os.environ.get("PATH", ""), "TZ": "UTC"},  # none of our secrets
        )

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


class Missing:
    """Answers where nothing is installed that could."""

    database = DATABASE

    def run(self, sql: str, rows: int) -> Rows:
        """See `Engine`."""
        raise errors.AnalyticsNotConfigured(
            "SQL over events needs a query engine: install requirements/analytics.txt, or set CLICKHOUSE_URL."
        )


@cache
def engine() -> Engine:
    """Return what the settings and the installed packages give."""
    if env.CLICKHOUSE_URL:
        from apps.analytics.clickhouse import ClickHouse

        return ClickHouse(Server(env.CLICKHOUSE_URL))
    if find_spec("chdb") is None:
        return Missing()
    made = Chdb(embedded())
    atexit.register(made.close)
    return made
