"""Ports of a machine: no port is given to another instance while an edge may still know it as somebody else's."""

import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from agent.runtimes.ports import HOST, REST_SECONDS, NoPort, Ports
from unkey import clock


@pytest.fixture
def ports(tmp_path: Path, numbers: range) -> Ports:
    return Ports(tmp_path / "ports.json", numbers)


def folder(path: Path, name: str) -> Path:
    made = path / "instances" / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def now() -> float:
    return clock.now_ms() / 1000


def test_a_port_that_was_given_up_rests_until_the_control_plane_was_heard_of_later(
    ports: Ports, numbers: range, tmp_path: Path
) -> None:
    one, two, three, four = (folder(tmp_path, name) for name in ("one", "two", "three", "four"))
    of_one, *others = (ports.take(each, now()) for each in (one, two, three))
    assert {of_one, *others} == set(numbers)
    ports.release(one)
    with pytest.raises(NoPort, match=r"^No port from "):
        ports.take(four, now())
    with clock.shifted(timedelta(seconds=REST_SECONDS + 1)):
        # The control plane is away since: no edge has heard that the instance is gone.
        with pytest.raises(NoPort):
            ports.take(four, now() - REST_SECONDS)
        assert ports.take(four, now()) == of_one


def test_an_instance_that_is_started_again_gets_another_port(ports: Ports, tmp_path: Path) -> None:
    one = folder(tmp_path, "one")
    assert len({ports.take(one, now()) for _ in range(3)}) == 3
    with pytest.raises(NoPort):
        ports.take(one, now())


def test_what_died_unseen_keeps_its_port_and_what_vanished_begins_to_rest(
    ports: Ports, numbers: range, tmp_path: Path
) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    of_one = ports.take(one, now())
    with clock.shifted(timedelta(seconds=REST_SECONDS * 2)):
        assert ports.take(two, now()) != of_one  # nobody listens there, and it is still held
        one.rmdir()
        ports.take(two, now())
        with pytest.raises(NoPort):
            ports.take(two, now())
    with clock.shifted(timedelta(seconds=REST_SECONDS * 4)):
        assert {ports.take(folder(tmp_path, name), now()) for name in "abc"} == set(numbers)


def test_agents_of_one_machine_never_give_out_the_same_port(tmp_path: Path, numbers: range) -> None:
    taken: list[int] = []

    def agent(region: str) -> None:
        taken.append(Ports(tmp_path / "ports.json", numbers).take(folder(tmp_path, region), now()))

    threads = [threading.Thread(target=agent, args=(region,)) for region in ("fra", "iad", "gru")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(numbers)


def test_a_stranger_on_a_port_and_a_damaged_file_are_gone_around(
    ports: Ports, numbers: range, tmp_path: Path
) -> None:
    (tmp_path / "ports.json").write_bytes(b"{")
    with socket.socket() as stranger:
        stranger.bind((HOST, numbers.start))
        stranger.listen()
        one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
        assert {ports.take(one, now()), ports.take(two, now())} == set(numbers[1:])


def test_two_installations_never_give_out_the_same_port(numbers: range, tmp_path: Path) -> None:
    one, other = (Ports(tmp_path / name / "ports.json", numbers) for name in ("one", "other"))
    first, second = folder(tmp_path / "one", "i"), folder(tmp_path / "other", "i")
    # Nobody listens yet: what was started there may take its time.
    assert {one.take(first, now()), other.take(second, now()), one.take(first, now())} == set(numbers)
    # What the first gave up is its own to rest; for another installation it is a port like any other.
    assert other.take(second, now()) in numbers
    one.release(first)
    other.release(second)
    third = Ports(tmp_path / "third" / "ports.json", numbers)
    assert {third.take(folder(tmp_path / "third", name), now()) for name in "abc"} == set(numbers)
