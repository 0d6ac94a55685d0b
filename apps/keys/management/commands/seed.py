"""`manage.py seed --keys N`: a workspace with so many keys as customers have them, to try and measure with."""

import hashlib
import json
import random
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.keys import services
from apps.keys.imports import ImportedKey, import_keys
from apps.keys.models import Api, KeyMigration
from apps.keys.values import Credits, NamedLimit, Refill
from apps.workspaces.models import Workspace
from apps.workspaces.permissions import everything
from apps.workspaces.services import create_root_key, create_workspace
from unkey import clock, ids
from unkey.actors import system
from unkey.tenancy import workspace_scope

ACTOR = system("manage.py seed")
BATCH = 2000
_APIS = ("payments", "search", "mail", "maps")
_PLANS = {"free": 0.7, "pro": 0.25, "enterprise": 0.05}
_ROLES = ("reader", "writer", "billing", "admin")
_PERMISSIONS = tuple(f"{thing}.{verb}" for thing in ("documents", "invoices") for verb in ("read", "write"))
_LIMITS = {
    "free": [NamedLimit("requests", 100, 60_000, auto_apply=True)],
    "pro": [NamedLimit("requests", 1_000, 60_000, auto_apply=True)],
    "enterprise": [
        NamedLimit("requests", 10_000, 60_000, auto_apply=True),
        NamedLimit("tokens", 10**6, 86_400_000),
    ],
}


class Command(BaseCommand):
    help = (
        "Make a workspace with N keys: of several APIs, every fifth a customer's of several keys, with plans, "
        "roles, limits, credits, some disabled, some expired. Prints a root key."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--keys", type=int, required=True, metavar="N")
        parser.add_argument("--workspace", default="seed", help="slug; made if there is none")
        parser.add_argument(
            "--random", type=int, default=1, metavar="SEED", help="the same makes the same mix"
        )
        parser.add_argument("--out", type=Path, help="where to write the text of every key, a line each")

    def handle(self, *args: Any, **options: Any) -> None:
        count: int = options["keys"]
        if count < 1:
            raise CommandError("--keys must be at least 1")
        slug = options["workspace"]
        workspace = Workspace.objects.filter(slug=slug).first() or create_workspace(slug, slug, actor=ACTOR)
        started = time.monotonic()
        with workspace_scope(workspace.id), ExitStack() as stack:
            out = stack.enter_context(options["out"].open("w")) if options["out"] else None
            apis = [_api(workspace.id, name) for name in _APIS]
            chance = random.Random(options["random"])  # noqa: S311 - a mix, no secret
            plain = KeyMigration(name="seed", algorithm=KeyMigration.Algorithm.SHA256)
            done = 0
            while done < count:
                api = apis[done // BATCH % len(apis)]
                texts, keys = zip(*_keys(chance, min(BATCH, count - done), api.name), strict=True)
                import_keys(api, plain, keys, actor=ACTOR)
                if out is not None:
                    out.writelines(f"{text}\n" for text in texts)
                done += len(keys)
                if sys.stderr.isatty():
                    self.stderr.write(f"\r{done:,} of {count:,} keys", ending="")
        _, root_key = create_root_key(workspace, "seed", everything(workspace.id), actor=ACTOR)
        shown = {
            "workspace_id": workspace.id,
            "root_key": root_key,
            "keys": count,
            "apis": {api.name: api.id for api in apis},
            "seconds": round(time.monotonic() - started, 1),
        }
        self.stdout.write(json.dumps(shown))


def _api(workspace_id: str, name: str) -> Api:
    found = Api.objects.filter(name=name, deleted_at=None).select_related("key_space").first()
    return found or services.create_api(workspace_id, name, actor=ACTOR)


def _keys(chance: random.Random, count: int, prefix: str) -> Iterator[tuple[str, ImportedKey]]:
    """Yield keys and their texts; some customers have several keys."""
    customer = ""
    for _ in range(count):
        if not customer or chance.random() < 0.2:
            customer = ids.new("customer")
        plan = chance.choices(tuple(_PLANS), tuple(_PLANS.values()))[0]
        text = ids.new(prefix) + ids.new("")[1:]
        yield (
            text,
            ImportedKey(
                hashlib.sha256(text.encode()).hexdigest(),
                start=text[: len(prefix) + 5],
                name=f"{plan} key",
                external_id=customer,
                meta={"plan": plan, "seats": chance.randint(1, 50)},
                roles=[chance.choice(_ROLES)] if chance.random() < 0.5 else [],
                permissions=chance.sample(_PERMISSIONS, chance.randint(0, 3)),
                expires_at=clock.now() + timedelta(days=chance.randint(-30, 365))
                if chance.random() < 0.1
                else None,
                enabled=chance.random() > 0.02,
                credits=Credits(chance.randint(0, 10_000), Refill("monthly", 10_000, 1))
                if plan == "free"
                else None,
                ratelimits=_LIMITS[plan],
            ),
        )
