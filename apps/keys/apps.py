"""API keys: key spaces, keys, identities, permissions, roles."""

from django.apps import AppConfig


class KeysConfig(AppConfig):
    name = "apps.keys"
