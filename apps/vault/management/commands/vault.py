"""`manage.py vault`: becomes the vault process."""

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

from apps.vault.services import local_vault
from unkey.env import env


class Command(BaseCommand):
    """Serves the vault on VAULT_PORT."""

    help = "Serve envelope encryption on VAULT_PORT; others reach it by VAULT_URL and VAULT_TOKEN."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Check the settings, then replace this process by the server."""
        local_vault().liveness()
        host = f"[{env.BIND}]" if ":" in env.BIND else env.BIND
        os.execv(  # noqa: S606
            sys.executable,
            [
                sys.executable,
                "-m",
                "gunicorn",
                "apps.vault.server:application",
                "--bind",
                f"{host}:{env.VAULT_PORT}",
                "--worker-class",
                "gthread",
                "--threads",
                str(env.WEB_THREADS),
                "--no-control-socket",
            ],
        )
