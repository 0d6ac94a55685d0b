"""What agents ask web for: each by bearers of the token only, each validated."""

import hashlib
from datetime import timedelta

import pytest
from django.test import Client

from apps.builds.models import Snapshot
from apps.cluster import queries
from apps.cluster.models import Agent, Region
from apps.cluster.tests.factories import EdgeFactory
from apps.deployments.models import Instance
from unkey import clock, objects
from unkey.env import env
from unkey.tenancy import unscoped

pytestmark = pytest.mark.django_db

CALLS = [
    ("post", "agents/heartbeat"),
    ("post", "instances/report"),
    ("post", "instances/applied"),
    ("post", "secrets"),
    ("post", "problems"),
    ("post", "deployments/wake"),
    ("get", "snapshots/" + "0" * 64),
]


class AgentClient:
    """Called with a path and a body, returns status and answer."""

    def __init__(self, bearer):
        self.client = Client(headers=bearer)

    def __call__(self, path, **body):
        answer = self.client.post(f"/internal/{path}", body, content_type="application/json")
        return answer.status_code, answer.json()


@pytest.fixture
def ask(bearer):
    """Return what asks as an agent."""
    return AgentClient(bearer)


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic dTpw", "Bearer \u00e9"])
def test_nobody_else_gets_in(method, path, header):
    answer = getattr(Client(headers={"Authorization": header}), method)(f"/internal/{path}")
    assert answer.status_code == 401
    assert answer.json()["error"]["status"] == 401
    assert not Agent.objects.exists()


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_the_other_method_is_refused(ask, method, path):
    other = {"post": ask.client.get, "get": ask.client.post}[method]
    assert other(f"/internal/{path}").status_code == 405


def test_heartbeat_records_the_agent_and_its_region(ask):
    beat = {"agent": "a1", "region": "eu", "url": "http://127.0.0.1:8070"}
    assert ask("agents/heartbeat", **beat, applied={"topologies:eu": 3}) == (200, {})
    assert ask("agents/heartbeat", **beat, applied={"topologies:eu": 4}) == (200, {})
    agent = Agent.objects.get()
    assert (agent.id, agent.region.name, agent.url, agent.applied) == (
        "a1",
        "eu",
        "http://127.0.0.1:8070",
        {"topologies:eu": 4},
    )
    assert list(queries.live_agents()) == [agent]
    with clock.shifted(timedelta(seconds=11)):
        assert list(queries.live_agents()) == []


@pytest.mark.parametrize("path", [path for method, path in CALLS if method == "post"])
@pytest.mark.parametrize("body", ["", "[]", "{", '{"agent": 1}', '{"agent": "a", "region": ""}', "\xff"])
def test_malformed_bodies_are_refused(ask, path, body):
    answer = ask.client.post(f"/internal/{path}", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json()["error"]["title"] == "Bad Request"
    assert not Agent.objects.exists()
    assert not Region.objects.exists()


def test_reported_instances_are_the_complete_list(ask, place):
    topology = place()
    report = {"agent": "a1", "region": "local", "deploymentId": topology.deployment_id}
    one = {"name": "i_1", "address": "127.0.0.1:20001", "status": "running", "message": ""}
    two = {"name": "i_2", "address": "", "status": "pending"}
    assert ask("instances/report", **report, instances=[one, two]) == (200, {"version": 2})
    assert ask("instances/report", **report, instances=[one]) == (200, {"version": 3})
    assert dict(Instance.objects.values_list("name", "status")) == {"i_1": "running", "i_2": "gone"}
    status, answer = ask("instances/report", **report, instances=[{**one, "status": "gone"}])
    assert status == 400
    assert "status" in answer["error"]["detail"]
    status, _ = ask("instances/report", **{**report, "deploymentId": "d_unknown"}, instances=[])
    assert status == 404


def test_agents_learn_when_every_live_edge_knows_of_an_instance(ask):
    assert ask("instances/applied", version=7) == (200, {"applied": True})
    EdgeFactory.create(applied={"instances": 7})
    slow = EdgeFactory.create(applied={"instances": 6})
    assert ask("instances/applied", version=7) == (200, {"applied": False})
    assert ask("instances/applied", version=6) == (200, {"applied": True})
    slow.delete()
    assert ask("instances/applied", version=7) == (200, {"applied": True})


def test_secrets_are_given_for_what_should_run_in_that_region_only(ask, place):
    topology = place(GREETING="hällo", OTHER="x")
    wanted = {"region": "local", "deploymentId": topology.deployment_id}
    assert ask("secrets", **wanted) == (200, {"variables": {"GREETING": "hällo", "OTHER": "x"}})
    assert ask("secrets", **{**wanted, "region": "eu"})[0] == 404
    place(desired="stopped", deployment=topology.deployment_id)
    assert ask("secrets", **wanted)[0] == 404


def test_ciphertext_of_another_environment_is_not_decrypted(ask, place):
    topology = place(GREETING="hello")
    deployment = topology.deployment
    deployment.variables = [{"key": "GREETING", "ciphertext": "nonsense"}]
    with unscoped("test"):
        deployment.save(update_fields=["variables"])
    status, answer = ask("secrets", region="local", deploymentId=deployment.id)
    assert (status, answer["error"]["detail"]) == (503, "vault: Undecryptable")


def test_snapshot_is_sent_by_its_digest(ask, environment):
    content = b"some octets"
    digest = hashlib.sha256(content).hexdigest()
    assert ask.client.get(f"/internal/snapshots/{digest}").status_code == 404
    assert ask.client.get("/internal/snapshots/..%2F..%2Fsecrets").status_code in {400, 404}
    with unscoped("test"):
        Snapshot.objects.create(workspace_id=environment.workspace_id, digest=digest, size=11, files=1)
    assert ask.client.get(f"/internal/snapshots/{digest}").status_code == 404
    objects.open_store(env.OBJECT_STORE_URL).put(f"snapshots/{environment.workspace_id}/{digest}", content)
    answer = ask.client.get(f"/internal/snapshots/{digest}")
    assert (answer.status_code, b"".join(answer.streaming_content)) == (200, content)
    answer.close()


def test_problems_are_kept_with_the_agent_newest_first(ask):
    report = {"agent": "a1", "region": "local", "stream": "topologies:local", "row": "d_1"}
    for version in range(25):
        assert ask("problems", **report, version=version, message="bad row") == (200, {})
    problems = Agent.objects.get().problems
    assert [problem["version"] for problem in problems] == list(range(24, 4, -1))
    assert (problems[0]["row"], problems[0]["message"]) == ("d_1", "bad row")


def test_edges_have_applied_a_version_when_every_live_one_has():
    assert queries.edges_applied("routes", 5)
    EdgeFactory.create(applied={"routes": 5})
    behind = EdgeFactory.create(applied={"routes": 4})
    EdgeFactory.create(last_seen_at=clock.now() - timedelta(seconds=11))
    assert not queries.edges_applied("routes", 5)
    assert queries.edges_applied("routes", 4)
    behind.applied = {"routes": 6}
    behind.save()
    assert queries.edges_applied("routes", 5)
    assert not queries.edges_applied("instances", 1)
