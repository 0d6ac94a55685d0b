"""The comparison of OpenAPI documents: every check by its id and level, and what is no change at all."""

import copy
import json
from datetime import date
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apps.deployments.openapi import (
    BadDocument,
    Level,
    as_json,
    as_markdown,
    as_text,
    compare,
    pack,
    parse,
    unpack,
)
from apps.deployments.openapi.findings import Report

TODAY = date(2026, 6, 1)
E, W, I = Level.ERROR, Level.WARNING, Level.INFO  # noqa: E741


def api(**operation: Any) -> dict[str, Any]:
    """Return a document with one operation."""
    return {"openapi": "3.1.0", "info": {}, "paths": {"/pets": {"post": {"responses": {}, **operation}}}}


def takes(schema: Any, **more: Any) -> dict[str, Any]:
    return api(requestBody={"content": {"application/json": {"schema": schema}}, **more})


def gives(schema: Any) -> dict[str, Any]:
    return api(responses={"200": {"content": {"application/json": {"schema": schema}}}})


def asks(**parameter: Any) -> dict[str, Any]:
    return api(parameters=[{"name": "limit", "in": "query", "schema": {"type": "integer"}, **parameter}])


def diff(old: dict[str, Any], new: dict[str, Any]) -> Report:
    return compare(parse(json.dumps(old)), parse(json.dumps(new)), today=TODAY)


def told(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Level]]:
    return [(found.id, found.level) for found in diff(old, new).findings]


def body(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"name": {"type": "string", **schema}}}


SCHEMAS = [
    # earlier, later, (end of the request's id, level), (end of the response's id, level)
    ({}, {"maxLength": 5}, ("max-length-set", E), ("max-length-set", I)),
    ({"maxLength": 5}, {}, ("max-length-unset", I), ("max-length-unset", E)),
    ({"maxLength": 9}, {"maxLength": 5}, ("max-length-decreased", E), ("max-length-decreased", I)),
    ({"maxLength": 5}, {"maxLength": 9}, ("max-length-increased", I), ("max-length-increased", E)),
    ({"minLength": 1}, {"minLength": 2}, ("min-length-increased", E), ("min-length-increased", I)),
    ({"minLength": 2}, {"minLength": 1}, ("min-length-decreased", I), ("min-length-decreased", E)),
    ({"pattern": "^a"}, {"pattern": "^b"}, ("pattern-changed", W), ("pattern-changed", W)),
    ({}, {"pattern": "^a"}, ("pattern-added", E), ("pattern-added", I)),
    ({"pattern": "^a"}, {}, ("pattern-removed", I), ("pattern-removed", E)),
    ({"pattern": "^a"}, {"pattern": ".*"}, ("pattern-generalized", I), ("pattern-generalized", E)),
    ({}, {"enum": ["a"]}, ("became-enum", E), ("became-enum", I)),
    ({"enum": ["a"]}, {}, ("became-not-enum", I), ("became-not-enum", E)),
    ({"enum": ["a", "b"]}, {"enum": ["a"]}, ("enum-value-removed", E), ("enum-value-removed", I)),
    ({"enum": ["a"]}, {"enum": ["a", "b"]}, ("enum-value-added", I), ("enum-value-added", E)),
    ({}, {"const": "a"}, ("const-added", E), ("const-added", I)),
    ({"const": "a"}, {"const": "b"}, ("const-changed", E), ("const-changed", E)),
    ({}, {"default": "a"}, ("default-value-added", I), ("default-value-added", I)),
    ({"default": "a"}, {"default": "b"}, ("default-value-changed", I), ("default-value-changed", I)),
    ({}, {"deprecated": True}, ("deprecated", I), ("deprecated", I)),
    ({}, {"format": "uuid"}, ("type-changed", E), ("type-specialized", I)),
    ({"format": "uuid"}, {}, ("type-generalized", I), ("type-generalized", E)),
    ({"format": "uuid"}, {"format": "date"}, ("type-changed", E), ("type-changed", E)),
    ({}, {"type": "integer"}, ("type-changed", E), ("type-changed", E)),
    ({"type": "integer"}, {"type": "number"}, ("type-generalized", I), ("type-generalized", E)),
    ({"type": "number"}, {"type": "integer"}, ("type-changed", E), ("type-specialized", I)),
    ({}, {"type": ["string", "integer"]}, ("list-of-types-widened", I), ("list-of-types-widened", E)),
    ({"type": ["string", "integer"]}, {}, ("list-of-types-narrowed", E), ("list-of-types-narrowed", I)),
    ({}, {"type": ["string", "null"]}, ("became-nullable", I), ("became-nullable", E)),
    ({"type": ["string", "null"]}, {}, ("became-not-nullable", E), ("became-not-nullable", I)),
    ({"type": "array"}, {"type": "array", "minItems": 1}, ("min-items-set", E), ("min-items-set", I)),
    (
        {"type": "array"},
        {"type": "array", "uniqueItems": True},
        ("unique-items-set", E),
        ("unique-items-set", I),
    ),
    ({"type": "number"}, {"type": "number", "maximum": 5}, ("max-set", E), ("max-set", I)),
    (
        {"type": "number", "maximum": 5},
        {"type": "number", "exclusiveMaximum": 5},
        ("exclusive-max-decreased", E),
        ("exclusive-max-decreased", I),
    ),
    (
        {"type": "number", "minimum": 1},
        {"type": "number", "minimum": 0},
        ("min-decreased", I),
        ("min-decreased", E),
    ),
    (
        {"type": "number", "multipleOf": 2},
        {"type": "number", "multipleOf": 4},
        ("multiple-of-changed", E),
        ("multiple-of-changed", I),
    ),
    (
        {"type": "object"},
        {"type": "object", "additionalProperties": False},
        ("additional-properties-forbidden", E),
        ("additional-properties-forbidden", I),
    ),
    ({}, {"not": {"const": "x"}}, ("not-added", E), ("not-added", I)),
]


