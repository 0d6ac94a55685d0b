"""The published Python SDK speaks to this API."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unkey.rpc.testing import make_tenant


@pytest.mark.django_db(transaction=True)
def test_the_published_sdk_tells_its_story(live_server: Any) -> None:
    tenant = make_tenant()
    program = Path(__file__).with_name("sdk_story.py")
    done = subprocess.run(
        [sys.executable, "-I", str(program), live_server.url, tenant.root_key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "api": "sdk story",
        "verified": [True, "VALID", 2, "ada"],
        "updated": [None, 1, False],
        "disabled": "DISABLED",
        "listed": [True],
        "deleted": "NOT_FOUND",
        "not found": "https://unkey.com/docs/errors/unkey/data/key_not_found",
        "bad request": "Bad Request",
        "project": "sdk-story",
    }
