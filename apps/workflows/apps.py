"""The durable workflow engine: knows no other app."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class WorkflowsConfig(AppConfig):
    name = "apps.workflows"

    def ready(self) -> None:
        """Load every app's `workflows.py`, so that a run finds its class by its service name."""
        from apps.workflows import metrics

        autodiscover_modules("workflows")
        metrics.register()
