"""`manage.py down`: stops what `up` runs in this folder, and what a killed `up` left behind."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from unkey.env import env
from unkey.installation import Installation


class Command(BaseCommand):
    help = "Stop the system that runs in UNKEY_VAR; nothing running is fine, too."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--patience",
            type=float,
            default=60,
            metavar="SECONDS",
            help="until everything is killed without grace (default: %(default)g)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        ran = Installation(env.UNKEY_VAR).stop(patience=options["patience"])
        self.stdout.write("stopped" if ran else f"nothing runs in {env.UNKEY_VAR}")
