"""Fetching a program's OpenAPI document: what is taken, and what a hostile program cannot do."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from apps.deployments import openapi, specification
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


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Serve octets on a socket as they are, each part after the one before; returns the address."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def serve(*parts: bytes, forever: bytes = b"") -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            with listener, listener.accept()[0] as connection:
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                while forever and not ended.wait(0.02):
                    try:
                        connection.sendall(forever)
                    except OSError:
                        return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        threads.append(thread)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    ended.set()
    for thread in threads:
        thread.join(10)


def test_a_program_that_never_ends_its_answer_is_left(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "TOTAL_SECONDS", 0.2)
    address = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + YAML, forever=b"#")
    assert specification.fetch(address, None) is None


def test_a_size_that_is_announced_and_a_size_that_is_not_are_both_limited(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "MAX_BYTES", 1000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"400\r\n" + YAML.ljust(0x400, b"#") + b"\r\n"
    assert specification.fetch(answering(head, forever=chunk), None) is None


def test_a_compressed_answer_is_not_inflated(answering: Callable[..., str]) -> None:
    content = gzip.compress(YAML + b"#" * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n"
    assert specification.fetch(answering(head.encode() + content), None) is None


def test_a_redirect_is_not_followed(programs: Programs, answering: Callable[..., str]) -> None:
    programs.answers["/openapi.yaml"] = (200, YAML)
    for status in (301, 302, 307, 308):
        head = f"HTTP/1.1 {status} Go\r\nLocation: http://{programs.address}/openapi.yaml\r\n"
        assert specification.fetch(answering((head + "Content-Length: 0\r\n\r\n").encode()), None) is None
    assert programs.asked == []


def test_what_is_no_http_is_no_document(answering: Callable[..., str]) -> None:
    assert specification.fetch(answering(b"220 mail.example ESMTP\r\n"), None) is None


def test_a_document_is_kept_as_it_was_understood_or_with_what_is_wrong(programs: Programs) -> None:
    programs.answers["/openapi.yaml"] = (200, YAML)
    found = specification.fetch(programs.address, None)
    assert found is not None
    assert found.packed is not None
    assert openapi.unpack(found.packed).root == {"openapi": "3.0.3", "paths": {}}
    programs.answers["/openapi.yaml"] = (200, b"swagger: '2.0'\npaths: {}\n")
    found = specification.fetch(programs.address, None)
    assert found is not None
    assert found.packed is None
    assert found.fault == "it is OpenAPI 2 or something else; documents of OpenAPI 3 can be compared"
