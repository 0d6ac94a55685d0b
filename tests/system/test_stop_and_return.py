"""Stopping leaves nothing behind; starting again brings the live deployments back by themselves."""

import socket
from collections.abc import Callable

import psutil
import pytest

from scripts.demo import System
from tests.system.conftest import Deployed

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


def test_interrupt_leaves_no_process_and_no_port_and_a_new_start_brings_everything_back(
    system: System, project: Callable[[], Deployed]
) -> None:
    app = project()
    deployed = app.deploy("1")
    visitor = app.visitor(deployed)
    visitor.until_version("1", None)

    system.stop()
    assert _processes_of(system) == []
    for name, port in system.ports.items():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"{name} {port} still answers"

    system.start()
    app.visitor(deployed).until_version("1", None)


def _processes_of(system: System) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("UNKEY_VAR") == str(system.var)
            ) or str(system.var) in process.cwd():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
