"""Frontline: routing, what is refused with which code, switches without failures, TLS."""

import asyncio
import base64
import itertools
import json
import socket
import ssl
import threading

import bcrypt
import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.frontline.api import Api
from edge.frontline.operations import Operations
from edge.http.limits import Limits
from edge.http.tests.h2client import H2Client
from edge.http.tests.rig import PATIENCE, Client, certificate, free_port
from edge.http.tls import Certificates
from edge.store.records import Certificate
from edge.telemetry.metrics import Registry

HOST = "shop.test"
GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"


def says(text):
    def answer(seen):
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text.encode())

    return answer


def refused(client, raw=GET):
    status, headers, body = client.send(raw).answer()
    answer = json.loads(body)
    assert headers["x-unkey-request-id"] == answer["meta"]["requestId"]
    assert headers["x-unkey-frontline-id"] == "edge-1"
    return status, answer["error"]["code"].removeprefix("err:frontline:")


def test_a_host_is_served_by_its_deployment(rig, records, frontline):
    origin = rig.origin(says("hello"))
    records.switch(HOST, "d_1")
    records.guard("d_1")
    records.run("d_1", origin)
    client = rig.client(frontline())
    for host in (b"shop.test", b"SHOP.test:7080", b"shop.test."):
        status, headers, body = client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host).answer()
        assert (status, body) == (200, b"hello")
        assert headers["x-unkey-region"] == "local"
        assert origin.seen[-1].get("x-unkey-request-id") == [headers["x-unkey-request-id"]]
        assert origin.seen[-1].get("x-unkey-frontline-id") == ["edge-1"]
        assert origin.seen[-1].get("host") == [host.decode()]


def test_codes_of_what_cannot_be_served(rig, records, frontline):
    client = rig.client(frontline())
    assert refused(client) == (404, "routing:config_not_found")
    records.switch(HOST, "d_1")
    assert refused(client) == (503, "capacity:no_running_instances")
    records.guard("d_1", desired="stopped")
    assert refused(client) == (503, "capacity:deployment_offline")
    records.guard("d_1")
    assert refused(client) == (503, "capacity:no_running_instances")
    records.run("d_1", f"127.0.0.1:{free_port()}")
    assert refused(client) == (503, "upstream:service_unavailable")
    records.guard("d_1", {"name": "x", "enabled": True, "jwtauth": {}})
    assert refused(client) == (422, "config:invalid_configuration")
    records.guard("d_1", protocol="h3")
    assert refused(client) == (422, "config:invalid_configuration")
    challenge = b"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: shop.test\r\n\r\n"
    assert refused(client, challenge) == (404, "routing:config_not_found")
    records.run("d_1", rig.origin(says("hello")))
    records.guard("d_1")
    assert client.send(GET).answer()[2] == b"hello"


def test_a_policy_refuses_before_the_app_is_asked(rig, records, frontline):
    origin = rig.origin()
    records.switch(HOST, "d_1")
    records.guard("d_1", {"name": "keys", "enabled": True, "keyauth": {"keyspaces": ["ks_1"]}})
    records.run("d_1", origin)
    client = rig.client(frontline())
    assert refused(client) == (401, "client:missing_credentials")
    keyed = b"GET / HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer k\r\n\r\n"
    assert refused(client, keyed) == (401, "client:invalid_key")
    assert origin.seen == []
    assert client.send(b"GET /_unkey/internal/health HTTP/1.1\r\nHost: x\r\n\r\n").answer()[2] == b"OK"


def test_policies_that_name_the_caller_tell_the_app_who_calls(rig, records, frontline):
    origin = rig.origin()
    records.switch(HOST, "d_1")
    hashed = bcrypt.hashpw(b"sesame", bcrypt.gensalt(4)).decode()
    people = {"credentials": [{"username": "ali", "passwordHash": hashed}]}
    records.guard(
        "d_1",
        {"name": "places", "enabled": True, "ipRules": {"deny": ["192.0.2.0/24"], "allow": ["127.0.0.0/8"]}},
        {"name": "people", "enabled": True, "basicauth": people},
    )
    records.run("d_1", origin)
    client = rig.client(frontline())
    status, headers, _ = client.send(GET).answer()
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="restricted", charset="UTF-8"')
    wrong = GET.replace(b"\r\n\r\n", b"\r\nAuthorization: Basic YWxpOm9wZW4=\r\n\r\n")
    assert refused(client, wrong) == (401, "client:invalid_password")
    assert origin.seen == []
    right = GET.replace(
        b"\r\n\r\n", b"\r\nAuthorization: Basic YWxpOnNlc2FtZQ==\r\nX-Unkey-Principal: me\r\n\r\n"
    )
    assert client.send(right).answer()[0] == 200
    assert [json.loads(value)["subject"] for value in origin.seen[-1].get("x-unkey-principal")] == ["ali"]
    records.guard("d_1", {"name": "places", "enabled": True, "ipRules": {"deny": ["127.0.0.0/8"]}})
    assert refused(client) == (403, "client:address_denied")


