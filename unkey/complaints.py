"""Says in one line what is wrong with the machine or its settings, where a traceback would not help."""

import errno
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError

from unkey.env import BadSetting, env
from unkey.installation import AlreadyRunning
from unkey.ports import PortUnusable
from unkey.supervisor import StartFailed


def explain(error: BaseException) -> str | None:
    """Return the line for people, or None for what is a fault of the program."""
    match error:
        case BadSetting() | AlreadyRunning() | PortUnusable() | StartFailed():
            return str(error)
        case OperationalError() | InterfaceError():
            return _database(error)
        case DatabaseError() if type(error) is DatabaseError:  # SQLite: the file is something else, or broken
            return _database(error)
        case ImproperlyConfigured() if "MySQLdb" in str(error) or "mysqlclient" in str(error):
            return (
                "DATABASE_URL asks for MySQL, whose driver is not installed: "
                "pip install -r requirements/mysql.txt"
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"the disk is full: {error.filename or env.UNKEY_VAR} (UNKEY_VAR chooses another folder)"
        case OSError(filename=str() | Path() as path) if _is_ours(Path(path)):
            return f"cannot write {path}: {error.strerror} (UNKEY_VAR chooses another folder)"
    return None


def _database(error: Exception) -> str:
    said = str(error.args[-1] if error.args else error).strip().rstrip(".")
    return f"the database (DATABASE_URL) refused: {said}"


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(env.UNKEY_VAR) or env.UNKEY_VAR.is_relative_to(path)
