"""Builds: sources and what runs them."""

from django.apps import AppConfig


class BuildsConfig(AppConfig):
    name = "apps.builds"
