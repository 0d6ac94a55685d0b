"""Management requests through web: `keys.createKey` and `keys.getKey`, against gunicorn with next to nothing in it.

    python -m benchmarks.management [--seconds 3] [--rounds 3] [--database sqlite]

Web is what `manage.py up` runs, one process of it on core 0; the database (MariaDB with its durable defaults)
and the load are on core 1. Beside it, under the same gunicorn, stand a WSGI function that parses each body and
answers a constant, and one that does a single ORM query, an INSERT or a SELECT by primary key. All three are
loaded in turn; ratios are medians of the rounds' own. A key that is made has a name, an external id of 1,000
and metadata; one that is asked for has a role, two permissions and a limit besides.

Bars: 400 keys made and 1,200 keys shown a second.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import mariadb
from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.sides import Side, compare

BARS = {"createKey": 400, "getKey": 1200}
KEYS = 10_000
PEOPLE = 1000
BASE_PORT = 21340
WEB, CONSTANT, INSERT, SELECT = range(BASE_PORT, BASE_PORT + 4)

Application = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def server(what: str) -> Application:
    """Return what stands beside web: each request's body is parsed, then comes a constant.

    Args:
        what: `constant`, `insert` for a row that is made before, or `select` for one that is read.
    """
    import django

    django.setup()
    from django.contrib.auth.models import Permission

    answer = json.dumps({"meta": {"requestId": "req_0123456789abcdef"}, "data": {"keyId": "a" * 20}}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        json.loads(environ["wsgi.input"].read())
        if what == "insert":
            Permission.objects.create(name="a name", codename=uuid.uuid4().hex, content_type_id=1)
        elif what == "select":
            Permission.objects.get(pk=1)
        start("200 OK", headers)
        return [answer]

    return application


def seed() -> None:
    """Make a workspace with keys, and print what is asked for as JSON."""
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)

    from apps.keys import imports, services
    from apps.keys.values import NamedLimit
    from apps.workspaces.permissions import everything
    from apps.workspaces.services import create_root_key, create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    _, root_key = create_root_key(workspace, "bench", everything(workspace.id), actor=actor)
    keys = [
        imports.ImportedKey(
            hash=f"{number:064x}",
            name=f"key {number}",
            external_id=f"user_{number % PEOPLE}",
            meta={"plan": "pro", "seats": number},
            roles=["editor"],
            permissions=["documents.read", "documents.write"],
            ratelimits=[NamedLimit("requests", 100, 60_000, auto_apply=True)],
        )
        for number in range(KEYS)
    ]
    with workspace_scope(workspace.id):
        api = services.create_api(workspace.id, "bench", actor=actor)
        migration = imports.create_migration(workspace.id, "bench", "sha256", actor=actor)
        made, failed = imports.import_keys(api, migration, keys, actor=actor)
    assert not failed
    print(json.dumps({"root_key": root_key, "api": api.id, "keys": [key_id for _, key_id in made]}))


def serve(application: str, port: int) -> psutil.Process:
    """Start gunicorn on core 0 and return the process that answers, once it does."""
    command = ["-m", "gunicorn", "-c", "python:unkey.gunicorn", application]
    environment = {**os.environ, "WEB_PORT": str(port), "WEB_WORKERS": "1", "UNKEY_PROCESS": "web"}
    master = subprocess.Popen(
        pinned(0, [sys.executable, *command]), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            httpx.post(f"http://127.0.0.1:{port}/v2/liveness", json={})
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        (worker,) = psutil.Process(master.pid).children()
        return worker
    raise TimeoutError(application)


def main() -> int:
    """Run the benchmark; 0 if the bars are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--database", choices=("mariadb", "sqlite"), default="mariadb")
    parser.add_argument(
        "--seed", action="store_true", help="only make the rows, in the database of the settings"
    )
    options = parser.parse_args()
    if options.seed:
        seed()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ |= {
        "UNKEY_VAR": str(folder / "var"),
        "DJANGO_SETTINGS_MODULE": "unkey.settings",
        "DEBUG": "0",
        "SECRET_KEY": "benchmark " * 8,
        "ALLOWED_HOSTS": "*",
        "HTTPS_ONLY": "0",
    }
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {1})  # and with it the database, which is started here
    try:
        if options.database == "sqlite":
            return _measure(options)
        with mariadb.running(folder) as url:
            if url is None:
                print("mariadbd or its Python driver is not installed (make test-services does that)")
                return 1
            os.environ["DATABASE_URL"] = url
            return _measure(options)
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "benchmarks.management", "--seed"]
    seeded = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    world = json.loads(seeded.stdout.splitlines()[-1])
    headers = {"Authorization": f"Bearer {world['root_key']}", "Content-Type": "application/json"}
    bodies = {
        "createKey": [
            json.dumps(
                {
                    "apiId": world["api"],
                    "prefix": "sk",
                    "name": f"key {number}",
                    "externalId": f"user_{number}",
                    "meta": {"plan": "pro", "seats": number},
                }
            )
            for number in range(PEOPLE)
        ],
        "getKey": [json.dumps({"keyId": key_id}) for key_id in world["keys"]],
    }

    def load(port: int, operation: str, seconds: float) -> Result:
        return run(
            f"http://127.0.0.1:{port}/v2/keys.{operation}",
            core=1,
            connections=options.connections,
            seconds=seconds,
            headers=headers,
            method="POST",
            bodies=bodies[operation],
        )

    applications = {
        WEB: "unkey.wsgi",
        CONSTANT: "benchmarks.management:server('constant')",
        INSERT: "benchmarks.management:server('insert')",
        SELECT: "benchmarks.management:server('select')",
    }
    servers: dict[int, psutil.Process] = {}
    met = True
    try:
        for port, application in applications.items():
            servers[port] = serve(application, port)
        for operation, bar in BARS.items():
            for port in servers:
                load(port, operation, 1)
            query = INSERT if operation == "createKey" else SELECT
            web, bare, orm = (
                Side(name, servers[port], partial(load, port, operation))
                for name, port in (("web", WEB), ("constant", CONSTANT), ("one query", query))
            )
            against_bare = compare(web, bare, options.rounds, options.seconds)
            against_orm = compare(web, orm, options.rounds, options.seconds)
            rate = statistics.median(result.rate for result in web.results)
            good = rate >= bar and not web.failures
            met &= good
            print(
                f"management: keys.{operation}: {rate:,.0f} a second (bar {bar:,}), "
                f"{statistics.median(web.costs):,.0f} us of processor each, ratio {against_bare:.2f} to a "
                f"constant, {against_orm:.2f} to one ORM query {'ok' if good else 'MISSED'}",
                flush=True,
            )
    finally:
        for server in servers.values():
            master = server.parent()
            if master is not None:
                master.terminate()
                master.wait(30)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
