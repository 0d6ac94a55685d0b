"""`manage.py settings`: every setting, where it stands, and with --explain what it is for."""

import json
import shutil
import textwrap
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from unkey.env import SETTINGS, Setting, env


class Command(BaseCommand):
    help = "List the settings, all of which are environment variables."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--explain", action="store_true", help="with type, default and meaning")
        parser.add_argument("--json", action="store_true", help="everything, as a JSON list")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["json"]:
            self.stdout.write(json.dumps([_row(setting) for setting in SETTINGS], indent=2))
        elif options["explain"]:
            self._explain()
        else:
            for setting in SETTINGS:
                self.stdout.write(f"{setting.name}={_row(setting)['value']}")

    def _explain(self) -> None:
        rows = [_row(setting) for setting in SETTINGS]
        columns = ("name", "type", "default", "value")
        widths = {
            column: min(max(len(column), *(len(row[column]) for row in rows)), 44) for column in columns
        }
        indent = 4
        width = max(shutil.get_terminal_size((110, 24)).columns, 60)
        self.stdout.write("  ".join(f"{column.upper():<{widths[column]}}" for column in columns).rstrip())
        for row in rows:
            line = "  ".join(f"{row[column]:<{widths[column]}}" for column in columns)
            self.stdout.write(line.rstrip())
            self.stdout.write(textwrap.indent(textwrap.fill(row["help"], width - indent), " " * indent))


def _row(setting: Setting) -> dict[str, str]:
    getattr(env, setting.name)  # raises BadSetting
    hidden = setting.secret and env.is_set(setting.name)
    return {
        "name": setting.name,
        "type": setting.kind,
        "default": setting.default,
        "value": "(set, hidden)" if hidden else env.text(setting.name),
        "help": setting.help,
    }
