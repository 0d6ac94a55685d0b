"""Fetching a program's OpenAPI document: what is taken, and what a hostile program cannot do."""

import pytest

from apps.deployments import specification
from apps.deployments.tests.conftest import Programs

YAML = b"openapi: 3.0.3\npaths: {}\n"


@pytest.mark.parametrize(
    "text",
    [
        YAML,
        b'{"openapi": "3.1.0", "paths": {}}',
        b"# ours\nswagger: '2.0'\n",
        b'{"info":{},"openapi":"3.0.0"}',
    ],
)
def test_yaml_and_json_documents_are_taken(programs: Programs, text: bytes) -> None:
    programs.answers["/docs/spec"] = (200, text)
    found = specification.fetch(programs.address, "/docs/spec")
    assert found is not None
    assert found.text == text.decode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, YAML),
        (302, YAML),
        (500, YAML),
        (200, b""),
        (200, b"openapi: \xff\xfe 3"),
        (200, b"<html>openapi</html>"),
        (200, b'{"error": "openapi"}'),
    ],
)
def test_anything_else_is_not(programs: Programs, status: int, body: bytes) -> None:
    programs.answers["/openapi.yaml"] = (status, body)
    assert specification.fetch(programs.address, None) is None


@pytest.mark.parametrize("path", ["", "spec.yaml", "@host/x", "//host/x", "http://host/x", "/a\nb", "/a b"])
def test_a_path_never_leads_elsewhere(programs: Programs, path: str) -> None:
    programs.answers[path] = (200, YAML)
    assert specification.fetch(programs.address, path) is None
    assert all(asked.startswith("/") and not asked.startswith("//") for asked, _ in programs.asked)


def test_a_document_that_is_too_large_is_not_read_to_its_end(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "MAX_BYTES", 1000)
    programs.answers["/openapi.yaml"] = (200, YAML + b"#" * 2000)
    assert specification.fetch(programs.address, None) is None


def test_nobody_there_is_no_document() -> None:
    assert specification.fetch("127.0.0.1:1", None) is None
