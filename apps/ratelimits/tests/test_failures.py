"""What a limiter that fails does to a request: the table of docs/ratelimits.md."""

from typing import Any

import pytest

from apps.quota.models import Limits
from apps.quota.services import set_limits
from apps.ratelimits.tests.conftest import Door
from edge.verify.limiter import Counter
from unkey.actors import system
from unkey.rpc.limiter import process_limiter


class Gone:
    """Memory that cannot be read or written any more."""

    def __getitem__(self, place: int) -> int:
        raise OSError("broken")

    def __setitem__(self, place: int, value: int) -> None:
        raise OSError("broken")


class Broken:
    """Sharing that fails whatever it is asked; of what it has, nothing can be read."""

    cells = changes = Gone()

    def mark(self, counter: Counter) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        raise OSError("broken")


@pytest.fixture
def broken(door: Door, monkeypatch: pytest.MonkeyPatch) -> Door:
    """A door whose limiter fails from now on, of a workspace with a limit of its own and a known namespace."""
    door.limit()
    Limits.objects.get_or_create(workspace=door.tenant.workspace)
    set_limits(door.tenant.workspace.id, {"api_requests_per_minute": 1000}, actor=system("tests"))
    if door.edge is not None:
        door.edge.caught_up()
        monkeypatch.setattr(door.edge.verifier.limiter, "sharing", Broken())
    monkeypatch.setattr(process_limiter(), "sharing", Broken())
    return door


def test_a_limit_that_cannot_be_counted_is_an_error_of_ours(broken: Door) -> None:
    body = {"namespace": "mails", "identifier": "user", "limit": 3, "duration": 60_000}
    if broken.edge is None:
        error = broken.refused("ratelimit.limit", body, 500)
        assert error["type"].endswith("/unkey/application/unexpected_error")
        return
    with pytest.raises(OSError, match="broken"):  # which the listener answers by 500
        broken.send("ratelimit.limit", body)


def test_keys_verify_on_and_the_workspaces_limit_lets_pass(broken: Door) -> None:
    api = broken.tenant("apis.createApi", {"name": "payments"})["apiId"]
    limits = [{"name": "requests", "limit": 1, "duration": 60_000, "autoApply": True}]
    key = broken.tenant("keys.createKey", {"apiId": api, "ratelimits": limits})["key"]
    for _ in range(2):
        if broken.edge is None:
            data = broken.tenant("keys.verifyKey", {"key": key})
        else:
            data = broken.edge.verify(broken.tenant.root_key, key)
        assert (data["valid"], data["code"], "ratelimits" in data) == (True, "VALID", False)
