"""Rate limits of their own: namespaces, and overrides for single identifiers."""

from django.apps import AppConfig


class RatelimitsConfig(AppConfig):
    name = "apps.ratelimits"
