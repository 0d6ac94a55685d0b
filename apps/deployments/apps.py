"""Deployments, their steps, topologies and instances."""

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "apps.deployments"

    def ready(self) -> None:
        """Load the workflows that stand outside of `workflows.py`, so that their runs find them."""
        from apps.deployments import teardown  # noqa: F401
