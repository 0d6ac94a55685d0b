"""Web and an edge of one machine count together, without any other server."""

from collections.abc import Iterator
from typing import Any

import pytest

from apps.quota.models import Limits
from apps.quota.services import set_limits
from apps.ratelimits.tests.conftest import Door
from edge.store.counters import Counters
from unkey.actors import system
from unkey.env import env


@pytest.fixture
def shared(door: Door) -> Iterator[Door]:
    """The door of an edge that has a seat among the machine's processes, as a running one has."""
    if door.edge is None:
        pytest.fail("only for the edge's door")
    seat = Counters(env.limits_folder)
    door.edge.verifier.limiter.sharing = seat
    yield door
    door.edge.verifier.limiter.sharing = None
    seat.close()


@pytest.mark.parametrize("door", ["edge"], indirect=True)
def test_a_limit_is_counted_wherever_it_is_asked(shared: Door) -> None:
    body: dict[str, Any] = {"namespace": "mails", "identifier": "user", "limit": 4, "duration": 60_000}
    web = shared.tenant
    asked = [shared.limit(limit=4), web("ratelimit.limit", body), shared.limit(limit=4)]
    assert [one["remaining"] for one in asked] == [3, 2, 1]
    assert web("ratelimit.multiLimit", [body, body])["passed"] is False
    assert web("ratelimit.multiLimit", [body])["limits"][0]["remaining"] == 0
    assert shared.limit(limit=4)["success"] is False


@pytest.mark.parametrize("door", ["edge"], indirect=True)
def test_a_workspaces_requests_are_counted_wherever_they_are_made(shared: Door) -> None:
    shared.limit()
    workspace = shared.tenant.workspace
    Limits.objects.get_or_create(workspace=workspace)
    set_limits(workspace.id, {"api_requests_per_minute": 3}, actor=system("tests"))
    assert shared.edge is not None
    shared.edge.caught_up()
    body = {"namespace": "mails", "identifier": "user", "limit": 9, "duration": 60_000}
    answers = [
        shared.send("ratelimit.limit", body),
        shared.tenant.send("permissions.listRoles", {}),
        shared.send("ratelimit.limit", body),
        shared.tenant.send("permissions.listRoles", {}),
        shared.send("ratelimit.limit", body),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
