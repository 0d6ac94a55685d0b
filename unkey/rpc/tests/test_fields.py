"""Every field of every declared operation, at and beyond its limits; generated from the declarations."""

import json
from functools import cache
from typing import Any

import pytest
from django.test import Client

from unkey.rpc.routes import Route, routes
from unkey.rpc.schema import Checker
from unkey.rpc.tests.samples import beyond, edges, least, places

JSON_ROUTES = [route for route in routes().values() if route.checker]


@cache
def client() -> Client:
    """One client for all: making one loads the whole stack."""
    return Client()


def refused(operation: str, body: Any) -> list[str]:
    """Send a body that must be refused, with a key that nobody has, and return the locations of its faults."""
    response = client().post(
        f"/v2/{operation}",
        data=json.dumps(body),
        content_type="application/json",
        headers={"Authorization": "Bearer unkey_nobody"},
    )
    answer = json.loads(response.content)
    assert response.status_code == 400, (body, answer)
    assert response["Content-Type"] == "application/json"
    error = answer["error"]
    assert error["title"] == "Bad Request"
    assert error["type"] == "https://unkey.com/docs/errors/unkey/application/invalid_input"
    assert error["detail"] == error["errors"][0]["message"]
    return [fault["location"] for fault in error["errors"]]


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.name)
def test_a_value_beyond_a_limit_is_refused_before_the_key_is_looked_at(route: Route) -> None:
    """Without a database: validation comes before authentication."""
    schema = route.checker.schema if route.checker else {}
    for where, field, make in places(schema, least(schema)):
        for limit, value in beyond(field):
            expected = f"{where}.noSuchField" if limit == "additionalProperties" else where
            assert expected in refused(route.name, make(value)), (where, limit)


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.name)
def test_each_missing_field_is_named(route: Route) -> None:
    schema = route.checker.schema if route.checker else {}
    body = least(schema)
    for name in schema.get("required", ()):
        assert refused(route.name, {key: item for key, item in body.items() if key != name}) == [
            f"body.{name}"
        ]


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.name)
def test_values_at_the_limits_pass_validation(route: Route) -> None:
    assert route.checker is not None
    for where, field, make in places(route.checker.schema, least(route.checker.schema)):
        for value in edges(field):
            assert route.checker.violations(make(value)) == [], (where, value)


def test_completing_a_body_fills_defaults_at_every_depth() -> None:
    checker = Checker(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "many": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"cost": {"type": "integer", "default": 1}},
                    },
                },
                "one": {"type": ["integer", "null"]},
            },
        }
    )
    assert checker.complete({"many": [{}, {"cost": 2.0}], "one": 3.0}) == {
        "many": [{"cost": 1}, {"cost": 2}],
        "one": 3,
    }
    assert checker.complete({"one": None}) == {"one": None}