def test_requests_are_spread_over_instances_and_move_when_they_do(rig, records, frontline):
    origins = [rig.origin(says("a")), rig.origin(says("b"))]
    records.switch(HOST, "d_1")
    records.guard("d_1")
    records.run("d_1", f"127.0.0.1:{free_port()}", *origins)
    client = rig.client(frontline())
    assert {client.send(GET).answer()[2] for _ in range(60)} == {b"a", b"b"}
    records.run("d_1", origins[1])
    assert {client.send(GET).answer()[2] for _ in range(10)} == {b"b"}


def test_a_switch_holds_for_the_next_request_of_a_kept_connection_and_fails_none(rig, records, frontline):
    for version in ("1", "2"):
        records.guard(f"d_{version}")
        records.run(f"d_{version}", rig.origin(says(version)))
    records.switch(HOST, "d_1")
    server = frontline()
    stop = threading.Event()
    seen: list[list[tuple[int, bytes]]] = [[] for _ in range(8)]

    def visit(answers):
        client = Client(server.port)
        while not stop.is_set():
            status, _, body = client.send(GET).answer()
            answers.append((status, body))
        client.close()

    visitors = [threading.Thread(target=visit, args=(answers,)) for answers in seen]
    for visitor in visitors:
        visitor.start()
    steady = rig.client(server)
    for number in range(50):
        version = str(number % 2 + 1)
        rig.loop.call(lambda version=version: records.switch(HOST, f"d_{version}"))
        assert steady.send(GET).answer()[2] == version.encode()
    stop.set()
    for visitor in visitors:
        visitor.join(PATIENCE)
    assert {status for answers in seen for status, _ in answers} == {200}


def test_a_request_in_flight_ends_where_it_began(rig, records, frontline):
    arrived, go_on = threading.Event(), threading.Event()

    def slow(seen):
        arrived.set()
        assert go_on.wait(PATIENCE)
        return says("1")(seen)

    records.guard("d_1")
    records.guard("d_2")
    records.run("d_1", rig.origin(slow))
    records.run("d_2", rig.origin(says("2")))
    records.switch(HOST, "d_1")
    client = rig.client(frontline())
    client.send(GET)
    assert arrived.wait(PATIENCE)
    rig.loop.call(lambda: (records.switch(HOST, "d_2"), records.run("d_1")))
    go_on.set()
    assert client.answer()[2] == b"1"
    assert client.send(GET).answer()[2] == b"2"


def test_plain_http_is_redirected_if_asked_for(rig, records, frontline):
    client = rig.client(frontline(redirect_port=7443))
    status, headers, _ = client.send(b"GET /a?b HTTP/1.1\r\nHost: Shop.test:7080\r\n\r\n").answer()
    assert (status, headers["location"]) == (308, "https://shop.test:7443/a?b")
    assert refused(client, b"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 404


def handshake(port: int, name: str | None, highest=ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = highest
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except OSError:
        plain.close()
        raise


def serial(port: int, name: str | None, highest=ssl.TLSVersion.TLSv1_3) -> int:
    with handshake(port, name, highest) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def test_certificates_are_chosen_by_name_and_change_without_a_restart(rig, records, frontline):
    certificates = Certificates(records.certificate, "unkey.test")
    server = frontline(tls=certificates.listener_context())
    for number, name in enumerate(["shop.test", "*.apps.test", "unkey.test"], 1):
        records.certificates[name] = certificate(name, number)

    assert serial(server.port, "shop.test") == 1
    assert serial(server.port, "SHOP.test", ssl.TLSVersion.TLSv1_2) == 1
    assert serial(server.port, "a.apps.test") == 2
    assert serial(server.port, None) == 3
    with pytest.raises((ssl.SSLError, ConnectionResetError)):  # the listener hangs up without an alert
        handshake(server.port, "a.b.apps.test")
    assert certificates.unknown == 1
    assert serial(server.port, "127.0.0.1") == serial(server.port, None)  # an address is no name

    records.certificates["shop.test"] = certificate("shop.test", 9)
    assert serial(server.port, "shop.test") == 9
    records.certificates["shop.test"] = Certificate("shop.test", "broken", "broken", 10)
    assert serial(server.port, "shop.test") == 9
    assert certificates.broken == 1


def trusting(port: int, issued: Certificate) -> None:
    """Connect as a client that trusts this certificate, as long as it is valid."""
    context = ssl.create_default_context(cadata=issued.chain)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=issued.hostname),
    ):
        pass


