"""A database with a million keys, made by the services once for one key and in bulk for the others, and kept.

world = seeded(folder)          # seconds if it was made before by the same migrations
world.text(7)                   # the text of a key
"""

import base64
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import ROOT

KEYS = 1_000_000
METERED = 1000  # the first keys have credits
_PER_IDENTITY = 10
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True)
class World:
    """What was seeded.

    Args:
        folder: `UNKEY_VAR` of it.
        root_key: may do everything.
        workspace_id: whose the keys are.
        api_id: the API of the keys.
    """

    folder: Path
    root_key: str
    workspace_id: str
    api_id: str

    @staticmethod
    def text(number: int) -> str:
        """Return the text of a key, by its number from 0; the first `METERED` have credits."""
        value = int.from_bytes(hashlib.blake2b(b"key %d" % number, digest_size=16).digest())
        letters = []
        while value:
            value, digit = divmod(value, 58)
            letters.append(_ALPHABET[digit])
        return "sk_" + "".join(letters)


def seeded(keys: int = KEYS) -> World:
    """Return the seeded database, made now if there is none of the present tables of keys."""
    migrations = sorted(
        str(path.relative_to(ROOT))
        for app in ("cluster", "keys", "workspaces")
        for path in ROOT.glob(f"apps/{app}/migrations/0*.py")
    )
    mark = hashlib.sha256(
        "\n".join([*migrations, str(keys), Path(__file__).read_text()]).encode()
    ).hexdigest()[:12]
    base = Path(os.environ.get("UNKEY_VAR", ROOT / "var")) / "bench"
    folder = base / f"keys-{mark}"
    told = folder / "world.json"
    if not told.exists():
        for other in base.glob("keys-*"):
            shutil.rmtree(other)
        folder.mkdir(parents=True)
        print(f"verify: making {keys:,} keys in {folder}, once", flush=True)
        # A process of its own: Django is set up for one database.
        command = [sys.executable, "-m", "benchmarks.million", str(keys)]
    else:
        command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    environment = {**os.environ, "UNKEY_VAR": str(folder)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return World(folder, **msgspec.json.decode(told.read_bytes()))


def _make(keys: int) -> None:
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from django.conf import settings
    from django.db import connections, transaction

    from apps.cluster import versions
    from apps.keys import models, services
    from apps.keys.values import NamedLimit
    from apps.workspaces.permissions import everything
    from apps.workspaces.services import create_root_key, create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    _, root_key = create_root_key(workspace, "bench", everything(workspace.id), actor=actor)
    with workspace_scope(workspace.id), transaction.atomic():
        api = services.create_api(workspace.id, "bench", actor=actor)
        role = models.Role(workspace=workspace, name="editor", shard=api.shard)
        versions.stamp(role)
        role.save(force_insert=True)
        role.permissions.add(
            models.Permission.objects.create(workspace=workspace, name="write", slug="documents.write")
        )
        key, _ = services.create_key(
            api,
            actor=actor,
            prefix="sk",
            name="the first",
            external_id="user_0",
            meta={"plan": "pro", "seats": 12},
            roles=["editor"],
            permissions=["documents.read"],
            ratelimits=[NamedLimit("requests", 1_000_000, 1000, auto_apply=True)],
        )
        models.Ratelimit.objects.create(
            workspace=workspace,
            identity=key.identity,
            name="tokens",
            limit=10_000_000,
            duration_ms=60_000,
            auto_apply=True,
        )
        stream = key.stream
    key_id, identity_id = key.id, key.identity_id
    tables = {
        name: model._meta.db_table
        for name, model in {
            "key": models.Key,
            "identity": models.Identity,
            "limit": models.Ratelimit,
            "role": models.Key.roles.through,
            "permission": models.Key.permissions.through,
        }.items()
    }
    folder = Path(os.environ["UNKEY_VAR"])
    connections.close_all()  # only then can the journal be left out
    with sqlite3.connect(settings.DATABASES["default"]["NAME"]) as database:
        database.execute("PRAGMA cache_size = -400000")
        database.execute("PRAGMA journal_mode = OFF")

        def one(table: str, where: str, value: str | None) -> dict[str, Any]:
            cursor = database.execute(f"SELECT * FROM {table} WHERE {where} = ?", [value])
            return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))

        def fill(table: str, rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> None:
            names = list(columns)
            listed = ", ".join(f'"{name}"' for name in names)
            places = ", ".join("?" for _ in names)
            database.executemany(
                f"INSERT INTO {table} ({listed}) VALUES ({places})",
                ([row[name] for name in names] for row in rows),
            )

        version = database.execute("SELECT version FROM cluster_stream WHERE name = ?", [stream]).fetchone()[
            0
        ]
        identity = one(tables["identity"], "id", identity_id)
        template = one(tables["key"], "id", key_id)
        shared = one(tables["limit"], "identity_id", identity_id)
        own = one(tables["limit"], "key_id", key_id)
        links = {name: one(tables[name], "key_id", key_id) for name in ("role", "permission")}
        count = -(-keys // _PER_IDENTITY)
        fill(
            tables["identity"],
            (
                {**identity, "id": f"id_{i:016d}", "external_id": f"user_{i + 1}", "version": version + i + 1}
                for i in range(count)
            ),
            identity,
        )
        fill(
            tables["limit"],
            ({**shared, "id": f"rl_i{i:015d}", "identity_id": f"id_{i:016d}"} for i in range(count)),
            shared,
        )
        version += count
        fill(
            tables["key"],
            (
                {
                    **template,
                    "id": f"key_{i:016d}",
                    "hash": base64.b64encode(hashlib.sha256(World.text(i).encode()).digest()).decode(),
                    "start": World.text(i)[:7],
                    "name": f"key number {i}",
                    "identity_id": f"id_{i % count:016d}",
                    "remaining": 1_000_000_000 if i < METERED else None,
                    "version": version + i + 1,
                }
                for i in range(keys)
            ),
            template,
        )
        version += keys
        fill(
            tables["limit"],
            ({**own, "id": f"rl_k{i:015d}", "key_id": f"key_{i:016d}"} for i in range(keys)),
            own,
        )
        for name in ("role", "permission"):
            row = {column: value for column, value in links[name].items() if column != "id"}
            fill(tables[name], ({**row, "key_id": f"key_{i:016d}"} for i in range(keys)), row)
        database.execute("UPDATE cluster_stream SET version = ? WHERE name = ?", [version, stream])
        database.commit()
        database.execute("ANALYZE")
    told = {"root_key": root_key, "workspace_id": workspace.id, "api_id": api.id}
    draft = folder / "world.draft"
    draft.write_bytes(msgspec.json.encode(told))
    draft.rename(folder / "world.json")


if __name__ == "__main__":
    _make(int(sys.argv[1]))
