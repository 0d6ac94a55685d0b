"""Events and what is made of them: counts, usage, and SQL over them."""

from django.apps import AppConfig


class AnalyticsConfig(AppConfig):
    name = "apps.analytics"
