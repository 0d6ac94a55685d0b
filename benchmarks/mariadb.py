"""A MariaDB of the benchmark's own, with its durable defaults, where it is installed."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from unkey.ports import choose

PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


@contextmanager
def running(folder: Path) -> Iterator[str | None]:
    """Run a server with its data in a folder; gives the URL of an empty database, or None where it is missing."""
    server, installer, client = (
        shutil.which(name, path=PATHS) for name in ("mariadbd", "mariadb-install-db", "mariadb")
    )
    if find_spec("MySQLdb") is None:
        server = None
    if server is None or installer is None or client is None:
        yield None
        return
    port = choose("127.0.0.1", ["mariadb"])["mariadb"]
    base = folder / "mariadb"
    base.mkdir()
    user = []
    if os.getuid() == 0:  # as root it wants to be told its user, who owns the folder then
        folder.chmod(0o755)
        shutil.chown(base, "mysql", "mysql")
        user = ["--user=mysql"]
    subprocess.run(
        [
            installer,
            "--no-defaults",
            *user,
            f"--datadir={base}",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ],
        check=True,
        capture_output=True,
    )
    socket = base / "socket"
    options = [f"--datadir={base}", f"--socket={socket}", "--bind-address=127.0.0.1", f"--port={port}"]
    utf8 = ["--character-set-server=utf8mb4", "--collation-server=utf8mb4_bin"]
    with open(folder / "mariadb.log", "w") as log:
        process = subprocess.Popen(
            [server, "--no-defaults", *user, *options, *utf8, "--innodb-buffer-pool-size=256M"],
            stdout=log,
            stderr=log,
        )
    try:
        statements = (
            "CREATE USER bench@127.0.0.1 IDENTIFIED BY 'bench'; GRANT ALL ON *.* TO bench@127.0.0.1; "
            "CREATE DATABASE bench;"
        )
        command = [client, "--no-defaults", f"--socket={socket}", "--user=root", "-e", statements]
        for _ in range(240):
            if subprocess.run(command, capture_output=True).returncode == 0:
                break
            time.sleep(0.25)
        yield f"mysql://bench:bench@127.0.0.1:{port}/bench"
    finally:
        process.terminate()
        process.wait()
