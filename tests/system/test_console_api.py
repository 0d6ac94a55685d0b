"""A page's whole way through `/api/` alone: log in, upload, deploy, follow it live, roll back."""

import io
import json
import tarfile
from collections.abc import Generator
from contextlib import closing
from typing import Any

import httpx
import pytest

from scripts.demo import HELLO, System

pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]

PASSWORD = "correct horse battery"


class Page:
    """What a page in a browser does: one session, its CSRF token, and EventSources."""

    def __init__(self, web: str) -> None:
        self._client = httpx.Client(base_url=web, timeout=30, trust_env=False)
        self._csrf = self._client.get("/api/session").json()["csrfToken"]
        self.workspace = "/api/workspaces/console"

    def close(self) -> None:
        """Close the page's connections."""
        self._client.close()

    def log_in(self, username: str) -> None:
        """Log in; the token changes with it."""
        body = {"username": username, "password": PASSWORD}
        answer = self._client.post("/api/session", json=body, headers={"X-CSRFToken": self._csrf})
        assert answer.status_code == 200, answer.text
        self._csrf = answer.json()["csrfToken"]

    def get(self, path: str) -> Any:
        """Return what is shown."""
        answer = self._client.get(f"{self.workspace}/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, *, key: str = "", archive: bytes = b"") -> Any:
        """Do something, and return what is shown then."""
        headers = {"X-CSRFToken": self._csrf} | ({"Idempotency-Key": key} if key else {})
        content = archive or json.dumps({} if body is None else body).encode()
        headers["Content-Type"] = "application/gzip" if archive else "application/json"
        answer = self._client.post(f"{self.workspace}/{path}", content=content, headers=headers)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def events(self, **wanted: Any) -> Generator[tuple[str, Any], None, None]:
        """Follow a deployment, or all of the workspace, by a ticket."""
        url = self.post("events/ticket", wanted)["url"]
        with httpx.stream("GET", url, timeout=60, trust_env=False) as stream:
            assert stream.status_code == 200
            name = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))


def packed(version: str) -> bytes:
    """Pack a version of the example."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(HELLO.iterdir()):
            if path.is_file() and path.name != "VERSION":
                archive.add(path, path.name)
        entry = tarfile.TarInfo("VERSION")
        entry.size = len(version)
        archive.addfile(entry, io.BytesIO(version.encode()))
    return content.getvalue()


def deploy(page: Page, version: str) -> tuple[dict[str, Any], list[str]]:
    """Upload and deploy a version, follow it until it is ready; return it and the lines that it wrote."""
    image = page.post("snapshots", archive=packed(version))["image"]
    body = {
        "project": "shop",
        "app": "default",
        "environment": "production",
        "image": {"dockerImage": image},
    }
    made = page.post("deployments", body, key=f"deploy-{version}")
    assert page.post("deployments", body, key=f"deploy-{version}")["id"] == made["id"]
    steps, lines, ready = [], [], False
    with closing(page.events(deployment=made["id"], logs=True)) as events:
        for event, shown in events:
            if event == "step" and shown["status"] == "done":
                steps.append(shown["step"])
            lines += [each["text"] for each in shown["lines"]] if event == "log" else []
            assert event != "deployment" or shown["status"] != "failed", shown
            ready = ready or (event == "deployment" and shown["status"] == "ready")
            if ready and lines and "finalizing" in steps:
                break
    assert steps == ["queued", "starting", "building", "deploying", "network", "finalizing"]
    return page.get(f"deployments/{made['id']}"), lines


def test_a_page_deploys_follows_and_rolls_back(system: System) -> None:
    system.manage("create_workspace", "Console", "--slug", "console", "--json")
    system.manage(
        *("createsuperuser", "--noinput", "--username", "olga", "--email", "olga@example.org"),
        DJANGO_SUPERUSER_PASSWORD=PASSWORD,
    )
    system.manage("add_member", "--workspace", "console", "--user", "olga", "--role", "owner")
    with closing(Page(system.url("WEB_PORT"))) as page:
        page.log_in("olga")
        _tell_the_story(system, page)


def _tell_the_story(system: System, page: Page) -> None:
    page.post("projects", {"name": "Shop", "slug": "shop"})
    page.post("projects/shop/apps", {"name": "Default", "slug": "default"})

    first, lines = deploy(page, "1")
    assert (first["status"], first["isCurrent"], first["trigger"]) == ("ready", True, "dashboard")
    assert any("hello version 1 listens" in line for line in lines)
    visitor = system.visitor(min(first["hosts"], key=len))
    visitor.until_version("1", None)
    second, _ = deploy(page, "2")
    visitor.until_version("2", None)

    page.post(f"deployments/{first['id']}/rollback", key="back")
    visitor.until_version("1", None)
    assert page.get("projects/shop/apps/default")["isRolledBack"] is True
    assert page.get(f"deployments/{second['id']}")["isCurrent"] is False
    events = [entry["event"] for entry in page.get("audit")["items"]]
    assert "deployment.rollback" in events
    assert {entry["actor"]["name"] for entry in page.get("audit?event=deployment.create")["items"]} == {
        "olga"
    }
