"""Schemathesis over every operation of `/v2`, at a whole running system: it keeps to its own document."""

import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import PYTHON, Platform, System
from tests.system.conftest import Deployed
from unkey.rpc.routes import routes

pytestmark = [pytest.mark.services, pytest.mark.timeout(420)]

# Without an Authorization header the published answer is 400, where this check wants 401.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
DELETES = {
    "apis.deleteApi": "apiId",
    "apps.deleteApp": "app",
    "environments.deleteEnvironment": "environment",
    "identities.deleteIdentity": "identity",
    "keys.deleteKey": "keyId",
    "permissions.deletePermission": "permission",
    "permissions.deleteRole": "role",
    "portal.deletePortal": "portal",
    "projects.deleteProject": "project",
}
# Of these, what is fuzzed must not be what the fuzzer itself goes in with.
ROOT_KEYS = ("rootKeys.deleteKey", "rootKeys.rerollKey", "rootKeys.updateKey")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A platform of its own: what the fuzzer leaves behind is nobody's."""
    running = System(tmp_path_factory.mktemp("unkey") / "var")
    running.environ |= {"PORTS": "auto", "LOG_LEVEL": "warning", "PORTAL_URL": "https://portal.example"}
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def named(
    system: System, platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """Return field name to ids and names that exist, so that the fuzzer gets past "not found"."""
    call = platform.call
    apis = [call("apis.createApi", {"name": f"api-{number}"})["apiId"] for number in range(3)]
    keys = [
        call("keys.createKey", {"apiId": api, "credits": {"remaining": 9}, "permissions": ["read"]})
        for api in apis * 3
    ]
    for number in range(3):
        call("identities.createIdentity", {"externalId": f"customer-{number}"})
        call("permissions.createRole", {"name": f"role-{number}", "permissions": ["read", "write"]})
    limit = {"namespace": "mails", "identifier": "ada", "limit": 9, "duration": 60_000}
    call("ratelimit.limit", limit)
    call("ratelimit.setOverride", limit)
    space = call("keys.verifyKey", {"key": keys[0]["key"]})["keyspaceId"]
    call("portal.createPortal", {"slug": "portal", "displayName": "Keys", "keyspaceId": space})
    system.manage("create_key_migration", "--workspace", "test", "--name", "acme-old")
    deployed = Deployed(system, platform, tmp_path_factory.mktemp("sources"))
    deployments = [deployed.deploy(version)["deploymentId"] for version in ("1", "2")]
    return {
        "apiId": apis,
        "keyId": [key["keyId"] for key in keys],
        "key": [key["key"] for key in keys],
        "identity": [f"customer-{number}" for number in range(3)],
        "role": [f"role-{number}" for number in range(3)],
        "permission": ["read", "write"],
        "project": [deployed.project],
        "app": ["default"],
        "environment": ["production", "preview"],
        "deploymentId": deployments,
        "oldDeploymentId": deployments,
        "newDeploymentId": deployments,
        "migrationId": ["acme-old"],
        "namespace": ["mails"],
        "keyspaceId": [space],
        "portal": ["portal"],
        "externalId": [f"customer-{number}" for number in range(3)],
    }


def settings(named: dict[str, list[str]]) -> str:
    """Return the fuzzer's configuration, in which fields mostly name what exists."""
    lines = []
    for name, values in named.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines.append("[parameters]")
    lines += [f'"body.{name}" = {{dictionary = "{name}", probability = 0.8}}' for name in named]
    for operation, name in DELETES.items():
        lines += _fixed(operation, name, "doomed_1")
    for operation in ROOT_KEYS:
        lines += _fixed(operation, "keyId", "key_doomed1")
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    return text


def _fixed(operation: str, name: str, value: str) -> list[str]:
    return [
        "[[operations]]",
        f'include-name = "POST /v2/{operation}"',
        f'parameters = {{"body.{name}" = "{value}"}}',
    ]


def test_no_request_meets_an_error_of_ours_or_an_answer_that_the_document_does_not_tell(
    system: System, platform: Platform, named: dict[str, list[str]], tmp_path: Path
) -> None:
    """Through the edge, as clients go in: verifications and limits are answered there, the rest by web."""
    (tmp_path / "schemathesis.toml").write_text(settings(named))
    command: list[Any] = [
        *(Path(PYTHON).with_name("schemathesis"), "--config-file", tmp_path / "schemathesis.toml"),
        *("run", f"{system.url('WEB_PORT')}/openapi.json", "--url", system.url("EDGE_API_PORT")),
        *("--header", f"Authorization: Bearer {platform.root_key}", "--checks", ",".join(CHECKS)),
        *("--phases", "coverage,fuzzing", "--max-examples", "2", "--generation-deterministic"),
        *("--exclude-operation-id", "snapshots.createSnapshot"),  # no JSON; see test_pipeline.py
        *("--workers", "4", "--continue-on-failure", "--warnings", "off"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    asked = len(routes()) - 1
    assert f"Tested: {asked}\n" in done.stdout, done.stdout[-2000:]
    log = (system.var / "up.log").read_text()
    assert "rpc.unexpected" not in log
    assert "rpc.database" not in log
