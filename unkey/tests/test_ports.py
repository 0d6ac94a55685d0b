"""Ports: chosen free and distinct; a taken one is named with its setting."""

import ast
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from unkey.env import ROOT
from unkey.ports import EPHEMERAL, PortUnusable, choose, require


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_chosen_ports_are_distinct_usable_and_below_those_of_outgoing_connections() -> None:
    names = [f"PORT_{number}" for number in range(50)]
    chosen = choose("127.0.0.1", names)
    assert list(chosen) == names
    assert len(set(chosen.values())) == 50
    assert max(chosen.values()) < int(EPHEMERAL.read_text().split()[0])
    require("127.0.0.1", chosen)


def test_what_one_process_chose_no_other_chooses() -> None:
    ours = choose("127.0.0.1", ["A", "B"])
    command = (
        "import random, unkey.ports as ports\n"
        f"ours, free = {list(ours.values())}, {choose('127.0.0.1', ['C'])['C'] + 1}\n"
        "random.SystemRandom.sample = lambda self, population, k: [*ours, *range(free, 32_768)]\n"
        "print(ports.choose('127.0.0.1', ['A', 'B']))"
    )
    other = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(ours.values()) & set(ast.literal_eval(other.stdout).values())


def test_a_taken_port_is_named_with_its_setting(taken: int) -> None:
    free = choose("127.0.0.1", ["FEED_PORT"])
    with pytest.raises(PortUnusable) as refused:
        require("127.0.0.1", {**free, "WEB_PORT": taken})
    assert str(refused.value) == (
        f"port {taken} is taken: set WEB_PORT to a free port, or PORTS=auto to have all chosen"
    )


def test_two_settings_must_not_share_a_port() -> None:
    with pytest.raises(PortUnusable, match="WEB_PORT and FEED_PORT are both 21099"):
        require("127.0.0.1", {"WEB_PORT": 21099, "FEED_PORT": 21099})


def test_an_address_of_another_machine_is_named_with_its_setting() -> None:
    with pytest.raises(
        PortUnusable, match=r"cannot listen on 192\.0\.2\.1 \(BIND\), port 21098 \(WEB_PORT\)"
    ):
        require("192.0.2.1", {"WEB_PORT": 21098})
