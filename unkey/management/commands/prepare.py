"""`manage.py prepare`: schema, region and certificates, as `up` does before it starts."""

from typing import Any

from django.core.management.base import BaseCommand

from unkey.preparation import prepare


class Command(BaseCommand):
    help = "Apply migrations and make what every installation has; safe to repeat."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        prepare()