@pytest.mark.parametrize(("old", "new", "request_side", "response_side"), SCHEMAS)
def test_what_a_schema_allows_counts_by_who_writes_the_message(
    old: Any, new: Any, request_side: tuple[str, Level], response_side: tuple[str, Level]
) -> None:
    check, level = request_side
    assert told(takes(body(**old)), takes(body(**new))) == [(f"request-property-{check}", level)]
    check, level = response_side
    assert told(gives(body(**old)), gives(body(**new))) == [(f"response-property-{check}", level)]


NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
BOTH = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
CLOSED = {**NAMED, "additionalProperties": False}
DEFAULT_B = {"type": "object", "properties": {**NAMED["properties"], "b": {"default": 1}}}
READ_ONLY_B = {
    "type": "object",
    "required": ["b"],
    "properties": {**NAMED["properties"], "b": {"type": "string", "readOnly": True}},
}
OLD_SECURITY = {"security": [{"key": ["read"]}]}
RESPONSE: dict[str, Any] = {"200": {"content": {"application/json": {}}}}


def required(schema: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**schema, "required": list(names)}


def heads(**header: Any) -> dict[str, Any]:
    return api(responses={"200": {"headers": {"X-Left": header}}})


CASES = [
    # requests
    (takes(NAMED), takes(BOTH), [("new-optional-request-property", I)]),
    (takes(NAMED), takes(required(BOTH, "b")), [("new-required-request-property", E)]),
    (takes(NAMED), takes(required(DEFAULT_B, "b")), [("new-required-request-property-with-default", E)]),
    (takes(NAMED), takes(READ_ONLY_B), [("new-required-request-property", I)]),
    (takes(BOTH), takes(NAMED), [("request-property-removed", W)]),
    (takes(NAMED), takes(required(NAMED, "a")), [("request-property-became-required", E)]),
    (takes(required(NAMED, "a")), takes(NAMED), [("request-property-became-optional", I)]),
    (api(), takes(NAMED), [("request-body-added-optional", I)]),
    (api(), takes(NAMED, required=True), [("request-body-added-required", E)]),
    (takes(NAMED), api(), [("request-body-removed", E)]),
    (takes(NAMED), takes(NAMED, required=True), [("request-body-became-required", E)]),
    (takes(NAMED, required=True), takes(NAMED), [("request-body-became-optional", I)]),
    (takes({"type": "string"}), takes({"type": "integer"}), [("request-body-type-changed", E)]),
    (
        api(requestBody={"content": {"text/csv": {}}}),
        api(requestBody={"content": {"text/plain": {}}}),
        [("request-body-media-type-removed", E), ("request-body-media-type-added", I)],
    ),
    (
        takes({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        takes({"oneOf": [{"type": "string"}]}),
        [("request-body-one-of-removed", E)],
    ),
    (
        takes({"anyOf": [{"type": "string"}]}),
        takes({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        [("request-body-any-of-added", I)],
    ),
    (
        takes(NAMED),
        takes({"oneOf": [{"type": "string"}, NAMED]}),
        [("request-body-wrapped-in-one-of-original-preserved", I)],
    ),
    (
        takes(NAMED),
        takes({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        [("request-body-wrapped-in-one-of", E)],
    ),
    # parameters
    (api(), asks(), [("new-optional-request-parameter", I)]),
    (api(), asks(required=True), [("new-required-request-parameter", E)]),
    (asks(), api(), [("request-parameter-removed", W)]),
    (asks(deprecated=True), api(), [("request-parameter-removed-with-deprecation", I)]),
    (asks(), asks(required=True), [("request-parameter-became-required", E)]),
    (asks(required=True), asks(), [("request-parameter-became-optional", I)]),
    (asks(), asks(deprecated=True), [("request-parameter-deprecated", I)]),
    (asks(), asks(schema={"type": "string"}), [("request-parameter-type-generalized", I)]),
    (asks(schema={"type": "string"}), asks(), [("request-parameter-type-changed", E)]),
    (
        asks(),
        asks(schema={"type": "integer", "maximum": 10}),
        [("request-parameter-max-set", E)],
    ),
    (asks(), asks(explode=False), [("request-parameter-serialization-changed", E)]),
    # responses
    (gives(NAMED), gives(BOTH), [("response-optional-property-added", I)]),
    (gives(BOTH), gives(NAMED), [("response-optional-property-removed", W)]),
    (gives(required(BOTH, "b")), gives(NAMED), [("response-required-property-removed", E)]),
    (gives(required(NAMED, "a")), gives(NAMED), [("response-property-became-optional", E)]),
    (gives(NAMED), gives(required(NAMED, "a")), [("response-property-became-required", I)]),
    (
        gives({"oneOf": [NAMED]}),
        gives({"oneOf": [NAMED, {"type": "string"}]}),
        [("response-body-one-of-added", E)],
    ),
    (api(responses={"200": {}}), api(), [("response-success-status-removed", E)]),
    (api(), api(responses={"201": {}}), [("response-success-status-added", I)]),
    (api(responses={"404": {}}), api(), [("response-non-success-status-removed", I)]),
    (
        api(responses=RESPONSE),
        api(responses={"200": {"content": {"text/csv": {}}}}),
        [("response-media-type-removed", E), ("response-media-type-added", I)],
    ),
    (heads(), api(responses={"200": {}}), [("optional-response-header-removed", W)]),
    (heads(required=True), api(responses={"200": {}}), [("required-response-header-removed", E)]),
    (heads(required=True), heads(), [("response-header-became-optional", E)]),
    (
        heads(schema={"type": "integer"}),
        heads(schema={"type": "boolean"}),
        [("response-header-type-changed", E)],
    ),
    # operations
    (api(), {**api(), "paths": {}}, [("api-path-removed-without-deprecation", E)]),
    (api(deprecated=True), {**api(), "paths": {}}, [("api-path-removed-with-deprecation", I)]),
    (
        api(deprecated=True, **{"x-sunset": "2026-05-31"}),
        {**api(), "paths": {}},
        [("api-path-removed-with-deprecation", I)],
    ),
    (
        api(deprecated=True, **{"x-sunset": "2026-06-02"}),
        {**api(), "paths": {"/pets": {}}},
        [("api-removed-before-sunset", E)],
    ),
    (api(deprecated=True, **{"x-sunset": "soon"}), {**api(), "paths": {}}, [("api-path-sunset-parse", E)]),
    ({**api(), "paths": {}}, api(), [("endpoint-added", I)]),
    (api(), api(deprecated=True), [("endpoint-deprecated", I)]),
    (api(deprecated=True), api(), [("endpoint-reactivated", I)]),
    (api(operationId="a"), api(operationId="b"), [("api-operation-id-removed", I)]),
    (api(tags=["a"]), api(tags=["b"]), [("api-tag-added", I), ("api-tag-removed", I)]),
    # security
    (api(), api(security=[{"key": []}]), [("api-security-added", E)]),
    (api(security=[{"key": []}, {}]), api(security=[{"key": []}]), [("api-security-removed", E)]),
    (api(security=[{"key": []}]), api(security=[{"key": []}, {"jwt": []}]), [("api-security-added", I)]),
    (
        api(security=[{"key": []}, {"jwt": []}]),
        api(security=[{"key": []}]),
        [("api-security-removed", E)],
    ),
    (api(**OLD_SECURITY), api(security=[]), [("api-security-removed", I)]),
    (api(**OLD_SECURITY), api(security=[{"key": ["read", "all"]}]), [("api-security-scope-added", E)]),
    (api(**OLD_SECURITY), api(security=[{"key": []}]), [("api-security-scope-removed", I)]),
    ({**api(), "security": []}, {**api(), "security": [{"key": []}]}, [("api-global-security-added", E)]),
    (
        {
            **api(),
            "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X"}}},
        },
        {**api(), "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "query", "name": "X"}}}},
        [("api-security-component-type-changed", E)],
    ),
    # the rest
    ({**api(), "webhooks": {"sold": {"post": {}}}}, api(), [("webhook-removed", E)]),
    (
        {**api(), "components": {"schemas": {"Pet": NAMED}}},
        api(),
        [("api-schema-removed", I)],
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), CASES)
def test_changes_have_the_ids_and_levels_that_are_known(
    old: dict[str, Any], new: dict[str, Any], expected: list[tuple[str, Level]]
) -> None:
    assert told(old, new) == expected


PET = {"$ref": "#/components/schemas/Pet"}
NOT_CHANGES = {
    "a field that moved into a shared part": (
        takes(required(BOTH, "a")),
        takes({"allOf": [required(NAMED, "a"), {"properties": {"b": {"type": "string"}}}]}),
    ),
    "a schema that got a name": (takes(NAMED), {**takes(PET), "components": {"schemas": {"Pet": NAMED}}}),
    "null written in the older way": (
        {**gives({"type": "string", "nullable": True}), "openapi": "3.0.3"},
        gives({"type": ["string", "null"]}),
    ),
    "null written as an alternative": (
        gives(body(type=["string", "null"])),
        gives({"type": "object", "properties": {"name": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}),
    ),
    "extensions and descriptions": (
        takes(NAMED),
        {**takes({**NAMED, "description": "A", "x-go-type": "b", "title": "T"}), "x-origin": 1},
    ),
    "alternatives in another order": (
        gives({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        gives({"oneOf": [{"type": "integer"}, {"type": "string"}]}),
    ),
    "a media type's parameter and case": (
        api(responses={"200": {"content": {"application/json": {}}}}),
        api(responses={"200": {"content": {"Application/JSON; charset=utf-8": {}}}}),
    ),
    "a status inside the range that was described": (
        api(responses={"2XX": {}}),
        api(responses={"2XX": {}, "201": {}}),
    ),
    "a bound of nothing": (takes(body()), takes(body(minLength=0))),
}


@pytest.mark.parametrize("case", NOT_CHANGES)
def test_nobody_notices(case: str) -> None:
    old, new = NOT_CHANGES[case]
    # A component that is new in the document is no change of what is sent.
    assert told(old, new) == []
    assert [found.id for found in diff(new, old).findings if found.id != "api-schema-removed"] == []


def test_renaming_a_path_parameter_breaks_nobody_and_the_paths_still_meet() -> None:
    def pet(name: str, kind: str) -> dict[str, Any]:
        parameter = {"name": name, "in": "path", "required": True, "schema": {"type": kind}}
        return {"openapi": "3.0.0", "paths": {f"/pets/{{{name}}}": {"parameters": [parameter], "get": {}}}}

    assert told(pet("id", "string"), pet("petId", "string")) == []
    assert told(pet("id", "string"), pet("petId", "integer")) == [("request-parameter-type-changed", E)]


def test_a_schema_that_contains_itself_is_compared_once_for_each_place() -> None:
    def tree(**leaf: Any) -> dict[str, Any]:
        node = {
            "type": "object",
            "properties": {"name": {"type": "string", **leaf}, "left": PET, "right": PET},
        }
        return {**gives(PET), "components": {"schemas": {"Pet": node}}}

    assert told(tree(), tree()) == []
    (found,) = diff(tree(), tree(type="integer")).findings
    assert found.text == (
        "the property `name` of the response body of status 200 has type integer instead of string"
    )
    assert found.pointer == "#/components/schemas/Pet/properties/name"


def test_a_change_tells_where_it_is() -> None:
    old = takes({"type": "object", "properties": {"tags": {"type": "array", "items": body()}}})
    new = takes({"type": "object", "properties": {"tags": {"type": "array", "items": body(maxLength=3)}}})
    new["paths"]["/pets"]["post"]["operationId"] = old["paths"]["/pets"]["post"]["operationId"] = "addPet"
    (found,) = diff(old, new).findings
    assert as_json(diff(old, new)) == {
        "summary": {
            "diff": True,
            "details": {
                "endpoints": {"added": 0, "deleted": 0, "modified": 1},
                "paths": {"added": 0, "deleted": 0, "modified": 1},
                "schemas": {"added": 0, "deleted": 0, "modified": 0},
            },
        },
        "hasBreakingChanges": True,
        "changes": [
            {
                "id": "request-property-max-length-set",
                "text": "the property `tags/items/name` of the request body has the new bound maxLength 3",
                "level": 3,
                "operation": "POST",
                "operationId": "addPet",
                "path": "/pets",
                "pointer": found.pointer,
            }
        ],
    }
    place: Any = new
    for part in found.pointer.split("/")[1:]:
        place = place[part.replace("~1", "/").replace("~0", "~")]
    assert place == {"type": "string", "maxLength": 3}
    assert as_text(diff(old, new)) == (
        "1 change: 1 breaking, 0 warnings, 0 harmless.\n\nPOST /pets\n"
        "  ✗ error   the property `tags/items/name` of the request body has the new bound maxLength 3"
        "  [request-property-max-length-set]\n"
    )
    assert as_markdown(diff(old, new)).endswith(
        "## POST /pets\n\n- **breaking** the property `tags/items/name` of the request body has the new bound "
        "maxLength 3 (`request-property-max-length-set`)\n"
    )


def test_a_stranger_cannot_format_a_report() -> None:
    old = api(tags=["<script>x</script>", "**[a](b)**\n# c"])
    written = as_markdown(diff(old, api()))
    assert "<script>" not in written
    assert "\n# c" not in written
    assert "[a](b)" not in written


def test_descriptions_alone_are_told_from_no_change() -> None:
    assert as_text(diff(api(), api())) == "No changes.\n"
    assert as_text(diff(api(), api(description="x"))) == "No changes that clients could notice.\n"


# ----- documents of strangers

NESTED = "openapi: 3.0.0\nx: "
BOMB = "openapi: 3.0.0\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not an object"),
        ("- a", "not an object"),
        ("openapi: 2.0.1", "OpenAPI 2.0.1"),
        ("swagger: '2.0'", "OpenAPI 2 or something else"),
        ("openapi: 3.0.0\npaths: []", "paths is not an object"),
        ("openapi: [", "neither JSON nor YAML"),
        ("openapi: 3.0.0\n---\na: 1", "several"),
        (NESTED + "[" * 50_000, "nested"),
        (NESTED + "{a: " * 50_000, "nested"),
        (NESTED + "\n - " + "- " * 50_000, "nested"),
        ('{"openapi": "3.0.0", "a": ' + "[" * 50_000, "nested"),
        ("? " * 90, "not a text"),
        (BOMB, "more than"),
        ("openapi: 3.0.0\na: &a [*a]", "contains itself"),
        ("openapi: 3.0.0\na: .inf", "not finite"),
        ('{"openapi": "3.0.0", "a": NaN}', "NaN"),
        ("openapi: 3.0.0\na: !!python/object/apply:os.system [id]\nb: *c", "stands for nothing"),
    ],
)
def test_documents_that_cannot_be_read_say_why(text: str, says: str) -> None:
    with pytest.raises(BadDocument, match=says):
        parse(text)


def test_yaml_is_read_as_json_would_have_written_it() -> None:
    text = "openapi: 3.0.0\nx: &x {200: no, on: 2026-01-01}\ny: {<<: *x, 200: 1.5}\nz: [~, '7', 7, <<]\n"
    assert parse(text).root == {
        "openapi": "3.0.0",
        "x": {"200": False, "true": "2026-01-01"},
        "y": {"200": 1.5, "true": "2026-01-01"},
        "z": [None, "7", 7, "<<"],
    }


def test_references_stay_inside_the_document() -> None:
    for reference in ("https://example.com/a.yaml", "b.yaml#/x", "#/components/schemas/Gone"):
        with pytest.raises(BadDocument, match="leads"):
            told(takes({"$ref": reference}), takes({"$ref": reference}))


def test_references_that_lead_in_a_circle_end() -> None:
    circle = {"schemas": {"A": {"$ref": "#/components/schemas/B"}, "B": {"$ref": "#/components/schemas/A"}}}
    document = {**takes({"$ref": "#/components/schemas/A"}), "components": circle}
    assert told(document, document) == []


def test_schemas_that_all_contain_each_other_are_compared_in_reasonable_time() -> None:
    names = [f"S{n}" for n in range(120)]

    def tangle(kind: str) -> dict[str, Any]:
        everything = {name: {"$ref": f"#/components/schemas/{name}"} for name in names}
        schemas = {name: {"type": "object", "properties": everything} for name in names}
        schemas["S7"] = {"type": "object", "properties": {**everything, "own": {"type": kind}}}
        return {**gives({"$ref": "#/components/schemas/S0"}), "components": {"schemas": schemas}}

    assert told(tangle("string"), tangle("string")) == []
    assert told(tangle("string"), tangle("integer")) == [("response-property-type-changed", E)]


# ----- properties

_NAMES = st.sampled_from(["a", "b", "c", "name", "x-y"])
_TYPES = st.sampled_from(["string", "integer", "number", "boolean", "object", "array", "null"])
_NUMBERS = st.one_of(st.integers(-3, 9), st.floats(-2, 5), st.booleans(), st.none(), st.just("7"))
_REFS = st.sampled_from(["#/components/schemas/A", "#/components/schemas/B"])
_KEYWORDS: dict[str, Any] = {
    "type": st.one_of(_TYPES, st.lists(_TYPES, max_size=3), st.integers()),
    "enum": st.lists(st.one_of(st.integers(0, 3), st.sampled_from(["x", "y", None])), max_size=3),
    "const": st.integers(0, 2),
    "required": st.one_of(st.lists(_NAMES, max_size=3), st.integers()),
    "format": st.sampled_from(["int32", "int64", "uuid", 3]),
    "nullable": st.booleans(),
    "readOnly": st.booleans(),
    "writeOnly": st.booleans(),
    "default": st.integers(0, 2),
    "pattern": st.sampled_from(["a", ".*", 5]),
    "uniqueItems": st.booleans(),
    "discriminator": st.sampled_from([{"propertyName": "a"}, {"propertyName": "b"}, 3]),
    "$ref": _REFS,
    **dict.fromkeys(
        (
            "maximum",
            "minimum",
            "exclusiveMaximum",
            "exclusiveMinimum",
            "multipleOf",
            "maxLength",
            "minLength",
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(("maxItems", "minItems", "maxProperties", "minProperties"), _NUMBERS),
}


def _object(schemas: Any) -> Any:
    return st.fixed_dictionaries(
        {},
        optional={
            **_KEYWORDS,
            "properties": st.one_of(st.dictionaries(_NAMES, schemas, max_size=3), st.integers()),
            "items": schemas,
            "prefixItems": st.lists(schemas, max_size=2),
            "additionalProperties": schemas,
            "not": schemas,
            "allOf": st.lists(schemas, max_size=2),
            "oneOf": st.lists(schemas, max_size=3),
            "anyOf": st.lists(schemas, max_size=2),
        },
    )


_SCHEMAS: Any = st.recursive(st.one_of(st.booleans(), st.integers(0, 1), st.just({})), _object, max_leaves=8)
_CONTENT = st.dictionaries(
    st.sampled_from(["application/json", "text/plain; q=1"]),
    st.one_of(st.none(), st.fixed_dictionaries({}, optional={"schema": _SCHEMAS})),
    max_size=2,
)
_PARAMETERS = st.lists(
    st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {"name": _NAMES, "in": st.sampled_from(["query", "path", "header", "cookie", 3])},
            optional={"required": st.booleans(), "schema": _SCHEMAS, "content": _CONTENT},
        ),
    ),
    max_size=3,
)
_OPERATION = st.fixed_dictionaries(
    {},
    optional={
        "parameters": _PARAMETERS,
        "requestBody": st.one_of(
            st.integers(),
            st.fixed_dictionaries({}, optional={"content": _CONTENT, "required": st.booleans()}),
        ),
        "responses": st.dictionaries(
            st.sampled_from(["200", "2XX", "404", "default", "x-a", ""]),
            st.one_of(
                st.none(),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "content": _CONTENT,
                        "headers": st.dictionaries(
                            _NAMES, st.fixed_dictionaries({}, optional={"schema": _SCHEMAS})
                        ),
                    },
                ),
            ),
            max_size=3,
        ),
        "security": st.one_of(
            st.integers(),
            st.lists(st.dictionaries(_NAMES, st.lists(_NAMES, max_size=2), max_size=2), max_size=2),
        ),
        "deprecated": st.booleans(),
        "operationId": _NAMES,
        "tags": st.lists(_NAMES, max_size=2),
        "x-sunset": st.sampled_from(["2026-01-01", "2027-01-01", "never"]),
    },
)
_DOCUMENTS: Any = st.fixed_dictionaries(
    {
        "openapi": st.sampled_from(["3.0.3", "3.1.0"]),
        "paths": st.dictionaries(
            st.sampled_from(["/a", "/a/{a}", "/a/{b}", "/b/{a}/{b}"]),
            st.dictionaries(st.sampled_from(["get", "post", "parameters"]), _OPERATION, max_size=2),
            max_size=3,
        ),
        "components": st.fixed_dictionaries(
            {"schemas": st.fixed_dictionaries({"A": _SCHEMAS, "B": _SCHEMAS})}
        ),
    },
    optional={"security": st.lists(st.dictionaries(_NAMES, st.just([]), max_size=1), max_size=2)},
)


@given(_DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: dict[str, Any]) -> None:
    other = dict(reversed(copy.deepcopy(document).items()))
    assert diff(document, other).findings == ()
    assert not diff(document, other).differs


@given(_DOCUMENTS, _DOCUMENTS)
def test_any_two_documents_can_be_compared_in_a_fixed_order(old: dict[str, Any], new: dict[str, Any]) -> None:
    report = diff(old, new)
    assert list(report.findings) == sorted(report.findings, key=lambda found: found.order)
    assert diff(old, new) == report
    assert all(found.text and found.id and "\n" not in found.id for found in report.findings)
    as_text(report), as_markdown(report), json.dumps(as_json(report))


@given(st.text(max_size=200), st.sampled_from(["", "openapi: 3.0.0\n", '{"openapi":"3.1.0",']))
def test_any_text_is_a_document_or_refused(text: str, start: str) -> None:
    try:
        document = parse(start + text)
    except BadDocument:
        return
    assert compare(document, document, today=TODAY).findings == ()


@given(_DOCUMENTS, _SCHEMAS)
def test_what_is_added_and_optional_never_breaks(document: dict[str, Any], schema: Any) -> None:
    later = copy.deepcopy(document)
    later["paths"]["/new"] = {"get": {"parameters": [], "security": []}}
    later["components"]["schemas"]["New"] = schema
    for item in later["paths"].values():
        for method, operation in item.items():
            if method == "parameters":
                continue
            listed = operation.setdefault("parameters", [])
            listed.append({"name": "brand-new", "in": "query", "schema": schema})
            responses = operation.setdefault("responses", {})
            if isinstance(responses, dict) and "2XX" not in responses:
                responses.setdefault("299", {})
            said = operation.get("requestBody", {})
            content = said.get("content", {}) if isinstance(said, dict) else {}
            for media in content.values():
                found = media.get("schema") if isinstance(media, dict) else None
                # A closed or self-referring schema is another case: here the property is new to it.
                if (
                    isinstance(found, dict)
                    and isinstance(found.get("properties"), dict)
                    and found.get("type") == "object"
                ):
                    found["properties"]["brand-new"] = schema
    assert diff(document, later).breaking == ()


def test_a_document_in_yaml_and_in_json_is_the_same() -> None:
    document = takes(body(maxLength=3))
    assert parse(yaml.safe_dump(document)) == parse(json.dumps(document))
    assert unpack(pack(parse(json.dumps(document)))) == parse(json.dumps(document))


@pytest.mark.parametrize("place", ['"/a\\ud800": {}', '"/a": {"description": "\\udfff"}'])
def test_half_a_character_is_no_text(place: str) -> None:
    for text in (f'{{"openapi": "3.1.0", "paths": {{{place}}}}}', f'openapi: "3.1.0"\npaths: {{{place}}}'):
        with pytest.raises(BadDocument):
            parse(text)


@pytest.mark.parametrize("number", ["1" + ":59" * 1_000_000, "0x" + "f" * 9000, "1" + ":1" * 5000 + ".5"])
def test_a_number_that_is_too_long_to_be_one_is_a_text(number: str) -> None:
    read = parse(f"openapi: 3.0.3\npaths: {{}}\nx: {number}\n{number[:900]}: 1\n")
    assert read.root["x"] == number
    assert unpack(pack(read)).root == read.root


def test_a_reference_with_an_index_that_is_too_long_to_be_one_leads_nowhere() -> None:
    read = parse("openapi: 3.0.3\npaths: {}\nservers: [{url: /}]\n")
    assert read.at("#/servers/0") == {"url": "/"}
    with pytest.raises(BadDocument, match="leads to nothing"):
        read.at("#/servers/" + "0" * 5000)
