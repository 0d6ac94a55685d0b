"""Checks of the installation that Django runs before it migrates."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections


@register(Tags.database)
def compares_bytewise(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Refuse a MySQL database that would take `key_a` and `key_A`, or two hashes, for the same.

    Ids are base58 and hashes base64, so case tells them apart; tables inherit the database's collation.
    """
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "mysql":
            continue
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@collation_database")
            collation = str(cursor.fetchone()[0])
        if not collation.endswith("_bin"):
            name = connection.settings_dict["NAME"]
            found.append(
                Error(
                    f"The database {name} compares text by {collation}, which ignores case.",
                    hint=f"ALTER DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                    id="unkey.E001",
                )
            )
    return found