def test_a_certificate_that_expires_while_serving_is_served_on_and_its_successor_to_the_next_client(
    rig, records, frontline
):
    origin = rig.origin(says("x"))
    records.switch(HOST, "d_1")
    records.guard("d_1")
    records.run("d_1", origin)
    records.certificates[HOST] = certificate(HOST, 1)
    server = frontline(tls=Certificates(records.certificate, HOST).listener_context())
    kept = Client.over(handshake(server.port, HOST))
    assert kept.send(GET).answer()[0] == 200

    records.certificates[HOST] = certificate(HOST, 2, days=1)  # as time would have made it
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        trusting(server.port, records.certificates[HOST])
    assert kept.send(GET).answer()[0] == 200
    assert serial(server.port, HOST) == 2  # for clients to judge: a site that is gone would be no better

    records.certificates[HOST] = certificate(HOST, 3)
    trusting(server.port, records.certificates[HOST])
    assert serial(server.port, HOST) == 3
    assert kept.send(GET).answer()[0] == 200
    kept.close()


def test_requests_pass_over_tls(rig, records, frontline):
    origin = rig.origin(says("x" * 300_000))
    records.switch(HOST, "d_1")
    records.guard("d_1")
    records.run("d_1", origin)
    records.certificates[HOST] = certificate(HOST, 1)
    server = frontline(tls=Certificates(records.certificate, HOST).listener_context(), redirect_port=443)
    client = Client.over(handshake(server.port, HOST))
    for _ in range(2):
        assert len(client.send(GET).answer()[2]) == 300_000
    client.close()
    assert origin.seen[0].get("x-forwarded-proto") == ["https"]


def test_http_2_goes_by_the_same_routes_and_policies(rig, records, frontline):
    origin = rig.origin(says("hello"))
    records.switch(HOST, "d_1")
    secret = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    basic = {
        "name": "b",
        "enabled": True,
        "basicauth": {"credentials": [{"username": "u", "passwordHash": secret}]},
    }
    records.guard("d_1", basic)
    records.run("d_1", origin)
    records.certificates[HOST] = certificate(HOST, 1)
    server = frontline(tls=Certificates(records.certificate, HOST).listener_context(), redirect_port=443)
    client = H2Client(server.port, HOST)
    rig.clients.append(client)
    refused = client.ask("/a", [("accept", "application/json")])
    assert (refused.status, refused.headers["x-unkey-frontline-id"]) == (401, "edge-1")
    assert json.loads(refused.body)["meta"]["requestId"] == refused.headers["x-unkey-request-id"]
    credentials = base64.b64encode(b"u:secret").decode()
    passed = client.ask("/a", [("authorization", f"Basic {credentials}"), ("x-unkey-principal", "forged")])
    assert (passed.status, passed.body) == (200, b"hello")
    assert origin.seen[0].get("x-unkey-request-id") == [passed.headers["x-unkey-request-id"]]
    assert "forged" not in origin.seen[0].get("x-unkey-principal")
    other = client.open(
        [(":method", "GET"), (":scheme", "https"), (":authority", "other.test"), (":path", "/")]
    )
    assert client.answer(other).status == 404


class Answers:
    """Answers `keys.verifyKey` and rate limits, now or later."""

    def __init__(self, *, late=False, quick=False):
        self.late = late
        self.quick = quick
        self.asked = []

    def quick_verify_key(self, authorization, remote_ip, body):
        self.asked.append((authorization, remote_ip, body))
        return b'{"quick":true}' if self.quick and body.startswith(b"{") else None

    def handle_verify_key(self, headers, body, remote_ip):
        self.asked.append((headers, body, remote_ip))
        answer = (200, b'{"ok":true}', {"content-type": "application/json"})
        return self._later(answer) if self.late else answer

    async def _later(self, answer):
        return answer

    quick_limit = quick_verify_key
    handle_limit = handle_multi_limit = handle_verify_key


