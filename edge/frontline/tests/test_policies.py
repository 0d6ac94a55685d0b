"""Policies on real connections: bodies that are read first and sent on, barriers, traces."""

import json
import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.frontline.requests import Requests
from edge.sentinel.contract import Check, Contract, Media, Operation, pack
from edge.sentinel.debugging import Debugging, sign
from unkey import clock

HOST = "shop.test"
OPENAPI = {"id": "pol_1", "name": "fits", "enabled": True, "openapi": {"maxBodyBytes": 100_000}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def promised(schema=SCHEMA) -> bytes:
    check = Check(msgspec.Raw(msgspec.json.encode(schema)), (), (2, 2, 2, 2))
    media = (Media("application/json", "json", check),)
    return pack(Contract((), (Operation("POST", "/x", (), None, media, True),), {}))


def post(body: bytes, *lines: bytes, length: bool = True) -> bytes:
    framing = b"Content-Length: %d" % len(body) if length else b"Transfer-Encoding: chunked"
    head = (b"POST /x HTTP/1.1", b"Host: shop.test", b"Content-Type: application/json", framing, *lines)
    return b"\r\n".join(head) + b"\r\n\r\n"


@pytest.fixture
def shop(rig, records, frontline):
    """An app whose requests are checked against its document; returns its origin and a client."""
    origin = rig.origin()
    records.switch(HOST, "d_1")
    records.guard("d_1", OPENAPI)
    records.promise("d_1", promised())
    records.run("d_1", origin)
    return origin, rig.client(frontline())


def error(answer):
    status, _, body = answer
    return status, json.loads(body)["error"]


def test_a_body_that_fits_is_sent_on_as_it_came_however_it_comes(shop):
    origin, client = shop
    body = json.dumps({"n": 1, "text": "x" * 50_000}).encode()
    client.send(post(body) + body)
    assert client.answer()[0] == 200
    client.send(post(body))
    for at in range(0, len(body), 20_000):
        client.send(body[at : at + 20_000])
    assert client.answer()[0] == 200
    client.send(post(body, length=False))
    for at in range(0, len(body), 20_000):
        piece = body[at : at + 20_000]
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    client.send(b"0\r\n\r\n")
    assert client.answer()[0] == 200
    assert [seen.body for seen in origin.seen] == [body] * 3


def test_who_waits_before_the_body_is_told_to_go_on_once(shop):
    origin, client = shop
    body = b'{"n": 1}'
    client.send(post(body, b"Expect: 100-continue"))
    client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(body)
    assert client.answer()[0] == 200
    assert origin.seen[0].body == body
    assert origin.seen[0].get("expect") == []


def test_every_fault_of_a_body_is_told_and_the_app_is_not_asked(shop):
    origin, client = shop
    body = b'{"m": "x"}'
    assert error(client.send(post(body) + body).answer()) == (
        400,
        {
            "code": "err:frontline:client:openapi_validation_failed",
            "message": "The request does not fit the app's OpenAPI document: body.n: is required.",
            "errors": [{"location": "body.n", "message": "is required"}],
        },
    )
    page = post(b"[]", b"Accept: text/html") + b"[]"
    assert b"<li><code>body</code> is not an object</li>" in client.send(page).answer()[2]
    assert origin.seen == []


def test_a_body_beyond_the_limit_of_the_policy_is_refused(shop):
    origin, client = shop
    status, told = error(client.send(post(b"x" * 100_001)).answer())
    assert (status, told["code"]) == (413, "err:user:bad_request:request_body_too_large")
    assert origin.seen == []


def test_a_client_that_leaves_within_its_body_harms_nobody(rig, records, frontline, shop):
    origin, client = shop
    client.send(post(b"x" * 1000) + b"{")
    client.close()
    other = rig.client(frontline())
    body = b'{"n": 1}'
    assert other.send(post(body) + body).answer()[0] == 200
    assert [seen.body for seen in origin.seen] == [body]


def test_as_long_as_the_document_is_not_known_requests_are_refused(shop, records):
    _, client = shop
    body = b'{"n": 1}'
    records.promise("d_1", fault="the app did not answer /openapi.yaml in time")
    status, told = error(client.send(post(body) + body).answer())
    assert (status, told["code"]) == (422, "err:frontline:config:invalid_configuration")
    assert "did not answer /openapi.yaml" in told["message"]
    records.promise("d_1")
    assert client.send(post(b"[]") + b"[]").answer()[0] == 200
    records.promise("d_1", promised())
    assert client.send(post(b"[]") + b"[]").answer()[0] == 400


GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\nAccept: application/json\r\n\r\n"


def test_a_barrier_holds_for_the_next_request_and_before_anything_else(rig, records, frontline):
    origin = rig.origin()
    records.switch(HOST, "d_1")
    records.guard("d_1")
    records.run("d_1", origin)
    client = rig.client(frontline())
    assert client.send(GET).answer()[0] == 200
    records.bar("127.0.0.0/8")
    status, told = error(client.send(GET).answer())
    assert (status, told["code"]) == (403, "err:frontline:client:address_denied")
    records.bar("10.0.0.0/8", maintenance=True, message="Back at noon.", retry_after=600)
    status, headers, body = client.send(GET).answer()
    assert (status, headers["retry-after"]) == (503, "600")
    assert json.loads(body)["error"] == {
        "code": "err:frontline:capacity:under_maintenance",
        "message": "Back at noon.",
    }
    records.run("d_1")
    assert client.send(GET).answer()[0] == 503
    records.run("d_1", origin)
    records.bar(maintenance=True, exempt=["127.0.0.1"])
    assert client.send(GET).answer()[0] == 200
    records.bar("not an address")
    status, told = error(client.send(GET).answer())
    assert (status, told["code"]) == (422, "err:frontline:config:invalid_configuration")
    records.bar()
    assert client.send(GET).answer()[0] == 200
    assert len(origin.seen) == 3


class Events:
    """Telemetry that keeps what it is told."""

    def __init__(self):
        self.rows = []

    def record_gateway_request(self, *fixed, details=None, **more):
        self.rows.append({**more, "details": None if details is None else details()})

    def take(self, count):
        """Return the events when there are so many: each comes just after its answer."""
        until = time.monotonic() + 10
        while len(self.rows) < count and time.monotonic() < until:
            time.sleep(0.001)
        assert len(self.rows) == count
        return self.rows


@pytest.fixture
def logged(rig, records, frontline):
    """A gateway in front of an app, whose events are kept; returns what makes it, and the events."""
    events: Any = Events()

    def make(origin, *policies):
        records.switch(HOST, "d_1")
        records.guard("d_1", *policies)
        records.run("d_1", origin)
        return rig.client(frontline(observe=Requests(records, events, "edge-1", "local")))

    return make, events.take


def answering(*lines: bytes, body: bytes, framing: bytes | None = None):
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, framing or b"Content-Length: %d" % len(body)])
    return lambda seen: head + b"\r\n\r\n" + body


