"""Regions: the own one first, then the nearest that answers; a lost one is left at once and tried with care."""

import socket
import time

import pytest

from edge.frontline.regions import NEAREST, Regions
from edge.frontline.tests.test_frontline import GET, HOST, says
from edge.http.limits import Limits
from edge.http.tests.rig import free_port
from edge.http.upstream import Pool
from edge.store.records import Instance
from unkey.env import BadSetting, Env


@pytest.fixture
def spread(records):
    """Return a function that lets a deployment run at addresses by region."""

    def run(**addresses: str) -> None:
        rows = tuple(
            Instance(f"i_{region}", "d_1", region, address, "running", 1)
            for region, address in addresses.items()
        )
        gone = records.running.get("d_1", ())
        records.running["d_1"] = rows
        records._tell("instances", *(rows or gone))

    records.switch(HOST, "d_1")
    records.guard("d_1")
    return run


def test_own_region_then_the_listed_ones_then_the_others_by_name():
    regions = Regions("fra", {"fra": ("ams", "fra", "iad")})
    assert regions.in_order({"sin", "iad", "fra", "ams", "gru"}) == ["fra", "ams", "iad", "gru", "sin"]
    assert Regions("eu-west-2", {}).in_order(["us-east-1", "eu-central-1", "eu-west-1"]) == [
        "eu-west-1",
        "eu-central-1",
        "us-east-1",
    ]
    assert Regions("eu-west-2", {"eu-west-2": ("us-east-1",)}).in_order(["eu-west-1", "us-east-1"])[0] == (
        "us-east-1"
    )


def test_table_names_each_region_once_and_never_itself():
    for region, others in NEAREST.items():
        assert region not in others
        assert len(set(others)) == len(others)
        assert set(others) < set(NEAREST)


def test_table_is_configurable():
    env = Env({"NEAREST_REGIONS": "fra=ams, iad; iad=fra"})
    assert env.NEAREST_REGIONS == {"fra": ("ams", "iad"), "iad": ("fra",)}
    for text in ("fra", "fra=", "=ams"):
        with pytest.raises(BadSetting, match="NEAREST_REGIONS must be a table like fra=ams,iad;iad=fra"):
            _ = Env({"NEAREST_REGIONS": text}).NEAREST_REGIONS


def test_nearest_region_with_an_instance_answers(rig, frontline, spread):
    near, far, own = (rig.origin(says(name)) for name in ("near", "far", "own"))
    client = rig.client(frontline(nearest={"local": ("iad", "ams")}))
    spread(ams=far.address, iad=near.address)
    assert client.send(GET).answer()[2] == b"near"
    spread(ams=far.address, iad=near.address, local=own.address)
    assert client.send(GET).answer()[2] == b"own"
    spread(ams=far.address)
    assert client.send(GET).answer()[2] == b"far"


def test_lost_region_fails_no_request_and_comes_back(rig, frontline, spread):
    port = free_port()
    own, other = rig.origin(says("own"), port=port), rig.origin(says("other"))
    client = rig.client(frontline())
    spread(local=own.address, iad=other.address)
    assert [client.send(GET).answer()[2] for _ in range(3)] == [b"own"] * 3
    own.close()
    answers = [client.send(GET).answer() for _ in range(20)]
    assert {(status, body) for status, _, body in answers} == {(200, b"other")}
    assert rig.pool.dial_failures == 1  # only the first request found out
    rig.origin(says("own again"), port=port)
    deadline = time.monotonic() + 30
    while (answer := client.send(GET).answer())[2] != b"own again":
        assert (answer[0], answer[2]) == (200, b"other")
        assert time.monotonic() < deadline
    assert [client.send(GET).answer()[2] for _ in range(3)] == [b"own again"] * 3


def test_region_that_is_silent_costs_its_first_requests_the_time_to_connect_and_no_more(
    rig, frontline, spread
):
    rig.pool.limits = Limits(connect_seconds=0.2)
    other = rig.origin(says("other"))
    client = rig.client(frontline())
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = f"127.0.0.1:{full.getsockname()[1]}"
        # A listener whose queue is full takes no further connection.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        spread(local=address, iad=other.address)
        assert {client.send(GET).answer()[2] for _ in range(10)} == {b"other"}
        assert rig.pool.dials <= 2 + 1
        for each in waiting:
            each.close()


def test_only_address_is_tried_although_it_was_down(rig, frontline, spread):
    port = free_port()
    client = rig.client(frontline())
    spread(local=f"127.0.0.1:{port}")
    assert client.send(GET).answer()[0] == 503
    rig.origin(says("own"), port=port)
    assert client.send(GET).answer()[2] == b"own"


def test_address_on_trial_gets_one_request_at_a_time():
    pool = Pool(Limits())
    endpoint = pool.endpoint("10.0.0.1:1")
    endpoint.trial = True
    pool.suspects[endpoint.address] = endpoint
    tiers = (("10.0.0.1:1",), ("10.0.0.2:1",))
    assert pool.choose(tiers) == ("10.0.0.1:1", "10.0.0.2:1")
    endpoint.outstanding = 1
    assert pool.choose(tiers) == ("10.0.0.2:1", "10.0.0.1:1")
    pool.trust(endpoint)
    assert pool.choose(tiers) == ("10.0.0.1:1", "10.0.0.2:1")