VERIFY = b"POST /v2/keys.verifyKey HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer root\r\n%b\r\n"


@pytest.mark.parametrize("late", [False, True])
def test_verify_key_is_answered_here_and_the_rest_by_web(rig, late):
    web, answers = rig.origin(says("web")), Answers(late=late)
    client = rig.client(rig.serve(Api(answers, answers, rig.pool, f"http://{web.address}").handle))

    status, headers, body = client.send(VERIFY % b"Content-Length: 2\r\n" + b"{}").answer()
    assert (status, headers["content-type"], body) == (200, "application/json", b'{"ok":true}')
    client.send(VERIFY % b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n")
    assert client.answer()[0] == 100
    assert client.send(b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n").answer()[2] == b'{"ok":true}'
    assert answers.asked == [({"authorization": "Bearer root"}, b"{}", "127.0.0.1")] * 2
    assert web.seen == []

    assert client.send(b"GET /v2/keys.verifyKey HTTP/1.1\r\nHost: a\r\n\r\n").answer()[2] == b"web"
    other = b"POST /v2/apis.createApi HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer r\r\nContent-Length: 2\r\n\r\n{}"
    assert client.send(other).answer()[2] == b"web"
    assert (web.seen[1].body, web.seen[1].get("authorization")) == (b"{}", ["Bearer r"])


def test_a_verification_that_can_be_answered_at_once_is_and_any_other_takes_the_usual_way(rig):
    web, answers = rig.origin(says("web")), Answers(quick=True)
    api = Api(answers, answers, rig.pool, f"http://{web.address}")
    server = rig.serve(api.handle, quick=api.quick)
    client = rig.client(server)
    post = VERIFY % b"Content-Length: 2\r\n"
    assert client.send(post + b"{}").answer()[2] == b'{"ok":true}'  # its head is new
    assert client.send(post + b"{}").answer() == (
        200,
        {"content-type": "application/json", "content-length": "14"},
        b'{"quick":true}',
    )
    assert client.send(post + b"[]").answer()[2] == b'{"ok":true}'
    assert answers.asked[1] == (b"Bearer root", b"127.0.0.1", b"{}")
    # In two packets, and two in one packet.
    client.send(post)
    assert client.send(b"{}").answer()[2] == b'{"ok":true}'
    client.send(post + b"{}" + post + b"{}")
    assert [client.answer()[2] for _ in range(2)] == [b'{"ok":true}'] * 2
    # What web answers is never answered here, though its head comes again.
    other = b"POST /v2/apis.createApi HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    assert [client.send(other).answer()[2] for _ in range(2)] == [b"web"] * 2
    last = VERIFY % b"Connection: close\r\nContent-Length: 2\r\n"
    assert client.send(last + b"{}").answer()[1]["connection"] == "close"
    server.settle()
    assert server.statuses == {200: 9}
    assert sum(server.latencies) == 8  # the one that was answered quickly is not timed


def test_bodies_of_several_lengths_are_answered_at_once_each(rig):
    web, answers = rig.origin(says("web")), Answers(quick=True)
    api = Api(answers, answers, rig.pool, f"http://{web.address}")
    server = rig.serve(api.handle, quick=api.quick)
    client = rig.client(server)
    bodies = [b"{" + b" " * spaces + b"}" for spaces in (0, 1, 2)]
    posts = [VERIFY % b"Content-Length: %d\r\n" % len(body) + body for body in bodies]
    assert [client.send(post).answer()[2] for post in posts] == [b'{"ok":true}'] * 3
    assert [client.send(post).answer()[2] for post in posts * 2] == [b'{"quick":true}'] * 6
    assert [asked[2] for asked in answers.asked[-6:]] == bodies * 2
    # Another connection has heads of its own, and a head that came too long ago is read again.
    assert rig.client(server).send(posts[0]).answer()[2] == b'{"ok":true}'
    for spaces in range(3, 12):
        body = b"{" + b" " * spaces + b"}"
        assert client.send(VERIFY % b"Content-Length: %d\r\n" % len(body) + body).answer()[0] == 200
    assert client.send(posts[0]).answer()[2] == b'{"ok":true}'


def test_without_web_the_api_says_so_in_its_envelope(rig):
    api = Api(Answers(), Answers(), rig.pool, f"http://127.0.0.1:{free_port()}")
    client = rig.client(rig.serve(api.handle))
    status, headers, body = client.send(
        b"GET /v2/liveness HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n"
    ).answer()
    answer = json.loads(body)
    assert (status, headers["content-type"]) == (500, "application/json")
    assert answer["error"]["type"] == "https://unkey.com/docs/errors/unkey/application/service_unavailable"
    assert answer["error"]["status"] == 500
    assert client.send(VERIFY % b"Content-Length: 2\r\n" + b"{}").answer()[0] == 200


def test_a_body_that_is_too_large_for_verify_key_is_refused_in_the_envelope(rig):
    client = rig.client(rig.serve(Api(Answers(), Answers(), rig.pool, "http://127.0.0.1:1").handle))
    status, _, body = client.send(VERIFY % b"Content-Length: 10485761\r\n").answer()
    assert (status, json.loads(body)["error"]["status"]) == (413, 413)


def test_health_and_metrics(rig):
    ready: list[bool] = []
    registry = Registry()
    registry.add("a_total", "counter", "Help.", lambda: [("a_total", {"b": 'c"\\\n'}, 2)])
    client = rig.client(rig.serve(Operations(registry, lambda: bool(ready)).handle))

    def get(path):
        status, _, body = client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path).answer()
        return status, body

    assert get(b"/health/live")[0] == 200
    assert get(b"/health/ready")[0] == 503
    ready.append(True)
    assert get(b"/health/ready")[0] == get(b"/health/startup")[0] == 200
    assert get(b"/metrics") == (
        200,
        b'# HELP a_total Help.\n# TYPE a_total counter\na_total{b="c\\"\\\\\\n"} 2\n',
    )
    assert get(b"/elsewhere")[0] == 404


class Faulty(Answers):
    """Has a fault that nobody expected, in one of its ways."""

    def __init__(self, where):
        super().__init__(late=where == "late", quick=where == "quick")
        self.where = where

    def quick_verify_key(self, authorization, remote_ip, body):
        if self.where == "quick":
            raise RuntimeError("not foreseen")
        return super().quick_verify_key(authorization, remote_ip, body)

    def handle_verify_key(self, headers, body, remote_ip):
        if self.where == "now":
            raise RuntimeError("not foreseen")
        return super().handle_verify_key(headers, body, remote_ip)

    async def _later(self, answer):
        raise RuntimeError("not foreseen")


def api_server(rig, answers, web_url="http://127.0.0.1:1", **options):
    api = Api(answers, answers, rig.pool, web_url)
    return rig.serve(api.handle, quick=api.quick, refuse=api.refuse, **options)


def error_of(answer):
    """Return status and type of an answer in the envelope of the API, which holds nothing else."""
    status, headers, body = answer
    content = json.loads(body)
    assert headers["content-type"] == "application/json"
    assert content.keys() == {"meta", "error"}
    assert content["meta"]["requestId"].startswith("req_")
    error = content["error"]
    assert error.keys() == {"title", "detail", "status", "type"} | ({"errors"} if status == 400 else set())
    assert error.get("errors", []) == []
    assert error["status"] == status
    return status, error["type"].removeprefix("https://unkey.com/docs/errors/")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", (400, "user/bad_request/malformed_request")),
        (b"nonsense\r\n\r\n", (400, "user/bad_request/malformed_request")),
        (
            b"POST /v2/keys.verifyKey HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            (400, "user/bad_request/malformed_request"),
        ),
        (b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n", (404, "user/bad_request/route_not_found")),
        (
            b"POST /v2/apis.createApi HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n",
            (413, "user/bad_request/request_body_too_large"),
        ),
        (
            b"GET /v2/a HTTP/1.1\r\nHost: a\r\nA: %b\r\n\r\n" % (b"a" * 2000),
            (431, "user/bad_request/request_headers_too_large"),
        ),
        (b"GET /v2/a HTTP/1.1\r\nHost", (408, "user/bad_request/request_timeout")),
        (VERIFY % b"Content-Length: 2\r\n" + b"{", (408, "user/bad_request/request_timeout")),
    ],
)
def test_what_the_port_of_the_api_refuses_is_told_in_the_envelope_of_the_api(rig, raw, expected):
    limits = Limits(body_bytes=100, head_bytes=1000, header_seconds=0, request_seconds=0)
    client = rig.client(api_server(rig, Answers(), limits=limits))
    assert error_of(client.send(raw).answer()) == expected


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("where", ["now", "late"])
def test_a_fault_in_a_verification_is_answered_however_the_request_comes(rig, where, apart):
    client = rig.client(api_server(rig, Faulty(where)))
    head = VERIFY % b"Content-Length: 2\r\n"
    if apart:
        client.send(VERIFY % b"Content-Length: 2\r\nExpect: 100-continue\r\n")
        assert client.answer()[0] == 100
        client.send(b"{}")
    else:
        client.send(head + b"{}")
    assert error_of(client.answer()) == (500, "unkey/application/unexpected_error")


