"""The project's own app: commands, and the Celery application loaded with Django."""

from django.apps import AppConfig


class UnkeyConfig(AppConfig):
    name = "unkey"

    def ready(self) -> None:
        from unkey import celery, checks  # noqa: F401  (tasks bind to this application; checks register)
