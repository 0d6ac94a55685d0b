"""Says in one line what is wrong with the machine or its settings, where a traceback would not help."""

import errno

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError

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
            said = str(error.args[-1] if error.args else error).strip().rstrip(".")
            return f"the database (DATABASE_URL) refused: {said}"
        case ImproperlyConfigured() if "MySQLdb" in str(error) or "mysqlclient" in str(error):
            return (
                "DATABASE_URL asks for MySQL, whose driver is not installed: "
                "pip install -r requirements/mysql.txt"
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"the disk is full: {error.filename or env.UNKEY_VAR} (UNKEY_VAR chooses another folder)"
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST):
            return (
                f"cannot write {error.filename or env.UNKEY_VAR}: {error.strerror} "
                "(UNKEY_VAR chooses another folder)"
            )
    return None
