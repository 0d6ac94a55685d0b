"""`manage.py add_member --workspace SLUG --user NAME --role ROLE`: give an account a place in a workspace."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.workspaces import members
from apps.workspaces.models import Membership, Workspace
from unkey.actors import system
from unkey.errors import Fault
from unkey.tenancy import workspace_scope


class Command(BaseCommand):
    help = "Make an account a member of a workspace, or change its role there."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", required=True, help="slug or id")
        parser.add_argument("--user", required=True, help="name that the person logs in with")
        parser.add_argument("--role", choices=Membership.Role.values, default=Membership.Role.MEMBER)

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["workspace"]
        workspace = Workspace.objects.filter(slug=named).first() or Workspace.objects.filter(pk=named).first()
        if workspace is None:
            raise CommandError(f"there is no workspace {named}")
        role = Membership.Role(options["role"])
        owner, actor = Membership.Role.OWNER, system("add_member")
        try:
            with workspace_scope(workspace.id):
                found = Membership.objects.filter(user__username=options["user"]).first()
                if found is None:
                    members.add_member(workspace.id, options["user"], role, by=owner, actor=actor)
                else:
                    members.set_role(found.pk, role, by=owner, actor=actor)
        except Fault as fault:
            raise CommandError(fault.detail) from None
        self.stdout.write(f"{options['user']} is {role} of {workspace.slug}")
