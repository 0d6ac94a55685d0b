"""Policies on real connections: bodies that are read first and sent on, barriers, traces."""

import json

import msgspec
import pytest

from edge.sentinel.contract import Check, Contract, Media, Operation, pack

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
