"""For tests of operations: a workspace with a root key, and calls that check the declared answer.

def test_name(tenant):                       # fixture of the root conftest
    data = tenant("apis.createApi", {"name": "payments"})
    fault = tenant.refused("apis.getApi", {"apiId": "api_nobody0"}, 404)
"""

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from django.test import Client

from apps.workspaces.models import Workspace
from apps.workspaces.permissions import everything
from apps.workspaces.services import create_root_key, create_workspace
from unkey import ids
from unkey.actors import system
from unkey.rpc.routes import routes

TESTS = system("tests")


@cache
def shared_client() -> Client:
    """Return one client for all tests: making one loads the whole stack."""
    return Client(raise_request_exception=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, decoded body and headers."""

    status: int
    body: Any
    headers: Any


@dataclass(frozen=True)
class Tenant:
    """A workspace and a root key of it that calls the API through web's whole stack."""

    workspace: Workspace
    root_key: str
    client: Client = field(default_factory=shared_client)

    def __call__(self, operation: str, body: Any = None, **headers: str) -> Any:
        """Call an operation that must succeed, and return its `data` (None: it has none), which must fit its schema."""
        return self.full(operation, body, **headers).get("data")

    def full(self, operation: str, body: Any = None, **headers: str) -> Any:
        """Call an operation that must succeed, and return the whole envelope."""
        answer = self.send(operation, body, **headers)
        declared = routes()[operation]
        assert answer.status == declared.status, answer.body
        expected = {"meta", "pagination"} if declared.paginated else {"meta"}
        if declared.response_checker is not None and declared.wrapped:
            expected.add("data")
            assert declared.response_checker.violations(answer.body.get("data")) == []
        elif declared.response_checker is not None:
            beside = {name: value for name, value in answer.body.items() if name not in expected}
            assert declared.response_checker.violations(beside) == []
            expected |= set(beside)
        assert set(answer.body) == expected
        return answer.body

    def refused(self, operation: str, body: Any, status: int, **headers: str) -> Any:
        """Call an operation that must be refused with this status, and return its `error`."""
        answer = self.send(operation, body, **headers)
        assert answer.status == status, answer.body
        assert set(answer.body) == {"meta", "error"}
        assert answer.body["error"]["status"] == status
        return answer.body["error"]

    def send(self, operation: str, body: Any = None, **headers: str) -> Answer:
        """Call an operation and return whatever comes; headers override `Authorization`."""
        sent = {"Authorization": f"Bearer {self.root_key}"} | headers
        response = self.client.post(
            f"/v2/{operation}",
            data=json.dumps({} if body is None else body),
            content_type="application/json",
            headers=sent,
        )
        return Answer(response.status_code, json.loads(response.content), response.headers)

    def holding(self, *permissions: str) -> "Tenant":
        """Return the same workspace through a root key that holds only these permissions."""
        _, plaintext = create_root_key(self.workspace, "limited", permissions, actor=TESTS)
        return replace(self, root_key=plaintext)


def make_tenant(name: str = "acme") -> Tenant:
    """Make a workspace with a root key that may do everything."""
    workspace = create_workspace(name, f"{name}-{ids.new('t')[2:].lower()}", actor=TESTS)
    _, plaintext = create_root_key(workspace, "everything", everything(workspace.id), actor=TESTS)
    return Tenant(workspace, plaintext)
