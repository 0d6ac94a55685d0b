"""People of a workspace in each role, who call `/api/` through web's whole stack."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.deployments.tests.conftest import Platform, platform
from apps.workspaces import members
from apps.workspaces.models import Membership, Workspace
from unkey import clock, ids
from unkey.actors import system
from unkey.rpc.testing import Answer, shared_client
from unkey.tenancy import workspace_scope

__all__ = ["Caller", "platform"]

Role = Membership.Role
TESTS = system("tests")


@dataclass(frozen=True)
class Caller:
    """A person with a token of one workspace."""

    workspace: Workspace
    user: User
    token: str
    client: Client = field(default_factory=shared_client)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request and return whatever comes; a path without a slash is below the workspace."""
        where = path if path.startswith("/") else f"/api/workspaces/{self.workspace.slug}/{path}"
        sent = {"Authorization": f"Bearer {self.token}"} | headers
        response = self.client.generic(
            method,
            where.rstrip("/"),
            b"" if body is None else json.dumps(body).encode(),
            content_type="application/json",
            headers={name: value for name, value in sent.items() if value},
        )
        content = b"".join(response) if response.streaming else response.content
        decoded: Any
        if response.get("Content-Type") == "application/x-ndjson":
            decoded = [json.loads(line) for line in content.splitlines()]
        else:
            decoded = json.loads(content) if content else None
        return Answer(response.status_code, decoded, response.headers)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request that must succeed, and return what is shown."""
        answer = self.send(method, path, body, **headers)
        assert answer.status < 300, answer.body
        return answer.body

    def refused(self, method: str, path: str, body: Any = None, *, status: int, **headers: str) -> Any:
        """Send a request that must be refused, and return the problem document."""
        answer = self.send(method, path, body, **headers)
        assert answer.status == status, answer.body
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.body["status"] == status
        return answer.body


Join = Callable[..., Caller]


@pytest.fixture
def join(db: None) -> Join:
    """Return a function that makes a person with a role in a workspace, and their token."""

    def make(workspace: Workspace, role: str = "owner", name: str = "") -> Caller:
        user = User.objects.create(username=name or ids.new("u"))
        with workspace_scope(workspace.id):
            Membership.objects.create(workspace=workspace, user=user, role=role)
        _, token = members.create_token(
            workspace.id,
            user,
            "tests",
            Role(role),
            expires_at=clock.now() + timedelta(days=1),
            by=Role(role),
            actor=TESTS,
        )
        return Caller(workspace, user, token)

    return make


@pytest.fixture
def owner(platform: Platform, join: Join) -> Caller:
    """The owner of the workspace that has the project `shop`."""
    return join(platform.tenant.workspace, "owner", "olga")
