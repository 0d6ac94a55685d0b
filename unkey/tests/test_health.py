"""Health and metrics of web."""

from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client

from unkey.env import env


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
    assert answer.content == b"The database does not answer; try again in a moment.\n"
