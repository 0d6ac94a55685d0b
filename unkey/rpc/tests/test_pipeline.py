"""The envelope and the pipeline of every `/v2` request."""

import dataclasses
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client, RequestFactory
from structlog.testing import capture_logs

from apps.audit.models import AuditLog
from apps.keys import queries, services
from apps.quota.services import set_limits
from unkey.env import env
from unkey.rpc import pipeline
from unkey.rpc.authorization import T
from unkey.rpc.call import Call
from unkey.rpc.client_address import client_address
from unkey.rpc.routes import Archive, Route, route, routes
from unkey.rpc.schema import integer, obj
from unkey.rpc.testing import TESTS, Tenant
from unkey.tenancy import unscoped


def post(path: str, content: bytes | str, **headers: str) -> Any:
    """Send bytes as they are; header names are written with `_`."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    content_type = sent.pop("Content-Type", "application/json")
    client = Client(raise_request_exception=False)
    return client.post(path, data=content, content_type=content_type, headers=sent)


def test_liveness_needs_no_key(db: None) -> None:
    response = Client().get("/v2/liveness")
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    body = json.loads(response.content)
    assert body["data"] == {"message": "we're cooking"}
    assert re.fullmatch(r"req_[1-9A-HJ-NP-Za-km-z]{16}", body["meta"]["requestId"])
    assert set(body) == {"meta", "data"}


def test_an_unknown_operation_is_a_404_in_the_envelope(tenant: Tenant) -> None:
    error = tenant.refused("nothing.atAll", {}, 404)
    assert error == {
        "title": "Not Found",
        "detail": "There is no operation 'nothing.atAll'.",
        "status": 404,
        "type": "https://unkey.com/docs/errors/user/bad_request/route_not_found",
    }


def test_a_wrong_method_is_a_405_that_names_the_right_one(db: None) -> None:
    response = Client().post("/v2/liveness")
    assert response.status_code == 405
    assert response["Allow"] == "GET"
    assert json.loads(response.content)["error"]["title"] == "Method Not Allowed"


def test_every_fault_is_reported_at_once_in_one_envelope(db: None) -> None:
    response = post("/v2/keys.createKey", '{"byteLength": 1, "prefix": "", "ghost": 1}')
    assert response.status_code == 400
    error = json.loads(response.content)["error"]
    assert error["title"] == "Bad Request"
    assert error["type"] == "https://unkey.com/docs/errors/unkey/application/invalid_input"
    assert error["detail"] == "the Authorization header is required"
    assert {fault["location"] for fault in error["errors"]} == {
        "header.Authorization",
        "body.apiId",
        "body.byteLength",
        "body.prefix",
        "body.ghost",
    }
    assert {
        "location": "body.apiId",
        "message": "apiId is required",
        "fix": "Add the field apiId.",
    } in error["errors"]


def test_an_invalid_body_comes_before_an_invalid_key(db: None) -> None:
    assert post("/v2/apis.getApi", "{}", Authorization="Bearer nobody").status_code == 400
    assert post("/v2/apis.getApi", '{"apiId": "api_12345"}', Authorization="Bearer nobody").status_code == 401


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "Bearer a b", "token"])
def test_an_authorization_that_is_no_bearer_is_malformed(db: None, value: str) -> None:
    response = post("/v2/apis.getApi", '{"apiId": "api_12345"}', Authorization=value)
    assert response.status_code == 400
    error = json.loads(response.content)["error"]
    assert error["type"] == "https://unkey.com/docs/errors/unkey/authentication/malformed"
    # The published clients read this list in every 400.
    assert error["errors"] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"name": NaN}',
        b'{"name": "\xff"}',
        b'{"name": "abc"} x',
        b"[" * 100_000,
        b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"name": "abc", "meta": ' + b"[" * 64 + b"]" * 64 + b"}",
    ],
)
def test_what_is_not_a_json_object_is_refused_with_a_location(db: None, content: bytes) -> None:
    response = post("/v2/apis.createApi", content, Authorization="Bearer x")
    assert response.status_code == 400
    assert response["Content-Type"] == "application/json"
    (fault,) = json.loads(response.content)["error"]["errors"]
    assert fault["location"].startswith("body")


def test_another_content_type_is_refused(db: None) -> None:
    response = post("/v2/apis.createApi", "name=abc", Authorization="Bearer x", Content_Type="text/plain")
    assert response.status_code == 400
    assert json.loads(response.content)["error"]["errors"][0]["location"] == "header.Content-Type"


def test_a_body_beyond_ten_mebibytes_is_too_large(db: None) -> None:
    response = post("/v2/apis.createApi", b"x" * (pipeline.BODY_LIMIT + 1), Authorization="Bearer x")
    assert response.status_code == 413
    error = json.loads(response.content)["error"]
    assert error["title"] == "Payload Too Large"
    assert error["type"].endswith("/user/bad_request/request_body_too_large")
    at_the_limit = post("/v2/apis.createApi", b" " * pipeline.BODY_LIMIT, Authorization="Bearer x")
    assert at_the_limit.status_code == 400


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", "application/json"),
        ("", "application/json"),
        ("*/*", "application/problem+json"),
        ("text/html, application/*;q=0.5", "application/problem+json"),
        ("application/problem+json", "application/problem+json"),
    ],
)
def test_errors_are_problems_for_those_who_accept_them(tenant: Tenant, accept: str, expected: str) -> None:
    answer = tenant.send("apis.getApi", {"apiId": "api_12345678"}, Accept=accept)
    assert (answer.status, answer.headers["Content-Type"]) == (404, expected)
    invalid = tenant.send("apis.getApi", {}, Accept=accept)
    assert (invalid.status, invalid.headers["Content-Type"]) == (400, "application/json")


def test_what_is_unforeseen_tells_the_caller_its_request_id_alone(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError("internal detail")

    monkeypatch.setattr(services, "create_api", broken)
    with capture_logs() as logs:
        answer = tenant.send("apis.createApi", {"name": "abc"}, Accept="*/*")
    assert answer.status == 500
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body["error"]["type"] == "https://unkey.com/docs/errors/unkey/application/unexpected_error"
    assert "internal detail" not in json.dumps(answer.body)
    assert answer.body["meta"]["requestId"] in answer.body["error"]["detail"]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["rpc.unexpected"]


def test_a_database_that_is_away_is_a_500_of_its_own(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: Any, **_kwargs: Any) -> None:
        raise OperationalError("server has gone away")

    monkeypatch.setattr(queries, "find_api", away)
    error = tenant.refused("apis.getApi", {"apiId": "api_12345678"}, 500)
    assert error["type"].endswith("/unkey/application/service_unavailable")
    assert "gone away" not in error["detail"]


@pytest.mark.parametrize(("deadlocks", "status"), [(1, 200), (2, 200), (3, 500)])
def test_a_transaction_that_lost_a_deadlock_is_tried_again(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, deadlocks: int, status: int
) -> None:
    create_api = services.create_api
    lost: list[int] = []

    def unlucky(*args: Any, **kwargs: Any) -> Any:
        if len(lost) < deadlocks:
            lost.append(1)
            raise OperationalError(1213, "Deadlock found when trying to get lock")
        return create_api(*args, **kwargs)

    monkeypatch.setattr(services, "create_api", unlucky)
    assert tenant.send("apis.createApi", {"name": "abc"}).status == status


@pytest.mark.usefixtures("window_start")
def test_the_workspace_limit_counts_down_and_then_refuses(tenant: Tenant) -> None:
    set_limits(tenant.workspace.pk, {"api_requests_per_minute": 2}, actor=TESTS)
    left = []
    for _ in range(2):
        answer = tenant.send("apis.createApi", {"name": "abc"})
        assert answer.status == 200
        assert answer.headers["RateLimit-Limit"] == "2"
        assert 0 < int(answer.headers["RateLimit-Reset"]) <= 60
        left.append(answer.headers["RateLimit-Remaining"])
    refused = tenant.send("apis.createApi", {"name": "abc"})
    assert left == ["1", "0"]
    assert refused.status == 429
    assert refused.body["error"]["type"].endswith("/user/too_many_requests/workspace_rate_limited")
    assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
    assert refused.headers["RateLimit-Remaining"] == "0"


def test_a_limit_of_nothing_refuses_everything_and_no_limit_says_nothing(tenant: Tenant) -> None:
    assert "RateLimit-Limit" not in tenant.send("apis.createApi", {"name": "abc"}).headers
    set_limits(tenant.workspace.pk, {"api_requests_per_minute": 0}, actor=TESTS)
    assert tenant.send("apis.createApi", {"name": "abc"}).status == 429


def test_secrets_are_kept_out_of_the_log(tenant: Tenant) -> None:
    with capture_logs() as logs:
        tenant("keys.verifyKey", {"key": "very-secret", "tags": ["a=b"]})
    (entry,) = [entry for entry in logs if entry["event"] == "rpc"]
    assert entry["body"] == {"key": "[REDACTED]", "tags": ["a=b"]}
    assert entry["operation"] == "keys.verifyKey"
    assert "very-secret" not in str(logs)
    assert tenant.root_key not in str(logs)


def test_the_audit_log_knows_the_caller_behind_a_trusted_proxy(tenant: Tenant) -> None:
    tenant("apis.createApi", {"name": "abc"}, **{"X-Forwarded-For": "203.0.113.9"})
    with unscoped("test"):
        row = AuditLog.objects.filter(event="api.create").get()
    assert row.remote_ip == "203.0.113.9"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        ("198.51.100.7", "203.0.113.9", "198.51.100.7"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", "6.6.6.6, 203.0.113.9, 127.0.0.2", "203.0.113.9"),
        ("127.0.0.1", " , ", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9, unknown, 127.0.0.2", "127.0.0.2"),
        ("127.0.0.1", "fe80::1%\xe9", "127.0.0.1"),
        ("", "203.0.113.9", ""),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: str, expected: str) -> None:
    assert client_address(peer, forwarded) == expected


def test_an_operation_is_declared_once_and_with_a_permission() -> None:
    assert "apis.getApi" in routes()
    for name, complaint in (("apis.getApi", "twice"), ("fresh.operation", "permission")):
        with pytest.raises(ValueError, match=complaint):
            route(name, request=None, response={})


def test_a_handler_that_forgets_its_permission_gets_no_answer_out(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = routes()["apis.getApi"]
    forgetful = dataclasses.replace(declared, handler=lambda call: {"id": "api_12345678", "name": "secret"})
    monkeypatch.setitem(routes(), "apis.getApi", forgetful)
    error = tenant.refused("apis.getApi", {"apiId": "api_12345678"}, 500)
    assert "secret" not in str(error)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bytes]]:
    """Declare an operation that takes an archive of at most 100 bytes; its calls appear in the list."""
    calls: list[tuple[Path, bytes]] = []

    def handler(call: Call) -> dict[str, int]:
        assert call.upload is not None
        calls.append((call.upload, call.upload.read_bytes()))
        return {"size": len(calls[-1][1])}

    declared = Route(
        name="test.receive",
        handler=handler,
        request=Archive("application/gzip", lambda: 100),
        response=obj({"size": integer(0)}),
        permission=T("project.*.create_deployment"),
        status=201,
    )
    monkeypatch.setitem(routes(), "test.receive", declared)
    return calls


@pytest.mark.parametrize(
    ("size", "content_type", "status"),
    [
        (100, "application/gzip", 201),
        (101, "application/gzip", 413),
        (1, "application/gzip", 201),
        (5, "text/plain", 400),
    ],
)
def test_an_archive_is_streamed_to_a_file_of_the_calls_own(
    tenant: Tenant, received: list[tuple[Path, bytes]], size: int, content_type: str, status: int
) -> None:
    response = post(
        "/v2/test.receive",
        b"z" * size,
        Authorization=f"Bearer {tenant.root_key}",
        Content_Type=content_type,
    )
    assert response.status_code == status
    assert [content for _, content in received] == ([b"z" * size] if status == 201 else [])
    assert not any(path.exists() for path, _ in received)


def test_an_archive_is_not_read_for_somebody_who_may_not_send_it(
    tenant: Tenant, received: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "receive", lambda *_: pytest.fail("the body was read"))
    nobody = tenant.holding()
    for key, status in ((nobody.root_key, 403), ("unkey_nobody", 401)):
        response = post(
            "/v2/test.receive", b"z", Authorization=f"Bearer {key}", Content_Type="application/gzip"
        )
        assert response.status_code == status
    assert received == []


@pytest.mark.parametrize(
    ("content", "locations"),
    [
        ('{"name": "abc", "name": "abd"}', ["body.name"]),
        ('{"name": "abc", "n\\u0061me": "abd"}', ["body.name"]),
        ('{"a": [{"b": 1, "b": 2}], "c": 1, "c": {"d": 1, "d": 1}}', ["body.c", "body.a[0].b", "body.c.d"]),
    ],
)
def test_a_name_that_is_given_twice_is_refused_with_its_location(content: str, locations: list[str]) -> None:
    response = post("/v2/apis.createApi", content, Authorization="Bearer x")
    assert response.status_code == 400
    assert [fault["location"] for fault in json.loads(response.content)["error"]["errors"]] == locations


@pytest.mark.parametrize(
    "number", ["1e400", "-1e999999", "9" * 5000, "18446744073709551616", "-9223372036854775809"]
)
def test_a_number_beyond_64_bits_is_refused_wherever_it_is(number: str) -> None:
    content = f'{{"externalId": "ada", "meta": {{"a": [1, {number}]}}}}'
    response = post("/v2/identities.createIdentity", content, Authorization="Bearer x")
    assert response.status_code == 400
    (fault,) = json.loads(response.content)["error"]["errors"]
    assert fault["location"] in ("body", "body.meta.a[1]")
    assert "number" in fault["message"].lower() or "range" in fault["message"]


def test_pages_of_any_origin_may_call_unless_the_setting_names_some(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(origin: str) -> Any:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return tenant.client.options("/v2/apis.createApi", headers=headers)

    anybody = ask("https://app.example.com")
    assert anybody.status_code == 204
    assert anybody["Access-Control-Allow-Origin"] == "*"
    assert "Authorization" in anybody["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in anybody.headers
    answer = tenant.send("apis.createApi", {"name": "abc"}, Origin="https://app.example.com")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    refused = tenant.send("apis.createApi", {}, Origin="https://app.example.com")
    assert refused.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in tenant.send("apis.createApi", {"name": "abc"}).headers

    monkeypatch.setitem(env._values, "CORS_ORIGINS", ("https://app.example.com",))
    assert ask("https://app.example.com")["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert "Access-Control-Allow-Origin" not in ask("https://evil.example.com").headers
    # Without the header that makes it a preflight, OPTIONS is a method like another.
    assert tenant.client.options("/v2/apis.createApi").status_code == 405


HOSTILE = [
    "'; DROP TABLE keys_key; --",
    '" OR ""="',
    "a\r\nSet-Cookie: stolen=1",
    "a\nlevel=error event=forged",
    "\x00\x1b[2J",
    "../../etc/passwd",
    "{{7*7}}${7*7}<script>alert(1)</script>",
    "\u202eevil",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(tenant: Tenant, text: str) -> None:
    """As values they come back as they were; where they do not fit they are refused; no header is made of them."""
    made = tenant.full("apis.createApi", {"name": text})
    assert tenant("apis.getApi", {"apiId": made["data"]["apiId"]})["name"] == text
    for operation, body in (
        ("apis.getApi", {"apiId": text}),
        ("keys.verifyKey", {"key": text, "permissions": text}),
        ("identities.listIdentities", {"search": text, "cursor": text}),
        ("permissions.getRole", {"role": text}),
        ("nothing." + text.replace("\x00", "0"), {}),
    ):
        answer = tenant.send(operation, body)
        assert answer.status in (200, 400, 404), (operation, answer.body)
        assert "Set-Cookie" not in answer.headers
        assert set(answer.body) >= {"meta"}


def test_a_forged_line_does_not_get_into_the_log(tenant: Tenant, capfd: pytest.CaptureFixture[str]) -> None:
    forged = "a\nlevel=error event=forged"
    agent = "x" * 5000
    tenant("apis.createApi", {"name": forged}, **{"User-Agent": agent})
    out = "".join(capfd.readouterr())
    assert not [line for line in out.splitlines() if line.startswith("level=error event=forged")]
    with unscoped("test"):
        assert AuditLog.objects.get(event="api.create").user_agent == agent[:512]


@pytest.mark.parametrize("hangs_up", [False, True])
def test_who_does_not_send_the_whole_body_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, rf: RequestFactory, hangs_up: bool
) -> None:
    monkeypatch.setattr(pipeline, "BODY_SECONDS", 60 if hangs_up else 0.1)
    server, sender = socket.socketpair()
    with server, sender, server.makefile("rb") as body:
        sender.sendall(b'{"name": ')
        if hangs_up:
            sender.close()
        request = rf.post("/v2/apis.createApi", content_type="application/json")
        request.META |= {"gunicorn.socket": server, "CONTENT_LENGTH": "100"}
        request._stream = body
        response = pipeline.Rpc(lambda _: HttpResponse()).answer(request)
    error = json.loads(response.content)["error"]
    assert (error["status"], error["type"].rpartition("/")[2]) == (
        (400, "request_body_unreadable") if hangs_up else (408, "request_timeout")
    )
