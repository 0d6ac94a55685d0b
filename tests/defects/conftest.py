"""The platform that the tests of deployments drive."""

from apps.deployments.tests.conftest import make_app, platform

__all__ = ["make_app", "platform"]
