"""Health and metrics of web."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection
from django.test import Client

from unkey.database import NOT_PREPARED
from unkey.env import ROOT, env
from unkey.health import outage


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["live", "ready", "startup"])
def test_a_sound_web_is_healthy(client: Client, name: str) -> None:
    answer = client.get(f"/health/{name}")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.django_db
def test_without_its_database_web_lives_but_is_not_ready(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(connection, "cursor", refuse)
    monkeypatch.setattr(connection, "close", lambda: None)
    assert client.get("/health/live").status_code == 200
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "unavailable", "reason": "database: OperationalError"},
    )


@pytest.mark.django_db
def test_metrics_are_for_bearers_of_the_agents_token(client: Client) -> None:
    client.get("/admin/login/")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {env.secret('AGENT_TOKEN')}"})
    assert answer.status_code == 200
    assert 'unkey_web_request_seconds_count{method="GET",status="200"}' in answer.content.decode()


@pytest.mark.django_db
def test_every_answer_carries_its_request_id(client: Client) -> None:
    first, second = (client.get("/nowhere").headers["X-Request-Id"] for _ in range(2))
    assert first.startswith("req_")
    assert first != second


@pytest.mark.django_db
def test_probes_are_answered_whatever_host_they_name(client: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["admin.example.com"]
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/health/ready", headers={"Host": "10.0.0.7"}).status_code == 200
    assert client.get("/admin/login/", headers={"Host": "10.0.0.7"}).status_code == 400


@pytest.mark.django_db
def test_a_page_without_its_database_says_so_in_one_line(admin_client: Client) -> None:
    def away(execute: Any, sql: str, *rest: Any) -> Any:
        if "audit_auditlog" in sql:
            raise OperationalError("unable to open database file")
        return execute(sql, *rest)

    with connection.execute_wrapper(away):
        answer = admin_client.get("/admin/audit/auditlog/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.content == b"The database does not answer at the moment. Please try again.\n"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM no_such_table",
        "SELECT no_such_column FROM django_migrations",
        "INSERT INTO django_migrations (no_such_column) VALUES (1)",
    ],
)
def test_a_table_or_column_that_is_not_there_is_told_from_a_database_that_is_away(sql: str) -> None:
    with pytest.raises(DatabaseError) as lacking, connection.cursor() as cursor:
        cursor.execute(sql)
    assert outage(lacking.value) == NOT_PREPARED
    assert outage(OperationalError(2006, "Server has gone away")) != NOT_PREPARED
    assert outage(ValueError("no such table")) is None


_ASKING = """
import json
import django
django.setup()
from django.test import Client
client = Client()
bearer = {"Authorization": "Bearer unkey_nobody"}
said = {
    "startup": client.get("/health/startup"),
    "page": client.post("/admin/login/", {"username": "a", "password": "b"}, secure=True),
    "rpc": client.post("/v2/keys.verifyKey", {"key": "k"}, "application/json", secure=True, headers=bearer),
    "api": client.get("/api/workspaces", secure=True, headers={"Authorization": "Bearer unkey_pat_nobody"}),
}
print(json.dumps({name: [each.status_code, each.content.decode()] for name, each in said.items()}))
"""


def test_web_and_worker_on_a_database_that_was_not_migrated_name_the_command_to_run(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        settings = {"UNKEY_VAR": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3"}
        settings |= {"DJANGO_SETTINGS_MODULE": "unkey.settings", "DEBUG": "0"}
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    asked = run("-c", _ASKING)
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout.splitlines()[-1])
    assert said["startup"][0] == said["page"][0] == 503
    assert "run `python manage.py prepare`" in said["startup"][1]
    assert said["page"][1] == f"{NOT_PREPARED}\n"
    for name in ("rpc", "api"):
        assert NOT_PREPARED in said[name][1]
    worker = run("-m", "celery", "-A", "unkey", "worker")
    assert worker.returncode == 1
    assert worker.stderr.splitlines()[-1].startswith("error: ")
    assert "migrations are not applied (DATABASE_URL): run `python manage.py prepare`" in worker.stderr
