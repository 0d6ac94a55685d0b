"""What agents report: rows, versions of the change feed, and who is woken."""

import pytest

from apps.cluster.models import Region, Stream
from apps.deployments import services
from apps.deployments.models import Instance
from apps.deployments.services import InstanceReport
from apps.deployments.tests.conftest import Platform
from apps.workflows.sweeper import drain
from unkey import errors
from unkey.env import env

pytestmark = pytest.mark.django_db


@pytest.fixture
def deployment(platform: Platform) -> str:
    """A deployment whose instances are awaited."""
    made = platform.create()
    drain()
    return made


def say(deployment: str, *instances: InstanceReport) -> int:
    """Report and return the version of the instances' stream."""
    services.report_instances(deployment, env.REGION, instances, "agent-1")
    stream = Stream.objects.filter(pk="instances").first()
    return stream.version if stream else 0


def one(name: str, status: str, address: str = "", message: str = "", restarts: int = 0) -> InstanceReport:
    return {"name": name, "status": status, "address": address, "message": message, "restarts": restarts}


def test_only_what_an_edge_can_see_takes_a_version(deployment: str) -> None:
    assert say(deployment, one("a", "pending")) == 1
    assert say(deployment, one("a", "pending")) == 1
    assert say(deployment, one("a", "pending", message="installing")) == 1
    assert say(deployment, one("a", "running", "127.0.0.1:9000")) == 2
    assert say(deployment, one("a", "running", "127.0.0.1:9001")) == 3
    assert say(deployment, one("a", "running", "127.0.0.1:9001"), one("b", "pending")) == 4
    assert Instance.objects.get(name="a").version == 3


def test_an_agent_learns_from_which_version_on_edges_know_of_its_report(deployment: str) -> None:
    two = (one("a", "running", "127.0.0.1:9000"), one("b", "running", "127.0.0.1:9001"))
    assert services.report_instances(deployment, env.REGION, two, "agent-1") == 2
    draining = (two[0], one("b", "draining", "127.0.0.1:9001"))
    assert services.report_instances(deployment, env.REGION, draining, "agent-1") == 3
    # Said once more, as after an answer that was lost: still the version that matters.
    assert services.report_instances(deployment, env.REGION, draining, "agent-1") == 3
    assert services.report_instances(deployment, env.REGION, (two[0],), "agent-1") == 4


def test_a_report_that_was_overtaken_changes_nothing(deployment: str) -> None:
    def told(run: str, number: int, status: str) -> tuple[int, str]:
        version = services.report_instances(
            deployment,
            env.REGION,
            (one("a", status, "127.0.0.1:9000"),),
            "agent-1",
            run=run,
            number=number,
        )
        return version, Instance.objects.get(name="a").status

    assert told("first", 1, "pending") == (1, "pending")
    assert told("first", 3, "running") == (2, "running")
    assert told("first", 2, "pending") == (2, "running")
    assert told("first", 3, "pending") == (2, "running")
    # An agent that was started again counts anew.
    assert told("second", 1, "draining") == (3, "draining")
    assert told("second", 2, "running") == (4, "running")


def test_restarts_are_kept_and_shown_but_no_matter_of_edges(platform: Platform, deployment: str) -> None:
    assert say(deployment, one("a", "running", "127.0.0.1:9000"), one("b", "pending")) == 2
    assert (
        say(deployment, one("a", "running", "127.0.0.1:9000", restarts=3), one("b", "pending", restarts=1))
        == 2
    )
    listed = platform.tenant("deployments.listInstances", {"deploymentId": deployment})
    assert [(row["status"], row["restarts"]) for row in listed] == [("running", 3), ("pending", 1)]
    shown = platform.get(deployment)
    assert shown["instances"] == {"running": 1, "total": 2, "restarts": 4}
    say(deployment)
    assert "instances" not in platform.get(deployment)


def test_an_instance_that_is_not_listed_is_gone_and_may_come_back(deployment: str) -> None:
    say(deployment, one("a", "running", "127.0.0.1:9000"), one("b", "running", "127.0.0.1:9001"))
    assert say(deployment, one("b", "running", "127.0.0.1:9001")) == 3
    assert Instance.objects.get(name="a").status == "gone"
    assert say(deployment, one("b", "running", "127.0.0.1:9001")) == 3
    first = Instance.objects.get(name="a").id
    say(deployment, one("a", "running", "127.0.0.1:9002"), one("b", "running", "127.0.0.1:9001"))
    row = Instance.objects.get(name="a")
    assert (row.id, row.status, row.address) == (first, "running", "127.0.0.1:9002")


def test_a_region_speaks_only_for_itself(platform: Platform) -> None:
    platform.add_region("far")
    made = platform.create()
    drain()
    platform.report(made, "running", region="far")
    say(made)
    assert Instance.objects.get(deployment_id=made).status == "running"


def test_a_long_message_is_cut(deployment: str) -> None:
    say(deployment, one("a", "failed", message="x" * 100_000))
    assert len(Instance.objects.get(name="a").message) == services.MAX_MESSAGE


@pytest.mark.parametrize(
    ("target", "region", "status", "fault"),
    [
        ("d_nobody", "", "running", errors.DeploymentNotFound),
        ("", "nowhere", "running", errors.RegionNotFound),
        ("", "idle", "running", errors.DeploymentNotFound),
        ("", "", "sleepy", errors.InvalidInput),
    ],
)
def test_a_report_that_makes_no_sense_is_refused(
    deployment: str, target: str, region: str, status: str, fault: type[errors.Fault]
) -> None:
    Region.objects.create(name="idle")
    with pytest.raises(fault):
        services.report_instances(target or deployment, region or env.REGION, [one("a", status)], "agent-1")
    assert not Instance.objects.exists()


def test_two_instances_of_one_name_are_refused(deployment: str) -> None:
    with pytest.raises(errors.InvalidInput):
        say(deployment, one("a", "running", "127.0.0.1:9000"), one("a", "failed"))
    assert not Instance.objects.exists()
