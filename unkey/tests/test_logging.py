"""Logs: structured, with context, without secrets."""

import json
import logging
import subprocess
import sys

import pytest
import structlog

from unkey.env import ROOT
from unkey.logging import redact

ROOT_KEY = "unkey_" + "7" * 32


def test_secrets_are_hidden_by_name_and_by_shape_at_every_depth() -> None:
    event = {
        "event": f"called with Authorization: Bearer abc.def and {ROOT_KEY}",
        "authorization": "Basic dXNlcg==",
        "headers": {"Cookie": "session=1", "accept": "text/html"},
        "items": [{"password": "hunter2"}, "mysql://unkey:pa55@db/unkey"],
        "variables": {"STRIPE": "sk_live"},
        "root_key": "short",
        "key_id": "key_123",
        "port": 8080,
    }
    assert redact(None, "info", event) == {
        "event": "called with Authorization: Bearer [hidden] and unkey_[hidden]",
        "authorization": "[hidden]",
        "headers": {"Cookie": "[hidden]", "accept": "text/html"},
        "items": [{"password": "[hidden]"}, "mysql://unkey:[hidden]@db/unkey"],
        "variables": "[hidden]",
        "root_key": "[hidden]",
        "key_id": "key_123",
        "port": 8080,
    }


@pytest.mark.parametrize(
    "unit", ["x", "a+", "://", "://a:", "bearer ", "bearer", "unkey_", "unkey_A", "://:x", "a.b-c+d"]
)
def test_a_long_text_is_looked_through_once(unit: str) -> None:
    # The time of looking again from every letter would be hours.
    text = unit * 500_000 + " . mysql://unkey:pa55@db/unkey"
    hidden = redact(None, "info", {"error": text})["error"]
    assert hidden.endswith("://unkey:[hidden]@db/unkey")


def run(program: str, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


PROGRAM = f"""
import logging, structlog
from unkey import logging as ours
ours.configure("edge")
structlog.contextvars.bind_contextvars(request_id="req_1")
structlog.get_logger("edge.store").info("applied", version=7)
logging.getLogger("asyncio").warning("slow %s", "{ROOT_KEY}")
structlog.get_logger().debug("unseen")
try:
    raise ValueError("{ROOT_KEY}")
except ValueError:
    structlog.get_logger().exception("failed")
"""


def test_json_lines_carry_context_process_and_level() -> None:
    first, second, third = map(json.loads, run(PROGRAM, LOG_FORMAT="json"))
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "applied",
        "level": "info",
        "logger": "edge.store",
        "process": "edge",
        "request_id": "req_1",
        "version": 7,
    }
    assert (second["event"], second["level"], second["request_id"]) == (
        "slow unkey_[hidden]",
        "warning",
        "req_1",
    )
    assert third["exception"].endswith("ValueError: unkey_[hidden]")


def test_text_lines_are_plain() -> None:
    lines = run(PROGRAM, LOG_FORMAT="text")
    assert "applied" in lines[0]
    assert "request_id=req_1" in lines[0]
    assert "\x1b" not in "".join(lines)
    assert ROOT_KEY not in "".join(lines)


def test_django_installs_the_same_logging(settings) -> None:
    assert settings.LOGGING["handlers"]["out"]["formatter"] == "unkey"
    assert structlog.is_configured()
    assert logging.getLogger("kombu").level == logging.WARNING
