"""The platform of the deployments' tests: deletion takes down what they make."""

from apps.deployments.tests.conftest import platform

__all__ = ["platform"]
