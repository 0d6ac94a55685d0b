"""`manage.py create_admin`: an administrator of the admin site, or a new password for one."""

import os
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Create an administrator, or give an existing one the password in DJANGO_SUPERUSER_PASSWORD."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--email", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        password = os.environ.get("DJANGO_SUPERUSER_PASSWORD", "")
        if not password:
            raise CommandError("set DJANGO_SUPERUSER_PASSWORD: passwords are not taken from the command line")
        users = get_user_model().objects
        user = users.filter(username=options["username"]).first() or get_user_model()(
            username=options["username"]
        )
        try:
            validate_password(password, user)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        user.email = options["email"] or user.email
        user.is_staff = user.is_superuser = True
        user.set_password(password)
        user.save()
        self.stdout.write(f"administrator {user.get_username()}")