ALL = {
    "requestHeaders": True,
    "responseHeaders": True,
    "requestBody": True,
    "responseBody": True,
    "query": True,
}
LOG = {"id": "pol_9", "name": "log", "enabled": True, "logging": ALL}


def test_what_a_logging_policy_asks_for_is_recorded_and_secrets_are_not(rig, logged):
    make, take = logged
    told = b'{"token":"t","list":[{"PIN":1,"a":"\xc3\xbc"}]}'
    origin = rig.origin(
        answering(b"Content-Type: application/json", b"Set-Cookie: s=1", b"X-A: b", body=told)
    )
    logging = {**ALL, "redactHeaders": ["X-Trace"], "redactFields": ["pin"]}
    client = make(origin, {**LOG, "logging": logging})
    body = b'{"n": 1, "password": "p"}'
    client.send(post(body, b"X-Trace: 7", b"Authorization: Bearer k") + body)
    assert client.answer()[2] == told
    (row,) = take(1)
    assert row["policies"] == ["pol_9 logging passed"]
    assert row["details"] == (
        [
            "Host: shop.test",
            "Content-Type: application/json",
            "Content-Length: 25",
            "X-Trace: [REDACTED]",
            "Authorization: [REDACTED]",
        ],
        '{"n":1,"password":"[REDACTED]"}',
        ["Content-Type: application/json", "Set-Cookie: [REDACTED]", "X-A: b"],
        '{"token":"[REDACTED]","list":[{"PIN":"[REDACTED]","a":"ü"}]}',
    )


