"""The database of the tests: on SQLite, each worker's is a copy of one that was migrated once."""

import shutil
from pathlib import Path

import pytest
from django.db import connection


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Start from the file that is there; on other databases, from nothing."""
    return connection.vendor == "sqlite"


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    request: pytest.FixtureRequest, django_db_modify_db_settings_parallel_suffix: None
) -> None:
    """Put that file where this worker's database is to be."""
    if connection.vendor == "sqlite":
        schema: Path = request.getfixturevalue("schema")
        shutil.copyfile(schema, connection.settings_dict["TEST"]["NAME"])
