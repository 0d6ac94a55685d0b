"""Frontline routes, sentinel rows and policies."""

from django.apps import AppConfig


class RoutingConfig(AppConfig):
    name = "apps.routing"