def test_bodies_are_recorded_as_they_are_however_they_are_framed_and_up_to_a_size(rig, logged):
    make, take = logged
    long = b"x" * 70_000
    chunked = b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    answers = [
        (b"", answering(body=long)),
        (b"", answering(body=chunked, framing=b"Transfer-Encoding: chunked")),
        (b"", answering(body=b"until the end", framing=b"Connection: close")),
        (b"", answering(b"Content-Encoding: gzip", body=b"\x1f\x8b")),
        (b"", answering(body=b"")),
    ]
    for _, answer in answers:
        client = make(rig.origin(answer), {**LOG, "logging": {**ALL, "maxBodyBytes": 100}})
        client.send(post(b"a" * 200) + b"a" * 200)
        assert client.answer()[0] == 200
    assert [row["details"][3] for row in take(5)] == [
        "x" * 100,
        "hello!",
        "until the end",
        "[NOT RECORDED: it is compressed]",
        "",
    ]
    assert {row["details"][1] for row in take(5)} == {"[NOT RECORDED: it is too long to be redacted]"}


def test_nothing_but_the_trace_is_recorded_unless_asked_for(rig, logged):
    make, take = logged
    client = make(rig.origin(), {**LOG, "logging": {**ALL, "sampleRate": 0}})
    assert client.send(GET).answer()[0] == 200
    deny = {"id": "pol_2", "name": "no", "enabled": True, "firewall": {"action": "ACTION_DENY"}}
    client = make(rig.origin(), {**deny, "firewall": {"action": "ACTION_LOG"}}, deny)
    assert client.send(GET).answer()[0] == 403
    client = make(rig.origin())
    assert client.send(GET).answer()[0] == 200
    assert [(row["status"], row["policies"], row["details"]) for row in take(3)] == [
        (200, ["pol_9 logging passed"], None),
        (403, ["pol_2 firewall matched", "pol_2 firewall refused firewall_denied"], None),
        (200, (), None),
    ]


def test_credentials_of_the_query_and_of_other_headers_are_never_recorded(rig, logged):
    make, take = logged
    places = [{"header": {"name": "X-Api-Key"}}, {"queryParam": {"name": "key"}}]
    keys = {
        "id": "pol_1",
        "name": "k",
        "enabled": True,
        "keyauth": {"keyspaces": ["ks"], "locations": places},
    }
    client = make(rig.origin(), LOG, keys)
    client.send(b"GET /?a=1&key=s3 HTTP/1.1\r\nHost: shop.test\r\nX-Api-Key: s3\r\n\r\n")
    assert client.answer()[0] == 401
    (row,) = take(1)
    assert (row["path"], row["query"]) == ("/", "a=1&key=[REDACTED]")
    assert row["details"][0] == ["Host: shop.test", "X-Api-Key: [REDACTED]"]
    assert "s3" not in str(row)


def test_who_has_a_signature_is_told_what_each_policy_did(rig, records, frontline):
    records.switch(HOST, "d_1")
    deny = {"name": "no", "enabled": True, "firewall": {"action": "ACTION_DENY"}}
    records.guard(
        "d_1",
        {**deny, "id": "pol_1", "match": [{"path": {"path": {"exact": "/never"}}}]},
        {**deny, "id": "pol_2", "firewall": {"action": "ACTION_LOG"}},
        {**deny, "id": "pol_3", "match": [{"header": {"name": "X-Evil"}}]},
    )
    records.run("d_1", rig.origin())
    client = rig.client(frontline(debugging=Debugging(["token", "earlier"])))
    soon = clock.now_ms() // 1000 + 60

    def trace(signed: str, *lines: bytes):
        told = (b"X-Unkey-Debug: " + signed.encode(), *lines)
        answer = client.send(GET.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(told) + b"\r\n\r\n")).answer()
        return answer[0], re.sub(r"us=\d+", "us=", answer[1].get("x-unkey-trace", ""))

    for token in ("token", "earlier"):
        assert trace(sign(token, "env_1", soon)) == (
            200,
            "pol_1;kind=firewall;outcome=skipped;us=, pol_2;kind=firewall;outcome=matched;us=, "
            "pol_3;kind=firewall;outcome=skipped;us=",
        )
    assert trace(sign("token", "env_1", soon), b"X-Evil: 1") == (
        403,
        "pol_1;kind=firewall;outcome=skipped;us=, pol_2;kind=firewall;outcome=matched;us=, "
        "pol_3;kind=firewall;outcome=refused;code=firewall_denied;us=",
    )
    right = sign("token", "env_1", soon)
    for wrong in (
        sign("other", "env_1", soon),
        sign("token", "env_2", soon),
        sign("token", "env_1", soon - 3600),
        sign("token", "env_1", soon + 86_400),
        right[:-1],
        right.replace(".", ".0", 1),
        "",
        "x",
    ):
        assert trace(wrong) == (200, "")


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_no_octets_are_a_signature(value):
    assert not Debugging(["token"]).allows(value, "env_1", 0)
