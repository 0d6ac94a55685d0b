"""Limits of a workspace."""

from django.apps import AppConfig


class QuotaConfig(AppConfig):
    name = "apps.quota"
