"""Both doors of the API: web, and an edge that answers from memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.store.tests.conftest import Loop, RunningEdge
from edge.verify.ratelimits import Ratelimits
from unkey import clock
from unkey.rpc.routes import routes
from unkey.rpc.testing import Answer, Tenant, make_tenant

NOW = 1_700_000_040_000 // 60_000 * 60_000  # a minute begins


@dataclass
class Clock:
    """The time that every limiter sees."""

    now: int = NOW


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands at the beginning of a minute."""
    standing = Clock()
    monkeypatch.setattr(clock, "now_ms", lambda: standing.now)
    return standing


@dataclass
class Door:
    """Where `ratelimit.limit` and `multiLimit` are asked; everything else is asked of web."""

    tenant: Tenant
    edge: RunningEdge | None = None
    limits: Ratelimits | None = None

    def __call__(self, operation: str, body: Any, **headers: str) -> Any:
        """Call an operation that must succeed; return `data`, which fits its schema."""
        answer = self.send(operation, body, **headers)
        assert answer.status == 200, answer.body
        checker = routes()[operation].response_checker
        assert checker is not None
        assert checker.violations(answer.body["data"]) == []
        return answer.body["data"]

    def limit(self, identifier: str = "user", limit: int = 3, **more: Any) -> Any:
        """Ask one limit of `mails`, per minute unless said otherwise."""
        body = {"namespace": "mails", "identifier": identifier, "limit": limit, "duration": 60_000}
        return self("ratelimit.limit", body | more)

    def refused(self, operation: str, body: Any, status: int) -> Any:
        """Call an operation that must be refused; return `error`."""
        answer = self.send(operation, body)
        assert answer.status == status, answer.body
        assert set(answer.body) == {"meta", "error"}
        return answer.body["error"]

    def holding(self, *permissions: str) -> "Door":
        """Return the same door for a root key with only these permissions."""
        return Door(self.tenant.holding(*permissions), self.edge, self.limits)

    def send(self, operation: str, body: Any, **headers: str) -> Answer:
        """Call an operation and return whatever comes."""
        if self.edge is None or operation not in ("ratelimit.limit", "ratelimit.multiLimit"):
            answer = self.tenant.send(operation, body, **headers)
            if self.edge is not None:
                self.edge.caught_up()
            return answer
        return self._ask_edge(self.limits, operation, msgspec.json.encode(body), headers)

    def _ask_edge(self, limits: Any, operation: str, content: bytes, headers: dict[str, str]) -> Answer:
        told = {"authorization": f"Bearer {self.tenant.root_key}"} | {
            name.lower(): value for name, value in headers.items()
        }

        async def work() -> Any:
            if operation == "ratelimit.limit":
                quick = limits.quick_limit(told["authorization"].encode(), b"127.0.0.1", content)
                if quick is not None:
                    return 200, quick, {}
            handle = limits.handle_limit if operation == "ratelimit.limit" else limits.handle_multi_limit
            answer = handle(told, content, "127.0.0.1")
            return answer if isinstance(answer, tuple) else await answer

        assert self.edge is not None
        status, answer, answered = self.edge._loop.run(work())
        return Answer(status, msgspec.json.decode(answer), answered)


@pytest.fixture(params=["web", "edge"])
def door(
    request: pytest.FixtureRequest, transactional_db: None, time: Clock, tmp_path: Path
) -> Iterator[Door]:
    """Each door in turn, for a workspace with a root key that may do everything."""
    tenant = make_tenant()
    if request.param == "web":
        yield Door(tenant)
        return
    loop = Loop()
    edge = RunningEdge(loop, tmp_path, "edge-a")
    try:
        yield Door(tenant, edge, Ratelimits(edge.verifier))
    finally:
        edge.stop()
        loop.close()
