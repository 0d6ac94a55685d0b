"""`manage.py workspace suspend|resume|archive WORKSPACE [--json]`: stop and start all that a tenant runs."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from apps.deployments import teardown
from apps.workspaces.models import Workspace
from unkey.actors import system

ACTIONS = {"suspend": teardown.suspend, "resume": teardown.resume, "archive": teardown.archive}


class Command(BaseCommand):
    help = "Suspend a workspace (nothing of it runs), resume it (what was live is started), or archive it."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=sorted(ACTIONS))
        parser.add_argument("workspace", help="its slug or id")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["workspace"]
        found = Workspace.objects.filter(Q(pk=name) | Q(slug=name)).first()
        if found is None:
            raise CommandError(f"there is no workspace {name}; give its slug or its id")
        ACTIONS[options["action"]](found, actor=system("manage.py workspace"))
        found.refresh_from_db()
        state = "suspended" if found.suspended_at else "active"
        if options["json"]:
            self.stdout.write(json.dumps({"workspace_id": found.id, "slug": found.slug, "state": state}))
        else:
            self.stdout.write(
                f"{found.slug} is {state}; `manage.py workflows list` shows how far its deployments are"
            )
