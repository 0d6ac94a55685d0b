"""With HTTPS_ONLY the admin is reached by HTTPS alone, and whoever calls by address goes on as before."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser(settings) -> Client:
    settings.SECURE_SSL_REDIRECT = True
    return Client()  # middleware reads the settings when it is made


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/login/", 301),
        ("GET", "/health/ready", 200),
        ("GET", "/metrics", 401),
        ("GET", "/v2/liveness", 200),
        ("POST", "/v2/apis.getApi", 400),
        ("POST", "/internal/secrets", 401),
        ("GET", "/internal/snapshots/x", 401),
    ],
)
def test_plain_http_is_redirected_for_people_only(
    browser: Client, method: str, path: str, status: int
) -> None:
    assert browser.generic(method, path).status_code == status


def test_behind_a_proxy_that_ends_tls_nothing_is_redirected(browser: Client) -> None:
    assert browser.get("/admin/login/", headers={"X-Forwarded-Proto": "https"}).status_code == 200
