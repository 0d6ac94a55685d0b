"""The dashboard: its REST under `/api/`, and live progress from feed."""

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    name = "apps.console"
