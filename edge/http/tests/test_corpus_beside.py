"""The corpus against nginx and haproxy: how they differ from the edge is what the corpus says."""

import contextlib
import socket

import pytest

from edge.http.tests.corpus import CASES, NEXT, OTHERS, Case, difference
from edge.http.tests.corpus.__main__ import PAGE, page
from edge.http.tests.corpus.beside import running
from edge.http.tests.rig import Client, Origin

_SILENCE = 1.0  # after which the proxy waits for more of a request, surely


def test_the_table_of_differences_is_the_corpuss():
    text = PAGE.read_text()
    assert text == page(text)


def test_each_difference_has_a_reason_and_none_is_about_framing_that_another_refuses():
    for case in CASES.values():
        assert bool(case.why) == bool(case.others), case.name
        if "refuses" in case.others.values():
            # One request, and the one after it: nothing of it can be taken for another one.
            assert case.seen[1:] == (NEXT,), case.name


@pytest.mark.services
@pytest.mark.parametrize("name", OTHERS)
def test_the_corpus_says_how_another_proxy_differs(name, tmp_path):
    origin = Origin()
    try:
        with running(name, tmp_path, origin.address) as port:
            found = {case.name: _play(case, origin, port) for case in CASES.values()}
    finally:
        origin.close()
    assert found == {case.name: case.others.get(name, "") for case in CASES.values()}


def _play(case: Case, origin: Origin, port: int) -> str:
    origin.seen.clear()
    origin.faults.clear()
    client = Client(port)
    client.socket.settimeout(_SILENCE)
    with contextlib.suppress(ConnectionError):
        client.send(case.send)
    try:
        client.rest()
    except TimeoutError:
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            client.rest()
    client.close()
    seen = [f"{each.method} {each.target} {len(each.body)}" for each in origin.seen]
    return difference(case, seen, garbled=bool(origin.faults))
