"""`manage.py create_workspace NAME [--slug SLUG] [--exist-ok] [--json]`: make a tenant."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_slug
from django.utils.text import slugify

from apps.workspaces.models import Workspace
from apps.workspaces.services import create_workspace
from unkey.actors import system
from unkey.errors import Fault


class Command(BaseCommand):
    help = "Make a workspace: a tenant with its own keys, projects and limits."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="what people call it")
        parser.add_argument("--slug", help="unique short name; made from the name if left out")
        parser.add_argument(
            "--exist-ok", action="store_true", help="an existing workspace of that slug will do"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"].strip()
        slug = options["slug"] or slugify(name)[:64]
        if not name or len(name) > 256:
            raise CommandError("the name must have 1 to 256 characters")
        try:
            validate_slug(slug)
        except ValidationError:
            raise CommandError(
                "the slug must consist of letters, digits, _ and -; give one with --slug"
            ) from None
        if len(slug) > 64:
            raise CommandError("the slug must have at most 64 characters")
        workspace = Workspace.objects.filter(slug=slug).first() if options["exist_ok"] else None
        if workspace is None:
            try:
                workspace = create_workspace(name, slug, actor=system("create_workspace"))
            except Fault as fault:
                raise CommandError(fault.detail) from None
        if options["json"]:
            self.stdout.write(
                json.dumps({"workspace_id": workspace.id, "name": workspace.name, "slug": slug})
            )
        else:
            self.stdout.write(f"workspace {workspace.slug} ({workspace.id})")
