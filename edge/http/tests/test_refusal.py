"""Error answers: HTML or JSON by Accept, and a page that says what to do."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http.refusal import render, wants_json
from unkey.errors import CATALOGUE, ConfigNotFound, DeploymentOffline, OpenapiValidationFailed, Violation

CHROMIUM = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        (b"", True),
        (b"*/*", True),
        (b"application/json", True),
        (b"application/json, text/plain, */*", True),
        (b"application/*", True),
        (b"text/html", False),
        (b"text/*", False),
        (CHROMIUM, False),
        (b"TEXT/HTML", False),
        (b"text/html, application/json", True),
        (b"text/html, application/json;q=0.5", False),
        (b"text/html;q=0.5, application/json", True),
        (b"text/html;q=0, */*", True),
        (b"application/json;q=0, */*", False),
        (b"text/html;level=1;q=0.3, application/json;q=0.4", True),
        (b"image/png", True),
        (b"text/html;q=nonsense", False),
        (b";;;,,,", True),
    ],
)
def test_who_gets_json(accept, json):
    assert wants_json(accept) is json


@given(st.binary(max_size=60))
def test_any_accept_is_decided_upon(accept):
    assert wants_json(accept) in (True, False)


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_every_page_says_what_a_visitor_and_an_owner_can_do(kind):
    headers, body = render(kind, "Something <is> wrong.", "req_1", CHROMIUM)
    page = body.decode()
    assert b"content-type: text/html; charset=utf-8\r\n" in headers
    assert b"default-src 'none'" in headers
    assert f"<title>{kind.status} " in page
    assert f"<code>{kind.code}</code>" in page
    assert "<code>req_1</code>" in page
    assert "Something &lt;is&gt; wrong." in page
    assert re.search(r"<h2>If you are visiting</h2><p>[^<]{20,}</p>", page)
    assert re.search(r'<h2>If this is your app</h2><p>[^<]{20,} <a href="https?://[^"]+">', page)


def test_who_visits_what_is_stopped_is_not_told_to_wait():
    _, body = render(DeploymentOffline.kind, "The deployment is stopped.", "req_1", CHROMIUM)
    page = body.decode()
    assert "Reload" not in page
    assert "Ask its owner to start it" in page
    assert "`unkey start`" in page


def test_nothing_of_a_request_becomes_markup():
    violations = (Violation("<b>", "<i>"),)
    _, body = render(OpenapiValidationFailed.kind, "<script>", "<u>", CHROMIUM, violations)
    assert not re.search(rb"<(b|i|u|script)>", body)
    assert b"<li><code>&lt;i&gt;</code> &lt;b&gt;</li>" in body


def test_json_has_code_message_and_request():
    headers, body = render(ConfigNotFound.kind, "No app.", "req_1", b"")
    assert headers == b"content-type: application/json\r\n"
    assert msgspec.json.decode(body) == {
        "meta": {"requestId": "req_1"},
        "error": {"code": "err:frontline:routing:config_not_found", "message": "No app."},
    }
