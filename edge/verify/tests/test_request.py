"""The body of `keys.verifyKey`: what is valid, and every fault with its location."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.verify.request import CHECKER, read
from edge.verify.steps import Demand
from unkey.errors import InvalidInput, Violation


def test_a_whole_body_is_read():
    body = read(
        b'{"key":"k","tags":["a=b"],"permissions":"a","credits":{"cost":2},"migrationId":"m",'
        b'"ratelimits":[{"name":"abc"},{"name":"def","cost":0,"limit":1,"duration":1000}]}'
    )
    assert (body.key, body.tags, body.permissions, body.cost) == ("k", ["a=b"], "a", 2)
    assert body.demands == (Demand("abc"), Demand("def", 0, 1, 1000))


def test_a_whole_number_may_be_written_with_a_fraction_of_zero():
    assert read(b'{"key":"k","credits":{"cost":2.0}}').cost == 2


def test_every_fault_is_told_with_its_location():
    with pytest.raises(InvalidInput) as refused:
        read(b'{"tags":["", 5],"credits":{},"ratelimits":[{"name":"ab","cost":-1}],"x":1}')
    assert sorted((one.location, one.message) for one in refused.value.violations) == [
        ("body.credits.cost", "cost is required"),
        ("body.key", "key is required"),
        ("body.ratelimits[0].cost", "cost must be at least 0"),
        ("body.ratelimits[0].name", "name must have at least 3 characters"),
        ("body.tags[0]", "the value must have at least 1 character"),
        ("body.tags[1]", "the value must be a string"),
        ("body.x", "x is not a field of this object"),
    ]


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"key":null}', "body.key"),
        (b'{"key":""}', "body.key"),
        (b'{"key":"k","permissions":null}', "body.permissions"),
        (b'{"key":"k","credits":{"cost":1000000000001}}', "body.credits.cost"),
        (
            b'{"key":"k","ratelimits":[{"name":"abc","limit":1,"duration":999}]}',
            "body.ratelimits[0].duration",
        ),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_faulty_body_is_refused(body, location):
    with pytest.raises(InvalidInput) as refused:
        read(body)
    assert [one.location for one in refused.value.violations] == [location]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("key", "tags", "permissions", "credits", "ratelimits", "migrationId", "other")


@given(st.dictionaries(st.sampled_from(FIELDS), json | st.just("text") | st.just([{"name": "abc"}])))
def test_the_fast_reader_and_the_schema_agree(value):
    body = msgspec.json.encode(value)
    violations = CHECKER.violations(msgspec.json.decode(body))
    found: list[Violation] = []
    try:
        read(body)
    except InvalidInput as refused:
        found = list(refused.violations)
    assert found == violations


@pytest.mark.parametrize("body", [b'{"key":"\xff"}', b'{"key":"\xff\xfe"}', b"\xff", b'{"key":"a","\xc3":1}'])
def test_a_body_that_is_not_utf_8_is_refused_as_unreadable_json(body: bytes) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read(body)
    assert [fault.location for fault in refusal.value.violations] == ["body"]
