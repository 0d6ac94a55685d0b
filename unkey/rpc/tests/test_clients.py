"""Every operation of the published Python client has a state here, and the documentation tells it."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.clients_table import published
from unkey.rpc.routes import routes
from unkey.rpc.testing import Tenant
from unkey.rpc.unavailable import WAITING

ROOT = Path(__file__).resolve().parents[3]


def test_every_published_operation_works_or_says_what_it_waits_for() -> None:
    names = published()
    assert len(names) == 98
    assert set(WAITING) == set(names) - set(routes())


def test_the_table_of_the_documentation_is_current() -> None:
    command = [sys.executable, "scripts/clients_table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("operation", sorted(WAITING))
def test_what_waits_for_an_engine_says_so(tenant: Tenant, operation: str) -> None:
    error = tenant.refused(operation, {}, 412)
    assert error["type"] == "https://unkey.com/docs/errors/unkey/application/operation_unavailable"
    assert error["detail"] == f"{operation} is not available here. {WAITING[operation]}"
