"""Certificates and the local certificate authority."""

from django.apps import AppConfig


class CertsConfig(AppConfig):
    name = "apps.certs"