def test_a_fault_in_the_quick_way_leaves_the_usual_one(rig):
    client = rig.client(api_server(rig, Faulty("quick")))
    request = VERIFY % b"Content-Length: 2\r\n" + b"{}"
    assert [client.send(request).answer()[2] for _ in range(3)] == [b'{"ok":true}'] * 3


# Requests that may be answered from memory, after a look-up, or by web.
KINDS = {
    "quick": VERIFY % b"Content-Length: 2\r\n" + b"{}",
    "verify": VERIFY % b"Content-Length: 2\r\n" + b"[]",
    "expect": VERIFY % b"Content-Length: 2\r\nExpect: 100-continue\r\n" + b"[]",
    "web": b"POST /v2/keys.createKey HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer root\r\nContent-Length: 2\r\n\r\n{}",
    "web chunked": b"POST /v2/keys.createKey HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}


class Slow(Answers):
    """Answers from memory or after a look-up that takes a few turns of the loop."""

    async def _later(self, answer):
        await asyncio.sleep(0.001)
        return answer


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=12),
    late=st.booleans(),
    cuts=st.lists(st.integers(0, 3000), max_size=10),
    waits=st.lists(st.booleans(), min_size=10, max_size=10),
)
def test_every_request_of_a_connection_is_answered_in_order(conversation, kinds, late, cuts, waits):
    conversation.answers.late = late
    client = conversation.client()
    raw = b"".join(KINDS[kind] for kind in kinds)
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    for (start, end), wait in zip(itertools.pairwise(places), itertools.cycle(waits)):
        client.send(raw[start:end])
        if wait:
            conversation.turn()
    for kind in kinds:
        status, _, body = client.answer()
        if status == 100:
            status, _, body = client.answer()
        assert status == 200
        assert body == b"web" if kind.startswith("web") else body in (b'{"ok":true}', b'{"quick":true}')
    client.close()


