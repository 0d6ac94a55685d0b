"""The OpenAPI document, and the pages made of the same declarations."""

import json
import re

import pytest
from django.test import Client
from jsonschema_rs import Draft202012Validator

from unkey import errors
from unkey.errors import CATALOGUE
from unkey.rpc import error_pages
from unkey.rpc.openapi import document
from unkey.rpc.routes import Archive, routes


def test_the_document_is_served_to_any_origin_and_holds_every_operation(client: Client) -> None:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    assert response["Access-Control-Allow-Origin"] == "*"
    served = json.loads(response.content)
    assert served == json.loads(json.dumps(document()))
    assert served["openapi"] == "3.1.0"
    assert set(served["paths"]) == {route.path for route in routes().values()}


@pytest.mark.parametrize("name", routes())
def test_an_operation_is_described_by_what_it_is_checked_against(name: str) -> None:
    route = routes()[name]
    operation = document()["paths"][route.path][route.method.lower()]
    assert operation["operationId"] == name
    if isinstance(route.request, dict):
        assert operation["requestBody"]["content"]["application/json"]["schema"] is route.request
    elif isinstance(route.request, Archive):
        assert list(operation["requestBody"]["content"]) == [route.request.content_type]
    answers = operation["responses"]
    assert str(route.status) in answers
    if not route.public:
        assert {"400", "401", "403", "408", "413", "429", "500"} <= set(answers)
        assert operation["description"] == f"Needs `{route.permission}`."
    for fault in route.errors:
        assert fault.kind.code in answers[str(fault.kind.status)]["description"]
    components = document()["components"]
    for answer in answers.values():
        for media in answer["content"].values():
            Draft202012Validator({**media["schema"], "components": components})


def test_the_page_of_operations_needs_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/docs/api").content.decode()
    for name, route in routes().items():
        assert f'id="{name}"' in page
        assert route.summary
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert "@import" not in page


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.code)
def test_every_code_is_explained_where_its_type_leads(client: Client, kind: errors.Kind) -> None:
    address = kind.url.removeprefix("https://unkey.com")
    response = client.get(address)
    assert response.status_code == 200
    page = response.content.decode()
    assert kind.code in page
    assert str(kind.status) in page
    meaning, remedy = error_pages.text_of(kind)
    assert remedy != "The detail of the error says what to do.", "say in error_pages.py what the code means"
    assert "{" not in meaning + remedy


def test_the_list_of_codes_leads_to_each(client: Client) -> None:
    page = client.get("/docs/errors").content.decode()
    assert all(f'href="/docs/errors/{one.path}"' in page for one in error_pages.pages())
    assert client.get("/docs/errors/no/such/code").status_code == 404


def test_an_error_page_names_the_operations_that_answer_so(client: Client) -> None:
    page = client.get("/docs/errors/unkey/data/migration_not_found").content.decode()
    assert re.findall(r"/docs/api#([\w.]+)", page) == ["keys.migrateKeys"]
