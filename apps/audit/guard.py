"""What makes the database itself refuse to change or remove audit rows: triggers on its table.

An unsealed row may be given its place and its hash, once; a sealed one may be removed only behind the
anchor of its chain, where pruning cuts. Who may drop a trigger can still tamper: then the chain tells.

A migration that rebuilds the table on SQLite (which drops its triggers) calls `install` again.
"""

from typing import Any

from django.db import DatabaseError

TABLE = "audit_auditlog"
_NAMES = ("audit_append_only", "audit_kept")
_FIXED = (
    "id",
    "workspace_id",
    "time",
    "event",
    "description",
    "actor_type",
    "actor_id",
    "actor_name",
    "targets",
    "changes",
    "meta",
    "remote_ip",
    "user_agent",
    "correlation_id",
)
_CHANGED = "the audit log is append-only: its rows do not change"
_REMOVED = "the audit log is append-only: its rows go only by retention"
# MySQL lets only administrators make triggers while it writes a binary log, unless told otherwise.
_NOT_ALLOWED = {1142, 1227, 1419}


def _statements(vendor: str) -> tuple[str, str]:
    same = "IS" if vendor == "sqlite" else "<=>"
    sealing = " AND ".join(
        (
            "OLD.sequence IS NULL",
            "NEW.sequence IS NOT NULL",
            *(f"OLD.{column} {same} NEW.{column}" for column in _FIXED),
        )
    )
    kept = (
        "OLD.sequence IS NOT NULL AND OLD.sequence > COALESCE("
        "(SELECT pruned FROM audit_auditchain WHERE workspace_id = OLD.workspace_id), 0)"
    )
    update, delete = (f"CREATE TRIGGER {name} BEFORE" for name in _NAMES)
    if vendor == "sqlite":
        return (
            f"{update} UPDATE ON {TABLE} WHEN NOT ({sealing}) BEGIN SELECT RAISE(ABORT, '{_CHANGED}'); END",
            f"{delete} DELETE ON {TABLE} WHEN {kept} BEGIN SELECT RAISE(ABORT, '{_REMOVED}'); END",
        )
    refuse = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT ="
    return (
        f"{update} UPDATE ON {TABLE} FOR EACH ROW "
        f"BEGIN IF NOT ({sealing}) THEN {refuse} '{_CHANGED}'; END IF; END",
        f"{delete} DELETE ON {TABLE} FOR EACH ROW BEGIN IF {kept} THEN {refuse} '{_REMOVED}'; END IF; END",
    )


def install(connection: Any) -> bool:
    """Make the triggers; return whether this database's user may (if not, only the chain guards)."""
    remove(connection)
    try:
        with connection.cursor() as cursor:
            for statement in _statements(connection.vendor):
                cursor.execute(statement)
    except DatabaseError as error:
        if error.args and error.args[0] in _NOT_ALLOWED:
            return False
        raise
    return True


def remove(connection: Any) -> None:
    """Drop the triggers."""
    with connection.cursor() as cursor:
        for name in _NAMES:
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}")


def installed(connection: Any) -> bool:
    """Say whether the database has both triggers."""
    query = {
        "sqlite": "SELECT COUNT(*) FROM sqlite_master WHERE type = 'trigger' AND name IN (%s, %s)",
        "mysql": "SELECT COUNT(*) FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE() AND trigger_name IN (%s, %s)",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(query, _NAMES)
        return int(cursor.fetchone()[0]) == len(_NAMES)
