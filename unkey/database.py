"""Reads DATABASE_URL into Django's database settings."""

from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from unkey.env import BadSetting

NOT_PREPARED = (
    "The database lacks tables or columns of this version: "
    "whoever runs this installation has to run `python manage.py prepare`."
)
IDLE_TRANSACTION_SECONDS = 60
# ER_BAD_FIELD_ERROR, ER_NO_SUCH_TABLE
_LACKING_CODES = {1054, 1146}
_LACKING_TEXTS = ("no such table", "no such column", "has no column named")


def lacks_schema(error: BaseException) -> bool:
    """Say whether a database error means that a table or column of this code is not there: not migrated."""
    text = str(error)
    return (bool(error.args) and error.args[0] in _LACKING_CODES) or any(
        lacking in text for lacking in _LACKING_TEXTS
    )


def database(url: str, *, create: bool = True) -> dict[str, Any]:
    """Return Django's settings for a `sqlite:///path` or `mysql://user:password@host:port/name` URL.

    SQLite runs in WAL mode with `synchronous=FULL` (a commit survives a power cut) and takes the
    write lock at BEGIN, so that a transaction never fails half-way by upgrading its lock.

    MySQL and MariaDB run at READ COMMITTED: every check-then-act in this project locks its row
    (`SELECT … FOR UPDATE`), and after waiting for such a lock a transaction must see what the
    earlier holder committed, which the default REPEATABLE READ hides from plain reads. A client that
    vanishes in a transaction, with its machine or its network, loses its locks after a minute, not hours.

    Raises:
        BadSetting: the URL has another scheme or lacks a part, or its driver is not installed.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise BadSetting("DATABASE_URL has a port that is no number") from None
    if parts.scheme == "sqlite":
        path = unquote(parts.path)
        if not path or path == "/":
            raise BadSetting("DATABASE_URL lacks the file: sqlite:////absolute/path.sqlite3")
        name = path[1:] if path.startswith("//") else path
        if not create:
            name = f"file:{quote(name)}?mode=rw"
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            # A file, as in real life: SQLite's shared memory databases lock differently.
            "TEST": {"NAME": f"{name}.test"},
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": (
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; "
                    "PRAGMA cache_size=-16000; PRAGMA mmap_size=134217728;"
                ),
            },
        }
    if parts.scheme in {"mysql", "mariadb"}:
        if not parts.hostname or len(parts.path) < 2:
            raise BadSetting("DATABASE_URL lacks the host or the name: mysql://user:password@host:3306/name")
        _require_driver()
        return {
            "ENGINE": "unkey.mysql",
            "NAME": unquote(parts.path[1:]),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname,
            "PORT": str(port or 3306),
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {
                "charset": "utf8mb4",
                "isolation_level": "read committed",
                "connect_timeout": 5,
                "init_command": (
                    "SET sql_mode='STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION,ONLY_FULL_GROUP_BY'"
                    # MariaDB only: MySQL has nothing like it.
                    f" /*M!100300 , idle_transaction_timeout={IDLE_TRANSACTION_SECONDS} */"
                ),
                **{name: int(text) if text.isdigit() else text for name, text in parse_qsl(parts.query)},
            },
            "TEST": {"CHARSET": "utf8mb4", "COLLATION": "utf8mb4_bin"},
        }
    raise BadSetting(
        f"DATABASE_URL must start with sqlite:/// or mysql://, not {parts.scheme or 'nothing'}://"
    )


def _require_driver() -> None:
    try:
        import_module("MySQLdb")
    except ImportError:
        raise BadSetting(
            "DATABASE_URL asks for MySQL, whose driver is not installed: "
            "pip install -r requirements/mysql.txt"
        ) from None
