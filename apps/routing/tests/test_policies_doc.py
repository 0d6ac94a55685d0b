"""docs/policies.md: every example is set by the API, enforced on real connections, and answers what it says."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from apps.deployments import openapi
from apps.keys.models import Api
from apps.routing import contracts
from edge.frontline.frontline import Frontline
from edge.frontline.requests import Requests
from edge.frontline.tests.conftest import Records
from edge.http.tests.rig import Rig
from edge.sentinel.jwtauth import StaticKeys, VerificationKey
from edge.sentinel.tests.test_engine import Keys, make_subject
from edge.verify.limiter import Limiter
from unkey import clock
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped

ENV = {"project": "shop", "app": "api", "environment": "production"}
DOC = Path(__file__).resolve().parents[3] / "docs" / "policies.md"
KINDS = {
    "keyauth",
    "jwtauth",
    "basicauth",
    "ipRules",
    "ratelimit",
    "firewall",
    "openapi",
    "logging",
    "blocked",
}
_REQUEST = re.compile(
    r"(?:from (?P<peer>\S+)\s+)?(?P<method>[A-Z]+) (?P<target>\S+)(?P<rest>.*?)\s*->\s*(?P<status>\d+) ?(?P<code>\w*)"
)
_HEADER = re.compile(r" (X-[\w-]+|Authorization|Content-Type): ((?:Bearer |Basic )?\S+)")


@dataclass
class Example:
    """A policy of the page, and what follows it until the next one."""

    policy: dict[str, Any]
    requests: list[str] = field(default_factory=list)
    document: str = ""
    recorded: list[str] = field(default_factory=list)


def examples() -> list[Example]:
    """Read the page."""
    found: list[Example] = []
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "json":
            found.append(Example(json.loads(text)))
        elif kind == "requests":
            found[-1].requests += text.splitlines()
        elif kind == "yaml":
            found[-1].document = text
        elif kind == "recorded":
            found[-1].recorded += text.splitlines()
    return found


class Events:
    """Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.details: list[Any] = []

    def record_gateway_request(self, *fixed: Any, details: Any = None, **more: Any) -> None:
        self.details.append(None if details is None else details())


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Servers and clients; the test's own address is a proxy that is trusted."""
    monkeypatch.setitem(env._values, "TRUSTED_PROXIES", (ip_network("127.0.0.0/8"),))
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def key_space(tenant: Tenant) -> str:
    """An environment to set policies on, and a key space."""
    tenant("projects.createProject", {"name": "Shop", "slug": "shop"})
    tenant("apps.createApp", {"project": "shop", "name": "Api", "slug": "api"})
    tenant("apis.createApi", {"name": "payments"})
    with unscoped("test"):
        found: str = Api.objects.get().key_space_id
        return found


def told(line: str, words: dict[str, str]) -> tuple[bytes, int, str]:
    """Return what a line of the page sends, and the status and code that it names."""
    found = _REQUEST.fullmatch(line)
    assert found is not None, line
    rest = found["rest"]
    headers = _HEADER.findall(rest)
    body = _HEADER.sub("", rest).strip().encode()
    if found["peer"]:
        headers.append(("X-Forwarded-For", found["peer"]))
    for name, value in words.items():
        headers = [(key, text.replace(name, value)) for key, text in headers]
    lines = [f"{found['method']} {found['target']} HTTP/1.1", "Host: shop.test", "Accept: application/json"]
    lines += [f"{key}: {text}" for key, text in headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, int(found["status"]), found["code"]


def test_the_page_has_an_example_of_every_kind() -> None:
    assert {next(iter(KINDS & set(example.policy))) for example in examples()} == KINDS
    assert all(example.requests for example in examples())


@pytest.mark.parametrize("example", examples(), ids=lambda example: min(KINDS & set(example.policy)))
def test_an_example_does_what_the_page_says(
    tenant: Tenant, key_space: str, rig: Rig, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records()
    records.switch("shop.test", "d_1")
    records.run("d_1", rig.origin())
    policies = []
    if "blocked" in example.policy:
        barrier = tenant("gateway.setBarrier", {**ENV, **example.policy})
        closed = barrier["maintenance"]
        records.bar(
            *barrier["blocked"],
            maintenance=closed["enabled"],
            message=closed["message"],
            exempt=closed["exempt"],
            retry_after=closed["retryAfter"],
        )
    else:
        text = json.dumps(example.policy).replace("$KEYSPACE", key_space)
        policy = {"name": "example", "enabled": True, **json.loads(text)}
        tenant("gateway.setPolicies", {**ENV, "policies": [policy]})
        policies = tenant("gateway.listPolicies", ENV)
    records.guard("d_1", *policies)
    if example.document:
        plan, fault = contracts.of_document(openapi.pack(openapi.parse(example.document)), "")
        assert fault == ""
        records.promise("d_1", plan)
    now = clock.now_ms()
    monkeypatch.setattr("unkey.clock.now_ms", lambda: now)  # no window of a limit ends meanwhile
    signing = ec.generate_private_key(ec.SECP256R1())
    claims = {
        "sub": "ali",
        "iss": "https://login.example.com",
        "aud": "https://api.example.com",
        "scope": "a",
    }
    token = jwt.encode({**claims, "exp": now // 1000 + 60}, signing, "ES256", headers={"kid": "1"})
    words = {"$KEY": "key-1", "$OTHER_KEY": "key-2", "$TOKEN": token}
    words = dict(sorted(words.items(), key=lambda each: -len(each[0])))
    keys = {
        "key-1": make_subject(id="key_1", key_space_id=key_space, permissions=("documents.read",)),
        "key-2": make_subject(id="key_2", key_space_id=key_space),
    }
    events: Any = Events()
    role = Frontline(
        records,
        Keys(keys),
        Limiter(),
        rig.pool,
        edge_id="edge-1",
        region="local",
        open_keys=lambda url, issuer, cache_ms: StaticKeys(
            (VerificationKey("1", "P-256", "", signing.public_key()),)
        ),
    )
    client = rig.client(rig.serve(role.handle, observe=Requests(records, events, "edge-1", "local")))
    for line in example.requests:
        sent, status, code = told(line, words)
        answer = client.send(sent).answer()
        assert answer[0] == status, (line, answer)
        if code:
            assert json.loads(answer[2])["error"]["code"].rpartition(":")[2] == code, line
    if example.recorded:
        until = time.monotonic() + 10
        while not events.details and time.monotonic() < until:
            time.sleep(0.001)
        headers, body, _, _ = events.details[0]
        shown = [*(f"request_headers: {each}" for each in headers), f"request_body: {body}"]
        assert set(example.recorded) <= set(shown)
