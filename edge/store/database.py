"""The edge's own connection to the database: one thread, never making a file, noticing a replaced one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote

_T = TypeVar("_T")
_BUSY_SECONDS = 2


class DatabaseGone(Exception):
    """The database does not answer, or its file is not there."""


class Database:
    """Runs functions that use Django's ORM in one background thread with a connection of its own.

    Args:
        configure: called once in that thread before anything else; sets Django up.
    """

    def __init__(self, configure: Callable[[], None]) -> None:
        self._configure: Callable[[], None] | None = configure
        self._inode: tuple[int, int] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-database")

    @property
    def executor(self) -> ThreadPoolExecutor:
        """For `loop.run_in_executor`; functions given to it go through `call`."""
        return self._executor

    def call(self, work: Callable[..., _T], *args: Any) -> _T:
        """Run `work` in the calling (background) thread with the connection in order.

        Raises:
            DatabaseGone: it does not answer, or answered with an error.
        """
        if self._configure is not None:
            self._configure()
            self._configure = None
        from django.db import Error, connections

        connection = connections["default"]
        if connection.vendor == "sqlite":
            connection = self._file_in_place(connections, connection)
        try:
            return work(*args)
        except Error as error:
            connection.close()
            raise DatabaseGone(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the connection and end the thread, after the work that is waiting."""

        def disconnect() -> None:
            if self._configure is None:
                from django.db import connections

                connections["default"].close()

        self._executor.submit(disconnect).result()
        self._executor.shutdown()

    def _file_in_place(self, connections: Any, connection: Any) -> Any:
        given = connection.settings_dict["NAME"]
        if not str(given).startswith("file:"):
            # This thread's connection opens an existing file or none, and does not wait long for
            # another writer: what it writes can be written a moment later.
            connection.close()
            settings = {
                **connection.settings_dict,
                "NAME": f"file:{quote(str(given))}?mode=rw",
                "OPTIONS": {**connection.settings_dict["OPTIONS"], "timeout": _BUSY_SECONDS},
            }
            connections["default"] = connection = type(connection)(settings, "default")
            self._path = str(given)
        try:
            status = os.stat(self._path)
        except OSError as error:
            connection.close()
            self._inode = None
            raise DatabaseGone(f"{self._path}: {error.strerror}") from error
        inode = (status.st_dev, status.st_ino)
        if inode != self._inode:
            connection.close()
            self._inode = inode
        return connection
