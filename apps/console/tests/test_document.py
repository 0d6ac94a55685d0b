"""The OpenAPI document is complete and clean, and its page loads nothing from elsewhere."""

import re
from pathlib import Path

from django.core.management import call_command
from django.test import Client

from apps.console.tests.endpoints import endpoints


def test_the_document_is_valid_and_without_warnings(tmp_path: Path):
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "openapi.yaml"))


def test_every_endpoint_is_described_with_its_refusals(client: Client):
    document = client.get("/api/openapi.json").json()
    for endpoint in endpoints():
        path = re.sub(r"<str:(\w+)>", r"{\1}", f"/api/{endpoint.pattern}")
        operation = document["paths"][path][endpoint.method.lower()]
        assert operation["summary"], str(endpoint)
        assert "application/problem+json" in operation["responses"]["default"]["content"], str(endpoint)
        if endpoint.in_workspace:
            assert operation["security"] == [{"token": []}, {"session": []}], str(endpoint)
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == len(list(endpoints()))


def test_the_page_loads_nothing_from_elsewhere(db: None, client: Client):
    page = client.get("/api/docs")
    assert page.status_code == 200
    text = page.content.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert loaded
    for address in loaded:
        assert address.startswith("/static/drf_spectacular_sidecar/"), address
        served = client.get(address)
        assert served.status_code == 200
        served.close()
    assert not re.search(r"https?://", text)
