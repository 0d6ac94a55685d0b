"""Requests against OpenAPI documents: what passes, what is refused and where, and what strangers' documents may cost."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.deployments import openapi
from apps.routing import contracts
from edge.sentinel.contract import MOST_VISITS, Contract, Plan, Unfit, pack, read_segment, unpack
from edge.sentinel.decision import Body, State, Unsupported
from edge.sentinel.openapi import Document, OpenApi
from edge.sentinel.values import Unreadable, cookie_pairs, measure, query_pairs, read_json
from unkey.errors import Fault


@dataclass
class Call:
    path: bytes = b"/"
    method: bytes = b"GET"
    query: bytes = b""
    body: bytes = b""
    peer: bytes = b"192.0.2.1"
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.body)

    def headers(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    def header(self, name: bytes) -> bytes | None:
        return next(iter(self.headers(name)), None)


def document(paths: dict[str, Any], version: str = "3.1.0", **more: Any) -> dict[str, Any]:
    return {"openapi": version, "info": {"title": "t", "version": "1"}, "paths": paths, **more}


def made(root: dict[str, Any]) -> Contract:
    return contracts.build(openapi.parse(json.dumps(root)))


def rule(root: dict[str, Any], **body: Any) -> OpenApi:
    return OpenApi(body, Document(pack(made(root))))


def ask(checking: OpenApi, call: Call) -> Fault | None:
    outcome = checking.apply(call, State())
    if not (outcome is None or isinstance(outcome, Fault | Body)):
        waiting = outcome

        async def wait() -> Any:
            return await waiting

        outcome = asyncio.run(wait())
    if isinstance(outcome, Body):
        assert len(call.body) <= outcome.limit
        return outcome.judge(call.body)
    assert outcome is None or isinstance(outcome, Fault)
    return outcome


def faults(checking: OpenApi, call: Call) -> list[str]:
    fault = ask(checking, call)
    if fault is None:
        return []
    assert fault.kind.code == "err:frontline:client:openapi_validation_failed", fault.detail
    assert fault.kind.status == 400
    return [f"{each.location}: {each.message}" for each in fault.violations]


def with_parameter(**parameter: Any) -> OpenApi:
    path = "/x/{p}" if parameter["in"] == "path" else "/x"
    return rule(document({path: {"get": {"parameters": [{"name": "p", **parameter}]}}}))


LIST = {"type": "array", "items": {"type": "integer"}}
OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    ("parameter", "query", "wrong"),
    [
        ({"schema": {"type": "integer"}}, b"p=5", []),
        ({"schema": {"type": "integer"}}, b"p=05", ["query.p: is not an integer"]),
        ({"schema": {"type": "integer"}}, b"p=5.5", ["query.p: is not an integer"]),
        ({"schema": {"type": "integer"}}, b"p=", ["query.p: is not an integer"]),
        ({"schema": {"type": "integer"}, "allowEmptyValue": True}, b"p=", []),
        ({"schema": {"type": "integer"}}, b"p=1&p=2", ["query.p: is given more than once"]),
        ({"schema": {"type": "integer", "maximum": 9}}, b"p=10", ["query.p: is more than 9"]),
        (
            {"schema": {"type": "integer", "format": "int32"}},
            b"p=2147483648",
            ["query.p: is more than 2147483647"],
        ),
        ({"schema": {"type": "number"}}, b"p=1e3", []),
        ({"schema": {"type": "number"}}, b"p=NaN", ["query.p: is not a number"]),
        ({"schema": {"type": "boolean"}}, b"p=true", []),
        ({"schema": {"type": "boolean"}}, b"p=1", ["query.p: is not true or false"]),
        ({"schema": {"type": "string"}}, b"p=5", []),
        ({"schema": {"type": ["string", "integer"], "enum": ["a", 5]}}, b"p=5", []),
        ({"schema": {"enum": ["a", 5]}}, b"p=6", ["query.p: is not one of a, 5"]),
        ({"schema": {"const": 7}}, b"p=7", []),
        ({"schema": {"const": 7}}, b"p=8", ["query.p: is not 7"]),
        ({"schema": {"type": "string", "format": "uuid"}}, b"p=5", ["query.p: is no uuid"]),
        ({"schema": {"type": "string", "format": "date"}}, b"p=2026-02-30", ["query.p: is no date"]),
        ({"schema": {"type": "string", "format": "email"}}, b"p=a%40b.example", []),
        ({"schema": {"type": "string", "format": "byte"}}, b"p=YQ%3D%3D", []),
        (
            {"schema": {"type": "string", "format": "byte"}},
            b"p=YQ%3D",
            ["query.p: is not written as it has to be"],
        ),
        ({"schema": {"type": "string", "format": "shoe-size"}}, b"p=5", []),
        (
            {"schema": {"type": "string", "pattern": "^[a-z]+$"}},
            b"p=A",
            ["query.p: is not written as it has to be"],
        ),
        ({"schema": {"type": "string"}, "required": True}, b"q=1", ["query.p: is required"]),
        ({"schema": LIST}, b"p=1&p=2", []),
        ({"schema": LIST}, b"p=1&p=b", ["query.p[1]: is not an integer"]),
        ({"schema": {**LIST, "maxItems": 1}}, b"p=1&p=2", ["query.p: has more than 1 items"]),
        ({"schema": LIST, "explode": False}, b"p=1,2", []),
        ({"schema": LIST, "explode": False}, b"p=1,b", ["query.p[1]: is not an integer"]),
        (
            {"schema": {"type": "array", "items": {"type": "string", "enum": ["a,b"]}}, "explode": False},
            b"p=a%2Cb",
            [],
        ),
        ({"schema": LIST, "style": "spaceDelimited", "explode": False}, b"p=1%202+3", []),
        ({"schema": LIST, "style": "pipeDelimited", "explode": False}, b"p=1|2%7C3", []),
        ({"schema": OBJECT}, b"a=1&b=x", []),
        ({"schema": OBJECT}, b"b=x", ["query.p.a: is required"]),
        ({"schema": OBJECT, "explode": False}, b"p=a,1,b,x", []),
        (
            {"schema": OBJECT, "explode": False},
            b"p=a,1,b",
            ["query.p: is not a list of names and values in turn"],
        ),
        ({"schema": OBJECT, "style": "deepObject"}, b"p[a]=1&p[b]=x", []),
        ({"schema": OBJECT, "style": "deepObject"}, b"p[a]=z", ["query.p.a: is not an integer"]),
        (
            {"schema": OBJECT, "style": "deepObject"},
            b"p[a]=1&p[a]=2",
            ["query.p: has the field 'a' more than once"],
        ),
        ({"content": {"application/json": {"schema": OBJECT}}}, b"p=%7B%22a%22%3A1%7D", []),
        (
            {"content": {"application/json": {"schema": OBJECT}}},
            b"p=%7B",
            ["query.p: is not JSON (line 1, column 2)"],
        ),
    ],
)
def test_parameters_of_the_query(parameter: dict[str, Any], query: bytes, wrong: list[str]) -> None:
    assert faults(with_parameter(**{"in": "query", **parameter}), Call(b"/x", query=query)) == wrong


@pytest.mark.parametrize(
    ("parameter", "text", "wrong"),
    [
        ({"schema": {"type": "integer"}}, b"7", []),
        ({"schema": {"type": "integer"}}, b"x", ["path.p: is not an integer"]),
        ({"schema": {"type": "string", "const": "a/b"}}, b"a%2Fb", []),
        ({"schema": LIST}, b"1,2", []),
        ({"schema": OBJECT}, b"a,1,b,x", []),
        ({"schema": OBJECT, "explode": True}, b"a=1,b=x", []),
        ({"schema": {"type": "integer"}, "style": "label"}, b".7", []),
        ({"schema": {"type": "integer"}, "style": "label"}, b"7", ["path.p: does not begin with a dot"]),
        ({"schema": LIST, "style": "label"}, b".1,2", []),
        ({"schema": LIST, "style": "label", "explode": True}, b".1.2", []),
        ({"schema": OBJECT, "style": "label", "explode": True}, b".a=1.b=x", []),
        ({"schema": {"type": "integer"}, "style": "matrix"}, b";p=7", []),
        (
            {"schema": {"type": "integer"}, "style": "matrix"},
            b";q=7",
            ["path.p: has another name in the path"],
        ),
        ({"schema": LIST, "style": "matrix"}, b";p=1,2", []),
        ({"schema": LIST, "style": "matrix", "explode": True}, b";p=1;p=2", []),
        ({"schema": OBJECT, "style": "matrix", "explode": True}, b";a=1;b=x", []),
    ],
)
def test_parameters_of_the_path(parameter: dict[str, Any], text: bytes, wrong: list[str]) -> None:
    checking = with_parameter(**{"in": "path", "required": True, **parameter})
    assert faults(checking, Call(b"/x/" + text)) == wrong


def test_headers_and_cookies_are_looked_at_and_every_fault_is_told_at_once() -> None:
    listed = [
        {"name": "X-Count", "in": "header", "required": True, "schema": {"type": "integer"}},
        {"name": "X-Ids", "in": "header", "schema": LIST},
        {"name": "Authorization", "in": "header", "required": True, "schema": {"type": "integer"}},
        {"name": "theme", "in": "cookie", "schema": {"enum": ["dark", "light"]}},
        {"name": "limit", "in": "query", "schema": {"type": "integer"}},
    ]
    checking = rule(document({"/x": {"parameters": listed[:1], "get": {"parameters": listed[1:]}}}))
    right = [(b"x-count", b"1"), (b"x-ids", b"1, 2"), (b"x-ids", b"3"), (b"cookie", b"a=b; theme=dark")]
    assert faults(checking, Call(b"/x", fields=right)) == []
    wrong = [(b"x-count", b"1"), (b"x-count", b"2"), (b"x-ids", b"1,z"), (b"cookie", b"theme=red")]
    assert sorted(faults(checking, Call(b"/x", query=b"limit=z", fields=wrong))) == [
        "cookie.theme: is not one of dark, light",
        "header.X-Count: is given more than once",
        "header.X-Ids[1]: is not an integer",
        "query.limit: is not an integer",
    ]
    assert faults(checking, Call(b"/x")) == ["header.X-Count: is required"]


def test_paths_are_found_exact_ones_first_with_and_without_what_servers_put_before_them() -> None:
    number = [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}]
    paths: dict[str, Any] = {
        "/pets/{id}": {"get": {"parameters": number}},
        "/pets/mine": {"get": {}},
        "/pets/{id}/toys/{toy}.json": {"get": {"parameters": number}, "post": {}},
        "/": {"get": {}},
    }
    servers = [{"url": "https://api.example/{base}", "variables": {"base": {"default": "v1"}}}]
    checking = rule(document(paths, servers=servers))
    no_such = ["path: the document has no such path and method"]
    for path, wrong in [
        ("/pets/7", []),
        ("/v1/pets/7", []),
        ("/pets/mine", []),
        ("/pets/%6Dine", []),
        ("/pets/7/toys/ball.json", []),
        ("/pets/7/toys/ball.xml", no_such),
        ("/pets/7/toys/.json", no_such),
        ("/pets/x", ["path.id: is not an integer"]),
        ("/pets/", no_such),
        ("/pets/7/", no_such),
        ("//pets/7", no_such),
        ("/v1", []),
        ("/v1x/pets/7", no_such),
        ("*", no_such),
        ("/", []),
    ]:
        assert faults(checking, Call(path.encode())) == wrong, path
    assert faults(checking, Call(b"/pets/7", b"HEAD")) == []
    assert faults(checking, Call(b"/pets/7", b"POST")) == no_such


PET = {
    "type": "object",
    "required": ["id", "name"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "integer", "readOnly": True},
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "exclusiveMinimum": 0},
        "note": {"type": ["string", "null"]},
        "toys": {"type": "array", "items": {"type": "object", "required": ["kind"]}},
    },
}
OLD_PET = {
    **PET,
    "properties": {
        **PET["properties"],  # type: ignore[dict-item]
        "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
        "note": {"type": "string", "nullable": True},
    },
}


def taking(schema: Any, media: str = "application/json", version: str = "3.1.0", **body: Any) -> OpenApi:
    content = {"content": {media: {"schema": schema}}, **body}
    return rule(document({"/x": {"post": {"requestBody": content}}}, version))


def sent(body: bytes | str, media: str = "application/json", *more: tuple[bytes, bytes]) -> Call:
    raw = body.encode() if isinstance(body, str) else body
    return Call(b"/x", b"POST", body=raw, fields=[(b"content-type", media.encode()), *more])


@pytest.mark.parametrize(("schema", "version"), [(PET, "3.1.0"), (OLD_PET, "3.0.3")])
@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('{"name": "rex", "age": 1, "note": null}', []),
        ('{"name": "rex"}', []),
        ('{"age": 0}', ["body.age: is not more than 0", "body.name: is required"]),
        (
            '{"name": "longer", "x": 1}',
            ["body.name: has more than 5 characters", "body.x: is not a field that is known"],
        ),
        ('{"name": "rex", "toys": [{"kind": 1}, {}]}', ["body.toys[1].kind: is required"]),
        ('{"name": "rex", "name": "max"}', ["body: has the name 'name' twice in one object"]),
        ("[]", ["body: is not an object"]),
        ("{", ["body: is not JSON (line 1, column 2)"]),
        ('{"name": NaN}', ["body: has NaN, which is not JSON"]),
        ('{"name": "\\ud800"}', ["body: has a text with half of a surrogate pair"]),
        ('{"age": 1e999, "name": "a"}', ["body: has a number that is too large"]),
        ("[" * 100_000, ["body: is nested too deep"]),
        (b"\xff", ["body: is not UTF-8"]),
        ('{"name": "a"}'.encode("utf-16"), ["body: is not UTF-8"]),
        ("9" * 5000, ["body: has a number that is too long"]),
    ],
)
def test_bodies_of_json(schema: Any, version: str, body: str | bytes, wrong: list[str]) -> None:
    assert sorted(faults(taking(schema, version=version), sent(body))) == wrong


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (sent("{}", "application/json; charset=utf-8"), []),
        (sent("{}", "APPLICATION/JSON"), []),
        (
            sent("{}", "application/json; charset=latin1"),
            ["header.Content-Type: names another charset than UTF-8"],
        ),
        (
            sent("{}", "text/plain"),
            ["header.Content-Type: is not of a media type that is taken: application/json"],
        ),
        (
            Call(b"/x", b"POST", body=b"{}"),
            ["header.Content-Type: is not of a media type that is taken: application/json"],
        ),
        (Call(b"/x", b"POST"), ["body: is required"]),
        (
            sent("{}", "application/json", (b"content-encoding", b"gzip")),
            ["header.Content-Encoding: says that the body is compressed; send it as it is"],
        ),
    ],
)
def test_bodies_are_of_a_known_media_type_and_plain(call: Call, wrong: list[str]) -> None:
    assert faults(taking({"type": "object"}, required=True), call) == wrong


def test_bodies_of_other_media_types() -> None:
    problem = taking({"type": "object", "required": ["type"]}, "application/*+json")
    assert faults(problem, sent("{}", "application/json"))[0].startswith("header.Content-Type")
    anything = taking({"type": "integer"}, "*/*")
    assert faults(anything, sent("not a number", "application/x-thing")) == []
    text = taking({"type": "string", "maxLength": 3}, "text/plain")
    assert faults(text, sent("abcd", "text/plain")) == ["body: has more than 3 characters"]
    assert faults(text, sent(b"\xff", "text/plain")) == ["body: is not UTF-8"]
    form = taking(
        {
            "type": "object",
            "required": ["n"],
            "properties": {
                "n": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "o": OBJECT,
            },
            "additionalProperties": False,
        },
        "application/x-www-form-urlencoded",
    )
    kind = "application/x-www-form-urlencoded"
    assert faults(form, sent("n=1&tags=a&tags=b&o=%7B%22a%22%3A1%7D", kind)) == []
    assert sorted(faults(form, sent("n=x&z=1", kind))) == [
        "body.n: is not an integer",
        "body.z: is not a field that is known",
    ]
    assert faults(form, sent("n=1&n=2", kind)) == ["body: is given more than once"]


def test_an_operation_without_a_described_body_takes_any() -> None:
    assert faults(rule(document({"/x": {"post": {}}})), sent("anything", "text/plain")) == []


def test_schemas_refer_to_each_other_and_to_themselves() -> None:
    tree = {
        "type": "object",
        "required": ["v"],
        "properties": {
            "v": {"type": "integer"},
            "kids": {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}},
        },
    }
    root = document(
        {"/x": {"post": {"requestBody": {"$ref": "#/components/requestBodies/T"}}}},
        components={
            "requestBodies": {
                "T": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}}}
            },
            "schemas": {"Tree": tree},
        },
    )
    checking = rule(root)
    assert faults(checking, sent('{"v": 1, "kids": [{"v": 2, "kids": []}]}')) == []
    assert faults(checking, sent('{"v": 1, "kids": [{"v": 2, "kids": [{}]}]}')) == [
        "body.kids[0].kids[0].v: is required"
    ]
    deep = '{"v": 1, "kids": [' * 40 + '{"v": 1}' + "]}" * 40
    assert faults(checking, sent(deep)) == [
        "body: it is nested too deep, or is too large, to be checked against its schema"
    ]


def test_an_operation_that_cannot_be_checked_refuses_and_the_others_do_not() -> None:
    def posting(schema: Any) -> dict[str, Any]:
        return {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}

    root = document(
        {
            "/good": posting({"type": "integer"}),
            "/look": posting({"type": "string", "pattern": "(?=a)b"}),
            "/large": posting({"type": "string", "pattern": "((a{100}){100}){100}"}),
            "/nowhere": posting({"$ref": "#/components/schemas/None"}),
            "/away": posting({"$ref": "https://example.com/schema.json"}),
            "/anchor": posting({"$ref": "#here"}),
            "/wrong": posting({"type": "strnig"}),
            "/self": posting({"$ref": "#/components/schemas/A"}),
            "/dynamic": posting({"$dynamicRef": "#a"}),
        },
        components={
            "schemas": {
                "A": {"allOf": [{"$ref": "#/components/schemas/B"}]},
                "B": {"$ref": "#/components/schemas/A"},
            }
        },
    )
    checking = rule(root)
    for path, says in [
        (b"/look", "needs to look around or back"),
        (b"/large", "is not a"),
        (b"/nowhere", "leads to nothing"),
        (b"/away", "not a path into the document"),
        (b"/anchor", "not a path into the document"),
        (b"/wrong", "strnig"),
        (b"/self", "refers to itself"),
        (b"/dynamic", "$dynamicRef"),
    ]:
        call = sent("1")
        call.path = path
        fault = ask(checking, call)
        assert fault is not None
        assert fault.kind.code == "err:frontline:config:invalid_configuration", path
        assert says in fault.detail, fault.detail
    good = sent("1")
    good.path = b"/good"
    assert ask(checking, good) is None


def test_work_that_doubles_with_each_level_is_bounded_by_depth() -> None:
    two = {"properties": {"x": {"$ref": "#/components/schemas/A"}}}
    schemas = {"A": {"anyOf": [two, {**two, "required": ["y"]}]}}
    root = document(
        {
            "/x": {
                "post": {
                    "requestBody": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}
                    }
                }
            }
        },
        components={"schemas": schemas},
    )
    (operation,) = made(root).operations
    check = operation.media[0].check
    assert check is not None
    assert 10 < len(check.growth) < 25
    assert check.growth[-1] <= MOST_VISITS
    deep = '{"x": ' * 30 + "{}" + "}" * 30
    assert faults(rule(root), sent(deep)) == [
        "body: it is nested too deep, or is too large, to be checked against its schema"
    ]


def test_schemas_that_double_where_they_stand_are_refused() -> None:
    schemas: dict[str, Any] = {
        f"A{n}": {"allOf": [{"$ref": f"#/components/schemas/A{n + 1}"}] * 2} for n in range(40)
    }
    schemas["A40"] = {"type": "integer"}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A0"}}}}
    (operation,) = made(
        document({"/x": {"post": {"requestBody": body}}}, components={"schemas": schemas})
    ).operations
    assert operation.fault == "POST /x: too many schemas apply to one value"


@pytest.mark.parametrize(
    ("root", "says"),
    [
        (document({f"/{n}": {"get": {}} for n in range(contracts.MOST_OPERATIONS + 1)}), "operations"),
        (
            document(
                {"/x": {"get": {}}},
                components={
                    "schemas": {"A": {"properties": {f"f{n}": {"x-unkey-redact": True} for n in range(1001)}}}
                },
            ),
            "x-unkey-redact",
        ),
    ],
)
def test_documents_that_are_too_large_are_refused_whole(root: dict[str, Any], says: str) -> None:
    packed, fault = contracts.of_document(openapi.pack(openapi.parse(json.dumps(root))), "")
    assert packed == b""
    assert says in fault


def test_a_chain_of_thousands_of_references_is_neither_followed_into_the_ground_nor_for_ever() -> None:
    schemas: dict[str, Any] = {f"A{n}": {"$ref": f"#/components/schemas/A{n + 1}"} for n in range(9_000)}
    schemas["A9000"] = {"type": "integer"}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A0"}}}}
    (operation,) = made(
        document({"/x": {"post": {"requestBody": body}}}, components={"schemas": schemas})
    ).operations
    assert operation.fault == "" or "schemas" in operation.fault


def test_fields_marked_as_secret_are_known_by_name() -> None:
    schemas = {
        "A": {"properties": {"pin": {"x-unkey-redact": True}, "card": {"$ref": "#/components/schemas/Card"}}},
        "Card": {"x-unkey-redact": True},
    }
    assert made(document({}, components={"schemas": schemas})).secret == ("card", "pin")


def test_what_is_not_known_refuses_and_a_deployment_without_a_document_passes() -> None:
    assert ask(OpenApi({}, Document(b"")), Call()) is None
    for known in (None, Document(b"", "it did not answer /openapi.yaml in time"), Document(b"garbage")):
        fault = ask(OpenApi({}, known), Call())
        assert fault is not None
        assert fault.kind.code == "err:frontline:config:invalid_configuration"
    with pytest.raises(Unsupported):
        OpenApi({"maxBodyBytes": 0}, None)


def test_a_body_is_read_up_to_the_limit_of_the_policy() -> None:
    root = document({"/x": {"post": {"requestBody": {"content": {"application/json": {"schema": {}}}}}}})
    checking = rule(root, maxBodyBytes=10)
    assert ask(checking, sent("1")) is None
    outcome = checking.apply(sent("1"), State())
    assert isinstance(outcome, Body)
    assert outcome.limit == 10


# -- what strangers may send

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_KEYWORDS = st.sampled_from(
    [
        "type",
        "items",
        "properties",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "required",
        "enum",
        "pattern",
        "format",
        "$ref",
        "nullable",
        "minimum",
        "exclusiveMinimum",
        "additionalProperties",
        "patternProperties",
        "const",
        "if",
        "then",
    ]
)
_VALUES = st.sampled_from(
    [
        "string",
        "integer",
        "array",
        "object",
        "#/components/schemas/A",
        "#/components/schemas/B",
        "#",
        "uuid",
        "^a+$",
        1,
    ]
)
_SCHEMAS = st.recursive(
    _VALUES | _SCALARS,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(_KEYWORDS | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    _SCHEMAS,
    _SCHEMAS,
    _SCHEMAS,
    st.sampled_from(["3.0.3", "3.1.0"]),
    st.binary(max_size=20),
    st.text(max_size=10),
)
def test_any_document_makes_a_contract_that_judges_or_is_refused(
    one: Any, two: Any, three: Any, version: str, body: bytes, query: str
) -> None:
    root = document(
        {
            "/x": {
                "post": {
                    "parameters": [{"name": "p", "in": "query", "schema": one}, three],
                    "requestBody": {"content": {"application/json": {"schema": two}}},
                }
            }
        },
        version,
        components={"schemas": {"A": one, "B": three}},
    )
    try:
        text = yaml.safe_dump(root)
        parsed = openapi.parse(text)
    except (openapi.BadDocument, yaml.YAMLError):
        return
    try:
        packed = pack(contracts.build(parsed))
    except Unfit:
        return
    call = sent(body)
    call.query = query.encode()
    fault = ask(OpenApi({}, Document(packed)), call)
    assert fault is None or fault.kind.status in (400, 422)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_octets_are_values_or_refused(raw: bytes) -> None:
    query_pairs(raw)
    cookie_pairs([raw])
    try:
        value = read_json(raw)
        measure(value)
    except Unreadable:
        return
    assert value == json.loads(raw.decode())


@settings(deadline=None)
@given(
    st.recursive(_SCALARS, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20)
)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    text = json.dumps(value)
    try:
        again = read_json(text.encode())
        nodes, height = measure(again)
    except Unreadable:
        return
    assert again == json.loads(text)
    assert nodes >= 1
    assert height >= 0


@settings(deadline=None)
@given(st.text(alphabet="ab/{}%.", max_size=20), st.binary(max_size=30))
def test_any_template_is_understood_or_refused_and_any_path_is_looked_up(template: str, path: bytes) -> None:
    with contextlib.suppress(Unfit):
        read_segment(template)
    contract = made(document({template: {"get": {}}, "/{a}/b": {"get": {}}}))
    Plan(contract).find(b"GET", path)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_octets_are_a_contract_or_refused(raw: bytes) -> None:
    with pytest.raises(Unfit):
        unpack(raw)


def test_of_a_large_body_it_is_told_that_it_does_not_fit_and_no_faults_are_made() -> None:
    checking = taking({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "object"}]}})
    wrong = ["body: does not fit its schema; of a smaller value it is told where"]
    assert faults(checking, sent(json.dumps(["a"] * 20_000))) == wrong
    assert len(faults(checking, sent(json.dumps(["a"] * 30)))) == 20
