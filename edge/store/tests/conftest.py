"""Edges inside the test: real stores on one event loop in a thread of its own, on the test's database."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import OperationalError, connection, connections, transaction

from apps.cluster import versions
from apps.cluster.models import Region
from apps.deployments.models import Deployment, Instance
from apps.keys import services as keys
from apps.projects.models import App, Environment, Project
from apps.routing.models import FrontlineRoute, Sentinel
from apps.workspaces.models import Workspace
from apps.workspaces.permissions import everything
from apps.workspaces.services import create_root_key, create_workspace
from edge.store.store import Store
from edge.verify.verifier import Verifier
from unkey.actors import system
from unkey.tenancy import workspace_scope

TESTS = system("tests")
PATIENCE = 30.0


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE * 2)

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class RunningEdge:
    """A store and its verifier, as one edge process has them."""

    def __init__(self, loop: Loop, folder: Path, edge_id: str, **options: Any) -> None:
        self._loop = loop
        self.store = Store(edge_id=edge_id, region="local", folder=folder, poll_ms=20, **options)
        self.verifier = Verifier(self.store)
        loop.run(self.store.start())

    def get(self, look: Callable[[Store], Any]) -> Any:
        """Look something up in the loop's thread."""

        async def work() -> Any:
            return look(self.store)

        return self._loop.run(work())

    def until(self, condition: Callable[[Store], Any]) -> Any:
        """Wait until a look-up is true, and return it."""
        return self.eventually(lambda: self.get(condition))

    def eventually(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is true, and return it."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError("the edge did not get there")

    def caught_up(self) -> None:
        """Wait until everything that is committed now has been applied."""
        from apps.cluster.models import Stream

        heads = dict(Stream.objects.exclude(name__startswith="topologies").values_list("name", "version"))
        self.until(lambda store: all(store.applied.get(name) == head for name, head in heads.items()))

    def post(self, root_key: str, body: Any) -> tuple[int, Any]:
        """Call `keys.verifyKey`; return status and decoded answer."""

        async def work() -> Any:
            headers = {"authorization": f"Bearer {root_key}"} if root_key else {}
            answer = self.verifier.handle_verify_key(headers, msgspec.json.encode(body), "127.0.0.1")
            return answer if isinstance(answer, tuple) else await answer

        status, content, _ = self._loop.run(work())
        return status, msgspec.json.decode(content)

    def verify(self, root_key: str, text: str, **body: Any) -> Any:
        """Verify a key and return `data` of the answer."""
        status, answer = self.post(root_key, {"key": text, **body})
        assert status == 200, answer
        return answer["data"]

    def stop(self) -> None:
        """Stop as SIGTERM does."""
        self._loop.run(self.store.stop())

    def kill(self) -> None:
        """End as `kill -9` does: nothing is written, reported or given back any more."""

        async def work() -> None:
            for task in self.store._tasks:
                task.cancel()
            await asyncio.gather(*self.store._tasks, return_exceptions=True)

        self._loop.run(work())
        self.store._database.close()
        self.store._cluster.close()
        self.store._lookups.close()
        self.store._credits.close()
        self.store._writer.shutdown()
        assert self.store._ledger is not None
        self.store._ledger.close()


@pytest.fixture
def start(transactional_db, tmp_path):
    """Start edges; each keeps its folder by its id, so that a second start is a restart."""
    loop = Loop()
    running = []

    def start_edge(edge_id: str = "edge-a", **options: Any) -> RunningEdge:
        edge = RunningEdge(loop, tmp_path / edge_id, edge_id, **options)
        running.append(edge)
        return edge

    yield start_edge
    for edge in running:
        if not all(task.done() for task in edge.store._tasks):
            edge.stop()
    loop.close()


@dataclass
class Owner:
    """A workspace with a root key that may do everything, and an API."""

    workspace: Workspace
    root_key: str
    api: Any

    def key(self, **options: Any) -> tuple[Any, str]:
        """Make a key; return its row and its text."""
        with workspace_scope(self.workspace.id):
            return keys.create_key(self.api, actor=TESTS, **options)

    def update(self, key: Any, **changes: Any) -> None:
        """Change a key."""
        with workspace_scope(self.workspace.id):
            keys.update_key(key, actor=TESTS, **changes)

    def delete(self, key: Any) -> None:
        """Delete a key."""
        with workspace_scope(self.workspace.id):
            keys.delete_key(key, actor=TESTS)

    def changed(self, row: Any, **values: Any) -> None:
        """Change a row and give it the next version of its stream."""
        with workspace_scope(self.workspace.id), transaction.atomic():
            for name, value in values.items():
                setattr(row, name, value)
            versions.stamp(row)
            row.save()


@pytest.fixture
def owner(transactional_db):
    """A workspace with an API."""
    workspace = create_workspace("Acme", "acme", actor=TESTS)
    _, root_key = create_root_key(workspace, "root", everything(workspace.id), actor=TESTS)
    with workspace_scope(workspace.id):
        api = keys.create_api(workspace.id, "payments", actor=TESTS)
    return Owner(workspace, root_key, api)


@dataclass
class Site:
    """A deployment behind a host name, with its rows."""

    deployment: Deployment
    route: FrontlineRoute
    sentinel: Sentinel
    instance: Instance


@pytest.fixture
def site(owner):
    """`shop.unkey.localhost`, served by one running instance."""
    region, _ = Region.objects.get_or_create(name="local")
    with workspace_scope(owner.workspace.id), transaction.atomic():
        tenant = {"workspace": owner.workspace}
        project = Project.objects.create(**tenant, name="Shop", slug="shop")
        app = App.objects.create(**tenant, project=project, name="Web", slug="web")
        environment = Environment.objects.create(**tenant, app=app, slug="production", kind="production")
        level = {"project": project, "app": app, "environment": environment}
        deployment = Deployment.objects.create(**tenant, **level, settings={}, regions=[])
        instance = Instance(
            deployment=deployment, region=region, name="a", address="127.0.0.1:21390", status="running"
        )
        route = FrontlineRoute(
            **tenant, **level, fqdn="shop.unkey.localhost", deployment=deployment, sticky="live"
        )
        sentinel = Sentinel(
            deployment=deployment,
            workspace=owner.workspace,
            environment=environment,
            policies=[{"id": "pol_1", "enabled": True}],
        )
        for row in (instance, route, sentinel):
            versions.stamp(row)
            row.save()
    return Site(deployment, route, sentinel, instance)


@pytest.fixture
def outage(transactional_db, monkeypatch):
    """Take the database away for the length of a block: its file is moved, or its connections are cut."""

    @contextmanager
    def file_moved():
        path = Path(connection.settings_dict["NAME"])
        aside = path.with_name(f"{path.name}.aside")  # each test process has a database of its own
        path.rename(aside)
        try:
            yield
            assert not path.exists(), "an empty database was made in its place"
        finally:
            aside.rename(path)

    @contextmanager
    def connections_cut():
        def refuse(self, parameters):
            raise OperationalError(2003, "Can't connect")

        with monkeypatch.context() as patched:
            patched.setattr(type(connections["default"]), "get_new_connection", refuse)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> connection_id()",
                    [connection.settings_dict["NAME"]],
                )
                for (other,) in cursor.fetchall():
                    cursor.execute(f"KILL {int(other)}")
            yield

    return file_moved if connection.vendor == "sqlite" else connections_cut


@pytest.fixture
def replaced_file(db, tmp_path):
    """A small SQLite file and a function that puts another one in its place."""
    import sqlite3

    path = tmp_path / "small.sqlite3"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh.sqlite3"
        with sqlite3.connect(fresh) as made:
            made.execute("CREATE TABLE note (text)")
            made.execute("INSERT INTO note VALUES (?)", [text])
        made.close()
        os.replace(fresh, path)

    return path, write
