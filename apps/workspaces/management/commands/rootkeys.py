"""`manage.py rootkeys create|list|disable|enable|rotate`: the root keys of any workspace, for operators."""

import json
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from apps.workspaces import queries, services
from apps.workspaces.models import RootKey, Workspace
from unkey import clock
from unkey.actors import system
from unkey.errors import Fault
from unkey.tenancy import workspace_scope

ACTOR = system("manage.py rootkeys")


class Command(BaseCommand):
    help = "Make, list, stop and renew root keys, which manage a workspace through /v2."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make one; its text is shown once")
        create.add_argument("--workspace", required=True, help="slug or id")
        create.add_argument("--name", default="", help="what people call it")
        granted = create.add_mutually_exclusive_group(required=True)
        granted.add_argument("--permission", action="append", dest="permissions", metavar="P")
        granted.add_argument("--all", action="store_true", help="every action on everything in the workspace")
        create.add_argument("--days", type=float, help="how long it works; default: until it is stopped")
        found = actions.add_parser("list", help="show those that were not deleted")
        found.add_argument("--workspace", help="only this one's, by slug or id")
        rotate = actions.add_parser("rotate", help="make one anew; the text of the new one is shown once")
        rotate.add_argument(
            "--grace-hours", type=float, default=24, help="how long the old one works; default 24"
        )
        for each in (rotate, actions.add_parser("disable"), actions.add_parser("enable")):
            each.add_argument("key", help="id of the root key")
        for each in actions.choices.values():
            each.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        try:
            match action:
                case "create":
                    self._create(options)
                case "list":
                    self._list(options)
                case "rotate":
                    self._rotate(options)
                case _:
                    row = services.set_root_key_enabled(
                        _found(options["key"]), action == "enable", actor=ACTOR
                    )
                    self._told(row, options, f"{row.id} is {'enabled' if row.enabled else 'disabled'}")
        except Fault as fault:
            raise CommandError("\n".join(v.message for v in fault.violations) or fault.detail) from None

    def _create(self, options: dict[str, Any]) -> None:
        arguments: dict[str, Any] = {name: options[name] for name in ("workspace", "name", "json", "days")}
        if options["all"]:
            arguments["all"] = True
        else:
            arguments["permissions"] = options["permissions"]
        call_command("create_root_key", stdout=self.stdout, stderr=self.stderr, **arguments)

    def _list(self, options: dict[str, Any]) -> None:
        rows = RootKey.objects.unscoped("an operator sees every workspace's").filter(deleted_at=None)
        if options["workspace"]:
            name = options["workspace"]
            workspace = Workspace.objects.filter(Q(pk=name) | Q(slug=name)).first()
            if workspace is None:
                raise CommandError(f"there is no workspace {name}; give its slug or its id")
            rows = rows.filter(workspace=workspace)
        for row in rows.select_related("workspace").order_by("workspace__slug", "created_at").iterator():
            self._told(
                row,
                options,
                f"{row.id}  {row.workspace.slug}  {row.start}…{row.end}  {_state(row)}  "
                f"{len(row.permissions)} permissions  {row.name}",
            )

    def _rotate(self, options: dict[str, Any]) -> None:
        old = _found(options["key"])
        try:
            grace = timedelta(hours=options["grace_hours"])
        except (OverflowError, ValueError):
            raise CommandError("--grace-hours is too large") from None
        with workspace_scope(old.workspace_id):
            row, plaintext = services.reroll_root_key(old.pk, grace, actor=ACTOR)
        if options["json"]:
            self.stdout.write(json.dumps({"key_id": row.id, "root_key": plaintext, "replaces": old.id}))
        else:
            self.stdout.write(plaintext)
            self.stderr.write(f"{row.id} replaces {old.id}; not shown again")

    def _told(self, row: RootKey, options: dict[str, Any], line: str) -> None:
        if not options["json"]:
            self.stdout.write(line)
            return
        shown = {
            "key_id": row.id,
            "workspace_id": row.workspace_id,
            "name": row.name,
            "start": row.start,
            "state": _state(row),
            "expires": clock.to_ms(row.expires_at) if row.expires_at else None,
            "last_used": clock.to_ms(row.last_used_at) if row.last_used_at else None,
            "permissions": row.permissions,
        }
        self.stdout.write(json.dumps(shown))


def _found(root_key_id: str) -> RootKey:
    found = RootKey.objects.unscoped("an operator names any").filter(pk=root_key_id, deleted_at=None).first()
    if found is None:
        raise queries.root_key_not_found()
    return found


def _state(row: RootKey) -> str:
    if row.expires_at is not None and row.expires_at <= clock.now():
        return "expired"
    return "enabled" if row.enabled else "disabled"
