"""Which processes a machine runs, by its settings."""

import pytest

from unkey.env import BadSetting, Env
from unkey.processes import Process, home_region, processes


def satellites(**settings: str) -> list[Process]:
    return [each for each in processes(Env(settings)) if each.kind in ("agent", "edge")]


def test_one_of_each_kind_has_the_plain_names():
    assert [each.name for each in processes(Env({}))] == ["web", "feed", "worker", "beat", "agent", "edge"]
    agent, edge = satellites(REGION="fra")
    assert (agent.environ, edge.environ) == ({"REGION": "fra"}, {"REGION": "fra"})
    assert list(edge.ports) == ["EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT"]
    assert [each.environ["REGION"] for each in satellites(REGIONS="iad")] == ["iad", "iad"]


def test_each_region_has_an_agent_and_an_edge_of_its_own():
    found = satellites(REGIONS="fra,iad")
    assert [(each.name, each.environ["REGION"]) for each in found] == [
        ("agent-fra", "fra"),
        ("agent-iad", "iad"),
        ("edge-fra", "fra"),
        ("edge-iad", "iad"),
    ]
    assert [each.environ.get("EDGE_ID", "") for each in found] == ["", "", "edge-fra", "edge-iad"]
    assert found[1].ports == {"AGENT_PORT@agent-iad": "AGENT_PORT"}
    assert found[0].ports == {"AGENT_PORT": "AGENT_PORT"}
    assert len({each.environ["AGENT_ID"] for each in found[:2]}) == 2


def test_edges_may_be_several_of_a_region():
    found = satellites(REGION="fra", EDGE_REGIONS="fra,fra,iad", EDGE_ID="berlin")
    assert [(each.name, each.environ.get("EDGE_ID")) for each in found] == [
        ("agent", None),
        ("edge-fra", "berlin-edge-fra"),
        ("edge-fra-2", "berlin-edge-fra-2"),
        ("edge-iad", "berlin-edge-iad"),
    ]


def test_new_apps_run_where_an_agent_is():
    assert home_region(Env({"REGIONS": "fra,iad"})) == "fra"
    assert home_region(Env({"REGIONS": "fra,iad", "REGION": "iad"})) == "iad"
    assert home_region(Env({"REGION": "iad"})) == "iad"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"REGIONS": "fra,iad,fra"}, "REGIONS names a region twice"),
        ({"REGIONS": "fra,iad", "AGENT_URL": "http://10.0.0.1"}, "AGENT_URL is of one agent"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, why):
    with pytest.raises(BadSetting, match=why):
        processes(Env(settings))
