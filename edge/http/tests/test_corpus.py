"""Every request of the corpus, whole and byte by byte: what is answered, and what reaches the upstream."""

import contextlib
import socket

import pytest

from edge.http.tests.corpus import CASES, Case, statuses
from edge.http.tests.rig import Rig

_LONGEST_BY_BYTES = 1000


@pytest.fixture(scope="module")
def proxy():
    rig = Rig()
    origin = rig.origin()
    yield rig, origin, rig.proxy(origin.address)
    rig.close()


def play(proxy, case: Case, *, by_bytes: bool) -> None:
    rig, origin, server = proxy
    origin.seen.clear()
    origin.faults.clear()
    client = rig.client(server)
    with contextlib.suppress(ConnectionError):  # it may be refused before its end
        if by_bytes:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(len(case.send)):
                client.send(case.send[number : number + 1])
        else:
            client.send(case.send)
        client.socket.shutdown(socket.SHUT_WR)
    answer = client.rest()
    client.close()
    assert statuses(answer) == case.answers
    assert tuple(f"{seen.method} {seen.target} {len(seen.body)}" for seen in origin.seen) == case.seen
    # A body that is broken off, or is no body, is broken off upstream too: nothing else would tell of it.
    assert [fault for fault in origin.faults if "without sending complete" not in fault] == []
    if case.answers[-1] >= 400:
        assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_request_of_the_corpus_is_answered_and_forwarded_as_it_says(proxy, case):
    play(proxy, case, by_bytes=False)
    if len(case.send) < _LONGEST_BY_BYTES:
        play(proxy, case, by_bytes=True)


def test_no_field_of_another_spelling_reaches_the_upstream(proxy):
    rig, origin, server = proxy
    origin.seen.clear()
    spellings = b"X_Unkey_Principal: root\r\nX-Unkey_Principal: root\r\nX_Forwarded_For: 1.2.3.4\r\nContent_Length: 9\r\n"
    client = rig.client(server).send(
        b"GET / HTTP/1.1\r\nHost: a.test\r\n" + spellings + b"Under_score: 1\r\n\r\n"
    )
    assert client.answer()[0] == 200
    names = {name for name, _ in origin.seen[0].headers}
    ours = {"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
    assert names == {"host", "under_score", *ours}
