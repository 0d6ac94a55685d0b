"""`manage.py create_root_key --workspace SLUG (--permission P … | --all)`: make a key for the API."""

import json
from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.workspaces.models import Workspace
from apps.workspaces.permissions import everything
from apps.workspaces.services import create_root_key
from unkey import clock
from unkey.actors import system
from unkey.errors import Fault


class Command(BaseCommand):
    help = "Make a root key, which manages a workspace through /v2. Its text is shown once."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", required=True, help="slug or id")
        parser.add_argument("--name", default="", help="what people call it")
        granted = parser.add_mutually_exclusive_group(required=True)
        granted.add_argument(
            "--permission",
            action="append",
            dest="permissions",
            metavar="P",
            help="a tuple such as api.*.create_key, or a grant unkey:v1:WORKSPACE:PATH#ACTION; may be repeated",
        )
        granted.add_argument(
            "--all",
            action="store_true",
            help="every action on everything in the workspace: all tuples for any id, and the grant **#*",
        )
        parser.add_argument("--days", type=float, help="how long it works; default: until it is stopped")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["workspace"]
        workspace = Workspace.objects.filter(slug=named).first() or Workspace.objects.filter(pk=named).first()
        if workspace is None:
            raise CommandError(f"there is no workspace {named}")
        permissions = everything(workspace.id) if options["all"] else options["permissions"]
        try:
            root_key, plaintext = create_root_key(
                workspace,
                options["name"][:255],
                permissions,
                actor=system("create_root_key"),
                expires_at=_end(options["days"]),
            )
        except Fault as fault:
            raise CommandError("\n".join(v.message for v in fault.violations) or fault.detail) from None
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
                        "key_id": root_key.id,
                        "root_key": plaintext,
                        "workspace_id": workspace.id,
                        "permissions": root_key.permissions,
                    }
                )
            )
        else:
            self.stdout.write(plaintext)
            self.stderr.write(f"{root_key.id}, {len(root_key.permissions)} permissions; not shown again")


def _end(days: float | None) -> datetime | None:
    try:
        return None if days is None else clock.now() + timedelta(days=days)
    except (OverflowError, ValueError):
        raise CommandError("--days is too large") from None