class Conversation:
    """Clients of one API listener."""

    def __init__(self, rig):
        self._rig = rig
        self.answers = Slow(quick=True)
        self._server = api_server(rig, self.answers, f"http://{rig.origin(says('web')).address}")

    def client(self):
        """Connect once more."""
        client = self._rig.client(self._server)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def turn(self):
        """Let the listener take what was sent."""
        self._rig.loop.run(asyncio.sleep(0.001))


@pytest.fixture
def conversation(rig):
    return Conversation(rig)


def test_one_of_sixty_four_quick_answers_is_timed_and_counts_for_all(rig):
    server = api_server(rig, Answers(quick=True))
    client = rig.client(server)
    request = VERIFY % b"Content-Length: 2\r\n" + b"{}"

    def counted(more):
        for _ in range(more):
            client.send(request).answer()
        rig.loop.call(server.settle)
        return server.statuses, sum(server.latencies)

    assert counted(1) == ({200: 1}, 1)  # its head is new
    assert counted(63) == ({200: 64}, 1)
    usual = server.latency_sum
    assert counted(1) == ({200: 65}, 65)
    assert server.latency_sum > usual
    assert counted(63) == ({200: 128}, 65)
    assert counted(1) == ({200: 129}, 129)


def test_a_verification_is_asked_for_the_client_that_a_trusted_proxy_names(rig):
    answers = Answers(quick=True)
    client = rig.client(api_server(rig, answers))
    request = VERIFY % b"X-Forwarded-For: 203.0.113.9\r\nContent-Length: 2\r\n" + b"{}"
    assert [client.send(request).answer()[2] for _ in range(2)] == [b'{"ok":true}', b'{"quick":true}']
    assert [asked[2 if number == 0 else 1] for number, asked in enumerate(answers.asked)] == [
        "203.0.113.9",
        b"203.0.113.9",
    ]
