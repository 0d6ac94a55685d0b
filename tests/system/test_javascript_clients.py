"""The published JavaScript clients, unchanged, against a whole running system."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import ROOT, Platform, System

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("system"), pytest.mark.timeout(240)]

CLIENTS = ROOT / "tests" / "clients"


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clients that the lock file pins, and the programs that use them."""
    folder = tmp_path_factory.mktemp("clients")
    for file in CLIENTS.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return folder


def test_unkey_api_drives_every_method_for_keys_and_what_belongs_to_them(
    system: System, platform: Platform, clients: Path
) -> None:
    migration = ("--workspace", "test", "--name", "js-old", "--algorithm", "sha256")
    system.manage("create_key_migration", *migration)
    command = ["node", "story.mjs", system.url("EDGE_API_PORT"), platform.root_key, "js-old"]
    done = subprocess.run(command, cwd=clients, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)

    assert seen["missed"] == []
    assert seen["verified"] == [True, "VALID", 8, "ada"]
    assert seen["limits"] == [["requests", 48], ["shared", 99]]
    assert (seen["api"], seen["shown"], seen["renamed"], seen["old"]) == (
        "payments",
        "pay_",
        "renamed",
        "old",
    )
    assert (seen["whoami"], seen["rerolled"], seen["listed"]) == (True, True, 1)
    assert (seen["added"], seen["removed"], seen["set"], seen["roleless"]) == (2, 1, 1, 0)
    assert (seen["credits"], seen["imported"], seen["gone"]) == (3, [1, 0], "NOT_FOUND")
    assert (seen["identity"], seen["meta"]) == ("ada", {"plan": "team"})
    assert (seen["roles"], seen["permission"]) == (["reader"], "Read")
    assert seen["permissions"] == ["books.list", "books.read"]
    assert seen["limited"] == [True, True, False]
    assert (seen["multi"], seen["override"], seen["overrides"]) == (True, 100, 1)
    assert seen["refusals"] == [
        ["NotFoundErrorResponse", 404, "api_not_found"],
        ["BadRequestErrorResponse", 400, "invalid_input"],
        ["ConflictErrorResponse", 409, "identity_already_exists"],
        ["UnauthorizedErrorResponse", 401, "key_not_found"],
    ]


@pytest.fixture
def servers(system: System, platform: Platform, clients: Path) -> Iterator[str]:
    """The base URL of the servers of `servers.mjs`."""
    command = ["node", "servers.mjs", system.url("EDGE_API_PORT"), platform.root_key]
    with subprocess.Popen(
        command, cwd=clients, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def ask(url: str, key: str = "", method: str = "GET") -> tuple[int, Any]:
    """Return status and decoded body of an answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())


def test_servers_that_use_the_limiter_and_the_middleware_let_through_what_they_may(
    platform: Platform, servers: str
) -> None:
    statuses = [ask(f"{servers}/limited?who=ada")[0] for _ in range(5)]
    assert statuses.count(200) in (3, 4)  # a window may turn in between
    assert statuses[:3] == [200] * 3
    assert ask(f"{servers}/limited?who=bob") == (200, {"remaining": 2})
    assert ask(f"{servers}/overrides/vip", method="POST") == (200, {})

    api = platform.call("apis.createApi", {"name": "hono"})["apiId"]
    reader = platform.call("keys.createKey", {"apiId": api, "permissions": ["books.read"]})
    other = platform.call("keys.createKey", {"apiId": api})
    me = f"{servers}/guarded/me"
    assert ask(me, reader["key"]) == (200, {"keyId": reader["keyId"]})
    assert ask(me, other["key"]) == (401, {"code": "INSUFFICIENT_PERMISSIONS"})
    assert ask(me, "nobody") == (401, {"code": "NOT_FOUND"})
    assert ask(me) == (401, {"error": "unauthorized"})
    platform.call("keys.deleteKey", {"keyId": reader["keyId"]})
