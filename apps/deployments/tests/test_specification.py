"""Fetching a program's OpenAPI document: what is taken, and what a hostile program cannot do."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from apps.deployments import openapi, specification
from apps.deployments.specification import Absent, Document, Unknown
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
    assert isinstance(found, Document)
    assert found.text == text.decode()


@pytest.mark.parametrize("status", [404, 405, 410])
def test_a_program_may_answer_that_it_has_none(programs: Programs, status: int) -> None:
    programs.answers["/openapi.yaml"] = programs.answers["/spec"] = (status, YAML)
    assert specification.fetch(programs.address, None) == Absent()
    assert specification.fetch(programs.address, "/spec") == Absent()


def test_a_page_for_every_path_is_none_unless_a_document_was_promised(programs: Programs) -> None:
    for body in (b"", b"<html>openapi</html>", b'{"error": "openapi"}'):
        programs.answers["/openapi.yaml"] = programs.answers["/spec"] = (200, body)
        assert specification.fetch(programs.address, None) == Absent()
        assert specification.fetch(programs.address, "/spec") == Unknown(
            "answered /spec with something that is no OpenAPI document"
        )


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (302, YAML, "answered /openapi.yaml with status 302"),
        (401, YAML, "answered /openapi.yaml with status 401"),
        (500, YAML, "answered /openapi.yaml with status 500"),
        (503, b"", "answered /openapi.yaml with status 503"),
        (200, b"openapi: \xff\xfe 3", "answered /openapi.yaml with something that is not UTF-8"),
    ],
)
def test_anything_else_says_nothing(programs: Programs, status: int, body: bytes, why: str) -> None:
    programs.answers["/openapi.yaml"] = (status, body)
    assert specification.fetch(programs.address, None) == Unknown(why)


def test_of_several_instances_the_first_document_counts_then_the_first_answer(
    programs: Programs, answering: Callable[..., str]
) -> None:
    nobody = "127.0.0.1:1"
    assert specification.fetch_any([], None) == Unknown("has no running instance that could be asked")
    assert isinstance(specification.fetch_any([nobody], None), Unknown)
    assert specification.fetch_any([nobody, programs.address, nobody], None) == Absent()
    programs.answers["/openapi.yaml"] = (200, YAML)
    none = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(specification.fetch_any([nobody, none, programs.address], None), Document)


@pytest.mark.parametrize("path", ["", "spec.yaml", "@host/x", "//host/x", "http://host/x", "/a\nb", "/a b"])
def test_a_path_never_leads_elsewhere(programs: Programs, path: str) -> None:
    programs.answers[path] = (200, YAML)
    assert not isinstance(specification.fetch(programs.address, path), Document)
    assert all(asked.startswith("/") and not asked.startswith("//") for asked, _ in programs.asked)


def test_a_document_that_is_too_large_is_not_read_to_its_end(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "MAX_BYTES", 1000)
    programs.answers["/openapi.yaml"] = (200, YAML + b"#" * 2000)
    assert specification.fetch(programs.address, None) == Unknown(
        "answered /openapi.yaml with more than 1000 octets"
    )


def test_nobody_there_says_nothing() -> None:
    assert specification.fetch("127.0.0.1:1", None) == Unknown(
        "did not answer /openapi.yaml: All connection attempts failed"
    )


def test_a_program_that_is_silent_says_nothing(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "SILENCE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert specification.fetch(address, None) == Unknown("did not answer /openapi.yaml in time")


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Serve octets on a socket as they are, then some until the other side hangs up; returns the address."""
    threads: list[threading.Thread] = []

    def serve(*parts: bytes, forever: bytes = b"", pause: float = 0.02) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            with listener, listener.accept()[0] as connection:
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                with suppress(OSError):
                    while forever:
                        connection.sendall(forever)
                        time.sleep(pause)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        threads.append(thread)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "the connection is still open"


@pytest.mark.parametrize(
    ("begun", "forever"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + YAML, b"#"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n#\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "chunks", "header", "interim answers"],
)
def test_a_program_that_never_ends_its_answer_is_left_wherever_it_is(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch, begun: bytes, forever: bytes
) -> None:
    monkeypatch.setattr(specification, "TOTAL_SECONDS", 0.2)
    assert specification.fetch(answering(begun, forever=forever), None) == Unknown(
        "did not complete its answer to /openapi.yaml within 0.2 s"
    )


def test_a_header_without_end_is_not_read_to_its_end(answering: Callable[..., str]) -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    found = specification.fetch(answering(head, forever=b"X-More: " + b"x" * 8000 + b"\r\n", pause=0), None)
    assert isinstance(found, Unknown)
    assert found.why.startswith("did not answer /openapi.yaml: ")


def test_a_size_that_is_announced_and_a_size_that_is_not_are_both_limited(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specification, "MAX_BYTES", 1000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"400\r\n" + YAML.ljust(0x400, b"#") + b"\r\n"
    assert specification.fetch(answering(head, forever=chunk), None) == Unknown(
        "answered /openapi.yaml with more than 1000 octets"
    )


def test_a_compressed_answer_is_not_inflated(answering: Callable[..., str]) -> None:
    content = gzip.compress(YAML + b"#" * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n"
    assert specification.fetch(answering(head.encode() + content), None) == Unknown(
        "answered /openapi.yaml with a compressed document, although it was asked for a plain one"
    )


def test_a_redirect_is_not_followed(programs: Programs, answering: Callable[..., str]) -> None:
    programs.answers["/openapi.yaml"] = (200, YAML)
    for status in (301, 302, 307, 308):
        head = f"HTTP/1.1 {status} Go\r\nLocation: http://{programs.address}/openapi.yaml\r\n"
        found = specification.fetch(answering((head + "Content-Length: 0\r\n\r\n").encode()), None)
        assert found == Unknown(f"answered /openapi.yaml with status {status}")
    assert programs.asked == []


def test_what_is_no_http_is_no_document(answering: Callable[..., str]) -> None:
    assert isinstance(specification.fetch(answering(b"220 mail.example ESMTP\r\n"), None), Unknown)


def test_a_document_is_kept_as_it_was_understood_or_with_what_is_wrong(programs: Programs) -> None:
    programs.answers["/openapi.yaml"] = (200, YAML)
    found = specification.fetch(programs.address, None)
    assert isinstance(found, Document)
    assert found.packed is not None
    assert openapi.unpack(found.packed).root == {"openapi": "3.0.3", "paths": {}}
    programs.answers["/openapi.yaml"] = (200, b"swagger: '2.0'\npaths: {}\n")
    found = specification.fetch(programs.address, None)
    assert isinstance(found, Document)
    assert found.packed is None
    assert found.fault == "it is OpenAPI 2 or something else; documents of OpenAPI 3 can be compared"
