"""The ipRules policy: ranges of both families, deny before allow."""

import pytest

from edge.sentinel.decision import State, Unsupported
from edge.sentinel.iprules import IpRules
from edge.sentinel.tests.test_engine import Call
from unkey.errors import AddressDenied


def passes(body, peer):
    rules = IpRules(body)
    first, again = (rules.apply(Call(peer=peer), State()) for _ in range(2))
    assert isinstance(first, AddressDenied | None)
    assert type(first) is type(again)
    return first is None


@pytest.mark.parametrize(
    ("body", "peer", "expected"),
    [
        ({"allow": ["192.0.2.0/24"]}, b"192.0.2.7", True),
        ({"allow": ["192.0.2.0/24"]}, b"198.51.100.1", False),
        ({"allow": ["192.0.2.7"]}, b"192.0.2.7", True),
        ({"allow": ["192.0.2.7"]}, b"192.0.2.8", False),
        ({"deny": ["192.0.2.0/24"]}, b"192.0.2.7", False),
        ({"deny": ["192.0.2.0/24"]}, b"198.51.100.1", True),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.128/25"]}, b"192.0.2.200", False),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.128/25"]}, b"192.0.2.100", True),
        ({"allow": ["2001:db8::/32"]}, b"2001:db8::1", True),
        ({"allow": ["2001:db8::/32"]}, b"2001:db9::1", False),
        ({"deny": ["192.0.2.0/24"]}, b"::ffff:192.0.2.7", False),
        ({"allow": ["0.0.0.0/0"]}, b"2001:db8::1", False),
        ({"allow": ["192.0.2.5/24"]}, b"192.0.2.9", True),
        ({"deny": ["192.0.2.0/24"]}, b"no address", False),
        ({"deny": ["192.0.2.0/24"]}, b"", False),
    ],
)
def test_who_may_call(body, peer, expected):
    assert passes(body, peer) is expected


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"allow": []},
        {"allow": ["300.0.0.1"]},
        {"deny": "192.0.2.1"},
        {"deny": [None]},
        {"allow": ["::/129"]},
    ],
)
def test_what_cannot_be_read_is_said(body):
    with pytest.raises(Unsupported):
        IpRules(body)
