"""Versions, regions, agents and edges: what satellites watch and report."""

from django.apps import AppConfig


class ClusterConfig(AppConfig):
    name = "apps.cluster"
