"""`manage.py create_key_migration --workspace SLUG --name NAME`: let keys of another system be imported."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from apps.keys.imports import create_migration
from apps.keys.models import KeyMigration
from apps.workspaces.models import Workspace
from unkey.actors import system
from unkey.errors import Fault
from unkey.tenancy import workspace_scope


class Command(BaseCommand):
    help = "Make a migration: its name is the migrationId of keys.migrateKeys and keys.verifyKey."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", required=True, help="slug or id")
        parser.add_argument("--name", required=True, help="what migrationId says, for example acme-old")
        parser.add_argument(
            "--algorithm",
            choices=KeyMigration.Algorithm.values,
            default=KeyMigration.Algorithm.SHA256.value,
            help="how the other system hashed its keys",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["workspace"]
        workspace = Workspace.objects.filter(Q(pk=named) | Q(slug=named)).first()
        if workspace is None:
            raise CommandError(f"there is no workspace {named}; give its slug or its id")
        try:
            with workspace_scope(workspace.id):
                migration = create_migration(
                    workspace.id,
                    options["name"][:255],
                    options["algorithm"],
                    actor=system("create_key_migration"),
                )
        except Fault as fault:
            raise CommandError(fault.detail) from None
        shown = {
            "migration_id": migration.id,
            "name": migration.name,
            "algorithm": migration.algorithm,
            "workspace_id": workspace.id,
        }
        self.stdout.write(json.dumps(shown) if options["json"] else migration.name)
