"""Projects, apps, environments, variables and settings."""

from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    name = "apps.projects"
