"""Says in one line what is wrong with the machine or its settings, where a traceback would not help."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.migrations.exceptions import MigrationSchemaMissing

from unkey.env import BadSetting, env
from unkey.installation import AlreadyRunning
from unkey.ports import PortUnusable
from unkey.supervisor import StartFailed


def explain(error: BaseException) -> str | None:
    """Return the line for people, or None for what is a fault of the program."""
    match error:
        case BadSetting() | AlreadyRunning() | PortUnusable() | StartFailed():
            return str(error)
        case OperationalError() | InterfaceError() | MigrationSchemaMissing():
            return _database(error)
        case DatabaseError() if type(error) is DatabaseError:  # SQLite: the file is something else, or broken
            return _database(error)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"the disk is full: {error.filename or env.UNKEY_VAR} (UNKEY_VAR chooses another folder)"
        case OSError(errno=errno.EFBIG):
            return f"cannot write {error.filename or env.UNKEY_VAR}: {error.strerror} (the limit `ulimit -f`)"
        case FileExistsError(filename=str() | Path() as path) if _is_ours(Path(path)):
            return f"{path} is not a folder (UNKEY_VAR chooses another one)"
        case OSError(filename=str() | Path() as path) if _is_ours(Path(path)):
            return f"cannot write {path}: {error.strerror} (UNKEY_VAR chooses another folder)"
    return None


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the process with the line for people, where there is one for what goes wrong in the block."""
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")


def _database(error: Exception) -> str:
    said = str(error.args[-1] if error.args else error).strip().rstrip(".")
    return f"the database (DATABASE_URL) refused: {said}"


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(env.UNKEY_VAR) or env.UNKEY_VAR.is_relative_to(path)
