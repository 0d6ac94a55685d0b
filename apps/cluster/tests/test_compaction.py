"""Compaction and status: what every satellite has passed goes; who is how far behind is told."""

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from apps.cluster import compaction, services, tokens
from apps.cluster.models import Agent, Edge, Stream
from apps.cluster.tests.factories import EdgeFactory
from apps.cluster.versions import stamp
from apps.deployments.models import Instance, Topology
from apps.routing.models import FrontlineRoute
from unkey import clock
from unkey.env import env

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def edge(name: str, silent: timedelta = timedelta(), **applied: int) -> Edge:
    """Make an edge that has applied these versions."""
    return EdgeFactory.create(id=name, applied=applied, last_seen_at=clock.now() - silent)


@pytest.fixture
def end(place):
    """Return a function that makes an instance that is gone for as long as is said; returns its version."""
    topology = place()

    def make(name: str, ago: timedelta = timedelta(hours=2), status: str = "gone") -> int:
        row = Instance(
            deployment=topology.deployment,
            region=topology.region,
            name=name,
            status=status,
            updated_at=clock.now() - ago,
        )
        with transaction.atomic():
            version = stamp(row)
            row.save()
        return version

    return make


def names() -> list[str]:
    return sorted(Instance.objects.values_list("name", flat=True))


def compacted(stream: str = "instances") -> int:
    return Stream.objects.get(name=stream).compacted


def test_end_goes_when_every_edge_has_passed_it(end):
    first, second = end("a"), end("b")
    end("c", status="running")
    edge("e1", instances=second)
    behind = edge("e2", instances=first)
    assert compaction.compact() == {"instances": 1, "routes": 0}
    assert (names(), compacted()) == (["b", "c"], first)
    behind.applied = {"instances": second}
    behind.save()
    assert compaction.compact()["instances"] == 1
    assert (names(), compacted()) == (["c"], second)


def test_end_stays_for_an_hour_for_people_to_see(end):
    end("a", ago=timedelta(minutes=59))
    assert compaction.compact()["instances"] == 0
    assert (names(), compacted()) == (["a"], 0)


def test_edge_that_is_gone_for_long_is_not_waited_for(end):
    version = end("a")
    edge("e1", silent=DAY - timedelta(minutes=1), instances=0)
    assert compaction.compact()["instances"] == 0
    with clock.shifted(timedelta(minutes=2)):
        assert compaction.compact()["instances"] == 1
    assert compacted() == version


def test_many_ends_go_in_batches(end, monkeypatch):
    monkeypatch.setattr(compaction, "BATCH", 2)
    versions = [end(str(number)) for number in range(5)]
    assert compaction.compact()["instances"] == 5
    assert (names(), compacted()) == ([], versions[-1])


def test_ended_route_goes_and_others_stay(environment, place):
    topology = place()
    level = {
        "workspace_id": environment.workspace_id,
        "project_id": environment.app.project_id,
        "app": environment.app,
        "environment": environment,
        "deployment": topology.deployment,
    }
    for host, ended in (("a.test", clock.now() - timedelta(hours=2)), ("b.test", None)):
        row = FrontlineRoute(**level, fqdn=host, sticky="none", deleted_at=ended)
        stamp(row)
        row.save()
    assert compaction.compact() == {"instances": 0, "routes": 1}
    rows = FrontlineRoute.objects.unscoped("test").values_list("fqdn", flat=True)
    assert (list(rows), compacted("routes")) == (["b.test"], 1)


def test_topologies_go_when_their_agents_have_seen_them_stop(place):
    topology = place()
    both = [topology.deployment_id]
    services.agent_heartbeat("a1", region="local", url="", applied={"topologies:local": 1})
    assert not compaction.remove_topologies(both)
    place(desired="stopped", deployment=topology.deployment_id)
    assert not compaction.remove_topologies(both)
    services.agent_heartbeat("a1", region="local", url="", applied={"topologies:local": 2})
    assert compaction.remove_topologies(both)
    assert not Topology.objects.exists()
    assert compacted("topologies:local") == 2


def cluster(*arguments: str) -> str:
    out = io.StringIO()
    call_command("cluster", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def test_status_says_who_is_how_far_behind(place):
    for _ in range(3):
        place()
    Stream.objects.create(name="routes", version=7, compacted=5)
    services.agent_heartbeat(
        "a1", region="local", url="http://10.0.0.1:8070", applied={"topologies:local": 3}, software="1.2"
    )
    edge("e1", routes=4)
    rows = json.loads(cluster("status", "--json"))
    assert [(row["kind"], row["id"], row["state"], row["behind"], row["whole"]) for row in rows] == [
        ("agent", "a1", "live", {}, []),
        ("edge", "e1", "live", {"routes": 3}, ["routes"]),
    ]
    assert (rows[0]["software"], rows[0]["url"], rows[1]["versions_behind"]) == (
        "1.2",
        "http://10.0.0.1:8070",
        3,
    )
    assert "3 of routes (needs the whole state)" in cluster("status")


def test_status_of_an_unwell_cluster_is_an_exit_status(place):
    place()
    services.agent_heartbeat("a1", region="local", url="", applied={"topologies:local": 0})
    assert "live" in cluster("status")
    with pytest.raises(SystemExit, match="1"):
        cluster("status", "--max-behind", "0")
    with clock.shifted(timedelta(seconds=11)), pytest.raises(SystemExit, match="1"):
        cluster("status")
    # One that is not waited for any longer alarms nobody, and can be forgotten.
    with clock.shifted(timedelta(seconds=env.SATELLITE_KEPT_SECONDS + 1)):
        assert "left" in cluster("status")
    assert cluster("forget", "agent", "a1") == "forgot agent a1\n"
    assert not Agent.objects.exists()
    with pytest.raises(CommandError, match="there is no agent a1"):
        cluster("forget", "agent", "a1")


def test_row_that_an_agent_could_not_apply_makes_the_cluster_unwell():
    services.agent_problem("a1", region="local", stream="topologies:local", version=1, row="d", message="bad")
    with pytest.raises(SystemExit, match="1"):
        cluster("status")


def test_tokens_are_made_listed_and_revoked_by_command():
    made = json.loads(cluster("token", "create", "agent", "a1", "--region", "eu", "--new-region", "--json"))
    assert tokens.bearer(f"Bearer {made['token']}") is not None
    successor = cluster("token", "rotate", "agent", "a1", "--grace-hours", "1").strip()
    listed = json.loads(cluster("token", "list", "--json"))
    assert [(row["name"], row["region"], row["valid"], bool(row["expires_at"])) for row in listed] == [
        ("a1", "eu", True, True),
        ("a1", "eu", True, False),
    ]
    assert successor not in cluster("token", "list")
    cluster("token", "revoke", made["id"])
    assert tokens.bearer(f"Bearer {made['token']}") is None
    assert tokens.bearer(f"Bearer {successor}") is not None
    with pytest.raises(CommandError, match="There is no token"):
        cluster("token", "revoke", made["id"])


def test_compaction_can_be_asked_for(end):
    end("a")
    assert cluster("compact") == "removed 1 instances, 0 routes\n"
