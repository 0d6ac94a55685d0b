"""The static server, over a socket."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import static


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    for name, content in {
        "index.html": "<h1>home</h1>",
        "style.css": "b {}",
        "a b/ä.js": "1",
        "docs/index.html": "docs",
        ".secret": "no",
        ".well-known/x.txt": "yes",
        "data.unknown": "?",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (tmp_path / "outside.txt").write_text("outside")
    (root / "link.txt").symlink_to("../outside.txt")
    (root / "folder").symlink_to("..")
    return root


@pytest.fixture
def port(site: Path) -> Iterator[int]:
    with static.StaticServer(("127.0.0.1", 0), site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(
        method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/", "<h1>home</h1>", "text/html; charset=utf-8"),
        ("/index.html?x=1", "<h1>home</h1>", "text/html; charset=utf-8"),
        ("/style.css", "b {}", "text/css; charset=utf-8"),
        ("/a%20b/%C3%A4.js", "1", "text/javascript; charset=utf-8"),
        ("/docs/", "docs", "text/html; charset=utf-8"),
        ("/.well-known/x.txt", "yes", "text/plain; charset=utf-8"),
        ("/data.unknown", "?", "application/octet-stream"),
    ],
)
def test_files_are_served_with_their_types(port: int, path: str, body: str, kind: str) -> None:
    status, found, headers = ask(port, path)
    assert (status, found, headers["content-type"]) == (200, body, kind)
    assert headers["content-length"] == str(len(body.encode()))
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/docs/..%2f..%2foutside.txt",
        "/link.txt",
        "/folder/outside.txt",
        "/.secret",
        "/a%00b",
        "//etc/passwd",
        "/" + "a" * 5000,
    ],
)
def test_nothing_outside_the_folder_is_served(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404


def test_a_folder_without_its_slash_is_redirected_within_the_site(port: int) -> None:
    status, _, headers = ask(port, "//docs")
    assert (status, headers["location"]) == (301, "/docs/")


def test_head_has_no_body_and_a_known_tag_is_not_sent_again(port: int) -> None:
    status, body, headers = ask(port, "/style.css", "HEAD")
    assert (status, body, headers["content-length"]) == (200, "", "4")
    status, body, again = ask(port, "/style.css", If_None_Match=headers["etag"])
    assert (status, body, again["etag"]) == (304, "", headers["etag"])


def test_other_methods_are_refused(port: int) -> None:
    assert ask(port, "/", "POST")[0] == 501


def test_a_page_of_its_own_for_what_is_not_found(site: Path, port: int) -> None:
    (site / "404.html").write_text("gone")
    status, body, _ = ask(port, "/nothing")
    assert (status, body) == (404, "gone")


@given(st.text(alphabet="./%2eEfF5cC\\a~\0", max_size=30))
def test_no_path_resolves_outside(path: str) -> None:
    root = Path(__file__).resolve().parent
    found = static.resolve(root, path)
    assert found is None or found.is_relative_to(root)


def test_a_wrong_call_says_how(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    assert static.main(["/nonexistent"]) == 2
    assert capsys.readouterr().err == "usage: PORT=number python -m agent.static FOLDER\n"
