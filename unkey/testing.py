"""Pytest plugin, loaded before Django's settings are: tests run in a folder of their own.

The settings of the person's shell do not reach them, except what names another database or broker.
"""

import atexit
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from unkey.env import ROOT, SETTINGS

if TYPE_CHECKING:
    from unkey.rpc.testing import Tenant

# Garbage is looked for less often: that costs tests, which keep thousands of objects, a tenth of their time.
gc.set_threshold(20_000, 50, 50)

# How long an example takes says how busy the machine is. A test that suppresses checks of its own names this, too.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

KEPT = {"DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL"}

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Workers of pytest-xdist inherit the folder; the process that made it removes it.
    for setting in SETTINGS:
        if setting.name not in KEPT:
            os.environ.pop(setting.name, None)
    folder = tempfile.mkdtemp(prefix="unkey-test-")
    os.environ["UNKEY_VAR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--database-only`, for running what a database can change on another database."""
    parser.addoption("--database-only", action="store_true", help="only tests that use the database")


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Let one more worker run than there are cores: tests of running systems wait more than they compute."""
    chosen = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return None if chosen else len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Carry out `--database-only`."""
    if not config.getoption("--database-only"):
        return
    fixtures = {"db", "transactional_db", "django_db_setup"}
    chosen = [
        item
        for item in items
        if item.get_closest_marker("django_db") or fixtures & set(getattr(item, "fixturenames", ()))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_web() -> None:
    """Spare web of this process what a test would spend most of its time with.

    Half a second for the hash of each account's password, and, for each client, a look at all static files.
    """
    from django.conf import settings

    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(scope="session")
def schema() -> Path:
    """A SQLite file with the schema and nothing else, for copies: migrations are applied once in a run.

    Each worker and each system that a test starts would otherwise take seconds of CPU time for them.
    """
    folder = Path(os.environ["UNKEY_VAR"])
    made = folder / "schema.sqlite3"
    with (folder / "schema.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft = folder / "schema.draft"
            command = [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"]
            environ = {**os.environ, "DATABASE_URL": f"sqlite:///{draft}"}
            subprocess.run(command, cwd=ROOT, env=environ, check=True)
            draft.rename(made)
    return made


@pytest.fixture(scope="session")
def made_once(django_db_setup: None, django_db_blocker: Any) -> Callable[[], AbstractContextManager[None]]:
    """For a module's own fixture, around rows that are dear to make and that all its tests start from.

    Whatever a test does is undone back to them, and they are undone where the block ends. They are there in
    every later test of the module, also in one that does not ask for them.
    """
    from django.db import transaction

    @contextmanager
    def block() -> Iterator[None]:
        around = transaction.atomic()
        around._from_testcase = True  # type: ignore[attr-defined]  # as the one that Django puts around each test
        with django_db_blocker.unblock(), around:
            yield
            transaction.set_rollback(True)

    return block


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


@pytest.fixture
def window_start() -> Iterator[None]:
    """The clock stands at the start of a minute, so that no window of a rate limit turns within the test."""
    from unkey import clock

    wait = 60_000 - clock.now_ms() % 60_000 + 60_000
    with clock.shifted(clock.from_ms(wait) - clock.EPOCH):
        yield
