"""The database under test: a file, a MariaDB of the harness's own that can be killed, or a given one."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from unkey.ports import choose


class Fixed:
    """A database that is somebody else's: never restarted."""

    restartable = False

    def __init__(self, url: str) -> None:
        self.url = url

    def stop(self) -> None:
        """Leave it as it is."""


class Mariadb:
    """A MariaDB server with its data in a folder, durable as in production.

    Args:
        room: an absolute folder; `mariadb` is made in it.
    """

    restartable = True

    def __init__(self, room: Path) -> None:
        self._folder = room / "mariadb"
        self._port = choose("127.0.0.1", ["mysql"])["mysql"]
        self._user = ["--user=mysql"] if os.geteuid() == 0 else []
        self._folder.mkdir()
        if self._user:
            shutil.chown(self._folder, "mysql", "mysql")
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                *self._user,
                f"--datadir={self._folder}",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ],
            check=True,
            capture_output=True,
        )
        self.start()
        self._run("CREATE DATABASE faults CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        self.url = f"mysql://root@127.0.0.1:{self._port}/faults"

    def start(self) -> None:
        """Start the server and wait until it answers; after a kill it first repairs itself.

        Raises:
            RuntimeError: it does not answer within a minute.
        """
        server = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
        if server is None:
            raise RuntimeError("mariadbd is missing: apt-get install mariadb-server")
        with open(self._folder.parent / "mariadb.log", "a") as log:
            self._popen = subprocess.Popen(
                [
                    server,
                    "--no-defaults",
                    *self._user,
                    f"--datadir={self._folder}",
                    f"--socket={self._folder}/socket",
                    f"--pid-file={self._folder}/pid",
                    "--bind-address=127.0.0.1",
                    f"--port={self._port}",
                    "--character-set-server=utf8mb4",
                    "--collation-server=utf8mb4_bin",
                    "--innodb-flush-log-at-trx-commit=1",
                    "--innodb-buffer-pool-size=64M",
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 60
        while True:
            try:
                self._run("SELECT 1")
                return
            except subprocess.CalledProcessError as error:
                if time.monotonic() > end:
                    raise RuntimeError(f"MariaDB does not answer: {error.stderr!r}") from None
                time.sleep(0.05)

    def kill(self) -> None:
        """End the server without any warning."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> None:
        """End the server."""
        self.kill()

    def _run(self, sql: str) -> None:
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={self._folder}/socket", "--user=root", "-e", sql],
            check=True,
            capture_output=True,
        )


Database = Fixed | Mariadb


def open_database(url: str, room: Path) -> Database:
    """Return the database that is named: `sqlite`, `mariadb`, or a DATABASE_URL."""
    if url == "mariadb":
        return Mariadb(room)
    return Fixed(f"sqlite:///{room}/faults.sqlite3" if url == "sqlite" else url)
