"""A whole system: `manage.py up` on free ports in a temporary folder.

The modules of the group `system` share one, since each start costs ten seconds of CPU time. What they do to
it, they mend: a module begins with all processes healthy. A module with another fixture `system` has its own.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import HELLO, Platform, System, Visitor


class Deployed:
    """A running system with one project, and a way to deploy versions of the example to it.

    Args:
        system: the running platform.
        platform: its public interfaces.
        scratch: folder for sources.
    """

    def __init__(self, system: System, platform: Platform, scratch: Path) -> None:
        self.system = system
        self.platform = platform
        self.project = f"p-{secrets.token_hex(3)}"
        self._scratch = scratch
        platform.call("projects.createProject", {"name": self.project, "slug": self.project})
        platform.call("apps.createApp", {"project": self.project, "name": "Default", "slug": "default"})

    @property
    def place(self) -> dict[str, str]:
        """The request fields that name the production environment."""
        return {"project": self.project, "app": "default", "environment": "production"}

    def source(self, version: str) -> Path:
        """Return a folder with a version of the example."""
        folder = self._scratch / f"{self.project}-{version}"
        if not folder.exists():
            shutil.copytree(HELLO, folder)
            (folder / "VERSION").write_text(version)
        return folder

    def deploy(self, version: str) -> dict[str, Any]:
        """Deploy a version with the `unkey` command and wait until it is ready."""
        options = ("--project", self.project, "--app", "default", "--env", "production")
        document: dict[str, Any] = self.platform.unkey("deploy", str(self.source(version)), *options)
        return document

    def begin(self, version: str) -> str:
        """Start to deploy a version; returns the deployment's id at once."""
        options = ("--project", self.project, "--app", "default", "--env", "production", "--no-wait")
        return str(self.platform.unkey("deploy", str(self.source(version)), *options)["deploymentId"])

    def deployment(self, identifier: str) -> dict[str, Any]:
        """Return a deployment as the API shows it."""
        row: dict[str, Any] = self.platform.call("deployments.getDeployment", {"deploymentId": identifier})
        return row

    def visitor(self, deployed: dict[str, Any]) -> Visitor:
        """Return a visitor of the live host name."""
        return self.system.visitor(min(deployed["domains"], key=len))


# Last of those that share the system: they stop it, or take its database away.
LAST = ("test_stop_and_return.py", "test_blackout.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let this folder's tests begin first, since they take longest, and those that do most harm last of them."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        if item.path.parent != here:
            return len(LAST) + 1
        return LAST.index(item.path.name) + 1 if item.path.name in LAST else 0

    items.sort(key=place)


def migrated(system: System, schema: Path) -> None:
    """Let a system begin with a database that has the schema."""
    system.var.mkdir(mode=0o700)
    shutil.copyfile(schema, system.var / "unkey.sqlite3")


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, schema: Path) -> Iterator[System]:
    """The running platform that modules share; its previews sleep soon, and its edge waits long for them."""
    running = System(tmp_path_factory.mktemp("unkey") / "var")
    migrated(running, schema)
    # It runs beside those that have `make test-services`'s database to themselves.
    running.environ.pop("DATABASE_URL", None)
    running.environ |= {
        "PORTS": "auto",
        "LOG_LEVEL": "info",
        "STANDBY_AFTER_SECONDS": "1800",
        "PREVIEW_IDLE_SECONDS": "2",
        "EDGE_WAKE_SECONDS": "60",
    }
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def platform(system: System) -> Platform:
    """The public interfaces, with a root key that may do everything."""
    system.wait_healthy()
    return _platform(system, system.url("EDGE_API_PORT"))


@cache
def _platform(system: System, api_url: str) -> Platform:
    system.manage("create_workspace", "Test", "--slug", "test", "--exist-ok", "--json")
    root = json.loads(
        system.manage("create_root_key", "--workspace", "test", "--name", "test", "--all", "--json")
    )
    return Platform(api_url, root["root_key"], system.var / "login.json")


@pytest.fixture
def project(
    system: System, platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Deployed]:
    """Make a project of its own."""
    return lambda: Deployed(system, platform, tmp_path_factory.mktemp("sources"))
