"""Pytest plugin, loaded before Django's settings are: tests run in a folder of their own.

The settings of the person's shell do not reach them, except what names another database or broker.
"""

import atexit
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

from unkey.env import SETTINGS

if TYPE_CHECKING:
    from unkey.rpc.testing import Tenant

KEPT = {"DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL"}

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Workers of pytest-xdist inherit the folder; the process that made it removes it.
    for setting in SETTINGS:
        if setting.name not in KEPT:
            os.environ.pop(setting.name, None)
    folder = tempfile.mkdtemp(prefix="unkey-test-")
    os.environ["UNKEY_VAR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@pytest.fixture
def tenant(db: None) -> "Tenant":
    """A workspace with a root key that may do everything, speaking `/v2`."""
    from unkey.rpc.testing import make_tenant

    return make_tenant()


@pytest.fixture
def stranger(db: None) -> "Tenant":
    """Another workspace, likewise."""
    from unkey.rpc.testing import make_tenant

    return make_tenant("stranger")
