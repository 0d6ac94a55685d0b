"""`manage.py create_token --workspace SLUG --user NAME`: make a personal token for the dashboard REST."""

import json
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from apps.workspaces import members
from apps.workspaces.models import Membership
from unkey import clock
from unkey.actors import system
from unkey.errors import Fault


class Command(BaseCommand):
    help = "Make a personal token of a member, for /api. Its text is shown once."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", required=True, help="slug or id")
        parser.add_argument("--user", required=True, help="name that the person logs in with")
        parser.add_argument("--name", default="made by manage.py", help="what people call it")
        parser.add_argument("--role", choices=Membership.Role.values, help="default: the person's own")
        parser.add_argument("--days", type=int, default=90, help="how long it works")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"there is no account named {options['user']}")
        try:
            workspace, own = members.find_workspace(user, options["workspace"])
            row, plaintext = members.create_token(
                workspace.id,
                user,
                options["name"][:255],
                Membership.Role(options["role"] or own),
                expires_at=clock.now() + timedelta(days=options["days"]),
                by=own,
                actor=system("create_token"),
            )
        except (Fault, OverflowError) as fault:
            raise CommandError(str(fault)) from None
        if options["json"]:
            shown = {"token_id": row.id, "token": plaintext, "workspace_id": workspace.id, "role": row.role}
            self.stdout.write(json.dumps(shown))
        else:
            self.stdout.write(plaintext)
            self.stderr.write(f"{row.id}, {row.role} until {row.expires_at:%Y-%m-%d}; not shown again")
